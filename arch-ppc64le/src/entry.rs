//! Instructions as bytes: patchable entries, branches, thunks and veneers.
//!
//! Answers to the kernel's `arch/powerpc/kernel/trace/ftrace.c`, without its state: encodings only.
#![deny(unsafe_code)]

use crate::jumps::jumps;
use crate::opcodes::{
    B, BCTR, BL, BRANCH_MASK, LOAD_WORDS, MFLR_R0, MTCTR_R12, MTLR_R0, NOP, STD_R0_16_R1,
    STD_R2_24_R1, TRAP, TWGE_R2_R2, load, loaded, primary, target, word,
};
use klp_core::addr::CodeAddr;
use klp_core::port::{Arch, Code, Entry, Intruder, OutOfReach};

/// The ppc64le processor with the ABI ELFv2: [`Arch`] and
/// [`Relocator`](klp_core::port::Relocator).
///
/// # Two entries
///
/// A function that uses its table of contents has a *global* entry, which works out register 2 from
/// register 12 in two instructions, and behind them a *local* entry, for callers that have the same
/// table (ELFv2 2.3.2.1, "Function Prologue"; the highest three bits of a symbol's `st_other` say
/// how far behind, 3.4.1). A site must lie at or behind the local entry: at the global one, local
/// calls jump past it.
///
/// # Entries that are recognised
///
/// * One or more `nop` at the address looked at, which must be at or behind the local entry. GCC
///   13 and later with `-fpatchable-function-entry=N` puts them there and records the first one.
///   Earlier ones put them at the global entry, before the two instructions: that is no entry here
///   (where a function has only one, all versions of GCC do the same, and it is right). With `=N,M`
///   GCC records the first of the `M` that it has put between the two entries: the host must look
///   for the pad at the local entry instead.
/// * `mflr r0; nop` and `mflr r0; std r0,16(r1); nop`, at the local entry or behind the two
///   instructions of the global one: what `-mprofile-kernel` becomes when the kernel has taken the
///   call out.
/// * The same with a `bl` in place of the `nop`: `-mprofile-kernel` as compiled.
/// * The seven instructions that LLVM 19 has for a pad of any size, rustc's too, behind the two of
///   the global entry: a branch over a call of `__xray_FunctionEntry`, which the program must
///   define. LLVM records the global entry.
///
/// The first `nop` becomes a branch, or the branch another one. Both are of the instructions that
/// may be exchanged, one aligned word, while others execute it (Power ISA, book II, 1.8,
/// "Concurrent Modification and Execution of Instructions": the patch class is `b`, `bl` and this
/// `nop`).
///
/// Where there is a `bl`, it might be the function's own (`bl _savegpr0_29`), so it stays, and
/// `mflr r0` becomes a branch: what goes on behind it has the link register in `r0`, for which the
/// entry stub provides. A `mflr` is not of the patch class; that words are fetched whole is what
/// everybody counts on who sets breakpoints.
///
/// # Registers
///
/// A thunk brings its argument in `r0`. `r0`, `r12` and `ctr` are free at a function's local entry
/// (ELFv2 2.2.2.1, "Register Roles"); `r11` may be a nested
/// function's environment. Whoever is entered by a veneer finds its own address in `r12`, as a
/// global entry asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ppc64Le;

/// Bytes of an instruction.
const WORD: usize = 4;
/// Bytes of a jump.
const JUMP_LEN: u8 = 4;
/// Bytes of the two instructions of a global entry.
const TOC_SETUP: usize = 2 * WORD;
/// Words of a [`veneer`](Arch::veneer).
pub(crate) const VENEER_WORDS: usize = LOAD_WORDS + 2;

// SAFETY: encodings as the Power ISA has them; what is not understood counts as a jump to anywhere.
#[allow(unsafe_code, reason = "an unsafe trait; all within is safe")]
unsafe impl Arch for Ppc64Le {
    /// As many `nop`s as a pad is looked for in.
    const MAX_ENTRY: usize = 128;

    const SLOT: u64 = 64;

    /// ±32 MiB (`b`, Power ISA 2.4), less what an instruction around a field takes.
    const REACH: u64 = (1 << 25) - 16;

    /// A function may be entered at its global entry only with its address in `r12`: at the local
    /// one, it would count on register 2, which is another object's if the patched function has no
    /// local entry, and was called from there.
    const JUMP_ENTERS: bool = false;

