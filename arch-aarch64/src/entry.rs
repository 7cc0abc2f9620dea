//! Instructions as bytes: patchable entries, branches, thunks and veneers.
//!
//! Answers to the kernel's `arch/arm64/kernel/ftrace.c`, without its state: encodings only.
#![deny(unsafe_code)]

use crate::jumps::jumps;
use crate::opcodes::{
    B, BL, BR_X16, BRK, BRK_MASK, BTI, BTI_MASK, IMM26_MASK, LDR_X16_8, LDR_X17_24, NOP, target,
    word,
};
use klp_core::addr::CodeAddr;
use klp_core::port::{Arch, Code, Entry, Intruder, OutOfReach};

/// The AArch64 processor: [`Arch`] and [`Relocator`](klp_core::port::Relocator).
///
/// # Entries that are recognised
///
/// One or more `nop` (GCC and clang `-fpatchable-function-entry=N`, also with `=N,M`, whose `M` in
/// front of the entry are left alone), at the address looked at or behind a `bti` there, which
/// stays: who comes through a pointer must find it.
///
/// The first `nop` becomes a branch. Both are single instructions of one aligned word, which the
/// architecture lets be exchanged while other processors execute it (Arm ARM, B2.2.5, "Concurrent
/// modification and execution of instructions": `b` and `nop` are on its list).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AArch64;

/// Bytes of an instruction.
const WORD: usize = 4;
/// Bytes of a jump.
const JUMP_LEN: u8 = 4;

// SAFETY: encodings as the Arm ARM has them; what is not understood counts as a jump to anywhere.
#[allow(unsafe_code, reason = "an unsafe trait; all within is safe")]
unsafe impl Arch for AArch64 {
    /// A `bti`, and as many `nop`s as a pad is looked for in.
    const MAX_ENTRY: usize = 64;

    const SLOT: u64 = 32;

    /// ±128 MiB (`b`, Arm ARM C6.2), less what an instruction around a field takes.
    const REACH: u64 = (1 << 27) - 16;

    /// Four of them are `udf #0`, which is never defined.
    const FILL: u8 = 0;

    fn entry(_at: CodeAddr, bytes: &[u8]) -> Option<Entry> {
        let bytes = bytes.get(..Self::MAX_ENTRY).unwrap_or(bytes);
        let skip = landing_pad(bytes);
        let words = bytes.get(skip..)?.chunks_exact(WORD);
        let nops = words.take_while(|bytes| word(bytes) == Some(NOP)).count();
        // All of them are at most MAX_ENTRY.
        (nops > 0).then_some(Entry {
            skip: skip as u8,
            len: JUMP_LEN,
            resume: (nops * WORD) as u8,
            split: false,
        })
    }

    /// Looks behind a `bti` and `nop`s. A veneer or a jump through a register does not tell where it
    /// leads, but for the form of [`veneer`](Arch::veneer).
    fn intruder(at: CodeAddr, bytes: &[u8]) -> Option<Intruder> {
        let mut code = bytes.get(landing_pad(bytes)..)?;
        while word(code) == Some(NOP) {
            code = code.get(WORD..)?;
        }
        let at = at.wrapping_add((bytes.len() - code.len()) as u64);
        let first = word(code)?;
        if first & BRK_MASK == BRK {
            return Some(Intruder::Breakpoint { at });
        }
        if first & IMM26_MASK == BL {
            return Some(Intruder::Call {
                at,
                to: target(at, first, 26),
            });
        }
        let to = if first & IMM26_MASK == B {
            Some(target(at, first, 26))
        } else {
            Some(crate::jumps::veneer(code)?)
        };
        Some(Intruder::Jump { at, to })
    }

    /// No jump is shorter than four bytes; behind it, what [`FILL`](Arch::FILL) makes.
    fn jump(at: CodeAddr, to: CodeAddr, len: u8) -> Result<Code, OutOfReach> {
        let out_of_reach = OutOfReach { from: at, to };
        let distance = at.distance_to(to);
        let fits = distance % 4 == 0 && (-(1 << 27)..1 << 27).contains(&distance);
        if !fits || len < JUMP_LEN {
            return Err(out_of_reach);
        }
        // The lowest 26 bits of a number of words that fits.
        let word = B | (distance / 4) as u32 & !IMM26_MASK;
        let mut code = Code::new();
        code.extend_from_slice(&word.to_le_bytes())
            .map_err(|()| out_of_reach)?;
        code.resize(len.into(), Self::FILL)
            .map_err(|()| out_of_reach)?;
        Ok(code)
    }

    /// `ldr x17, .+24`, `nop`, then as [`veneer`](Arch::veneer), and the argument; 32 bytes.
    ///
    /// `x16` and `x17` are free at a function's entry (AAPCS64 6.1.1: "IP0" and "IP1", for veneers),
    /// and a branch through them may go to a `bti c`.
    fn thunk(_at: CodeAddr, arg: u64, stub: CodeAddr) -> Code {
        code(&[LDR_X17_24, NOP, LDR_X16_8, BR_X16], &[stub.get(), arg])
    }

    /// `ldr x16, .+8`, `br x16` and the address; 16 bytes.
    fn veneer(_at: CodeAddr, to: CodeAddr) -> Code {
        code(&[LDR_X16_8, BR_X16], &[to.get()])
    }

    /// Decodes one word after the other. Beside branches to registers, `None` stands for returns
    /// behind a move of another register to `x30`, or to an address in another register, and
    /// for words of the group of branches that are not known. A [`veneer`](Arch::veneer) tells where
    /// it leads.
    fn jumps(at: CodeAddr, code: &[u8], each: &mut dyn FnMut(Option<CodeAddr>)) {
        jumps(at, code, each);
    }
}

