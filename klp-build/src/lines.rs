//! Functions that differ in nothing but the numbers of their lines.
//!
//! Macros of the kernel hand the name of the source file and the number of the line to a function
//! (`__might_sleep(__FILE__, __LINE__)`), so code changes when a line is added anywhere above.
//!
//! The number of a line is an argument right behind the name of its file. So an instruction may
//! load another number if it loads it into the register of an argument, another one loads the name
//! of a source file into the register of the argument in front of that, and nothing but the call
//! follows: no branch, through which the number might come to be used otherwise. Whatever differs
//! and does not look like this is a change.

use crate::calls;
use crate::compare::{Pair, Place, place};
use crate::texts::is_file_name;
use crate::unit::{Referent, Reloc, Unit};
use object::elf;
use yaxpeax_arch::LengthedInstruction;
use yaxpeax_x86::long_mode::InstDecoder;

/// Functions that take the number of a line behind the name of the function that it is in.
const CALLEES: [&str; 6] = [
    "__btrfs_abort_transaction",
    "__btrfs_handle_fs_error",
    "__btrfs_panic",
    "__ext4_error",
    "__ext4_std_error",
    "__ext4_error_inode",
];

/// The most that is believed to be the number of a line.
const MOST: u64 = 1 << 20;

/// Whether function `patched` is what `original` was, but for the lines that it is in.
pub(crate) fn are_all_that_differs(pair: &Pair, original: usize, patched: usize) -> bool {
    let (Some(before), Some(after)) = (
        place(&pair.original, original),
        place(&pair.patched, patched),
    ) else {
        return false;
    };
    if before.len != after.len || !pair.same_relocs(before, after) {
        return false;
    }
    let (old, new) = (
        pair.original.sections[before.section].bytes_in(before.start, before.len),
        pair.patched.sections[after.section].bytes_in(after.start, after.len),
    );
    if old.len() != new.len() {
        return false;
    }
    let mut at = 0;
    while let Some(differs) = (at..new.len()).find(|at| old[*at] != new[*at]) {
        // The whole field differs, or some of its bytes.
        let machine = pair.patched.header.machine;
        let field = fields_around(machine, differs).find(|field| {
            let number = |bytes: &[u8]| loaded(machine, bytes, *field);
            matches!((number(old), number(new)), (Some(old), Some(new)) if old.max(new) < MOST)
                && is_line(&pair.patched, after, *field)
        });
        match field {
            Some(field) => at = field + FIELD,
            None => return false,
        }
    }
    true
}

/// Bytes of a number in an instruction, or, where all have the same size, of an instruction.
const FIELD: usize = 4;

/// Where the field can begin that has a byte at `at`.
fn fields_around(machine: elf::Machine, at: usize) -> impl Iterator<Item = usize> {
    let step = if machine == elf::EM_X86_64 { 1 } else { FIELD };
    let first = at.saturating_sub(FIELD - 1).next_multiple_of(step);
    (first..=at).step_by(step)
}

/// The number that the instruction with the field at `field` loads into a register, if it does
/// nothing else.
fn loaded(machine: elf::Machine, code: &[u8], field: usize) -> Option<u64> {
    let word = word(code, field)?;
    let number = match machine {
        // mov $number, %register: of 32 bits, or of 64.
        elf::EM_X86_64 => {
            let short = code.get(field.checked_sub(1)?);
            let long = field.checked_sub(3).and_then(|at| code.get(at..field));
            let is_load = matches!(short, Some(0xb8..=0xbf))
                || matches!(long, Some([0x48 | 0x49, 0xc7, 0xc0..=0xc7]));
            is_load.then_some(word)?
        }
        // movz wN, #number.
        elf::EM_AARCH64 => (word & 0xffe0_0000 == 0x5280_0000).then_some((word >> 5) & 0xffff)?,
        // li N, number.
        elf::EM_PPC64 => (word & 0xfc1f_8000 == 0x3800_0000).then_some(word & 0x7fff)?,
        _ => return None,
    };
    Some(number.into())
}

