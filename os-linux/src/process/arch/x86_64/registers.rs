//! Registers of interrupted and sleeping threads, and of suspended contexts.

use super::Regs;

/// Of a thread that sleeps, only where it goes on and its stack pointer are known.
pub(crate) fn asleep(pc: u64, sp: u64) -> Regs {
    let unknown = Regs::UNKNOWN;
    Regs {
        rip: pc,
        rsp: sp,
        rbp: unknown,
        rbx: unknown,
        r12: unknown,
        r13: unknown,
        r14: unknown,
        r15: unknown,
    }
}

/// What a function finds unchanged when one that it has called returns.
pub(crate) fn preserved(regs: &Regs) -> impl Iterator<Item = u64> + use<> {
    let saved = [regs.rbp, regs.rbx, regs.r12, regs.r13, regs.r14, regs.r15];
    [regs.rip].into_iter().chain(saved)
}

#[allow(clippy::cast_sign_loss, reason = "registers are bits")]
fn reg(ucontext: &libc::ucontext_t, index: i32) -> u64 {
    ucontext.uc_mcontext.gregs[index as usize] as u64
}

/// The registers that the kernel restores from `ucontext`.
pub(crate) fn interrupted(ucontext: &libc::ucontext_t) -> Regs {
    let reg = |index| reg(ucontext, index);
    Regs {
        rip: reg(libc::REG_RIP),
        rsp: reg(libc::REG_RSP),
        rbp: reg(libc::REG_RBP),
        rbx: reg(libc::REG_RBX),
        r12: reg(libc::REG_R12),
        r13: reg(libc::REG_R13),
        r14: reg(libc::REG_R14),
        r15: reg(libc::REG_R15),
    }
}

/// Where the function returns to that `ucontext` begins with, which `makecontext` has made.
///
/// # Safety
///
/// It has, and nobody has gone there.
pub(crate) unsafe fn foot(ucontext: &libc::ucontext_t) -> u64 {
    // SAFETY: the caller's promise: a stack begins there, with the return address.
    unsafe { core::ptr::read_volatile(reg(ucontext, libc::REG_RSP) as *const u64) }
}

/// Makes the thread go on at `pc`.
#[allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "registers are bits"
)]
pub(crate) fn set_pc(ucontext: &mut libc::ucontext_t, pc: u64) {
    ucontext.uc_mcontext.gregs[libc::REG_RIP as usize] = pc as i64;
}

/// All registers that may hold an address: the general ones, and the vector registers as far as SSE
/// goes. (What is in the upper parts of these was loaded from memory just now: no call keeps it.)
#[allow(clippy::cast_sign_loss, reason = "registers are bits")]
pub(crate) fn all(ucontext: &libc::ucontext_t) -> impl Iterator<Item = u64> {
    let context = &ucontext.uc_mcontext;
    // SAFETY: it points into the kernel's frame, or is null.
    let vectors = unsafe { context.fpregs.as_ref() };
    let vectors = vectors.into_iter().flat_map(|state| &state._xmm);
    let halves = vectors.flat_map(|vector| {
        let [a, b, c, d] = vector.element;
        [(a, b), (c, d)]
    });
    let words = halves.map(|(low, high)| u64::from(high) << 32 | u64::from(low));
    context.gregs.iter().map(|reg| *reg as u64).chain(words)
}

/// Whether the thread was in a system call: it is about to make it again, or has just returned.
pub(crate) fn in_system_call(ucontext: &libc::ucontext_t) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let pc = reg(ucontext, libc::REG_RIP);
    // SAFETY: the processor was about to execute the bytes at `pc`, and those before it are on the
    // same page.
    let at = |addr: u64| unsafe { [*(addr as *const u8), *((addr + 1) as *const u8)] };
    let same_page = |addr: u64| addr % 4096 <= 4094;
    same_page(pc) && at(pc) == SYSCALL || pc % 4096 >= 2 && at(pc - 2) == SYSCALL
}

/// The registers that a context is left with, in the order of `<klp/context.h>`.
pub(crate) type Left = [u64; 8];

/// Those of the calling function.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "the registers are those of the function that calls"
)]
pub(crate) fn here() -> Left {
    let mut regs = [0; 8];
    // SAFETY: registers are read, and written to an array that is large enough.
    unsafe {
        core::arch::asm!(
            "lea {pc}, [rip + 2f]",
            "mov [{to}], {pc}",
            "mov [{to} + 8], rsp",
            "mov [{to} + 16], rbp",
            "mov [{to} + 24], rbx",
            "mov [{to} + 32], r12",
            "mov [{to} + 40], r13",
            "mov [{to} + 48], r14",
            "mov [{to} + 56], r15",
            "2:",
            to = in(reg) regs.as_mut_ptr(),
            pc = out(reg) _,
            options(nostack, preserves_flags),
        );
    }
    regs
}

/// What to walk the stack of a context with that was left so.
pub(crate) fn left([rip, rsp, rbp, rbx, r12, r13, r14, r15]: Left) -> Regs {
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
