//! What calls lead to, where instructions say that relative to where they stand: the same for all such
//! processors.

use super::by_place;
use crate::process::elf_file::ElfFile;
use klp_core::addr::CodeAddr;

pub(crate) use by_place::{CALL_LEN, MAX_LINKAGE, SLOT_CALL_LEN, called};

/// What calls out of an object find the address with, beside where they stand: nothing.
pub(crate) fn base(_: &ElfFile, _bias: u64) -> Option<u64> {
    None
}

/// See [`by_place::called_slot`].
pub(crate) fn called_slot(
    _: Option<u64>,
    return_address: CodeAddr,
    before: [u8; SLOT_CALL_LEN],
) -> Option<u64> {
    by_place::called_slot(return_address, before)
}

/// See [`by_place::linkage_slot`].
pub(crate) fn linkage_slot(_: Option<u64>, at: CodeAddr, code: &[u8]) -> Option<u64> {
    by_place::linkage_slot(at, code)
}

/// Where a stub leads that linkers put in the way of calls within an object: there are none.
pub(crate) fn stub_target(_: CodeAddr, _code: &[u8]) -> Option<CodeAddr> {
    None
}
