//! The way station of `makecontext`: see `ucontext.rs`.

/// The function `makecontext`, which calls `$passed` and goes on where that says, with all
/// arguments.
macro_rules! makecontext_station {
    ($passed:path) => {
        core::arch::global_asm!(
            ".pushsection .text.klp_os_linux_makecontext,\"ax\",%progbits",
            ".globl klp_os_linux_makecontext",
            ".hidden klp_os_linux_makecontext",
            ".type klp_os_linux_makecontext,%function",
            ".weak makecontext",
            ".type makecontext,%function",
            ".p2align 4",
            "klp_os_linux_makecontext:",
            "makecontext:",
            ".cfi_startproc",
            // bti c
            "hint #34",
            // Every register that may bear an argument (AAPCS64 6.8.2, 6.9).
            "stp x29, x30, [sp, #-224]!",
            ".cfi_def_cfa_offset 224",
            ".cfi_offset 29, -224",
            ".cfi_offset 30, -216",
            "stp x0, x1, [sp, #16]",
            "stp x2, x3, [sp, #32]",
            "stp x4, x5, [sp, #48]",
            "stp x6, x7, [sp, #64]",
            "str x8, [sp, #80]",
            "stp q0, q1, [sp, #96]",
            "stp q2, q3, [sp, #128]",
            "stp q4, q5, [sp, #160]",
            "stp q6, q7, [sp, #192]",
            "bl {passed}",
            "mov x16, x0",
            "ldp q0, q1, [sp, #96]",
            "ldp q2, q3, [sp, #128]",
            "ldp q4, q5, [sp, #160]",
            "ldp q6, q7, [sp, #192]",
            "ldp x0, x1, [sp, #16]",
            "ldp x2, x3, [sp, #32]",
            "ldp x4, x5, [sp, #48]",
            "ldp x6, x7, [sp, #64]",
            "ldr x8, [sp, #80]",
            "ldp x29, x30, [sp], #224",
            ".cfi_def_cfa_offset 0",
            ".cfi_restore 29",
            ".cfi_restore 30",
            "cbz x16, 2f",
            "br x16",
            // There is no other makecontext, so nobody could have called one: nothing is made.
            "2:",
            "ret",
            ".cfi_endproc",
            ".size klp_os_linux_makecontext, . - klp_os_linux_makecontext",
            ".size makecontext, . - makecontext",
            ".popsection",
            passed = sym $passed,
        );
    };
}

pub(crate) use makecontext_station;
