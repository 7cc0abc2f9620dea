//! What a call called, and where a procedure linkage table leads: bytes in, numbers out.
//!
//! The tables are reached from register 2, the base of the object's table of contents, so whoever
//! asks must know it: `toc`. (Code that is relative to itself has no use for it.) All of it may be used in signal handlers: it allocates nothing and
//! cannot panic.
#![forbid(unsafe_code)]

use crate::opcodes::{
    B, BCTR, BCTRL, BL, BRANCH_MASK, MTCTR_R12, STD_R2_24_R1, signed, target, word,
};
use klp_core::addr::CodeAddr;

/// Bytes of a `bl`.
pub const CALL_LEN: usize = 4;

/// The target of the direct call that ends at `return_address`: a local entry, or a stub of the
/// linker's ([`linkage_slot`]); `before` are the bytes that end there. `None` if they are none.
#[must_use]
pub fn called(return_address: CodeAddr, before: [u8; CALL_LEN]) -> Option<CodeAddr> {
    let word = u32::from_le_bytes(before);
    (word & BRANCH_MASK == BL)
        .then(|| target(return_address.wrapping_sub(4), word & !BRANCH_MASK, 26))
}

/// Bytes of `ld r12,…(r2); mtctr r12; bctrl`.
pub const SLOT_CALL_LEN: usize = 12;

/// If the call that `before` ends with went through memory at a fixed address, as calls of other
/// objects' functions do with `-fno-plt`: the address of the eight bytes that say where. What
/// stands in these eight bytes now is what was called only if they never change.
#[must_use]
pub fn called_slot(toc: u64, before: [u8; SLOT_CALL_LEN]) -> Option<u64> {
    let slot = loaded(toc, word(&before)?)?;
    let goes = word(before.get(4..)?)? == MTCTR_R12 && word(before.get(8..)?)? == BCTRL;
    goes.then_some(slot)
}

/// Most bytes that [`linkage_slot`] wants to see.
pub const MAX_LINKAGE: usize = 5 * 4;

/// If a stub for calls of another object's function stands at `at` (ELFv2 4.2.5.3, "Procedure
/// Linkage Table"): the address of the eight bytes that say where it leads. Perhaps behind a `std
/// r2,24(r1)`, and always before `mtctr r12; bctr`, that is one of
///
/// * `ld r12,…(r2)`,
/// * `addis r12,r2,…; ld r12,…(r12)`, and the same with `r11` for the high half,
/// * `pld r12,…`, relative to itself, for callers without a table of contents.
#[must_use]
pub fn linkage_slot(at: CodeAddr, toc: Option<u64>, code: &[u8]) -> Option<u64> {
    let saved = word(code)? == STD_R2_24_R1;
    let skip = if saved { 4 } else { 0 };
    let code = code.get(skip..)?;
    let (first, second) = (word(code)?, word(code.get(4..)?)?);
    let (slot, len) = if let Some(distance) = pld_r12(first, second) {
        let at = at.wrapping_add(skip as u64);
        (at.get().wrapping_add_signed(distance), 8)
    } else if let Some(slot) = loaded(toc?, first) {
        (slot, 4)
    } else {
        (loaded_far(toc?, first, second)?, 8)
    };
    let code = code.get(len..)?;
    let goes = word(code)? == MTCTR_R12 && word(code.get(4..)?)? == BCTR;
    goes.then_some(slot)
}

/// If a stub of the linker's for calls within an object stands at `at`: the function that it leads
/// to. Such is
///
/// * `std r2,24(r1); b …`, by which code with a table of contents calls code that keeps none
///   (ELFv2 4.2.5.3, a function with the `st_other` of 3.4.1 that says so),
/// * `pla r12,…`, with `b …` or `mtctr r12; bctr` behind it, by which code without a table calls
///   code that has one.
#[must_use]
pub fn stub_target(at: CodeAddr, code: &[u8]) -> Option<CodeAddr> {
    let first = word(code)?;
    if first == STD_R2_24_R1 {
        let branch = word(code.get(4..)?)?;
        return is_branch(branch).then(|| target(at.wrapping_add(4), branch, 26));
    }
    let distance = pla_r12(first, word(code.get(4..)?)?)?;
    let behind = word(code.get(8..)?)?;
    let goes =
        is_branch(behind) || behind == MTCTR_R12 && code.get(12..).and_then(word) == Some(BCTR);
    goes.then(|| CodeAddr::new(at.get().wrapping_add_signed(distance)))
}

fn is_branch(word: u32) -> bool {
    word & BRANCH_MASK == B
}

/// The address that `ld r12,…(r2)` loads from.
fn loaded(toc: u64, word: u32) -> Option<u64> {
    const LD_R12_R2: u32 = 0xe982_0000;
    (word & 0xffff_0003 == LD_R12_R2).then(|| toc.wrapping_add_signed(signed(word & 0xffff, 16)))
}

/// The address that `addis rN,r2,…; ld r12,…(rN)` loads from.
fn loaded_far(toc: u64, first: u32, second: u32) -> Option<u64> {
    const ADDIS_R2: u32 = 0x3c02_0000;
    const LD_R12: u32 = 0xe980_0000;
    let (set, base) = (first >> 21 & 0x1f, second >> 16 & 0x1f);
    let is_pair = first & 0xfc1f_0000 == ADDIS_R2 && second & 0xffe0_0003 == LD_R12;
    (is_pair && set == base && matches!(set, 11 | 12)).then(|| {
        let high = signed(first & 0xffff, 16) << 16;
        toc.wrapping_add_signed(high + signed(second & 0xffff, 16))
    })
}

