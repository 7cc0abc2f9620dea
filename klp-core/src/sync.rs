//! Atomics, replaced by loom's when the orderings are model-checked, and the orderings themselves.
//!
//! Lock order: the engine's lock, then the tracer's, then the host's own. The handler takes none of them.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// The handler's read of a `func_stack` link.
///
/// ORDER(stack): acquire; its partner is [`STACK_WRITE`] in `FuncStack::push` and `remove`. Who sees a node sees its contents, and the
/// task states that were set before it was pushed (kernel: `list_add_rcu`/`list_first_or_null_rcu`).
pub(crate) const STACK_READ: Ordering =
    if cfg!(klp_weaken = "stack") { Ordering::Relaxed } else { Ordering::Acquire };

/// The engine's write of a `func_stack` link; partner of [`STACK_READ`].
pub(crate) const STACK_WRITE: Ordering =
    if cfg!(klp_weaken = "stack") { Ordering::Relaxed } else { Ordering::Release };

/// The handler's read of `func.transition`.
///
/// ORDER(transition): acquire; its partner is [`TRANSITION_WRITE`]. Who sees a transition under way sees the task states that it
/// starts from (kernel: `smp_rmb` in `klp_ftrace_handler`, `smp_wmb` in `klp_init_transition`).
pub(crate) const TRANSITION_READ: Ordering =
    if cfg!(klp_weaken = "transition") { Ordering::Relaxed } else { Ordering::Acquire };

/// The engine's write of `func.transition`; partner of [`TRANSITION_READ`].
pub(crate) const TRANSITION_WRITE: Ordering =
    if cfg!(klp_weaken = "transition") { Ordering::Relaxed } else { Ordering::Release };
