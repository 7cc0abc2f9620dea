//! The running process as something to be unwound.

use klp_arch_aarch64::AArch64;
use klp_arch_aarch64::unwind::{Regs, SIGNAL_RETURN};
use klp_arch_tests::{Loaded, Running, read};
use std::sync::OnceLock;

/// This process.
pub(crate) struct Here;

impl Running for Here {
    type Arch = AArch64;

    const SIGNAL_RETURN: Option<&'static [u8]> = Some(&SIGNAL_RETURN);

    #[inline(always)]
    fn registers() -> Regs {
        let mut regs = [0u64; 4];
        // SAFETY: writes `regs` and nothing else.
        unsafe {
            core::arch::asm!(
                "adr x9, .",
                "mov x10, sp",
                "stp x9, x10, [x11]",
                "stp x29, x30, [x11, #16]",
                in("x11") &raw mut regs,
                out("x9") _,
                out("x10") _,
                options(nostack, preserves_flags),
            );
        }
        let [pc, sp, fp, lr] = regs;
        Regs {
            pc,
            sp,
            fp,
            lr,
            ..Regs::NONE
        }
    }

    fn from_ucontext(ucontext: u64) -> Option<Regs> {
        Regs::from_ucontext(ucontext, read)
    }

    fn objects() -> &'static OnceLock<Vec<Loaded<AArch64>>> {
        static OBJECTS: OnceLock<Vec<Loaded<AArch64>>> = OnceLock::new();
        &OBJECTS
    }
}
