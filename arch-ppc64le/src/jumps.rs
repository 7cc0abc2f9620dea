//! Where code jumps to.
//!
//! All that changes the order of execution has one of four primary opcodes (Power ISA 2.4, 2.5,
//! and book III 4.3): 16 and 18, direct branches; 17, system calls; 19, branches to registers and
//! what comes back from interrupts. Other words need not be known.
//!
//! An instruction of two words (Power ISA 1.6, "prefixed instruction") has primary opcode 1 in its
//! first one. Its second one never has an opcode of a branch, but in an invalid form: so each word
//! is looked at as if it stood alone. Nothing is missed, whatever a word is taken for, and the
//! tables behind functions (`-mtraceback`) cannot hide the code that follows them.
#![forbid(unsafe_code)]

use crate::entry::{VENEER_WORDS, veneer};
use crate::opcodes::{primary, target, word};
use klp_core::addr::CodeAddr;

/// What an instruction does to the order in which code is executed.
enum Flow {
    /// Nothing, or it comes back, or it returns.
    On,
    /// It may jump there.
    To(CodeAddr),
    /// It jumps, or returns, to where its word does not tell, or it is not known.
    Away,
}

/// See [`Arch::jumps`](klp_core::port::Arch::jumps).
pub(crate) fn jumps(at: CodeAddr, code: &[u8], each: &mut dyn FnMut(Option<CodeAddr>)) {
    let (mut rest, mut at) = (code, at);
    let mut link = Link::default();
    while !rest.is_empty() {
        let (len, flow) = match (veneer(rest), word(rest)) {
            (Some(to), _) => (4 * VENEER_WORDS, Flow::To(to)),
            (None, Some(word)) => {
                link.see(word);
                (4, flow(at, word, &link))
            }
            (None, None) => return each(None),
        };
        match flow {
            Flow::On => {}
            Flow::To(to) => each(Some(to)),
            Flow::Away => each(None),
        }
        rest = rest.get(len..).unwrap_or_default();
        at = at.wrapping_add(len as u64);
    }
}

/// What is known of the link register, here or on another way.
#[derive(Default)]
struct Link {
    /// Registers that it was copied to, or that were loaded from where functions save it: a bit for
    /// each.
    saved_in: u32,
    /// Something else than what was saved has been put into it.
    foreign: bool,
}

impl Link {
    fn see(&mut self, word: u32) {
        const MFLR: u32 = 0x7c08_02a6;
        const MTLR: u32 = 0x7c08_03a6;
        // `ld rN,16(rM)`: functions save it 16 bytes above a back chain (ELFv2 2.2.3.2).
        const LD_16: u32 = 0xe800_0010;
        let bit = 1 << (word >> 21 & 0x1f);
        if word & 0xfc1f_ffff == MFLR || word & 0xfc00_ffff == LD_16 {
            self.saved_in |= bit;
        } else if word & 0xfc1f_ffff == MTLR && self.saved_in & bit == 0 {
            self.foreign = true;
        }
    }
}

fn flow(at: CodeAddr, word: u32, link: &Link) -> Flow {
    // Whether the link register is set: then it is a call.
    let calls = word & 1 != 0;
    match primary(word) {
        16 | 18 if calls => Flow::On,
        16 => Flow::To(target(at, word & 0xffff, 16)),
        18 => Flow::To(target(at, word & 0x03ff_ffff, 26)),
        19 => to_register(word, link),
        // 17, too: `sc` and `scv` come back.
        _ => Flow::On,
    }
}

