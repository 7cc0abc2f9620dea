//! For tests of `unwind.rs`: a call of qsort by way of the procedure linkage table.

core::arch::global_asm!(
    ".pushsection .text",
    ".globl klp_test_call_by_plt",
    ".hidden klp_test_call_by_plt",
    ".globl klp_test_called_by_plt",
    ".hidden klp_test_called_by_plt",
    ".type klp_test_call_by_plt,@function",
    "klp_test_call_by_plt:",
    ".cfi_startproc",
    "sub rsp, 8",
    ".cfi_adjust_cfa_offset 8",
    "call qsort@PLT",
    "klp_test_called_by_plt:",
    "add rsp, 8",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    ".size klp_test_call_by_plt, . - klp_test_call_by_plt",
    ".popsection",
);