    /// A word of zeros is guaranteed to be illegal for ever (Power ISA, "Illegal Instruction
    /// Class").
    const FILL: u8 = 0;

    fn entry(_at: CodeAddr, bytes: &[u8]) -> Option<Entry> {
        let bytes = bytes.get(..Self::MAX_ENTRY).unwrap_or(bytes);
        let (skip, resume) = match nops(bytes) {
            0 => profiled(bytes)?,
            nops => {
                let behind = bytes.get(nops..)?;
                // A global entry behind them, or perhaps behind those that are out of sight.
                if nops == Self::MAX_ENTRY || is_toc_setup(behind) {
                    return None;
                }
                (0, nops)
            }
        };
        // All of them are at most MAX_ENTRY.
        Some(Entry {
            skip: skip as u8,
            len: JUMP_LEN,
            resume: resume as u8,
            split: false,
        })
    }

    /// Looks behind what entries begin with. A branch through a register does not tell where it
    /// leads, but for the form of [`veneer`](Arch::veneer).
    fn intruder(at: CodeAddr, bytes: &[u8]) -> Option<Intruder> {
        let mut code = bytes;
        if is_toc_setup(code) {
            code = code.get(TOC_SETUP..)?;
        }
        if is_sled(code) {
            return None;
        }
        let mut profiled = false;
        while let Some(NOP | MFLR_R0 | STD_R0_16_R1) = word(code) {
            profiled |= word(code) == Some(MFLR_R0);
            code = code.get(WORD..)?;
        }
        let at = at.wrapping_add((bytes.len() - code.len()) as u64);
        let first = word(code)?;
        if let TRAP | TWGE_R2_R2 = first {
            return Some(Intruder::Breakpoint { at });
        }
        let is_branch = primary(first) == primary(B);
        if is_branch && first & 1 != 0 {
            // Behind `mflr r0` it is the compiler's own.
            return (!profiled).then(|| Intruder::Call {
                at,
                to: target(at, first, 26),
            });
        }
        let to = if is_branch {
            Some(target(at, first, 26))
        } else {
            Some(veneer(code)?)
        };
        Some(Intruder::Jump { at, to })
    }

    /// No jump is shorter than four bytes; behind it, what [`FILL`](Arch::FILL) makes.
    fn jump(at: CodeAddr, to: CodeAddr, len: u8) -> Result<Code, OutOfReach> {
        let out_of_reach = OutOfReach { from: at, to };
        let distance = at.distance_to(to);
        let fits = distance % 4 == 0 && (-(1 << 25)..1 << 25).contains(&distance);
        if !fits || len < JUMP_LEN {
            return Err(out_of_reach);
        }
        // The lowest 26 bits of a distance that fits.
        let word = B | distance as u32 & !BRANCH_MASK;
        let mut code = Code::new();
        code.extend_from_slice(&word.to_le_bytes())
            .map_err(|()| out_of_reach)?;
        code.resize(len.into(), Self::FILL)
            .map_err(|()| out_of_reach)?;
        Ok(code)
    }

    /// The argument into `r0`, five instructions; then as [`veneer`](Arch::veneer). 48 bytes.
    fn thunk(_at: CodeAddr, arg: u64, stub: CodeAddr) -> Code {
        code(&load(0, arg)).chain(code(&go_to(stub))).collect()
    }

    /// The address into `r12`, five instructions; `mtctr r12`, `bctr`. 28 bytes.
    fn veneer(_at: CodeAddr, to: CodeAddr) -> Code {
        code(&go_to(to)).collect()
    }

    /// `std r2,24(r1)`, where a caller's frame has room for that (ELFv2 2.2.3.2, the "TOC pointer
    /// doubleword"), then as [`veneer`](Arch::veneer). 32 bytes. What restores it stands behind the
    /// call.
    fn call_veneer(_at: CodeAddr, to: CodeAddr) -> Code {
        code(&[STD_R2_24_R1]).chain(code(&go_to(to))).collect()
    }

    /// Decodes one word after the other. Beside branches through registers, `None` stands for
    /// returns to an address that was not saved, returns of the system, and words of the group of
    /// branches that are not known. A [`veneer`](Arch::veneer) tells where it leads.
    fn jumps(at: CodeAddr, code: &[u8], each: &mut dyn FnMut(Option<CodeAddr>)) {
        jumps(at, code, each);
    }
}

