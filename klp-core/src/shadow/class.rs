//! Variables by their ids: each id has a table of its own.
//!
//! Ids name kinds of data, so there are few of them; they are found through a fixed number of short
//! lists, and stay until the end.

use super::block::Handle;
use super::index::Index;
use super::line::Variable;
use super::sync::{AtomicPtr, AtomicUsize, FIND, Ordering, PUBLISH, Writer};
use super::table::{BoxedTable, Table, Vacancy};
use crate::mem::{OutOfMemory, try_box};
use alloc::boxed::Box;
use core::ptr;

/// Lists. A model checker wants few of everything.
const LISTS: usize = if cfg!(loom) { 2 } else { 256 };

/// Lines of a class's first table.
const FIRST_LINES: usize = if cfg!(loom) { 1 } else { 16 };

/// Variables that a table of `lines` lines takes before it is grown out of: half of its slots, so
/// that one in 15 or fewer is in an overflow line. The model must get to see overflow lines.
const fn limit(lines: usize) -> usize {
    if cfg!(loom) { 4 * lines } else { lines / 2 * 3 }
}

/// The lines, a power of two, of a table that takes `variables`.
fn lines_for(variables: usize) -> Result<usize, OutOfMemory> {
    let mut lines = FIRST_LINES;
    while limit(lines) < variables {
        lines = lines.checked_mul(2).ok_or(OutOfMemory)?;
    }
    Ok(lines)
}

/// What a writer has with him so that he need not allocate and free big tables with the lock held.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Made before the lock was taken: to grow into.
    pub(super) bigger: Option<BoxedTable>,
    /// What was given up under the lock.
    given_up: Option<BoxedTable>,
}

/// All variables of one id.
#[derive(Debug)]
pub(super) struct Class {
    id: u64,
    index: Index,
    /// How many there are. The writer changes it.
    variables: AtomicUsize,
    /// As many call for a bigger table. Whoever sets out to make it puts it off.
    limit: AtomicUsize,
    /// The class below in the same list, or null.
    next: AtomicPtr<Class>,
}

impl Class {
    /// The data of `obj`'s variable. For readers, at any time.
    #[inline]
    pub(super) fn find(&self, obj: usize) -> Option<Handle> {
        self.index.current().find(obj)
    }

    /// What a task that is about to make a variable takes with it: a bigger table, if it is time
    /// for one, and nobody else is at it, and there is memory. Without the lock, as that takes its
    /// time.
    pub(super) fn tables(&self) -> Tables {
        let (variables, limit) = (
            self.variables.load(Ordering::Relaxed),
            self.limit.load(Ordering::Relaxed),
        );
        let mut tables = Tables::default();
        if variables < limit || self.index.grows() {
            return tables;
        }
        let Ok(lines) = lines_for(variables + 1) else {
            return tables;
        };
        // If nothing comes of it, the next attempt is not made at once: it is not cheap. Growth
        // takes fewer variables than that.
        let later = variables + lines / 16 + 1;
        // Relaxed: nothing hangs on it, and a table too many is only freed again.
        if self
            .limit
            .compare_exchange(limit, later, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            tables.bigger = Table::new(lines).ok();
        }
        tables
    }

