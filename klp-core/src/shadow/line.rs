//! One cache line of a table: three slots, and where it goes on.

#![forbid(unsafe_code)]

use super::block::{AtomicHandle, Handle};
use super::sync::{AtomicPtr, AtomicUsize, COMPARE, FIND, Ordering, PUBLISH, REUSE, Writer};
use core::ptr;

/// Slots in a line.
const SLOTS: usize = 3;

/// The address that no object has: the last one. A slot without a variable bears it.
pub(super) const NOWHERE: usize = usize::MAX;

/// One variable, or none: then there is no `block`, and `obj` is [`NOWHERE`] or about to be.
#[derive(Debug)]
struct Slot {
    obj: AtomicUsize,
    block: AtomicHandle,
}

impl Slot {
    /// The data, if it is `obj`'s.
    #[inline]
    fn find(&self, obj: usize) -> Option<Handle> {
        // ORDER(shadow-reuse): acquire; the partner is in `Line::fill`.
        if self.obj.load(COMPARE) != obj {
            return None;
        }
        // ORDER(shadow): acquire; the partner is in `Line::fill`. What is read behind it is not
        // older than the data.
        let block = self.block.load(FIND)?;
        if self.obj.load(Ordering::Relaxed) == obj {
            Some(block)
        } else {
            None
        }
    }
}

/// Three slots; 64 bytes, so that a lookup that ends here costs one cache miss.
///
/// A slot may change while it is read. Its life: the object is set, the data is set, the data is
/// taken away, the object is taken away. A reader reads the object, the data, and the object again.
/// Both times it must be the object sought. The first time says that its variable was there; if the
/// data is of a later life of the slot, then that variable was freed meanwhile, and who looks a
/// variable up while it is freed must not use what he gets. In every other case the data is right.
/// If a read says no, the variable was not in this slot all the time. So a reader never tries
/// again, and is never wrong about a variable that stays.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Line {
    slots: [Slot; SLOTS],
    /// The line that takes what does not fit here, or null.
    pub(super) next: AtomicPtr<Line>,
    /// Another line that is in no chain either, or null; for the writer.
    pub(super) spare: AtomicPtr<Line>,
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
const _: () = assert!(size_of::<Line>() == 64);

/// One variable of a class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variable {
    pub(super) obj: usize,
    pub(super) block: Handle,
}

impl Line {
    pub(super) fn new() -> Self {
        let null = || Slot {
            obj: AtomicUsize::new(NOWHERE),
            block: AtomicHandle::none(),
        };
        Self {
            slots: [null(), null(), null()],
            next: AtomicPtr::new(ptr::null_mut()),
            spare: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The data of `obj`'s variable, if it is in this line. For readers, at any time.
    ///
    /// While `obj` has a variable here, no other slot bears `obj`: one that did lost it before this
    /// variable was made.
    #[inline]
    pub(super) fn find(&self, obj: usize) -> Option<Handle> {
        // Which of the slots it is, no processor can guess: so it is computed, and not by branches.
        let is_in = |slot: usize| self.slots[slot].obj.load(Ordering::Relaxed) == obj;
        let (second, third) = (is_in(1), is_in(2));
        self.slots[if third { 2 } else { usize::from(second) }].find(obj)
    }

    /// The slots that hold a variable, with what they hold.
    pub(super) fn variables<'a>(
        &'a self,
        _: &'a Writer,
    ) -> impl Iterator<Item = (usize, Variable)> + 'a {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let block = slot.block.load(Ordering::Relaxed)?;
            Some((
                index,
                Variable {
                    obj: slot.obj.load(Ordering::Relaxed),
                    block,
                },
            ))
        })
    }

    /// A slot without a variable.
    pub(super) fn vacant(&self, _: &Writer) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| slot.block.load(Ordering::Relaxed).is_none())
    }

    /// Whether no slot holds a variable.
    pub(super) fn is_empty(&self, writer: &Writer) -> bool {
        self.variables(writer).next().is_none()
    }

    /// Puts `variable` into a vacant slot.
    pub(super) fn fill(&self, _: &Writer, slot: usize, variable: Variable) {
        let slot = &self.slots[slot];
        // ORDER(shadow-reuse): release; the partner is the first read in `Slot::find`.
        slot.obj.store(variable.obj, REUSE);
        // ORDER(shadow): release; the partner is in `Slot::find`.
        slot.block.store(Some(variable.block), PUBLISH);
    }

    /// Takes the variable out of a full slot.
    pub(super) fn clear(&self, _: &Writer, slot: usize) {
        let slot = &self.slots[slot];
        slot.block.store(None, Ordering::Relaxed);
        // Left there, it would deceive a reader who comes now and stays until the slot is used for
        // another and then for it again.
        slot.obj.store(NOWHERE, Ordering::Relaxed);
    }
}
