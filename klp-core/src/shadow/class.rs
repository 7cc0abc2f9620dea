//! Variables by their ids: each id has a table of its own.
//!
//! Ids name kinds of data, so there are few of them; they are found through a fixed number of short lists, and stay until the end.

use super::index::Index;
use super::line::Variable;
use super::sync::{AtomicPtr, AtomicUsize, FIND, Ordering, PUBLISH};
use super::table::Vacancy;
use crate::mem::{OutOfMemory, try_box};
use alloc::boxed::Box;
use core::ptr::{self, NonNull};

/// Lists. A model checker wants few of everything.
const LISTS: usize = if cfg!(loom) { 2 } else { 256 };

/// Lines of a class's first table.
const FIRST_LINES: usize = if cfg!(loom) { 1 } else { 16 };

/// Variables that a table of `lines` lines takes before it doubles: half of its slots, so that one in 15 or fewer is in an overflow line.
/// The model must get to see overflow lines.
const fn limit(lines: usize) -> usize {
    if cfg!(loom) { 4 * lines } else { lines / 2 * 3 }
}

/// All variables of one id.
#[derive(Debug)]
pub(super) struct Class {
    id: u64,
    index: Index,
    /// How many there are; for the writer, as what follows.
    variables: AtomicUsize,
    /// As many call for a bigger table.
    limit: AtomicUsize,
    /// The class below in the same list, or null.
    next: AtomicPtr<Class>,
}

impl Class {
    /// The data of `obj`'s variable. For readers, at any time.
    #[inline]
    pub(super) fn find(&self, obj: usize) -> Option<NonNull<u8>> {
        self.index.current().find(obj)
    }

    /// Room for a variable of `obj`. For the writer.
    pub(super) fn vacancy(&self, obj: usize) -> Result<Vacancy<'_>, OutOfMemory> {
        let variables = self.variables.load(Ordering::Relaxed);
        if variables >= self.limit.load(Ordering::Relaxed) {
            let lines = self.index.current().lines() * 2;
            if self.grow(lines).is_err() {
                // A full table works, only slower. Not at once again: a failed attempt is not cheap.
                self.limit.store(variables + lines / 16 + 1, Ordering::Relaxed);
            }
        }
        self.index.current().vacancy(obj)
    }

    /// Puts `variable` where [`vacancy`](Class::vacancy) found room for it. For the writer.
    pub(super) fn add(&self, vacancy: Vacancy<'_>, variable: Variable) {
        vacancy.fill(variable);
        self.variables.store(self.variables.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Takes `obj`'s variable out. For the writer.
    pub(super) fn remove(&self, obj: usize) -> Option<NonNull<u8>> {
        let data = self.index.current().remove(obj)?;
        self.variables.store(self.variables.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        Some(data)
    }

    /// Takes all variables out, and shows each to `removed` when it is out. For the writer.
    pub(super) fn remove_all(&self, mut removed: impl FnMut(Variable)) {
        self.index.current().remove_all(|variable| {
            self.variables.store(self.variables.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
            removed(variable);
        });
    }

    /// Makes room for `additional` more variables. For the writer.
    pub(super) fn reserve(&self, additional: usize) -> Result<(), OutOfMemory> {
        let variables = self.variables.load(Ordering::Relaxed).checked_add(additional).ok_or(OutOfMemory)?;
        let now = self.index.current().lines();
        let mut lines = now;
        while limit(lines) < variables {
            lines = lines.checked_mul(2).ok_or(OutOfMemory)?;
        }
        if lines == now { Ok(()) } else { self.grow(lines) }
    }

    /// How many there are. For the writer.
    pub(super) fn len(&self) -> usize {
        self.variables.load(Ordering::Relaxed)
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    fn grow(&self, lines: usize) -> Result<(), OutOfMemory> {
        self.index.grow(lines)?;
        self.limit.store(limit(lines), Ordering::Relaxed);
        Ok(())
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
        Self { lists: [const { AtomicPtr::new(ptr::null_mut()) }; LISTS] }
    }

    #[cfg(loom)]
    pub(super) fn new() -> Self {
        Self { lists: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())) }
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

    /// The class of `id`, made if there is none. For the writer.
    pub(super) fn find_or_make(&self, id: u64) -> Result<&Class, OutOfMemory> {
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
        self.lists.iter().flat_map(|list| core::iter::successors(follow(list), |class| follow(&class.next)))
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
                // SAFETY: a class that `find_or_make` put into a box, met once; nobody reads any more, `self` is owned here.
                let class = unsafe { Box::from_raw(at.cast::<[Class; 1]>()) };
                at = class[0].next.load(Ordering::Relaxed);
            }
        }
    }
}

/// The class that `link` leads to.
#[inline]
fn follow(link: &AtomicPtr<Class>) -> Option<&Class> {
    // ORDER(shadow): acquire; the partner is in `find_or_make`.
    // SAFETY: by the invariant of `Classes`, null or a class that stays as long as the `Classes` that `link` is part of.
    unsafe { link.load(FIND).as_ref() }
}
