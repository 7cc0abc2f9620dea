//! The table in use by one class, and how it grows: a bigger one is filled aside and takes its place in one store.
//!
//! Readers may still be in the table before, so it stays, untouched, until somebody proves that they have left.

use super::line::Variable;
use super::sync::{AtomicPtr, FIND, Ordering, PUBLISH};
use super::table::Table;
use crate::mem::{OutOfMemory, try_box};
use alloc::boxed::Box;
use core::ptr;

/// One writer at a time, readers at any time.
///
/// # Invariants
///
/// `current` leads to a table from a box. `older` of every table is null or leads to another one. A table leaves memory with
/// the index, or through [`Retired::free`].
#[derive(Debug)]
pub(super) struct Index {
    current: AtomicPtr<Table>,
}

impl Index {
    /// An empty table of `lines` lines, a power of two.
    pub(super) fn new(lines: usize) -> Result<Self, OutOfMemory> {
        let table = Box::into_raw(try_box(Table::new(lines)?)?).cast::<Table>();
        Ok(Self { current: AtomicPtr::new(table) })
    }

    /// The table in use.
    #[inline]
    pub(super) fn current(&self) -> &Table {
        // ORDER(shadow): acquire; the partner is in `grow`.
        // SAFETY: by the invariant, a table; it stays until the index goes, or until `Retired::free`, whose caller
        // promises that every lookup that might have found it has ended.
        unsafe { &*self.current.load(FIND) }
    }

    /// Moves everything into a table of `lines` lines, a power of two. For the writer.
    ///
    /// Nothing has changed when memory runs out.
    pub(super) fn grow(&self, lines: usize) -> Result<(), OutOfMemory> {
        let bigger = Table::new(lines)?;
        for variable in self.current().variables() {
            bigger.vacancy(variable.obj)?.fill(variable);
        }
        bigger.older.store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
        let bigger = Box::into_raw(try_box(bigger)?).cast::<Table>();
        // ORDER(shadow): release; the partner is in `current`.
        self.current.store(bigger, PUBLISH);
        Ok(())
    }

    /// Adds the tables that are no longer in use to `retired`. For the writer.
    pub(super) fn retire(&self, retired: &mut Retired) {
        let table = self.current();
        let older = table.older.load(Ordering::Relaxed);
        let mut last = &retired.newest;
        // SAFETY: `Retired` owns its tables, and frees them only when it ends.
        while let Some(table) = unsafe { last.load(Ordering::Relaxed).as_ref() } {
            last = &table.older;
        }
        last.store(older, Ordering::Relaxed);
        table.older.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// All variables. For the writer.
    pub(super) fn variables(&self) -> impl Iterator<Item = Variable> + '_ {
        self.current().variables()
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
    pub(super) fn none() -> Self {
        Self { newest: AtomicPtr::new(ptr::null_mut()) }
    }

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