/// Goes to `to`, with its address in `r12`.
fn go_to(to: CodeAddr) -> [u32; VENEER_WORDS] {
    let [a, b, c, d, e] = load(12, to.get());
    [a, b, c, d, e, MTCTR_R12, BCTR]
}

/// Where the veneer leads that `code` begins with.
pub(crate) fn veneer(code: &[u8]) -> Option<CodeAddr> {
    let to = loaded(12, code)?;
    let behind = code.get(WORD * LOAD_WORDS..)?;
    let goes = word(behind) == Some(MTCTR_R12) && word(behind.get(WORD..)?) == Some(BCTR);
    goes.then_some(CodeAddr::new(to))
}

/// Bytes of `nop`s that `bytes` begins with.
fn nops(bytes: &[u8]) -> usize {
    let words = bytes.chunks_exact(WORD);
    words.take_while(|bytes| word(bytes) == Some(NOP)).count() * WORD
}

/// What an entry of `-mprofile-kernel` or LLVM's has for [`Entry::skip`] and [`Entry::resume`].
fn profiled(bytes: &[u8]) -> Option<(usize, usize)> {
    let start = if is_toc_setup(bytes) { TOC_SETUP } else { 0 };
    if is_sled(bytes.get(start..)?) {
        return Some((start, SLED.len() * WORD));
    }
    if word(bytes.get(start..)?)? != MFLR_R0 {
        return None;
    }
    let mut next = start + WORD;
    if word(bytes.get(next..)?)? == STD_R0_16_R1 {
        next += WORD;
    }
    let code = bytes.get(next..)?;
    match word(code)? {
        NOP => Some((next, nops(code))),
        call if call & BRANCH_MASK == BL => Some((start, WORD)),
        _ => None,
    }
}

/// Whether `code` begins with the two instructions of a global entry (ELFv2 2.3.2.1): `addis
/// r2,r12,…; addi r2,r2,…`, with `lis r2,…` as linkers make of the first one in an executable that
/// is not moved, or, in the large code model, `ld r2,-8(r12); add r2,r2,r12`.
fn is_toc_setup(code: &[u8]) -> bool {
    let second = code.get(WORD..).and_then(word);
    let (Some(first), Some(second)) = (word(code), second) else {
        return false;
    };
    match first >> 16 {
        // addis r2,r12 and lis r2; addi r2,r2
        0x3c4c | 0x3c40 => second >> 16 == 0x3842,
        _ => first == 0xe84c_fff8 && second == 0x7c42_6214,
    }
}

/// LLVM's pad, but for where its call leads.
const SLED: [u32; 7] = [
    B | 28,
    NOP,
    0xf801_fff8, // std r0,-8(r1)
    MFLR_R0,
    BL,
    NOP,
    MTLR_R0,
];

fn is_sled(code: &[u8]) -> bool {
    let words = code.chunks_exact(WORD).filter_map(word);
    let is = |(found, word): (u32, u32)| match word {
        BL => found & BRANCH_MASK == BL,
        _ => found == word,
    };
    words.clone().count() >= SLED.len() && words.zip(SLED).all(is)
}

