//! What a call called, and where a procedure linkage table leads: bytes in, numbers out.
//!
//! All of it may be used in signal handlers: it allocates nothing and cannot panic.
#![forbid(unsafe_code)]

use crate::opcodes::{BL, BTI, BTI_MASK, IMM26_MASK, signed, target, word};
use klp_core::addr::CodeAddr;

/// Bytes of a `bl`.
pub const CALL_LEN: usize = 4;

/// The target of the direct call that ends at `return_address`; `before` are the bytes that end
/// there. `None` if they are none.
#[must_use]
pub fn called(return_address: CodeAddr, before: [u8; CALL_LEN]) -> Option<CodeAddr> {
    let word = u32::from_le_bytes(before);
    (word & IMM26_MASK == BL)
        .then(|| target(return_address.wrapping_sub(4), word & !IMM26_MASK, 26))
}

/// Bytes of `adrp xN, …; ldr xN, [xN, …]; blr xN`.
pub const SLOT_CALL_LEN: usize = 12;

/// If the call that ends at `return_address` went through memory at a fixed address, as calls of
/// other objects' functions do that use no procedure linkage table: the address of the eight bytes
/// that say where; `before` are the bytes that end there. What stands in these eight bytes now is
/// what was called only if they never change.
#[must_use]
pub fn called_slot(return_address: CodeAddr, before: [u8; SLOT_CALL_LEN]) -> Option<u64> {
    let at = return_address.wrapping_sub(SLOT_CALL_LEN as u64);
    let (slot, register) = loaded(at, &before)?;
    let call = word(before.get(8..)?)?;
    (call == 0xd63f_0000 | register << 5).then_some(slot)
}

/// Most bytes that [`linkage_slot`] wants to see.
pub const MAX_LINKAGE: usize = 4 + 16;

/// If an entry of a procedure linkage table stands at `at` (`adrp x16, …; ldr x17, [x16, …]; add
/// x16, …; br x17`, perhaps behind a `bti c`): the address of the eight bytes that say where it
/// leads.
#[must_use]
pub fn linkage_slot(at: CodeAddr, code: &[u8]) -> Option<u64> {
    const ADD_X16_X16: u32 = 0x9100_0210;
    const BR_X17: u32 = 0xd61f_0220;
    let skip = match word(code) {
        Some(word) if word & BTI_MASK == BTI => 4,
        _ => 0,
    };
    let code = code.get(skip..)?;
    let (slot, register) = loaded(at.wrapping_add(skip as u64), code)?;
    let add = word(code.get(8..)?)?;
    let jump = word(code.get(12..)?)?;
    let is_entry = register == 17 && add & 0xffc0_03ff == ADD_X16_X16 && jump == BR_X17;
    is_entry.then_some(slot)
}

/// The address that `adrp xN, …; ldr xM, [xN, …]` at `at` loads from, and M.
fn loaded(at: CodeAddr, code: &[u8]) -> Option<(u64, u32)> {
    let (adrp, ldr) = (word(code)?, word(code.get(4..)?)?);
    if adrp & 0x9f00_0000 != 0x9000_0000 || ldr & 0xffc0_0000 != 0xf940_0000 {
        return None;
    }
    let (page_register, base) = (adrp & 0x1f, ldr >> 5 & 0x1f);
    // The immediate's two lowest bits stand apart.
    let pages = signed((adrp >> 5 & 0x7_ffff) << 2 | adrp >> 29 & 3, 21);
    let page = (at.get() & !0xfff).wrapping_add_signed(pages << 12);
    let offset = u64::from(ldr >> 10 & 0xfff) * 8;
    (page_register == base).then_some((page.wrapping_add(offset), ldr & 0x1f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use klp_arch_tests::code::bytes;

    const AT: CodeAddr = CodeAddr::new(0x40_1000);

    #[test]
    fn direct_calls() {
        let called = |word: u32| called(AT, word.to_le_bytes()).map(CodeAddr::get);
        assert_eq!(called(0x9400_0401), Some(0x40_2000)); // bl .+0x1004
        assert_eq!(called(0x97ff_ffff), Some(0x40_0ff8)); // bl .-4
        assert_eq!(called(0x1400_0401), None, "b");
        assert_eq!(called(0xd63f_0100), None, "blr x8");
    }

    #[test]
    fn calls_through_memory() {
        let slot = |words: [u32; 3]| {
            let before = bytes(&words).try_into().expect("three words");
            called_slot(AT, before)
        };
        // adrp x8, 0x412000; ldr x8, [x8, #4064]; blr x8, at 0x400ff4
        assert_eq!(
            slot([0xd000_0088, 0xf947_f108, 0xd63f_0100]),
            Some(0x41_2fe0)
        );
        assert_eq!(
            slot([0xd000_0088, 0xf947_f108, 0xd63f_0120]),
            None,
            "blr x9"
        );
        assert_eq!(
            slot([0xd000_0089, 0xf947_f108, 0xd63f_0100]),
            None,
            "adrp x9"
        );
        assert_eq!(
            slot([0xd000_0088, 0xb947_f108, 0xd63f_0100]),
            None,
            "ldr w8"
        );
    }

    #[test]
    fn entries_of_linkage_tables() {
        // As GNU ld lays them out: adrp x16, 0x411000; ldr x17, [x16, #24]; add x16, x16, #24;
        // br x17
        let entry = [0x9000_0090, 0xf940_0e11, 0x9100_6210, 0xd61f_0220];
        let slot = |words: &[u32]| linkage_slot(AT, &bytes(words));
        assert_eq!(slot(&entry), Some(0x41_1018));
        let with_bti = [&[0xd503_245f][..], &entry].concat();
        assert_eq!(slot(&with_bti), Some(0x41_1018));
        assert_eq!(bytes(&with_bti).len(), MAX_LINKAGE);
        for cut in 0..entry.len() {
            assert_eq!(slot(&entry[..cut]), None, "cut off after {cut} words");
        }
        assert_eq!(
            slot(&[entry[0], entry[1], entry[2], 0xd61f_0200]),
            None,
            "br x16"
        );
    }
}
