//! The hot path (kernel: `klp_ftrace_handler`).
//!
//! It takes no lock, allocates nothing, cannot panic.

use super::stack::FuncStack;
use crate::addr::CodeAddr;
use crate::port::{HandlerArg, TaskState};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// What the handler needs to know about one entry site.
///
/// Once made it lives for ever: a task may be on its way from the site to the handler at any time.
/// When the site itself is gone, it may serve another.
#[derive(Debug)]
pub struct Ops {
    stack: FuncStack,
    original: AtomicU64,
    /// Whether a task may switch itself here: a [`Switch`].
    switch: AtomicU8,
    /// The function's first byte, in a transition.
    entry: AtomicU64,
}

/// Whether a task may switch itself at an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Switch {
    Never = 0,
    /// If the call in front of its return address is one of this very function.
    IfCalled = 1,
    Always = 2,
}

impl Ops {
    /// Leaks `ops`, see above.
    #[must_use]
    pub fn leak(ops: Box<[Self; 1]>) -> &'static Self {
        &Box::leak(ops)[0]
    }

    /// Ops of a site behind which the function goes on at `original`.
    #[must_use]
    pub fn new(original: CodeAddr) -> Self {
        Self {
            stack: FuncStack::new(),
            original: AtomicU64::new(original.get()),
            switch: AtomicU8::new(0),
            entry: AtomicU64::new(0),
        }
    }

    /// Gives it to another site, behind which the function goes on at `original`.
    ///
    /// # Safety
    ///
    /// Nothing is on the stack, and no task is on its way from the old site: it would go to the new
    /// one's function.
    pub(crate) unsafe fn serve(&'static self, original: CodeAddr) -> &'static Self {
        self.original.store(original.get(), Ordering::Relaxed);
        self.forbid_switch();
        self
    }

    /// The replacements.
    #[cfg(any(loom, feature = "sim"))]
    pub fn stack(&self) -> &FuncStack {
        &self.stack
    }

    /// The replacements.
    #[cfg(not(any(loom, feature = "sim")))]
    pub(crate) fn stack(&self) -> &FuncStack {
        &self.stack
    }

    /// Where the original function goes on behind its site.
    #[inline]
    #[must_use]
    pub fn original(&self) -> CodeAddr {
        // What `new` or `serve` wrote was there before the site led to the handler.
        CodeAddr::new(self.original.load(Ordering::Relaxed))
    }

    /// Lets tasks switch themselves at this entry, of the function that begins at `entry`, in the
    /// transition that is about to start, or not.
    pub(crate) fn let_switch(&self, switch: Switch, entry: CodeAddr) {
        self.entry.store(entry.get(), Ordering::Relaxed);
        self.switch.store(switch as u8, Ordering::Relaxed);
    }

    /// No task switches itself here until [`let_switch`](Ops::let_switch).
    pub(crate) fn forbid_switch(&self) {
        self.switch.store(Switch::Never as u8, Ordering::Relaxed);
    }

    /// What to bring to the handler so that it finds this.
    #[must_use]
    pub fn arg(&'static self) -> HandlerArg {
        HandlerArg::new(core::ptr::from_ref(self).expose_provenance() as u64)
    }

    /// Where a call by a task in `state` goes. The state is asked for only if it matters.
    ///
    /// # Safety
    ///
    /// From before this call until after it, the run counts as one of the handler's for
    /// [`Tracer::synchronize`](crate::port::Tracer::synchronize).
    #[inline]
    pub unsafe fn select(&self, state: impl FnOnce() -> TaskState) -> CodeAddr {
        // SAFETY: the caller's promise.
        unsafe { self.stack.select(state) }.unwrap_or_else(|| self.original())
    }
}

/// Where the call that came through the site of `arg` goes on, for the task whose state `state`
/// tells.
///
/// # Safety
///
/// `arg` is the number of a [`HandlerArg`] that this engine made. From before this call until after
/// it, the run counts as one of the handler's for
/// [`Tracer::synchronize`](crate::port::Tracer::synchronize).
#[inline]
pub unsafe fn handler(arg: u64, state: impl FnOnce() -> TaskState) -> CodeAddr {
    // SAFETY: the caller's promise.
    unsafe { ops_of(arg).select(state) }
}

/// Whether the task whose call came through the site of `arg` may switch itself there, if something
/// is [lent](crate::port::SelfSwitch::lend) for that. `called` says what the call in front of the
/// task's return address called, as [`Unwinder::called`](crate::port::Unwinder::called) does.
///
/// It may if it is certain that it was called, and did not come by a jump from affected code that
/// left no frame: whatever it is still in is on its stack then.
///
/// # Safety
///
/// As for [`handler`].
#[must_use]
pub unsafe fn may_switch(arg: u64, called: impl FnOnce() -> Option<CodeAddr>) -> bool {
    // SAFETY: as in `handler`.
    let ops = unsafe { ops_of(arg) };
    // What the engine wrote was there before it lent anything, which the caller has read with
    // acquire.
    match ops.switch.load(Ordering::Relaxed) {
        2 => true,
        1 => called().is_some_and(|to| {
            (ops.entry.load(Ordering::Relaxed)..ops.original().get()).contains(&to.get())
        }),
        _ => false,
    }
}

/// Whether [`may_switch`] may say so of some call at the site of `arg`. For hosts whose way there
/// is a long one.
///
/// # Safety
///
/// As for [`handler`].
#[inline]
#[must_use]
pub unsafe fn may_switch_at_all(arg: u64) -> bool {
    // SAFETY: as in `handler`.
    unsafe { ops_of(arg) }.switch.load(Ordering::Relaxed) != Switch::Never as u8
}

/// # Safety
///
/// `arg` is the number of a [`HandlerArg`] that this engine made.
#[inline]
unsafe fn ops_of(arg: u64) -> &'static Ops {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "it was a pointer of this machine"
    )]
    let ops = core::ptr::with_exposed_provenance::<Ops>(arg as usize);
    // SAFETY: `Ops::arg` made the number from a reference that lives for ever.
    unsafe { &*ops }
}
