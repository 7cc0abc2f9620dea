//! What calls lead to, in an object of this process.

use crate::process::elf_file::ElfFile;
use klp_arch_ppc64le::calls;
use klp_core::addr::CodeAddr;

pub(crate) use calls::{CALL_LEN, MAX_LINKAGE, SLOT_CALL_LEN, called, stub_target};

/// What calls out of an object find the address with: the base of its table of contents, if there
/// is one only. Linkers put it 32 KiB behind the start of `.got` (ELFv2 3.3, "TOC"), and make a
/// second one when that, with what is in reach of 16 bits, does not do.
pub(crate) fn base(file: &ElfFile, bias: u64) -> Option<u64> {
    const REACH: u64 = 1 << 16;
    let table = file.section(".got")?;
    let base = table.start().wrapping_add(bias).get() + REACH / 2;
    (table.len() <= REACH).then_some(base)
}

/// See [`calls::called_slot`].
pub(crate) fn called_slot(
    base: Option<u64>,
    _: CodeAddr,
    before: [u8; SLOT_CALL_LEN],
) -> Option<u64> {
    calls::called_slot(base?, before)
}

/// See [`calls::linkage_slot`].
pub(crate) fn linkage_slot(base: Option<u64>, at: CodeAddr, code: &[u8]) -> Option<u64> {
    calls::linkage_slot(at, base, code)
}
