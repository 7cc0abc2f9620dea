//! The way station of `makecontext`: see `ucontext.rs`.

/// The function `makecontext`, which calls `$passed` and goes on where that says, with all
/// arguments.
///
/// It goes on in another object by a jump, after which register 2 is not what its caller had. So it
/// says of itself that it does not keep that register (`.localentry …, 1`, ELFv2 3.4.1): linkers have
/// calls of it restore it.
macro_rules! makecontext_station {
    ($passed:path) => {
        core::arch::global_asm!(
            ".pushsection .text.klp_os_linux_makecontext,\"ax\",@progbits",
            ".globl klp_os_linux_makecontext",
            ".hidden klp_os_linux_makecontext",
            ".type klp_os_linux_makecontext,@function",
            ".weak makecontext",
            ".type makecontext,@function",
            ".p2align 4",
            "klp_os_linux_makecontext:",
            "makecontext:",
            ".localentry klp_os_linux_makecontext, 1",
            ".localentry makecontext, 1",
            ".cfi_startproc",
            "mflr 0",
            "std 0, 16(1)",
            "stdu 1, -96(1)",
            ".cfi_def_cfa_offset 96",
            ".cfi_offset lr, 16",
            // Every register that bears an argument: they are numbers and addresses.
            "std 3, 32(1)",
            "std 4, 40(1)",
            "std 5, 48(1)",
            "std 6, 56(1)",
            "std 7, 64(1)",
            "std 8, 72(1)",
            "std 9, 80(1)",
            "std 10, 88(1)",
            "bl {passed}@notoc",
            "mr 12, 3",
            "ld 3, 32(1)",
            "ld 4, 40(1)",
            "ld 5, 48(1)",
            "ld 6, 56(1)",
            "ld 7, 64(1)",
            "ld 8, 72(1)",
            "ld 9, 80(1)",
            "ld 10, 88(1)",
            "addi 1, 1, 96",
            ".cfi_def_cfa_offset 0",
            "ld 0, 16(1)",
            "mtlr 0",
            ".cfi_restore lr",
            "cmpdi 12, 0",
            "beqlr",
            "mtctr 12",
            "bctr",
            ".cfi_endproc",
            ".size klp_os_linux_makecontext, . - klp_os_linux_makecontext",
            ".size makecontext, . - makecontext",
            ".popsection",
            passed = sym $passed,
        );
    };
}

pub(crate) use makecontext_station;
