//! Instructions that are written and looked for (Power ISA, chapters 2 and 3).
#![forbid(unsafe_code)]

use klp_core::addr::CodeAddr;

/// `ori r0,r0,0`.
pub(crate) const NOP: u32 = 0x6000_0000;
/// `b`, without `AA` and `LK`.
pub(crate) const B: u32 = 0x4800_0000;
/// `bl`, without `AA`.
pub(crate) const BL: u32 = 0x4800_0001;
/// All of a `b` but its distance.
pub(crate) const BRANCH_MASK: u32 = 0xfc00_0003;
/// `mflr r0`.
pub(crate) const MFLR_R0: u32 = 0x7c08_02a6;
/// `mtlr r0`.
pub(crate) const MTLR_R0: u32 = 0x7c08_03a6;
/// `std r0,16(r1)`.
pub(crate) const STD_R0_16_R1: u32 = 0xf801_0010;
/// `mtctr r12`.
pub(crate) const MTCTR_R12: u32 = 0x7d89_03a6;
/// `bctr`.
pub(crate) const BCTR: u32 = 0x4e80_0420;
/// `bctrl`.
pub(crate) const BCTRL: u32 = 0x4e80_0421;
/// `std r2,24(r1)`.
pub(crate) const STD_R2_24_R1: u32 = 0xf841_0018;
/// `ld r2,24(r1)`.
pub(crate) const LD_R2_24_R1: u32 = 0xe841_0018;
/// `trap`, what the kernel's probes write.
pub(crate) const TRAP: u32 = 0x7fe0_0008;
/// `twge r2,r2`, what debuggers write.
pub(crate) const TWGE_R2_R2: u32 = 0x7d82_1008;

/// The word that `bytes` begins with.
pub(crate) fn word(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// Bits 0 to 5, as the manual counts them: what tells the instructions apart.
pub(crate) fn primary(word: u32) -> u32 {
    word >> 26
}

/// The lowest `bits` of `value`, extended by their sign.
pub(crate) fn signed(value: u32, bits: u32) -> i64 {
    let unused = 32 - bits;
    i64::from((value << unused) as i32 >> unused)
}

/// Where a branch at `at` leads that has a distance of `bits` in its lowest bits, two of which are
/// `AA` (the distance is an address) and `LK`.
pub(crate) fn target(at: CodeAddr, word: u32, bits: u32) -> CodeAddr {
    let distance = signed(word & !3, bits);
    let base = if word & 2 == 0 { at.get() } else { 0 };
    CodeAddr::new(base.wrapping_add_signed(distance))
}

/// Words of [`load`].
pub(crate) const LOAD_WORDS: usize = 5;

/// `lis rN`, `ori rN`, `sldi rN,rN,32`, `oris rN`, `ori rN`: `value` in general register `reg`,
/// which is not 0 in `lis` or `addis` only by their third field, so that any register will do.
pub(crate) fn load(reg: u32, value: u64) -> [u32; LOAD_WORDS] {
    const LIS: u32 = 15 << 26;
    const ORI: u32 = 24 << 26;
    const ORIS: u32 = 25 << 26;
    const SLDI_32: u32 = 0x7800_07c6;
    let half = |shift: u32| (value >> shift) as u32 & 0xffff;
    // `ori` and its like have the source first.
    let same = reg << 21 | reg << 16;
    [
        LIS | reg << 21 | half(48),
        ORI | same | half(32),
        SLDI_32 | same,
        ORIS | same | half(16),
        ORI | same | half(0),
    ]
}

/// The value that [`load`] has put into `reg`, if `code` begins with that.
pub(crate) fn loaded(reg: u32, code: &[u8]) -> Option<u64> {
    let mut value = 0;
    let mut words = [0; LOAD_WORDS];
    for (index, found) in words.iter_mut().enumerate() {
        *found = word(code.get(4 * index..)?)?;
        if index != 2 {
            value = value << 16 | u64::from(*found & 0xffff);
        }
    }
    (load(reg, value) == words).then_some(value)
}
