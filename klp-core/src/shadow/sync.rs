//! Atomics of the shadow table, replaced by loom's when the orderings are model-checked, and the orderings themselves.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

#[cfg(not(loom))]
use core::sync::atomic::fence;
#[cfg(loom)]
use loom::sync::atomic::fence;

/// A lookup's first read of a slot's version, of the pointer to an overflow line, and of the pointer to the current table.
///
/// ORDER(shadow): acquire; its partner is [`PUBLISH`]. Who finds a variable sees what its constructor wrote; who finds a line
/// or a table sees its slots.
pub(super) const FIND: Ordering = if cfg!(klp_weaken = "shadow") { Ordering::Relaxed } else { Ordering::Acquire };

/// The writer's publication of a slot, a line or a table; partner of [`FIND`].
pub(super) const PUBLISH: Ordering = if cfg!(klp_weaken = "shadow") { Ordering::Relaxed } else { Ordering::Release };

/// Stands between a lookup's reads of a slot and its second read of the slot's version.
///
/// ORDER(shadow-reuse): acquire fence; its partner is [`before_reuse`]. Who read a word of a slot's next life sees that the version
/// is no longer that of the life before.
#[inline]
pub(super) fn after_reading() {
    if !cfg!(klp_weaken = "shadow-reuse") {
        fence(Ordering::Acquire);
    }
}

/// Stands between the version that ends a slot's life and the words of its next one; partner of [`after_reading`].
#[inline]
pub(super) fn before_reuse() {
    if !cfg!(klp_weaken = "shadow-reuse") {
        fence(Ordering::Release);
    }
}
