//! The running process as something to be unwound.

use klp_arch_tests::{Loaded, Running, read};
use klp_arch_x86_64::X86_64;
use klp_arch_x86_64::unwind::Regs;
use std::sync::OnceLock;

/// This process.
pub(crate) struct Here;

impl Running for Here {
    type Arch = X86_64;

    #[inline(always)]
    fn registers() -> Regs {
        let mut regs = [0u64; 8];
        // SAFETY: writes `regs` and nothing else.
        unsafe {
            core::arch::asm!(
                "lea rax, [rip]",
                "mov [rcx], rax",
                "mov [rcx + 8], rsp",
                "mov [rcx + 16], rbp",
                "mov [rcx + 24], rbx",
                "mov [rcx + 32], r12",
                "mov [rcx + 40], r13",
                "mov [rcx + 48], r14",
                "mov [rcx + 56], r15",
                in("rcx") &raw mut regs,
                out("rax") _,
                options(nostack, preserves_flags),
            );
        }
        let [rip, rsp, rbp, rbx, r12, r13, r14, r15] = regs;
        Regs {
            rip,
            rsp,
            rbp,
            rbx,
            r12,
            r13,
            r14,
            r15,
        }
    }

    fn from_ucontext(ucontext: u64) -> Option<Regs> {
        Regs::from_ucontext(ucontext, read)
    }

    fn objects() -> &'static OnceLock<Vec<Loaded<X86_64>>> {
        static OBJECTS: OnceLock<Vec<Loaded<X86_64>>> = OnceLock::new();
        &OBJECTS
    }
}
