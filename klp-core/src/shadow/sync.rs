//! Atomics of the shadow table, replaced by loom's when the orderings are model-checked, and the
//! orderings themselves.

use core::cell::Cell;
use core::marker::PhantomData;
#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// The right to change a table of shadow variables: its lock has one, so whoever borrows it holds
/// the lock.
///
/// Functions that only the writer may call ask for it. It is not shared between tasks, and nobody
/// makes another one.
#[derive(Debug)]
pub(super) struct Writer(PhantomData<Cell<()>>);

impl Writer {
    /// For a table's lock alone.
    ///
    /// # Safety
    ///
    /// It is used with one table, which has no other.
    pub(super) const unsafe fn new() -> Self {
        Self(PhantomData)
    }
}

/// A lookup's read of a pointer: to a variable's data, a line, a table, a class.
///
/// ORDER(shadow): acquire; its partner is [`PUBLISH`]. Who follows the pointer sees what was
/// written before it was published: who finds a variable sees what its constructor wrote.
pub(super) const FIND: Ordering = if cfg!(klp_weaken = "shadow") {
    Ordering::Relaxed
} else {
    Ordering::Acquire
};

/// The writer's publication of such a pointer; partner of [`FIND`].
pub(super) const PUBLISH: Ordering = if cfg!(klp_weaken = "shadow") {
    Ordering::Relaxed
} else {
    Ordering::Release
};

/// A lookup's first read of a slot's object.
///
/// ORDER(shadow-reuse): acquire; its partner is [`REUSE`]. Who sees the object of a slot's new life
/// no longer sees the data of the life before. (That the second read of the object sees no older
/// life than the data is [`FIND`]'s doing.)
pub(super) const COMPARE: Ordering = if cfg!(klp_weaken = "shadow-reuse") {
    Ordering::Relaxed
} else {
    Ordering::Acquire
};

/// The writer's store of the object of a slot's new life; partner of [`COMPARE`].
pub(super) const REUSE: Ordering = if cfg!(klp_weaken = "shadow-reuse") {
    Ordering::Relaxed
} else {
    Ordering::Release
};
