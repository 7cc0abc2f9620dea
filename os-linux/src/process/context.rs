//! A thread as a signal interrupted it.

use klp_arch_x86_64::unwind::Regs;

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

    #[allow(clippy::cast_sign_loss, reason = "registers are bits")]
    fn reg(&self, index: i32) -> u64 {
        self.ucontext.uc_mcontext.gregs[index as usize] as u64
    }

    /// The next instruction.
    pub(crate) fn pc(&self) -> u64 {
        self.reg(libc::REG_RIP)
    }

    /// Makes the thread go on at `pc`.
    #[allow(
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "registers are bits"
    )]
    pub(crate) fn set_pc(&mut self, pc: u64) {
        self.ucontext.uc_mcontext.gregs[libc::REG_RIP as usize] = pc as i64;
    }

    /// The registers that a walk of the stack begins with.
    pub(crate) fn regs(&self) -> Regs {
        Regs {
            rip: self.reg(libc::REG_RIP),
            rsp: self.reg(libc::REG_RSP),
            rbp: self.reg(libc::REG_RBP),
            rbx: self.reg(libc::REG_RBX),
            r12: self.reg(libc::REG_R12),
            r13: self.reg(libc::REG_R13),
            r14: self.reg(libc::REG_R14),
            r15: self.reg(libc::REG_R15),
        }
    }

    /// All registers that may hold an address: the general ones, and the vector registers as far as
    /// SSE goes. (What is in the upper parts of these was loaded from memory just now: no call
    /// keeps it.)
    #[allow(clippy::cast_sign_loss, reason = "registers are bits")]
    pub(crate) fn registers(&self) -> impl Iterator<Item = u64> {
        let context = &self.ucontext.uc_mcontext;
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

    /// Whether the interrupted code runs on an alternate signal stack, so that the thread has
    /// another stack below it.
    pub(crate) fn on_signal_stack(&self) -> bool {
        let stack = &self.ucontext.uc_stack;
        let (low, sp) = (stack.ss_sp as u64, self.reg(libc::REG_RSP));
        stack.ss_flags & libc::SS_DISABLE == 0 && low <= sp && sp - low <= stack.ss_size as u64
    }

    /// Whether the thread was in a system call: it is about to make it again, or has just returned.
    pub(crate) fn in_system_call(&self) -> bool {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        let pc = self.pc();
        // SAFETY: the processor was about to execute the bytes at `pc`, and those before it are on
        // the same page.
        let at = |addr: u64| unsafe { [*(addr as *const u8), *((addr + 1) as *const u8)] };
        let same_page = |addr: u64| addr % 4096 <= 4094;
        same_page(pc) && at(pc) == SYSCALL || pc % 4096 >= 2 && at(pc - 2) == SYSCALL
    }
}
