//! A thread as a signal interrupted it.

use super::arch::{self, Regs, registers};

/// What the kernel saved of an interrupted thread and restores when the signal handler returns.
pub(crate) struct Interrupted<'a> {
    ucontext: &'a mut libc::ucontext_t,
}

impl<'a> Interrupted<'a> {
    /// # Safety
    ///
    /// `ucontext` is the third argument of a signal handler that has not returned.
    pub(crate) unsafe fn new(ucontext: *mut libc::c_void) -> Self {
        Self {
            // SAFETY: the kernel hands out a valid frame, which is the handler's own.
            ucontext: unsafe { &mut *ucontext.cast() },
        }
    }

    /// The next instruction.
    pub(crate) fn pc(&self) -> u64 {
        arch::pc(&self.regs())
    }

    /// Makes the thread go on at `pc`.
    pub(crate) fn set_pc(&mut self, pc: u64) {
        registers::set_pc(self.ucontext, pc);
    }

    /// The registers that a walk of the stack begins with.
    pub(crate) fn regs(&self) -> Regs {
        registers::interrupted(self.ucontext)
    }

    /// All registers that may hold an address.
    pub(crate) fn registers(&self) -> impl Iterator<Item = u64> {
        registers::all(self.ucontext)
    }

    /// Whether the interrupted code runs on an alternate signal stack, so that the thread has
    /// another stack below it.
    pub(crate) fn on_signal_stack(&self) -> bool {
        let stack = &self.ucontext.uc_stack;
        let (low, sp) = (stack.ss_sp as u64, arch::sp(&self.regs()));
        stack.ss_flags & libc::SS_DISABLE == 0 && low <= sp && sp - low <= stack.ss_size as u64
    }

    /// Whether the thread was in a system call: it is about to make it again, or has just returned.
    pub(crate) fn in_system_call(&self) -> bool {
        registers::in_system_call(self.ucontext)
    }
}
