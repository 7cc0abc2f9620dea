//! Instructions that are written and looked for (Arm ARM, chapter C6).
#![forbid(unsafe_code)]

use klp_core::addr::CodeAddr;

pub(crate) const NOP: u32 = 0xd503_201f;
/// `bti`, `bti c`, `bti j`, `bti jc`: all but two bits of the word.
pub(crate) const BTI: u32 = 0xd503_241f;
pub(crate) const BTI_MASK: u32 = 0xffff_ff3f;
/// `brk #imm16`.
pub(crate) const BRK: u32 = 0xd420_0000;
pub(crate) const BRK_MASK: u32 = 0xffe0_001f;
/// `b imm26`.
pub(crate) const B: u32 = 0x1400_0000;
/// `bl imm26`.
pub(crate) const BL: u32 = 0x9400_0000;
pub(crate) const IMM26_MASK: u32 = 0xfc00_0000;
/// `br x16`.
pub(crate) const BR_X16: u32 = 0xd61f_0200;
/// `ldr x16, .+8`.
pub(crate) const LDR_X16_8: u32 = 0x5800_0050;
/// `ldr x17, .+24`.
pub(crate) const LDR_X17_24: u32 = 0x5800_00d1;

/// The word that `bytes` begins with.
pub(crate) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// The lowest `bits` of `value`, extended by their sign.
pub(crate) fn signed(value: u32, bits: u32) -> i64 {
    let unused = 32 - bits;
    i64::from((value << unused) as i32 >> unused)
}

/// Where a branch at `at` leads that has `field`, `bits` wide, as its distance in words.
pub(crate) fn target(at: CodeAddr, field: u32, bits: u32) -> CodeAddr {
    CodeAddr::new(at.get().wrapping_add_signed(4 * signed(field, bits)))
}
