//! The affected code, lent to the tasks while they move.
//!
//! A task may look at it at any moment, so it leaves memory only when the last handler run that could look has ended.

use super::stack_check::Affected;
use crate::addr::CodeAddr;
use crate::mem::{OutOfMemory, try_box};
use crate::ops::Synchronized;
use crate::port::{Frame, Moves, SelfSwitch, TaskState};
use alloc::boxed::Box;
use core::ops::Deref;
use core::ptr::NonNull;

/// Affected code at a fixed address. Dropping it leaks it, unless it was never lent.
///
/// # Invariants
///
/// The pointer came from a box that nobody else frees.
#[derive(Debug)]
pub(super) struct Lent {
    affected: NonNull<Affected>,
    lent: bool,
}

// SAFETY: it is a box of `Affected`, which is `Send` and `Sync`.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    pub(super) fn new(affected: Affected) -> Result<Self, OutOfMemory> {
        let [affected] = Box::leak(try_box(affected)?);
        Ok(Self { affected: NonNull::from(affected), lent: false })
    }

    /// Lets tasks switch themselves, on a host where they do. They may not at entries if affected code
    /// jumps who knows where.
    pub(super) fn lend(&mut self, tasks: Option<&dyn SelfSwitch>, moves: &Moves) {
        let Some(tasks) = tasks.filter(|_| self.is_lendable()) else { return };
        self.lent = true;
        // SAFETY: the memory goes in `reclaim` alone, with a proof that was made after `withdraw`.
        unsafe { tasks.lend(moves, &**self) };
    }

    /// Gives the memory back. `proof` was made after [`SelfSwitch::withdraw`].
    pub(super) fn reclaim(mut self, proof: &Synchronized) {
        let _ = proof;
        self.lent = false;
    }
}

impl Deref for Lent {
    type Target = Affected;
    fn deref(&self) -> &Affected {
        // SAFETY: by the invariant, it is there as long as this is.
        unsafe { self.affected.as_ref() }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.lent {
            // SAFETY: by the invariant it came from a box, of one element; nobody uses it.
            drop(unsafe { Box::from_raw(self.affected.as_ptr().cast::<[Affected; 1]>()) });
        }
    }
}

impl crate::port::EntryCheck for Affected {
    fn keeps(&self, target: TaskState, frame: Frame, called: Option<CodeAddr>) -> bool {
        self.find(target, frame, called).is_some()
    }
}