fn code(words: &[u32]) -> impl Iterator<Item = u8> {
    words.iter().flat_map(|word| word.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use klp_arch_tests::code::{self, bytes};

    /// `addis r2,r12,2; addi r2,r2,32512`
    const TOC: [u32; 2] = [0x3c4c_0002, 0x3842_7f00];
    /// `bl .+0x100`
    const CALL: u32 = 0x4800_0101;
    /// `addi r3,r3,1; blr`
    const BODY: [u32; 2] = [0x3863_0001, 0x4e80_0020];

    #[test]
    fn conforms() {
        let entries = [
            bytes(&[NOP]),
            bytes(&[NOP; 2]),
            bytes(&[NOP; 15]),
            bytes(&[MFLR_R0, NOP]),
            bytes(&[MFLR_R0, STD_R0_16_R1, NOP]),
            bytes(&[MFLR_R0, CALL]),
            bytes(&[MFLR_R0, STD_R0_16_R1, CALL]),
            bytes(&[TOC[0], TOC[1], MFLR_R0, NOP]),
            bytes(&[TOC[0], TOC[1], MFLR_R0, CALL]),
            bytes(&[TOC[0], TOC[1], MFLR_R0, STD_R0_16_R1, CALL]),
            bytes(&SLED),
            bytes(&[&TOC[..], &SLED].concat()),
        ];
        let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
        for breakpoint in [TRAP, TWGE_R2_R2] {
            klp_core::conformance::arch::check::<Ppc64Le>(&entries, &breakpoint.to_le_bytes());
        }
    }

    fn entry(words: &[u32]) -> Option<Entry> {
        Ppc64Le::entry(CodeAddr::new(0x1000_1000), &bytes(words))
    }

    fn pad(skip: u8, resume: u8) -> Option<Entry> {
        Some(Entry {
            skip,
            len: 4,
            resume,
            split: false,
        })
    }

    /// As GCC 12 and 14 and objdump have them, `-O2`, from the address that is recorded on.
    #[test]
    fn pads_for_patching() {
        // GCC 14, =2: mflr r0; std r0,16(r1) is the function's own.
        assert_eq!(entry(&[NOP, NOP, MFLR_R0, STD_R0_16_R1]), pad(0, 8));
        // Both, =2: a leaf that uses no table of contents, and one for Power10.
        assert_eq!(entry(&[NOP, NOP, BODY[0], BODY[1]]), pad(0, 8));
        assert_eq!(entry(&[NOP, NOP, 0x0610_0000, 0x8120_0000]), pad(0, 8));
        // GCC 12, =2: at the global entry, where no local call comes by.
        assert_eq!(entry(&[NOP, NOP, TOC[0], TOC[1], MFLR_R0]), None);
        assert_eq!(entry(&[NOP, NOP, 0x3c40_1002, TOC[1], MFLR_R0]), None);
        assert_eq!(entry(&[NOP, 0xe84c_fff8, 0x7c42_6214]), None);
        // The local entry of a function with a pad is not known at its global one.
        assert_eq!(entry(&[TOC[0], TOC[1], NOP, NOP, BODY[0]]), None);
        assert_eq!(entry(&BODY), None);
    }

    /// As GCC 12 has them with `-pg -mprofile-kernel`, from the start of the function on.
    #[test]
    fn entries_for_profilers() {
        assert_eq!(entry(&[MFLR_R0, CALL, BODY[0]]), pad(0, 4));
        assert_eq!(
            entry(&[TOC[0], TOC[1], MFLR_R0, CALL, MFLR_R0, STD_R0_16_R1]),
            pad(8, 4)
        );
        // lis r2: a linked executable.
        assert_eq!(
            entry(&[0x3c40_1002, TOC[1], MFLR_R0, CALL, MFLR_R0]),
            pad(8, 4)
        );
        // As the kernel leaves them, seen from the function's start and from where it records them.
        assert_eq!(entry(&[TOC[0], TOC[1], MFLR_R0, NOP, MFLR_R0]), pad(12, 4));
        assert_eq!(entry(&[NOP, MFLR_R0, STD_R0_16_R1]), pad(0, 4));
        assert_eq!(entry(&[MFLR_R0, STD_R0_16_R1, NOP, BODY[0]]), pad(8, 4));
        // An ordinary function that calls others.
        assert_eq!(entry(&[TOC[0], TOC[1], MFLR_R0, STD_R0_16_R1]), None);
        assert_eq!(entry(&[MFLR_R0, STD_R0_16_R1, 0xf821_ffe1]), None);
        assert_eq!(entry(&[MFLR_R0, 0x4800_0100]), None, "b");
    }

    /// As rustc 1.85 has them with `-Zpatchable-function-entry=2`, from where it records them on.
    #[test]
    fn llvms_pads() {
        let sled = [
            0x4800_001c, // b .+28
            0x6000_0000, // nop
            0xf801_fff8, // std r0,-8(r1)
            0x7c08_02a6, // mflr r0
            0x4800_0001, // bl __xray_FunctionEntry
            0x6000_0000, // nop
            0x7c08_03a6, // mtlr r0
        ];
        assert_eq!(entry(&[&sled[..], &BODY].concat()), pad(0, 28));
        assert_eq!(entry(&[&TOC[..], &sled, &BODY].concat()), pad(8, 28));
        for index in 0..sled.len() {
            let mut other = sled;
            other[index] ^= 4;
            let found = entry(&other);
            // Another distance of its call is none.
            assert_eq!(found.is_some(), index == 4, "{other:x?}");
        }
        let linked = [&sled[..4], &[0x4bff_ff01], &sled[5..]].concat();
        assert_eq!(entry(&linked), pad(0, 28));
    }

    #[test]
    fn the_end_of_a_pad_must_be_in_sight() {
        assert_eq!(entry(&[NOP; 31]), pad(0, 124));
        assert_eq!(entry(&[NOP; 32]), None);
        assert_eq!(entry(&[NOP; 100]), None);
    }

    #[test]
    fn intruders_are_recognised() {
        let at = CodeAddr::new(0x1000_1000);
        let found = |words: &[u32]| Ppc64Le::intruder(at, &bytes(words));
        let at_offset = |offset| at.wrapping_add(offset);
        let jump = |offset, to| {
            Some(Intruder::Jump {
                at: at_offset(offset),
                to: Some(CodeAddr::new(to)),
            })
        };
        assert_eq!(found(&[TRAP, NOP]), Some(Intruder::Breakpoint { at }));
        let behind = |offset| {
            Some(Intruder::Breakpoint {
                at: at_offset(offset),
            })
        };
        assert_eq!(found(&[NOP, TWGE_R2_R2]), behind(4));
        assert_eq!(found(&[TOC[0], TOC[1], MFLR_R0, TRAP]), behind(12));
        assert_eq!(found(&[0x4bff_fffc]), jump(0, 0x1000_0ffc));
        assert_eq!(found(&[MFLR_R0, 0x4800_0010]), jump(4, 0x1000_1014));
        assert_eq!(found(&[0x4800_1002]), jump(0, 0x1000), "ba 0x1000");
        let call = Intruder::Call {
            at,
            to: CodeAddr::new(0x1000_1100),
        };
        assert_eq!(found(&[CALL]), Some(call), "ftrace's, where it is recorded");
        let veneer = Ppc64Le::veneer(at, CodeAddr::new(0x1122_3344_5566_7788));
        assert_eq!(
            Ppc64Le::intruder(at, &veneer),
            jump(0, 0x1122_3344_5566_7788)
        );
        let nothing = [
            &[][..],
            &[NOP; 4],
            &TOC,
            &BODY,
            &[MFLR_R0, CALL],
            &[BCTR],
            // bclr, which is of branches' group, too
            &[0x4e80_0020],
        ];
        for nothing in nothing {
            assert_eq!(found(nothing), None, "{nothing:x?}");
        }
    }

    /// As GNU as has them.
    #[test]
    fn encodings_are_the_assemblers() {
        let at = CodeAddr::new(0x1000_1000);
        let jump = |to| {
            let code = Ppc64Le::jump(at, CodeAddr::new(to), 4).expect("in reach");
            word(&code)
        };
        assert_eq!(jump(0x1000_1010), Some(0x4800_0010));
        assert_eq!(jump(0x1000_0ffc), Some(0x4bff_fffc));
        assert_eq!(jump(0x1200_0ffc), Some(0x49ff_fffc));
        assert_eq!(jump(0x0e00_1000), Some(0x4a00_0000));
        let far = CodeAddr::new(0x1122_3344_5566_7788);
        let veneer = [
            0x3d80_1122, // lis r12,0x1122
            0x618c_3344, // ori r12,r12,0x3344
            0x798c_07c6, // sldi r12,r12,32
            0x658c_5566, // oris r12,r12,0x5566
            0x618c_7788, // ori r12,r12,0x7788
            0x7d89_03a6, // mtctr r12
            0x4e80_0420, // bctr
        ];
        assert_eq!(Ppc64Le::veneer(at, far).to_vec(), bytes(&veneer));
        let arg = [
            0x3c00_99aa, // lis r0,-0x6656
            0x6000_bbcc, // ori r0,r0,0xbbcc
            0x7800_07c6, // sldi r0,r0,32
            0x6400_ddee, // oris r0,r0,0xddee
            0x6000_ff01, // ori r0,r0,0xff01
        ];
        assert_eq!(
            Ppc64Le::thunk(at, 0x99aa_bbcc_ddee_ff01, far).to_vec(),
            [bytes(&arg), bytes(&veneer)].concat()
        );
    }

    #[test]
    fn the_edges_of_reach() {
        code::the_edges_of_reach::<Ppc64Le>(4, (1 << 25) - 4, 1 << 25, 4);
    }
}
