//! Registers of interrupted and sleeping threads, and of suspended contexts.

use super::Regs;
use super::unwind::SAVED;

/// Of a thread that sleeps, only where it goes on and its stack pointer are known.
pub(crate) fn asleep(pc: u64, sp: u64) -> Regs {
    Regs {
        pc,
        r1: sp,
        ..Regs::NONE
    }
}

/// What a function finds unchanged when one that it has called returns, and where it goes on.
pub(crate) fn preserved(regs: &Regs) -> impl Iterator<Item = u64> + use<> {
    let own = [regs.pc, regs.lr, regs.r30, regs.r31];
    own.into_iter().chain(regs.saved)
}

/// Places in `gp_regs` (the kernel's `<asm/ptrace.h>`).
const NIP: usize = 32;
const MSR: usize = 33;
const CTR: usize = 35;
const LINK: usize = 36;

/// The registers that the kernel restores from `ucontext`.
pub(crate) fn interrupted(ucontext: &libc::ucontext_t) -> Regs {
    let context = &ucontext.uc_mcontext;
    let general = &context.gp_regs;
    let saved = general[14..30].iter().copied();
    let saved = saved.chain(floats(ucontext).skip(14));
    let mut saved = saved.chain(vectors(ucontext).skip(20).flatten());
    Regs {
        pc: general[NIP],
        r1: general[1],
        lr: general[LINK],
        r30: general[30],
        r31: general[31],
        saved: core::array::from_fn(|_| saved.next().unwrap_or(Regs::UNKNOWN)),
    }
}

/// Where the function returns to that `ucontext` begins with, which `makecontext` has made.
///
/// # Safety
///
/// It has, and nobody has gone there.
pub(crate) unsafe fn foot(ucontext: &libc::ucontext_t) -> u64 {
    ucontext.uc_mcontext.gp_regs[LINK]
}

/// Makes the thread go on at `pc`.
pub(crate) fn set_pc(ucontext: &mut libc::ucontext_t, pc: u64) {
    ucontext.uc_mcontext.gp_regs[NIP] = pc;
}

/// All registers that may hold an address: the general ones, those of branches, those of floating
/// point and the vector registers. (What is behind those of floating point in the registers of VSX
/// was loaded from memory just now: no call keeps it.)
pub(crate) fn all(ucontext: &libc::ucontext_t) -> impl Iterator<Item = u64> {
    let general = &ucontext.uc_mcontext.gp_regs;
    let branches = [general[NIP], general[CTR], general[LINK]];
    let general = general[..32].iter().copied().chain(branches);
    general
        .chain(floats(ucontext))
        .chain(vectors(ucontext).flatten())
}

/// `f0` to `f31`.
fn floats(ucontext: &libc::ucontext_t) -> impl Iterator<Item = u64> + '_ {
    let floats = &ucontext.uc_mcontext.fp_regs;
    floats[..32].iter().copied()
}

/// `v0` to `v31`, unless they have never been used.
fn vectors(ucontext: &libc::ucontext_t) -> impl Iterator<Item = [u64; 2]> + '_ {
    /// The kernel's `<asm/reg.h>`: `MSR_VEC`.
    const USED: u64 = 1 << 25;
    let context = &ucontext.uc_mcontext;
    // SAFETY: it points into the frame that the kernel or `getcontext` has filled, or is null.
    let vectors = unsafe { context.v_regs.as_ref() };
    let vectors = vectors.filter(|_| context.gp_regs[MSR] & USED != 0);
    let registers = vectors.into_iter().flat_map(|vectors| &vectors.vrregs);
    registers.map(|&[a, b, c, d]| {
        let half = |low, high| u64::from(high) << 32 | u64::from(low);
        [half(a, b), half(c, d)]
    })
}

/// Whether the thread was in a system call: it is about to make it again, or has just returned.
pub(crate) fn in_system_call(ucontext: &libc::ucontext_t) -> bool {
    /// `sc` and `scv 0`
    const SYSCALLS: [u32; 2] = [0x4400_0002, 0x4400_0001];
    let pc = ucontext.uc_mcontext.gp_regs[NIP];
    // SAFETY: the processor was about to execute the word at `pc`, and the one before it is on the
    // same page.
    let is_call = |addr: u64| SYSCALLS.contains(unsafe { &*(addr as *const u32) });
    pc % 4 == 0 && (is_call(pc) || pc % 4096 != 0 && is_call(pc - 4))
}

/// The registers that a context is left with, in the order of `<klp/context.h>`.
pub(crate) type Left = [u64; 5 + SAVED];

/// Those of the calling function.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "the registers are those of the function that calls"
)]
pub(crate) fn here() -> Left {
    let mut regs = [0; 5 + SAVED];
    // SAFETY: registers are read, and written to an array that is large enough.
    unsafe {
        core::arch::asm!(
            "mflr {link}",
            "std {link}, 16({to})",
            "bcl 20, 31, 2f",
            "2:",
            "mflr {a}",
            "mtlr {link}",
            "addi {a}, {a}, 3f - 2b",
            "std {a}, 0({to})",
            "std 1, 8({to})",
            "std 30, 24({to})",
            "std 31, 32({to})",
            ".set klp_register, 14",
            ".rept 16",
            "std klp_register, 40 + 8 * (klp_register - 14)({to})",
            ".set klp_register, klp_register + 1",
            ".endr",
            ".set klp_register, 14",
            ".rept 18",
            "stfd klp_register, 168 + 8 * (klp_register - 14)({to})",
            ".set klp_register, klp_register + 1",
            ".endr",
            // Registers 52 to 63 of VSX, which may be stored anywhere.
            "li {a}, 312",
            ".set klp_register, 52",
            ".rept 12",
            "stxvd2x klp_register, {to}, {a}",
            "addi {a}, {a}, 16",
            ".set klp_register, klp_register + 1",
            ".endr",
            "3:",
            to = in(reg_nonzero) regs.as_mut_ptr(),
            a = out(reg_nonzero) _,
            link = out(reg) _,
            options(nostack, preserves_flags),
        );
    }
    regs
}

/// What to walk the stack of a context with that was left so.
pub(crate) fn left([pc, r1, lr, r30, r31, saved @ ..]: Left) -> Regs {
    Regs {
        pc,
        r1,
        lr,
        r30,
        r31,
        saved,
    }
}
