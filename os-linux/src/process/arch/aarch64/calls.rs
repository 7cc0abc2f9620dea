//! What calls lead to, in an object of this process.

use crate::process::elf_file::ElfFile;
use klp_arch_aarch64::calls;
use klp_core::addr::CodeAddr;

pub(crate) use calls::{CALL_LEN, MAX_LINKAGE, SLOT_CALL_LEN, called};

/// What calls out of an object find the address with, beside where they stand: nothing.
pub(crate) fn base(_: &ElfFile, _bias: u64) -> Option<u64> {
    None
}

/// See [`calls::called_slot`].
pub(crate) fn called_slot(
    _: Option<u64>,
    return_address: CodeAddr,
    before: [u8; SLOT_CALL_LEN],
) -> Option<u64> {
    calls::called_slot(return_address, before)
}

/// See [`calls::linkage_slot`].
pub(crate) fn linkage_slot(_: Option<u64>, at: CodeAddr, code: &[u8]) -> Option<u64> {
    calls::linkage_slot(at, code)
}

/// Where a stub leads that linkers put in the way of calls within an object: there are none.
pub(crate) fn stub_target(_: CodeAddr, _code: &[u8]) -> Option<CodeAddr> {
    None
}

#[cfg(test)]
mod tests {
    // Calls qsort by way of the procedure linkage table: see `unwind.rs`.
    core::arch::global_asm!(
        ".pushsection .text",
        ".globl klp_test_call_by_plt",
        ".hidden klp_test_call_by_plt",
        ".globl klp_test_called_by_plt",
        ".hidden klp_test_called_by_plt",
        ".type klp_test_call_by_plt,%function",
        "klp_test_call_by_plt:",
        ".cfi_startproc",
        "stp x29, x30, [sp, #-16]!",
        ".cfi_def_cfa_offset 16",
        ".cfi_offset 29, -16",
        ".cfi_offset 30, -8",
        "bl qsort",
        "klp_test_called_by_plt:",
        "ldp x29, x30, [sp], #16",
        ".cfi_def_cfa_offset 0",
        ".cfi_restore 29",
        ".cfi_restore 30",
        "ret",
        ".cfi_endproc",
        ".size klp_test_call_by_plt, . - klp_test_call_by_plt",
        ".popsection",
    );
}
