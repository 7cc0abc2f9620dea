//! The running process as something to be unwound.

use klp_arch_ppc64le::Ppc64Le;
use klp_arch_ppc64le::unwind::{Regs, SIGNAL_RETURN};
use klp_arch_tests::{Loaded, Running, read};
use std::sync::OnceLock;

/// This process.
pub(crate) struct Here;

impl Running for Here {
    type Arch = Ppc64Le;

    /// ELFv2 2.2.3.2.
    const SIGNAL_RETURN: Option<&'static [u8]> = Some(&SIGNAL_RETURN);

    const CHAINED: Option<u64> = Some(16);

    #[inline(always)]
    fn registers() -> Regs {
        let (pc, lr, r1, r30, r31): (u64, u64, u64, u64, u64);
        // SAFETY: changes nothing but what it says.
        unsafe {
            core::arch::asm!(
                "mflr {lr}",
                "bcl 20, 31, 2f",
                "2: mflr {pc}",
                "mtlr {lr}",
                "mr {r1}, %r1",
                "mr {r30}, %r30",
                "mr {r31}, %r31",
                pc = out(reg) pc,
                lr = out(reg) lr,
                r1 = out(reg) r1,
                r30 = out(reg) r30,
                r31 = out(reg) r31,
                options(nomem, nostack),
            );
        }
        Regs {
            pc,
            lr,
            r1,
            r30,
            r31,
            ..Regs::NONE
        }
    }

    fn from_ucontext(ucontext: u64) -> Option<Regs> {
        Regs::from_ucontext(ucontext, read)
    }

    fn objects() -> &'static OnceLock<Vec<Loaded<Ppc64Le>>> {
        static OBJECTS: OnceLock<Vec<Loaded<Ppc64Le>>> = OnceLock::new();
        &OBJECTS
    }
}
