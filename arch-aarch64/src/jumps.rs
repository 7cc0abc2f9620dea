//! Where code jumps to.
//!
//! All that changes the order of execution stands in one group of the encoding, "Branches, Exception
//! Generating and System instructions" (Arm ARM, C4.1.93); words of other groups need not be known.
#![forbid(unsafe_code)]

use crate::opcodes::{BR_X16, IMM26_MASK, LDR_X16_8, target, word};
use klp_core::addr::CodeAddr;

/// Bytes of a [`veneer`](klp_core::port::Arch::veneer).
const VENEER_LEN: usize = 16;

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
    // Whether something else than what was saved has been put into `x30`, here or on another way.
    let mut own_return = false;
    while !rest.is_empty() {
        let (len, flow) = match (veneer(rest), word(rest)) {
            (Some(to), _) => (VENEER_LEN, Flow::To(to)),
            (None, Some(word)) => {
                own_return |= is_move_to_x30(word);
                (4, flow(at, word, own_return))
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

/// Where the veneer leads that `code` begins with.
pub(crate) fn veneer(code: &[u8]) -> Option<CodeAddr> {
    let second = code.get(4..)?;
    if word(code) != Some(LDR_X16_8) || word(second) != Some(BR_X16) {
        return None;
    }
    let quad = second.get(4..)?.first_chunk()?;
    Some(CodeAddr::new(u64::from_le_bytes(*quad)))
}

fn flow(at: CodeAddr, word: u32, own_return: bool) -> Flow {
    if word >> 26 & 0b111 != 0b101 {
        return Flow::On;
    }
    match word >> 24 {
        // b, bl: bit 31 tells them apart.
        0x14..=0x17 => Flow::To(target(at, word & !IMM26_MASK, 26)),
        0x94..=0x97 => Flow::On,
        // b.cond, bc.cond
        0x54 => Flow::To(target(at, word >> 5, 19)),
        // cbz, cbnz; tbz, tbnz
        0x34 | 0x35 | 0xb4 | 0xb5 => Flow::To(target(at, word >> 5, 19)),
        0x36 | 0x37 | 0xb6 | 0xb7 => Flow::To(target(at, word >> 5, 14)),
        // svc, brk, hlt and their like; hints, barriers, system registers.
        0xd4 | 0xd5 => Flow::On,
        0xd6 | 0xd7 => to_register(word, own_return),
        _ => Flow::Away,
    }
}

/// "Unconditional branch (register)": `br`, `blr`, `ret`, and the same with a check of the address.
fn to_register(word: u32, own_return: bool) -> Flow {
    // Bit 24 says that the check is made with a register and not with zero.
    let (operation, register) = (word >> 21 & 0b111, word >> 5 & 0x1f);
    match operation {
        0b001 => Flow::On,
        // `retaa` and `retab` have 31 for `x30`.
        0b010 if register >= 30 && !own_return => Flow::On,
        _ => Flow::Away,
    }
}

/// `mov x30, xN`.
fn is_move_to_x30(word: u32) -> bool {
    const MOV_X30: u32 = 0xaa00_03fe;
    word & 0xffe0_ffff == MOV_X30
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AArch64;
    use alloc::vec::Vec;
    use klp_arch_tests::code::{self, bytes};
    use klp_core::port::Arch;

    const AT: u64 = 0x40_1000;

    fn found(words: &[u32]) -> Vec<Option<u64>> {
        found_in(&bytes(words))
    }

    fn found_in(code: &[u8]) -> Vec<Option<u64>> {
        code::jumps::<AArch64>(AT, code)
    }

    /// Words as GNU as assembles them at 0x401000.
    #[test]
    fn direct_branches_tell_their_targets() {
        let cases = [
            (0x1400_0004, AT + 0x10),                // b .+16
            (0x17ff_ffff, AT - 4),                   // b .-4
            (0x1600_0000, AT.wrapping_sub(1 << 27)), // b .-0x8000000
            (0x5400_0040, AT + 8),                   // b.eq .+8
            (0x54ff_ffeb, AT - 4),                   // b.lt .-4
            (0x3400_0040, AT + 8),                   // cbz w0, .+8
            (0xb5ff_ffe1, AT - 4),                   // cbnz x1, .-4
            (0x3600_0042, AT + 8),                   // tbz w2, #0, .+8
            (0xb7ff_ffe3, AT - 4),                   // tbnz x3, #63, .-4
        ];
        for (word, to) in cases {
            assert_eq!(found(&[word]), [Some(to)], "{word:#x}");
        }
    }

    #[test]
    fn what_the_code_does_not_tell_is_none() {
        let cases: [&[u32]; 10] = [
            &[0xd61f_0200],                           // br x16
            &[0xd71f_0a11],                           // braa x16, x17
            &[0xd61f_0a1f],                           // braaz x16
            &[0xd65f_0020],                           // ret x1
            &[0xd69f_03e0],                           // eret
            &[0xaa01_03fe, 0xd65f_03c0],              // mov x30, x1; ret
            &[0xaa01_03fe, 0xd503_201f, 0xd65f_03c0], // with a nop in between
            &[0x7400_0040],                           // a compare and branch of later versions
            &[0x5500_001f],                           // retaasppc
            &[0x5600_0000],                           // unallocated
        ];
        for words in cases {
            assert_eq!(found(words), [None], "{words:x?}");
        }
        assert_eq!(found_in(&[0x1f, 0x20, 0x03]), [None], "cut off");
    }

    #[test]
    fn everything_else_is_nothing() {
        let words = [
            0x9400_0400, // bl .+0x1000
            0xd63f_0100, // blr x8
            0xd73f_0911, // blraa x8, x17
            0xd65f_03c0, // ret
            0xd65f_0bff, // retaa
            0xd65f_0fff, // retab
            0xd503_201f, // nop
            0xd503_245f, // bti c
            0xd503_233f, // paciasp
            0xd400_0001, // svc #0
            0xd420_0000, // brk #0
            0xd53b_d040, // mrs x0, tpidr_el0
            0xa9bf_7bfd, // stp x29, x30, [sp, #-16]!
            0xa8c1_7bfd, // ldp x29, x30, [sp], #16
            0x9000_0010, // adrp x16, .
            0xf940_0211, // ldr x17, [x16]
            0x0000_0000, // udf #0
            0x4e20_1c20, // and v0.16b, v1.16b, v0.16b
        ];
        assert_eq!(found(&words), []);
    }

    #[test]
    fn our_own_code() {
        let at = CodeAddr::new(AT);
        let jump = AArch64::jump(at, CodeAddr::new(AT + 0x1000), 8).expect("in reach");
        assert_eq!(found_in(&jump), [Some(AT + 0x1000)]);
        // Whatever the bytes of the address are, the code goes on behind them.
        for to in [0x1122_3344_5566_7788, 0x1400_0004_1400_0004, 0] {
            let mut code = AArch64::veneer(at, CodeAddr::new(to)).to_vec();
            code.extend(0x1400_0004_u32.to_le_bytes());
            assert_eq!(found_in(&code), [Some(to), Some(AT + 0x20)]);
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        code::random_bytes_never_panic::<AArch64>();
    }
}
