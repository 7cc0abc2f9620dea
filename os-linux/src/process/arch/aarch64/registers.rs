//! Registers of interrupted and sleeping threads, and of suspended contexts.

use super::Regs;

/// Of a thread that sleeps, only where it goes on and its stack pointer are known.
pub(crate) fn asleep(pc: u64, sp: u64) -> Regs {
    Regs {
        pc,
        sp,
        ..Regs::NONE
    }
}

/// What a function finds unchanged when one that it has called returns, and where it goes on.
pub(crate) fn preserved(regs: &Regs) -> impl Iterator<Item = u64> + use<> {
    [regs.pc, regs.lr, regs.fp].into_iter().chain(regs.saved)
}

/// The registers that the kernel restores from `ucontext`.
pub(crate) fn interrupted(ucontext: &libc::ucontext_t) -> Regs {
    let context = &ucontext.uc_mcontext;
    let vectors = vectors(ucontext);
    Regs {
        pc: context.pc,
        sp: context.sp,
        fp: context.regs[29],
        lr: context.regs[30],
        saved: core::array::from_fn(|index| match index {
            0..10 => context.regs[19 + index],
            // d8 to d15
            _ => vectors.map_or(0, |vectors| vectors[index - 10 + 8][0]),
        }),
    }
}

/// Where the function returns to that `ucontext` begins with, which `makecontext` has made.
///
/// # Safety
///
/// It has, and nobody has gone there.
pub(crate) unsafe fn foot(ucontext: &libc::ucontext_t) -> u64 {
    ucontext.uc_mcontext.regs[30]
}

/// Makes the thread go on at `pc`.
pub(crate) fn set_pc(ucontext: &mut libc::ucontext_t, pc: u64) {
    ucontext.uc_mcontext.pc = pc;
}

/// All registers that may hold an address: the general ones, and the vector registers as far as
/// they are not SVE's alone. (What is in the upper parts of these was loaded from memory just now:
/// no call keeps it.)
pub(crate) fn all(ucontext: &libc::ucontext_t) -> impl Iterator<Item = u64> {
    let context = &ucontext.uc_mcontext;
    let vectors = vectors(ucontext).into_iter().flatten().flatten();
    let general = context.regs.iter().chain([&context.sp, &context.pc]);
    general.chain(vectors).copied()
}

/// The vector registers, `v0` to `v31`.
type Vectors = [[u64; 2]; 32];

/// Those that the kernel restores from `ucontext`, unless they have never been used (the kernel's
/// `<asm/sigcontext.h>`: `struct fpsimd_context`).
fn vectors(ucontext: &libc::ucontext_t) -> Option<&Vectors> {
    /// Bytes from `uc_mcontext` to its `__reserved`, aligned to 16 behind the registers.
    const RESERVED: usize = 288;
    const RESERVED_LEN: usize = 4096;
    const FPSIMD_MAGIC: u32 = 0x4650_8001;
    /// Bytes of a record's head, and of what stands before the registers.
    const HEAD: usize = 8;
    const BEFORE: usize = HEAD + 8;
    let records = (&raw const ucontext.uc_mcontext).cast::<u8>();
    let mut at = 0;
    while at + BEFORE + size_of::<Vectors>() <= RESERVED_LEN {
        // SAFETY: the kernel's frame has as much room behind the registers, and records begin at
        // multiples of 16.
        let (magic, size, vectors) = unsafe {
            let record = records.add(RESERVED + at);
            let [magic, size] = record.cast::<[u32; 2]>().read();
            (magic, size as usize, record.add(BEFORE).cast::<Vectors>())
        };
        if magic == FPSIMD_MAGIC {
            // SAFETY: as above; it is as large as this.
            return Some(unsafe { &*vectors });
        }
        if magic == 0 || size < HEAD || size % 16 != 0 {
            return None;
        }
        at += size;
    }
    None
}

/// Whether the thread was in a system call: it is about to make it again, or has just returned.
pub(crate) fn in_system_call(ucontext: &libc::ucontext_t) -> bool {
    /// `svc #0`
    const SYSCALL: u32 = 0xd400_0001;
    let pc = ucontext.uc_mcontext.pc;
    // SAFETY: the processor was about to execute the word at `pc`, and the one before it is on the
    // same page.
    let at = |addr: u64| unsafe { *(addr as *const u32) };
    pc % 4 == 0 && (at(pc) == SYSCALL || pc % 4096 != 0 && at(pc - 4) == SYSCALL)
}

/// The registers that a context is left with, in the order of `<klp/context.h>`.
pub(crate) type Left = [u64; 22];

/// Those of the calling function.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "the registers are those of the function that calls"
)]
pub(crate) fn here() -> Left {
    let mut regs = [0; 22];
    // SAFETY: registers are read, and written to an array that is large enough.
    unsafe {
        core::arch::asm!(
            "adr {a}, 2f",
            "mov {b}, sp",
            "stp {a}, {b}, [{to}]",
            "stp x29, x30, [{to}, #16]",
            "stp x19, x20, [{to}, #32]",
            "stp x21, x22, [{to}, #48]",
            "stp x23, x24, [{to}, #64]",
            "stp x25, x26, [{to}, #80]",
            "stp x27, x28, [{to}, #96]",
            "stp d8, d9, [{to}, #112]",
            "stp d10, d11, [{to}, #128]",
            "stp d12, d13, [{to}, #144]",
            "stp d14, d15, [{to}, #160]",
            "2:",
            to = in(reg) regs.as_mut_ptr(),
            a = out(reg) _,
            b = out(reg) _,
            options(nostack, preserves_flags),
        );
    }
    regs
}

/// What to walk the stack of a context with that was left so.
pub(crate) fn left([pc, sp, fp, lr, saved @ ..]: Left) -> Regs {
    Regs {
        pc,
        sp,
        fp,
        lr,
        saved,
    }
}
