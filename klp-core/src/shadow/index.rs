//! The table in use by one class, and how it grows: a bigger one is filled aside, a few lines at a
//! time, and takes its place in one store.
//!
//! Readers may still be in the table before, so it stays, untouched, until somebody proves that
//! they have left.

use super::block::Handle;
use super::line::Variable;
use super::sync::{AtomicPtr, AtomicUsize, FIND, Ordering, PUBLISH, Writer};
use super::table::{BoxedTable, Table, Vacancy};
use crate::mem::OutOfMemory;
use alloc::boxed::Box;
use core::ptr::{self, NonNull};

/// Lines that are copied at a time, so many that a table is copied long before it is badly
/// overfull: one of `n` lines grows when it holds `n / 2 * 3` variables, and has grown when
/// `n / 16` more have been made. A model wants to see growths under way.
const LINES_AT_A_TIME: usize = if cfg!(loom) { 1 } else { 16 };

/// One writer at a time, readers at any time.
///
/// # Invariants
///
/// `current` leads to a table from a box. `older` of every table is null or leads to another one. A
/// table leaves memory with the index, or through [`Retired::free`].
///
/// `bigger` is null or leads to another table from a box, with more lines, of which readers do not
/// know. It holds those variables of the current one whose chains begin at one of the first
/// `copied` lines, and no others.
#[derive(Debug)]
pub(super) struct Index {
    current: AtomicPtr<Table>,
    /// What the index grows into, while it grows; for the writer, as what follows.
    bigger: AtomicPtr<Table>,
    copied: AtomicUsize,
}

impl Index {
    /// An empty table of `lines` lines, a power of two.
    pub(super) fn new(lines: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            current: AtomicPtr::new(into_raw(Table::new(lines)?)),
            bigger: AtomicPtr::new(ptr::null_mut()),
            copied: AtomicUsize::new(0),
        })
    }

    /// The table in use.
    #[inline]
    pub(super) fn current(&self) -> &Table {
        // ORDER(shadow): acquire; the partner is in `publish`. SAFETY: by the invariant, a table;
        // it stays until the index goes, or until `Retired::free`, whose caller promises that every
        // lookup that might have found it has ended.
        unsafe { &*self.current.load(FIND) }
    }

    /// Whether a bigger table is being filled. Certain for the writer, a guess for others.
    pub(super) fn grows(&self) -> bool {
        !self.bigger.load(Ordering::Relaxed).is_null()
    }

    /// Puts `variable` where there is room for it in the table in use.
    ///
    /// If there is no room for it in the bigger table, it is an error, after which that table must
    /// be [given up](Index::give_up).
    pub(super) fn add(
        &self,
        writer: &Writer,
        vacancy: Vacancy<'_>,
        variable: Variable,
    ) -> Result<(), OutOfMemory> {
        vacancy.fill(writer, variable);
        if let Some(bigger) = self.bigger_of(writer, variable.obj) {
            bigger.vacancy(writer, variable.obj)?.fill(writer, variable);
        }
        Ok(())
    }

    /// Takes `obj`'s variable out.
    pub(super) fn remove(&self, writer: &Writer, obj: usize) -> Option<Handle> {
        let block = self.current().remove(writer, obj)?;
        if let Some(bigger) = self.bigger_of(writer, obj) {
            bigger.remove(writer, obj);
        }
        Some(block)
    }

    /// Begins to grow into `bigger`, which is taken, unless the index grows already or has as many
    /// lines.
    pub(super) fn begin(&self, _: &Writer, bigger: &mut Option<BoxedTable>) {
        if self.grows() {
            return;
        }
        if let Some(bigger) = bigger.take_if(|bigger| bigger[0].lines() > self.current().lines()) {
            self.copied.store(0, Ordering::Relaxed);
            self.bigger.store(into_raw(bigger), Ordering::Relaxed);
        }
    }

    /// Copies a few lines, and their overflow lines, into the bigger table, if there is one;
    /// whether it has become the one in use by that.
    ///
    /// On errors it must be [given up](Index::give_up).
    pub(super) fn go_on(&self, writer: &Writer) -> Result<bool, OutOfMemory> {
        let Some(bigger) = self.bigger(writer) else {
            return Ok(false);
        };
        let current = self.current();
        let mut copied = self.copied.load(Ordering::Relaxed);
        let mut visited = 0;
        while visited < LINES_AT_A_TIME {
            let Some(chain) = current.chain_at(copied) else {
                break;
            };
            for line in chain {
                for (_, variable) in line.variables(writer) {
                    bigger.vacancy(writer, variable.obj)?.fill(writer, variable);
                }
                visited += 1;
            }
            copied += 1;
        }
        self.copied.store(copied, Ordering::Relaxed);
        let all = copied == current.lines();
        if all {
            self.publish(writer, bigger);
        }
        Ok(all)
    }

    /// Ends growth, if there is one, as if it had not begun; the table that was to be.
    pub(super) fn give_up(&self, _: &Writer) -> Option<BoxedTable> {
        let bigger = NonNull::new(self.bigger.load(Ordering::Relaxed))?;
        self.bigger.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: by the invariant it came from a box and nobody else knows of it; now it is
        // nobody's.
        Some(unsafe { Box::from_raw(bigger.as_ptr().cast()) })
    }

    /// Adds the tables that are no longer in use to `retired`.
    pub(super) fn retire(&self, _: &Writer, retired: &mut Retired) {
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

    /// All variables.
    pub(super) fn variables<'a>(
        &'a self,
        writer: &'a Writer,
    ) -> impl Iterator<Item = Variable> + 'a {
        self.current().variables(writer)
    }

    /// The table that the index grows into.
    fn bigger<'a>(&'a self, _: &'a Writer) -> Option<&'a Table> {
        // SAFETY: by the invariant, null or a table, which stays until `give_up`, or the end of the
        // index.
        unsafe { self.bigger.load(Ordering::Relaxed).as_ref() }
    }

    /// That table, if variables of `obj` are to be in it already.
    fn bigger_of<'a>(&'a self, writer: &'a Writer, obj: usize) -> Option<&'a Table> {
        let is_copied = || self.current().line_of(obj) < self.copied.load(Ordering::Relaxed);
        self.bigger(writer).filter(|_| is_copied())
    }

    /// Lets the bigger table, which has everything, take the place of the one in use.
    fn publish(&self, _: &Writer, bigger: &Table) {
        bigger
            .older
            .store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
        // ORDER(shadow): release; the partner is in `current`.
        self.current
            .store(self.bigger.load(Ordering::Relaxed), PUBLISH);
        self.bigger.store(ptr::null_mut(), Ordering::Relaxed);
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        for table in [&self.bigger, &self.current] {
            // SAFETY: by the invariant these are boxed tables, or none; the index is owned here, so
            // nobody reads in them.
            unsafe { free_from(table.load(Ordering::Relaxed)) };
        }
    }
}