/// Bytes of the `bti` that `bytes` begins with: 0 if there is none.
fn landing_pad(bytes: &[u8]) -> usize {
    match word(bytes) {
        Some(word) if word & BTI_MASK == BTI => WORD,
        _ => 0,
    }
}

fn code(words: &[u32], quads: &[u64]) -> Code {
    let words = words.iter().flat_map(|word| word.to_le_bytes());
    let quads = quads.iter().flat_map(|quad| quad.to_le_bytes());
    words.chain(quads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use klp_arch_tests::code::{self, bytes};

    /// `brk #0`.
    const BREAKPOINT: u32 = BRK;
    const BTI_C: u32 = 0xd503_245f;
    /// `mov w0, w1; ret`
    const BODY: [u32; 2] = [0x2a01_03e0, 0xd65f_03c0];

    #[test]
    fn conforms() {
        let entries = [
            bytes(&[NOP]),
            bytes(&[NOP; 2]),
            bytes(&[NOP; 16]),
            bytes(&[BTI_C, NOP]),
            bytes(&[BTI_C, NOP, NOP]),
        ];
        let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
        klp_core::conformance::arch::check::<AArch64>(&entries, &BREAKPOINT.to_le_bytes());
    }

    fn entry(words: &[u32]) -> Option<Entry> {
        AArch64::entry(CodeAddr::new(0x40_1000), &bytes(words))
    }

    #[test]
    fn what_compilers_emit_is_recognised() {
        let pad = |skip, resume| {
            Some(Entry {
                skip,
                len: 4,
                resume,
                split: false,
            })
        };
        // gcc -fpatchable-function-entry=2, and with -mbranch-protection=bti, pac-ret, standard.
        assert_eq!(entry(&[NOP, NOP, BODY[0], BODY[1]]), pad(0, 8));
        assert_eq!(entry(&[BTI_C, NOP, NOP, BODY[0]]), pad(4, 8));
        assert_eq!(entry(&[NOP, NOP, 0xd503_233f]), pad(0, 8));
        assert_eq!(entry(&[BTI_C, NOP, NOP, 0xd503_233f]), pad(4, 8));
        // The kernel's, recorded at the first of two in front of the entry: four in a row.
        assert_eq!(entry(&[NOP; 4]), pad(0, 16));
        assert_eq!(entry(&BODY), None);
        assert_eq!(
            entry(&[0xd503_233f, NOP]),
            None,
            "paciasp is the function's own"
        );
        assert_eq!(entry(&[BTI_C, BODY[0]]), None);
    }

    #[test]
    fn a_long_pad_is_looked_at_in_part() {
        let found = entry(&[NOP; 100]).expect("a pad");
        assert_eq!(usize::from(found.resume), AArch64::MAX_ENTRY);
    }

    #[test]
    fn intruders_are_recognised() {
        let at = CodeAddr::new(0x40_1000);
        let found = |words: &[u32]| AArch64::intruder(at, &bytes(words));
        let at_offset = |offset| at.wrapping_add(offset);
        let jump = |offset, to| {
            Some(Intruder::Jump {
                at: at_offset(offset),
                to: Some(CodeAddr::new(to)),
            })
        };
        assert_eq!(
            found(&[0xd420_7d00, NOP]),
            Some(Intruder::Breakpoint { at }),
            "brk #0x3e8, as uprobes' single steps have"
        );
        assert_eq!(
            found(&[BTI_C, NOP, BREAKPOINT]),
            Some(Intruder::Breakpoint { at: at_offset(8) })
        );
        assert_eq!(found(&[0x17ff_ffff]), jump(0, 0x40_0ffc));
        assert_eq!(found(&[BTI_C, 0x1400_0004]), jump(4, 0x40_1014));
        let call = Intruder::Call {
            at: at_offset(4),
            to: CodeAddr::new(0x40_1104),
        };
        assert_eq!(found(&[NOP, 0x9400_0040]), Some(call), "ftrace's");
        let veneer = AArch64::veneer(at, CodeAddr::new(0x1122_3344_5566_7788));
        assert_eq!(
            AArch64::intruder(at, &veneer),
            jump(0, 0x1122_3344_5566_7788)
        );
        for nothing in [&[][..], &[NOP; 4], &[BTI_C], &BODY] {
            assert_eq!(found(nothing), None, "{nothing:x?}");
        }
    }

    #[test]
    fn encodings_are_the_manuals() {
        let at = CodeAddr::new(0x40_1000);
        let jump = |to| {
            let code = AArch64::jump(at, CodeAddr::new(to), 4).expect("in reach");
            word(&code)
        };
        assert_eq!(jump(0x40_1010), Some(0x1400_0004));
        assert_eq!(jump(0x40_0ffc), Some(0x17ff_ffff));
        // ldr x16, .+8; br x16
        let far = CodeAddr::new(0x1122_3344_5566_7788);
        let quad = far.get().to_le_bytes();
        assert_eq!(
            AArch64::veneer(at, far).to_vec(),
            [&bytes(&[0x5800_0050, 0xd61f_0200])[..], &quad].concat()
        );
        // ldr x17, .+24; nop; ldr x16, .+8; br x16
        let thunk = [0x5800_00d1, NOP, 0x5800_0050, 0xd61f_0200];
        assert_eq!(
            AArch64::thunk(at, 7, far).to_vec(),
            [&bytes(&thunk)[..], &quad, &7_u64.to_le_bytes()].concat()
        );
    }

    #[test]
    fn the_edges_of_reach() {
        code::the_edges_of_reach::<AArch64>(4, (1 << 27) - 4, 1 << 27, 4);
    }
}