/// Primary opcode 19, by its extended opcode in bits 21 to 30.
fn to_register(word: u32, link: &Link) -> Flow {
    let calls = word & 1 != 0;
    match word >> 1 & 0x3ff {
        // bclr, with a condition or without
        16 if calls || !link.foreign => Flow::On,
        // bcctr, bctar
        528 | 560 if calls => Flow::On,
        // mcrf, and what combines bits of cr; isync
        0 | 33 | 129 | 193 | 225 | 257 | 289 | 417 | 449 | 150 => Flow::On,
        // addpcis, whose extended opcode has five bits only
        other if other & 0x1f == 2 => Flow::On,
        _ => Flow::Away,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ppc64Le;
    use alloc::vec::Vec;
    use klp_arch_tests::code::{self, bytes};
    use klp_core::port::Arch;

    const AT: u64 = 0x1000_1000;

    fn found(words: &[u32]) -> Vec<Option<u64>> {
        found_in(&bytes(words))
    }

    fn found_in(code: &[u8]) -> Vec<Option<u64>> {
        code::jumps::<Ppc64Le>(AT, code)
    }

    /// Words as GNU as assembles them at 0x10001000.
    #[test]
    fn direct_branches_tell_their_targets() {
        let cases = [
            (0x4800_0010, AT + 0x10),      // b .+16
            (0x4bff_fffc, AT - 4),         // b .-4
            (0x4a00_0000, AT - (1 << 25)), // b .-0x2000000
            (0x4800_1002, 0x1000),         // ba 0x1000
            (0x4182_0008, AT + 8),         // beq .+8
            (0x4080_fffc, AT - 4),         // bge .-4
            (0x4200_8000, AT - 0x8000),    // bdnz .-0x8000
            (0x4181_7ffc, AT + 0x7ffc),    // bgt .+0x7ffc
            (0x4182_0102, 0x100),          // beqa 0x100
        ];
        for (word, to) in cases {
            assert_eq!(found(&[word]), [Some(to)], "{word:#x}");
        }
    }

    #[test]
    fn what_the_code_does_not_tell_is_none() {
        let cases: [&[u32]; 12] = [
            &[0x4e80_0420],                           // bctr
            &[0x4d82_0420],                           // beqctr
            &[0x4e80_0460],                           // bctar
            &[0x4c00_0024],                           // rfid
            &[0x4c00_00a4],                           // rfscv
            &[0x4c00_0124],                           // rfebb
            &[0x4c00_02e4],                           // stop
            &[0x7d88_03a6, 0x4e80_0020],              // mtlr r12; blr
            &[0x7d88_03a6, 0x6000_0000, 0x4e80_0020], // with a nop in between
            &[0xe981_0018, 0x7d88_03a6, 0x4e80_0020], // ld r12,24(r1); mtlr r12; blr
            &[0xe801_0010, 0x7d88_03a6, 0x4d82_0020], // ld r0,16(r1); mtlr r12; beqlr
            &[0x4fff_fffe],                           // unallocated
        ];
        for words in cases {
            assert_eq!(found(words), [None], "{words:x?}");
        }
        assert_eq!(found_in(&[0x00, 0x00, 0x60]), [None], "cut off");
    }

    #[test]
    fn everything_else_is_nothing() {
        let words = [
            0x4800_0401, // bl .+0x400
            0x429f_0005, // bcl 20,31,.+4
            0x4e80_0421, // bctrl
            0x4e80_0461, // bctarl
            0x4e80_0021, // blrl
            0x4e80_0020, // blr
            0x4d82_0020, // beqlr
            0x6000_0000, // nop
            0x4400_0002, // sc
            0x4400_0001, // scv 0
            0x7fe0_0008, // trap
            0x4c63_1a02, // crand 3,3,3
            0x4cc6_3182, // crclr 4*cr1+eq
            0x4c00_012c, // isync
            0x4c00_0000, // mcrf cr0,cr0
            0x4c60_0004, // addpcis r3,0
            0x4c7f_ffc5, // addpcis r3,-1
            0x0000_0000, // illegal
            0x0100_0000, // of a table behind a function
            0xf821_ffe1, // stdu r1,-32(r1)
            0x7c08_02a6, // mflr r0
            0xf801_0010, // std r0,16(r1)
            0xe801_0010, // ld r0,16(r1)
            0x7c08_03a6, // mtlr r0
            0x4e80_0020, // blr
            0xe98b_0010, // ld r12,16(r11)
            0x7d88_03a6, // mtlr r12
            0x4e80_0020, // blr
        ];
        assert_eq!(found(&words), []);
    }

    #[test]
    fn instructions_of_two_words() {
        // pld r9,0 (pc-relative); pnop, invalid as it is followed by a branch
        assert_eq!(found(&[0x0410_0000, 0xe520_0000]), []);
        assert_eq!(found(&[0x0700_0000, 0x4800_0008]), [Some(AT + 12)]);
    }

    #[test]
    fn our_own_code() {
        let at = CodeAddr::new(AT);
        let jump = Ppc64Le::jump(at, CodeAddr::new(AT + 0x1000), 8).expect("in reach");
        assert_eq!(found_in(&jump), [Some(AT + 0x1000)]);
        for to in [0x1122_3344_5566_7788, u64::MAX, 0] {
            let mut code = Ppc64Le::veneer(at, CodeAddr::new(to)).to_vec();
            code.extend(0x4800_0004_u32.to_le_bytes());
            assert_eq!(found_in(&code), [Some(to), Some(AT + 28 + 4)]);
            assert_eq!(
                found_in(&Ppc64Le::thunk(at, to, CodeAddr::new(AT))),
                [Some(AT)]
            );
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        code::random_bytes_never_panic::<Ppc64Le>();
    }
}
