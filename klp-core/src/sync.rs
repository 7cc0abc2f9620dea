//! Atomics, replaced by loom's when the orderings are model-checked, and the orderings themselves.
//!
//! Lock order: the engine's lock, then the tracer's, then the host's own. The handler takes none of
//! them.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// A value that is written before others can see it, and only read from then on.
///
/// Under loom it complains when somebody reads it who is not sure to see it written, or may still
/// read it when it is dropped.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct WrittenOnce<T>(T);

#[cfg(not(loom))]
impl<T: Copy> WrittenOnce<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }

    pub(crate) const fn get(&self) -> T {
        self.0
    }
}

#[cfg(loom)]
pub(crate) use modelled::WrittenOnce;

#[cfg(loom)]
#[allow(unsafe_code, reason = "the point of it")]
mod modelled {
    use loom::cell::UnsafeCell;

    #[derive(Debug)]
    pub(crate) struct WrittenOnce<T>(UnsafeCell<T>);

    // SAFETY: loom finds it out if a read races with anything.
    unsafe impl<T: Send + Sync> Sync for WrittenOnce<T> {}

    impl<T: Copy> WrittenOnce<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(UnsafeCell::new(value))
        }

        pub(crate) fn get(&self) -> T {
            // SAFETY: the value was written before, or loom has stopped the model.
            self.0.with(|value| unsafe { *value })
        }
    }

    impl<T> Drop for WrittenOnce<T> {
        fn drop(&mut self) {
            self.0.with_mut(|_| ());
        }
    }
}

/// The handler's read of a `func_stack` link.
///
/// ORDER(stack): acquire; its partner is [`STACK_WRITE`] in `FuncStack::push` and `remove`. Who
/// sees a node sees its contents, and the task states that were set before it was pushed (kernel:
/// `list_add_rcu`/`list_first_or_null_rcu`).
pub(crate) const STACK_READ: Ordering = if cfg!(klp_weaken = "stack") {
    Ordering::Relaxed
} else {
    Ordering::Acquire
};

/// The engine's write of a `func_stack` link; partner of [`STACK_READ`].
pub(crate) const STACK_WRITE: Ordering = if cfg!(klp_weaken = "stack") {
    Ordering::Relaxed
} else {
    Ordering::Release
};

/// The handler's read of `func.transition`.
///
/// ORDER(transition): acquire; its partner is [`TRANSITION_WRITE`]. Who sees a transition under way
/// sees the task states that it starts from (kernel: `smp_rmb` in `klp_ftrace_handler`, `smp_wmb`
/// in `klp_init_transition`).
pub(crate) const TRANSITION_READ: Ordering = if cfg!(klp_weaken = "transition") {
    Ordering::Relaxed
} else {
    Ordering::Acquire
};

/// The engine's write of `func.transition`; partner of [`TRANSITION_READ`].
pub(crate) const TRANSITION_WRITE: Ordering = if cfg!(klp_weaken = "transition") {
    Ordering::Relaxed
} else {
    Ordering::Release
};

/// A task's look for what is lent to it.
///
/// ORDER(loan): acquire; its partner is [`LOAN_WRITE`] in `Lending::lend`. Who finds a loan finds
/// it whole, and finds what the engine wrote of entries for the same transition.
pub(crate) const LOAN_READ: Ordering = if cfg!(klp_weaken = "loan") {
    Ordering::Relaxed
} else {
    Ordering::Acquire
};

/// The host's lending; partner of [`LOAN_READ`].
pub(crate) const LOAN_WRITE: Ordering = if cfg!(klp_weaken = "loan") {
    Ordering::Relaxed
} else {
    Ordering::Release
};