fn word(code: &[u8], at: usize) -> Option<u32> {
    let bytes = code.get(at..at.checked_add(FIELD)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Which argument of a call it is that the instruction with the field at `field` computes.
fn argument(machine: elf::Machine, code: &[u8], field: usize) -> Option<usize> {
    // The registers of arguments, in their order (psABI, "Parameter Passing").
    const X86_64: [u8; 6] = [7, 6, 2, 1, 8, 9];
    match machine {
        elf::EM_X86_64 => {
            let before = code.get(field.saturating_sub(3)..field)?;
            let register = match *before {
                [.., rex, byte @ 0xb8..=0xbf] => (byte - 0xb8) | (u8::from(rex == 0x41) << 3),
                [rex @ (0x48 | 0x49), 0xc7, byte @ 0xc0..=0xc7] => (byte - 0xc0) | ((rex & 1) << 3),
                // lea NAME(%rip), %register.
                [rex @ (0x48 | 0x4c), 0x8d, byte] if byte & 0xc7 == 5 => {
                    (byte >> 3) | ((rex & 4) << 1)
                }
                _ => return None,
            };
            X86_64.iter().position(|each| *each == register)
        }
        elf::EM_AARCH64 => {
            let register = word(code, field & !(FIELD - 1))? & 0x1f;
            usize::try_from(register)
                .ok()
                .filter(|register| *register < 8)
        }
        elf::EM_PPC64 => {
            let word = word(code, field & !(FIELD - 1))?;
            // Of a load, and of addi and the like.
            let register = (word >> 21) & 0x1f;
            let first = usize::try_from(register).ok()?.checked_sub(3);
            first.filter(|argument| *argument < 8)
        }
        _ => None,
    }
}

/// Whether the call behind the field at `field` of `function` takes the number there as that of a
/// line.
fn is_line(unit: &Unit, function: Place, field: usize) -> bool {
    let machine = unit.header.machine;
    let section = &unit.sections[function.section];
    let code = section.bytes_in(function.start, function.len);
    let relocs = section.relocs_in(function.start, function.len);
    let at = |reloc: &Reloc| usize::try_from(reloc.at - function.start).unwrap_or(usize::MAX);
    let is_call = |reloc: &Reloc| calls::is_call(machine, section, reloc);
    let behind = relocs.partition_point(|reloc| at(reloc) < field);
    let (before, after) = relocs.split_at(behind);
    let Some(call) = after.iter().position(is_call) else {
        return false;
    };
    let Some(number) = argument(machine, code, field) else {
        return false;
    };
    let since = before.iter().rposition(is_call).map_or(0, |last| last + 1);
    let callee = match unit.referent(&after[call]) {
        Referent::Named { symbol, .. } => &*unit.symbols[symbol].name,
        Referent::Nameless { .. } | Referent::Nothing => "",
    };
    let is_function_name = |reloc: &Reloc| match unit.final_referent(reloc) {
        Referent::Named { symbol, .. } => unit.symbols[symbol].name.starts_with("__func__"),
        Referent::Nameless { .. } | Referent::Nothing => false,
    };
    let names_place = |reloc: &&Reloc| {
        let field_of_name = at(reloc);
        let from = field_of_name.min(field) + FIELD;
        argument(machine, code, field_of_name).map(|name| name + 1) == Some(number)
            && (is_file_name(unit, reloc) || CALLEES.contains(&callee) && is_function_name(reloc))
            && is_straight(machine, code, from, at(&after[call]))
    };
    let mut others = before[since..].iter().chain(&after[..call]);
    others.any(|reloc| names_place(&reloc))
}

/// Whether the code from `from` on reaches the call with the field at `call`, and goes nowhere
/// else.
fn is_straight(machine: elf::Machine, code: &[u8], mut from: usize, call: usize) -> bool {
    if machine != elf::EM_X86_64 {
        let from = from & !(FIELD - 1);
        let mut words = (from..call & !(FIELD - 1)).step_by(FIELD);
        return words.all(|at| word(code, at).is_some_and(|word| !is_branch(machine, word)));
    }
    let decoder = InstDecoder::default();
    while from < call.saturating_sub(1) {
        let rest = code.get(from..).unwrap_or_default();
        let Ok(instruction) = decoder.decode_slice(rest) else {
            return false;
        };
        let goes_on = !matches!(
            rest,
            [0x70..=0x7f | 0xc2 | 0xc3 | 0xe0..=0xe3 | 0xe8 | 0xe9 | 0xeb | 0xff, ..]
                | [0x0f, 0x80..=0x8f | 0x0b, ..]
        );
        let len = usize::try_from(instruction.len().to_const()).unwrap_or(0);
        if !goes_on || len == 0 {
            return false;
        }
        from += len;
    }
    // The call's own field comes next.
    from == call.saturating_sub(1)
}

/// Whether an instruction of aarch64 or ppc64 may go on elsewhere.
fn is_branch(machine: elf::Machine, word: u32) -> bool {
    match machine {
        // "Branches, Exception Generating and System instructions" but for hints, and all others.
        elf::EM_AARCH64 => word & 0x1c00_0000 == 0x1400_0000 && word & 0xffff_f01f != 0xd503_201f,
        // bc, b, and bclr and the like.
        elf::EM_PPC64 => matches!(word >> 26, 16 | 18 | 19),
        _ => true,
    }
}
