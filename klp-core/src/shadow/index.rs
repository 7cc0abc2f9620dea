//! The table in use, and how it grows: a bigger one is filled aside and takes its place in one store.
//!
//! Readers may still be in the table before, so it stays, untouched, until somebody proves that they have left.

use super::line::Variable;
use super::sync::{AtomicPtr, FIND, Ordering, PUBLISH};
use super::table::Table;
use crate::mem::{OutOfMemory, try_box};
use alloc::boxed::Box;
use core::ptr::{self, NonNull};

/// One writer at a time, readers at any time.
///
/// # Invariants
///
/// `current` is null or leads to a table from a box, and so does `older` of every table that it leads to. A table leaves memory with
/// the index, or through [`Retired::free`].
#[derive(Debug)]
pub(super) struct Index {
    current: AtomicPtr<Table>,
}

impl Index {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self { current: AtomicPtr::new(ptr::null_mut()) }
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self { current: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The table in use; `None` until the first [`grow`](Index::grow).
    #[inline]
    pub(super) fn current(&self) -> Option<&Table> {
        // ORDER(shadow): acquire; the partner is in `grow`.
        // SAFETY: by the invariant, null or a table; it stays until the index goes, or until `Retired::free`, whose caller
        // promises that every lookup that might have found it has ended.
        unsafe { self.current.load(FIND).as_ref() }
    }

    /// The data of `<obj, id>`. For readers, at any time.
    #[inline]
    pub(super) fn find(&self, obj: usize, id: u64) -> Option<NonNull<u8>> {
        self.current()?.find(obj, id)
    }

    /// Moves everything into a table of `lines` lines, a power of two. For the writer.
    ///
    /// Nothing has changed when memory runs out.
    pub(super) fn grow(&self, lines: usize) -> Result<(), OutOfMemory> {
        let bigger = Table::new(lines)?;
        for variable in self.current().into_iter().flat_map(Table::variables) {
            bigger.vacancy(variable.obj, variable.id)?.fill(variable);
        }
        bigger.older.store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
        let bigger = Box::into_raw(try_box(bigger)?).cast::<Table>();
        // ORDER(shadow): release; the partner is in `current`.
        self.current.store(bigger, PUBLISH);
        Ok(())
    }

    /// Hands out the tables that are no longer in use. For the writer.
    pub(super) fn retire(&self) -> Retired {
        let Some(table) = self.current() else { return Retired { newest: AtomicPtr::new(ptr::null_mut()) } };
        let older = table.older.load(Ordering::Relaxed);
        table.older.store(ptr::null_mut(), Ordering::Relaxed);
        Retired { newest: AtomicPtr::new(older) }
    }

    /// All variables. For an owner, when the end has come.
    pub(super) fn variables(&mut self) -> impl Iterator<Item = Variable> + '_ {
        self.current().into_iter().flat_map(Table::variables)
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // SAFETY: by the invariant these are boxed tables; the index is owned here, so nobody reads in them.
        unsafe { free_from(self.current.load(Ordering::Relaxed)) };
    }
}

/// Tables that a [`ShadowTable`](super::ShadowTable) has grown out of; lookups may still be in them.
///
/// Dropped without [`free`](Retired::free), their memory is leaked.
#[derive(Debug)]
#[must_use = "the memory is leaked unless it is freed"]
pub struct Retired {
    newest: AtomicPtr<Table>,
}

impl Retired {
    /// Gives the memory back.
    ///
    /// # Safety
    ///
    /// Every lookup that began before this value was made has ended (kernel: `synchronize_rcu`, if lookups are RCU read sections).
    pub unsafe fn free(self) {
        // SAFETY: `retire` took these tables from the index; by the caller's promise nobody is in them any more.
        unsafe { free_from(self.newest.load(Ordering::Relaxed)) };
    }
}

/// Frees `newest` and the tables that it leads to.
///
/// # Safety
///
/// `newest` is null or leads to a table that [`Index::grow`] put into a box; the caller owns it and those behind it.
unsafe fn free_from(newest: *mut Table) {
    let mut at = newest;
    while !at.is_null() {
        // SAFETY: the caller's promise; each is met once.
        let table = unsafe { Box::from_raw(at.cast::<[Table; 1]>()) };
        at = table[0].older.load(Ordering::Relaxed);
    }
}
