//! The affected code, lent to the tasks while they move.
//!
//! A task may look at it at any moment, so it leaves memory only when the last handler run that
//! could look has ended: [`Writer`] and [`Synchronized`] see to that.

use super::stack_check::Affected;
use crate::addr::CodeAddr;
use crate::mem::{OutOfMemory, try_box};
use crate::ops::{Synchronized, Writer};
use crate::port::{Frame, Moves, SelfSwitch, TaskState};
use alloc::boxed::Box;
use core::ops::Deref;
use core::ptr::NonNull;

/// Affected code at a fixed address. Dropping it leaks it while tasks may look at it.
///
/// # Invariants
///
/// The pointer came from a box that nobody else frees. Tasks may look there unless `seen` is
/// [`Nobody`](Seen::Nobody), and find it in no new run of the handler while `seen` is
/// [`Earlier`](Seen::Earlier).
#[derive(Debug)]
pub(super) struct Lent {
    affected: NonNull<Affected>,
    seen: Seen,
}

/// Which runs of the handler may look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Nobody,
    /// Any.
    All,
    /// Those that began before it was withdrawn.
    Earlier,
}

// SAFETY: it is a box of `Affected`, which is `Send` and `Sync`.
unsafe impl Send for Lent {}
// SAFETY: as above.
unsafe impl Sync for Lent {}

impl Lent {
    pub(super) fn new(affected: Affected) -> Result<Self, OutOfMemory> {
        let [affected] = Box::leak(try_box(affected)?);
        Ok(Self {
            affected: NonNull::from(affected),
            seen: Seen::Nobody,
        })
    }

    /// Lets tasks switch themselves, on a host where they do. They may not at entries if affected
    /// code jumps who knows where.
    pub(super) fn lend(&mut self, tasks: Option<&dyn SelfSwitch>, moves: &Moves) {
        let Some(tasks) = tasks.filter(|_| self.is_lendable()) else {
            return;
        };
        self.seen = Seen::All;
        // SAFETY: it stays until `release`, for which it must have been withdrawn, with a proof
        // that was made after that.
        unsafe { tasks.lend(moves, &**self) };
    }

    /// Ends what [`lend`](Lent::lend) began.
    pub(super) fn withdraw(&mut self, writer: &mut Writer, tasks: Option<&dyn SelfSwitch>) {
        let _ = writer;
        tasks.into_iter().for_each(SelfSwitch::withdraw);
        if self.seen == Seen::All {
            self.seen = Seen::Earlier;
        }
    }

    /// Lets the memory go when this is dropped, if it is withdrawn.
    pub(super) fn release(&mut self, proof: &Synchronized<'_>) {
        // The proof borrows the writer, so it was made after the withdrawal.
        let _ = proof;
        if self.seen == Seen::Earlier {
            self.seen = Seen::Nobody;
        }
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
        if self.seen == Seen::Nobody {
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