/// How far from itself `pld r12,…` loads.
fn pld_r12(prefix: u32, suffix: u32) -> Option<i64> {
    let is_pld = prefix & 0xfffc_0000 == 0x0410_0000 && suffix & 0xffff_0000 == 0xe580_0000;
    is_pld.then(|| distance(prefix, suffix))
}

/// How far from itself `pla r12,…` leads.
fn pla_r12(prefix: u32, suffix: u32) -> Option<i64> {
    let is_pla = prefix & 0xfffc_0000 == 0x0610_0000 && suffix & 0xffff_0000 == 0x3980_0000;
    is_pla.then(|| distance(prefix, suffix))
}

/// The 34 bits of a prefixed instruction.
fn distance(prefix: u32, suffix: u32) -> i64 {
    signed(prefix & 0x3_ffff, 18) << 16 | i64::from(suffix & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use klp_arch_tests::code::bytes;

    const AT: CodeAddr = CodeAddr::new(0x1000_1000);
    const TOC: u64 = 0x1002_7f00;

    #[test]
    fn direct_calls() {
        let called = |word: u32| called(AT, word.to_le_bytes()).map(CodeAddr::get);
        assert_eq!(called(0x4800_1005), Some(0x1000_2000)); // bl .+0x1004
        assert_eq!(called(0x4bff_fffd), Some(0x1000_0ff8)); // bl .-4
        assert_eq!(called(0x4800_1004), None, "b");
        assert_eq!(called(0x4e80_0421), None, "bctrl");
        assert_eq!(called(0x4182_1005), None, "beql");
    }

    #[test]
    fn calls_through_memory() {
        let slot = |words: [u32; 3]| {
            let before = bytes(&words).try_into().expect("three words");
            called_slot(TOC, before)
        };
        // ld r12,-32464(r2); mtctr r12; bctrl
        let call = [0xe982_8130, MTCTR_R12, BCTRL];
        assert_eq!(slot(call), Some(TOC - 32464));
        assert_eq!(slot([0xe98c_8130, call[1], call[2]]), None, "ld r12,(r12)");
        assert_eq!(slot([0xe982_8132, call[1], call[2]]), None, "lwa");
        assert_eq!(slot([call[0], 0x7d69_03a6, call[2]]), None, "mtctr r11");
        assert_eq!(slot([call[0], call[1], BCTR]), None, "bctr");
    }

    /// As GNU ld lays them out.
    #[test]
    fn entries_of_linkage_tables() {
        let slot = |words: &[u32]| linkage_slot(AT, Some(TOC), &bytes(words));
        // std r2,24(r1); ld r12,-32480(r2); mtctr r12; bctr
        let near = [STD_R2_24_R1, 0xe982_8120, MTCTR_R12, BCTR];
        // std r2,24(r1); addis r12,r2,1; ld r12,2040(r12); mtctr r12; bctr
        let far = [STD_R2_24_R1, 0x3d82_0001, 0xe98c_07f8, MTCTR_R12, BCTR];
        // pld r12,129408; mtctr r12; bctr
        let relative = [0x0410_0001, 0xe580_f980, MTCTR_R12, BCTR];
        assert_eq!(slot(&near), Some(TOC - 32480));
        assert_eq!(slot(&near[1..]), Some(TOC - 32480));
        assert_eq!(slot(&far), Some(TOC + 0x1_07f8));
        assert_eq!(slot(&relative), Some(AT.get() + 129_408));
        assert_eq!(
            slot(&[&[STD_R2_24_R1], &relative[..]].concat()),
            Some(AT.get() + 4 + 129_408)
        );
        assert_eq!(
            slot(&[0x0413_ffff, 0xe580_fff8, MTCTR_R12, BCTR]),
            Some(AT.get() - 8)
        );
        assert_eq!(linkage_slot(AT, None, &bytes(&near)), None);
        assert_eq!(
            linkage_slot(AT, None, &bytes(&relative)),
            slot(&relative),
            "relative to itself"
        );
        assert_eq!(bytes(&far).len(), MAX_LINKAGE);
        for stub in [&near[..], &far, &relative] {
            for cut in 0..stub.len() {
                assert_eq!(slot(&stub[..cut]), None, "cut off after {cut} words");
            }
        }
        assert_eq!(slot(&[near[1], near[2], BCTRL]), None, "bctrl");
        // addis r11,r2,1; ld r12,2040(r12)
        assert_eq!(slot(&[0x3d62_0001, far[2], far[3], far[4]]), None);
    }

    /// As GNU ld lays them out.
    #[test]
    fn stubs_within_an_object() {
        let leads = |words: &[u32]| stub_target(AT, &bytes(words)).map(CodeAddr::get);
        // std r2,24(r1); b .+0x1000
        assert_eq!(leads(&[STD_R2_24_R1, 0x4800_1000]), Some(AT.get() + 0x1004));
        // pla r12,.-0x20; b; and with mtctr r12; bctr
        let pla = [0x0613_ffff, 0x3980_ffe0];
        let by_branch = [&pla[..], &[0x4bff_ffd8]].concat();
        let by_register = [&pla[..], &[MTCTR_R12, BCTR]].concat();
        assert_eq!(leads(&by_branch), Some(AT.get() - 0x20));
        assert_eq!(leads(&by_register), Some(AT.get() - 0x20));
        for nothing in [
            &[STD_R2_24_R1][..],
            &[STD_R2_24_R1, 0x4800_1001],
            &[0x4800_1000, 0x4800_1000],
            &pla,
            &[pla[0], pla[1], MTCTR_R12],
            &[pla[0], 0x3960_ffe0, MTCTR_R12, BCTR],
            &[],
        ] {
            assert_eq!(leads(nothing), None, "{nothing:x?}");
        }
    }
}