/// Tables that a [`ShadowTable`](super::ShadowTable) has grown out of; lookups may still be in
/// them.
///
/// Dropped without [`free`](Retired::free), their memory is leaked.
#[derive(Debug)]
#[must_use = "the memory is leaked unless it is freed"]
pub struct Retired {
    newest: AtomicPtr<Table>,
}

impl Retired {
    pub(super) fn none() -> Self {
        Self {
            newest: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.newest.load(Ordering::Relaxed).is_null()
    }

    /// Gives the memory back.
    ///
    /// # Safety
    ///
    /// Every lookup that began before this value was made has ended. Calls that make variables look
    /// up, too, but not while they allocate. So it is enough that each task has waited for
    /// something since, and no interrupt is left from then.
    pub unsafe fn free(self) {
        // SAFETY: `retire` took these tables from the index; by the caller's promise nobody is in
        // them any more.
        unsafe { free_from(self.newest.load(Ordering::Relaxed)) };
    }
}

/// Frees `newest` and the tables that it leads to.
///
/// # Safety
///
/// `newest` is null or leads to a table from a box; the caller owns it and those behind it.
unsafe fn free_from(newest: *mut Table) {
    let mut at = newest;
    while !at.is_null() {
        // SAFETY: the caller's promise; each is met once.
        let table = unsafe { Box::from_raw(at.cast::<[Table; 1]>()) };
        at = table[0].older.load(Ordering::Relaxed);
    }
}

/// The table without its box.
fn into_raw(table: BoxedTable) -> *mut Table {
    Box::into_raw(table).cast()
}