    /// Room for a variable of `obj`.
    pub(super) fn vacancy(&self, writer: &Writer, obj: usize) -> Result<Vacancy<'_>, OutOfMemory> {
        self.index.current().vacancy(writer, obj)
    }

    /// Puts `variable` where [`vacancy`](Class::vacancy) found room for it, and brings growth on;
    /// whether a table was grown out of by that.
    pub(super) fn add(
        &self,
        writer: &Writer,
        vacancy: Vacancy<'_>,
        variable: Variable,
        tables: &mut Tables,
    ) -> bool {
        let added = self.index.add(writer, vacancy, variable);
        self.variables.store(
            self.variables.load(Ordering::Relaxed) + 1,
            Ordering::Relaxed,
        );
        let grown = match added {
            Ok(()) => self.grow(writer, tables),
            Err(error) => self.fail(writer, error, tables),
        };
        // A full table works, only slower: so it is not this variable's failure if growth fails.
        grown.unwrap_or(false)
    }

    /// Takes `obj`'s variable out.
    pub(super) fn remove(&self, writer: &Writer, obj: usize) -> Option<Handle> {
        let block = self.index.remove(writer, obj)?;
        self.variables.store(
            self.variables.load(Ordering::Relaxed) - 1,
            Ordering::Relaxed,
        );
        Some(block)
    }

    /// Takes all variables out, and shows each to `removed` when it is out. Then there is nothing
    /// to grow for.
    pub(super) fn remove_all(
        &self,
        writer: &Writer,
        tables: &mut Tables,
        mut removed: impl FnMut(Variable),
    ) {
        tables.given_up = self.index.give_up(writer);
        let table = self.index.current();
        self.limit.store(limit(table.lines()), Ordering::Relaxed);
        table.remove_all(writer, |variable| {
            self.variables.store(
                self.variables.load(Ordering::Relaxed) - 1,
                Ordering::Relaxed,
            );
            removed(variable);
        });
    }

    /// Begins to grow into the bigger table, if one is at hand and the class does not grow already,
    /// and copies a few lines; whether a table was grown out of by that.
    ///
    /// On errors growth is given up: its next table has no memory for an overflow line.
    pub(super) fn grow(&self, writer: &Writer, tables: &mut Tables) -> Result<bool, OutOfMemory> {
        self.index.begin(writer, &mut tables.bigger);
        let grown = self
            .index
            .go_on(writer)
            .or_else(|error| self.fail(writer, error, tables))?;
        if grown {
            self.limit
                .store(limit(self.index.current().lines()), Ordering::Relaxed);
        }
        Ok(grown)
    }

    /// The lines of the table that the class must grow into to have room for `variables`, if it
    /// must.
    pub(super) fn lines_wanted(
        &self,
        _: &Writer,
        variables: usize,
    ) -> Result<Option<usize>, OutOfMemory> {
        let lines = lines_for(variables)?;
        Ok((lines > self.index.current().lines()).then_some(lines))
    }

    /// Whether it holds more than it should: there was no memory for a bigger table, or not where
    /// it was asked for. At any time.
    pub(super) fn is_crowded(&self) -> bool {
        self.variables.load(Ordering::Relaxed) > limit(self.index.current().lines())
            && !self.index.grows()
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// How many there are.
    pub(super) fn len(&self, _: &Writer) -> usize {
        self.variables.load(Ordering::Relaxed)
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// Gives growth up.
    fn fail(
        &self,
        writer: &Writer,
        error: OutOfMemory,
        tables: &mut Tables,
    ) -> Result<bool, OutOfMemory> {
        tables.given_up = self.index.give_up(writer);
        Err(error)
    }
}

/// All classes. One writer at a time, readers at any time.
///
/// # Invariants
///
/// Every pointer is null or leads to a class from a box, which goes with this value, not before.
#[derive(Debug)]
pub(super) struct Classes {
    lists: [AtomicPtr<Class>; LISTS],
}

impl Classes {
    #[cfg(not(loom))]
    pub(super) const fn new() -> Self {
        Self {
            lists: [const { AtomicPtr::new(ptr::null_mut()) }; LISTS],
        }
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self {
            lists: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }

    /// The class of `id`. For readers, at any time.
    #[inline]
    pub(super) fn find(&self, id: u64) -> Option<&Class> {
        let mut class = follow(self.list(id))?;
        while class.id != id {
            class = follow(&class.next)?;
        }
        Some(class)
    }

    /// The class of `id`, made if there is none.
    pub(super) fn find_or_make(&self, _: &Writer, id: u64) -> Result<&Class, OutOfMemory> {
        if let Some(class) = self.find(id) {
            return Ok(class);
        }
        let list = self.list(id);
        let class = Class {
            id,
            index: Index::new(FIRST_LINES)?,
            variables: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit(FIRST_LINES)),
            next: AtomicPtr::new(list.load(Ordering::Relaxed)),
        };
        let class = Box::into_raw(try_box(class)?).cast::<Class>();
        // ORDER(shadow): release; the partner is in `follow`.
        list.store(class, PUBLISH);
        // SAFETY: just allocated; it goes with `self`.
        Ok(unsafe { &*class })
    }

    /// All classes.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Class> {
        self.lists
            .iter()
            .flat_map(|list| core::iter::successors(follow(list), |class| follow(&class.next)))
    }

    #[inline]
    fn list(&self, id: u64) -> &AtomicPtr<Class> {
        // Ids are enumerations: their last byte is hash enough.
        &self.lists[id as usize % LISTS]
    }
}

impl Drop for Classes {
    fn drop(&mut self) {
        for list in &self.lists {
            let mut at = list.load(Ordering::Relaxed);
            while !at.is_null() {
                // SAFETY: a class that `find_or_make` put into a box, met once; nobody reads any
                // more, `self` is owned here.
                let class = unsafe { Box::from_raw(at.cast::<[Class; 1]>()) };
                at = class[0].next.load(Ordering::Relaxed);
            }
        }
    }
}

/// The class that `link` leads to.
#[inline]
fn follow(link: &AtomicPtr<Class>) -> Option<&Class> {
    // ORDER(shadow): acquire; the partner is in `find_or_make`. SAFETY: by the invariant of
    // `Classes`, null or a class that stays as long as the `Classes` that `link` is part of.
    unsafe { link.load(FIND).as_ref() }
}
