//! One cache line of the table: two slots with their versions, and where it goes on.

#![forbid(unsafe_code)]

use super::sync::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, FIND, Ordering, PUBLISH, after_reading, before_reuse};
use core::ptr::{self, NonNull};

/// Slots in a line.
const SLOTS: usize = 2;

/// What a slot knows about one variable. Readers may find words of two variables in it; the slot's version tells.
#[derive(Debug)]
struct Slot {
    obj: AtomicUsize,
    id: AtomicU64,
    data: AtomicPtr<u8>,
}

/// Two slots; 64 bytes, so that a lookup that ends here costs one cache miss.
///
/// The version of a slot is odd while a variable is in it, and grows by one when a variable comes or goes. A reader that saw
/// the same odd version before and after it read the slot has read one variable. When the versions differ, the variable that was there
/// went away in between: to call it absent is right, so a reader never tries again.
///
/// A version has 32 bits, like Linux's sequence counters: a reader would have to stand still between two reads while exactly a
/// multiple of 2^31 variables come and go in this one slot.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Line {
    slots: [Slot; SLOTS],
    versions: [AtomicU32; SLOTS],
    /// The line that takes what does not fit here, or null.
    pub(super) next: AtomicPtr<Line>,
}

#[cfg(all(not(loom), target_pointer_width = "64"))]
const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    pub(super) fn new() -> Self {
        Self {
            slots: core::array::from_fn(|_| Slot {
                obj: AtomicUsize::new(0),
                id: AtomicU64::new(0),
                data: AtomicPtr::new(ptr::null_mut()),
            }),
            versions: core::array::from_fn(|_| AtomicU32::new(0)),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The data of `<obj, id>`, if it is in this line. For readers, at any time.
    #[inline]
    pub(super) fn find(&self, obj: usize, id: u64) -> Option<NonNull<u8>> {
        // ORDER(shadow): acquire; the partner is the write of the version in `fill`.
        let [first, second] = self.versions.each_ref().map(|version| version.load(FIND));
        let hit = |slot: &Slot, version: u32| {
            (slot.obj.load(Ordering::Relaxed) == obj) & (slot.id.load(Ordering::Relaxed) == id) & (version % 2 == 1)
        };
        // Both slots are compared before anything is decided: which of them it is, no processor can guess.
        let (in_first, in_second) = (hit(&self.slots[0], first), hit(&self.slots[1], second));
        if !(in_first | in_second) {
            return None;
        }
        let data = self.data_at(usize::from(in_second), if in_second { second } else { first });
        // Words of two variables in the second slot may look like the one in the first.
        if data.is_none() & in_first { self.data_at(0, first) } else { data }
    }

    /// The data in a slot, if its version has not changed.
    #[inline]
    fn data_at(&self, slot: usize, version: u32) -> Option<NonNull<u8>> {
        let data = self.slots[slot].data.load(Ordering::Relaxed);
        // ORDER(shadow-reuse): acquire; the partner is in `fill`.
        after_reading();
        if self.versions[slot].load(Ordering::Relaxed) == version { NonNull::new(data) } else { None }
    }

    /// The slots that hold a variable, with what they hold. For the writer.
    pub(super) fn variables(&self) -> impl Iterator<Item = (usize, Variable)> + '_ {
        (0..SLOTS).filter(|&slot| self.is_full(slot)).map(|index| {
            let slot = &self.slots[index];
            let data = NonNull::new(slot.data.load(Ordering::Relaxed)).expect("a full slot has data");
            let variable =
                Variable { obj: slot.obj.load(Ordering::Relaxed), id: slot.id.load(Ordering::Relaxed), data };
            (index, variable)
        })
    }

    /// A slot without a variable. For the writer.
    pub(super) fn vacant(&self) -> Option<usize> {
        (0..SLOTS).find(|&slot| !self.is_full(slot))
    }

    /// Whether no slot holds a variable. For the writer.
    pub(super) fn is_empty(&self) -> bool {
        (0..SLOTS).all(|slot| !self.is_full(slot))
    }

    /// Puts `variable` into a vacant slot. For the writer.
    pub(super) fn fill(&self, slot: usize, variable: Variable) {
        let (version, slot) = (&self.versions[slot], &self.slots[slot]);
        // ORDER(shadow-reuse): release; the partner is in `find`.
        before_reuse();
        slot.obj.store(variable.obj, Ordering::Relaxed);
        slot.id.store(variable.id, Ordering::Relaxed);
        slot.data.store(variable.data.as_ptr(), Ordering::Relaxed);
        // ORDER(shadow): release; the partner is the first read of the version in `find`.
        version.store(version.load(Ordering::Relaxed).wrapping_add(1), PUBLISH);
    }

    /// Takes the variable out of a full slot. For the writer.
    pub(super) fn clear(&self, slot: usize) {
        let version = &self.versions[slot];
        version.store(version.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Remembers another line in this one, which is empty and in no chain: not in `next`, which readers that still stand here follow.
    pub(super) fn set_spare(&self, line: *mut Line) {
        before_reuse();
        self.slots[0].data.store(line.cast(), Ordering::Relaxed);
    }

    /// What [`set_spare`](Line::set_spare) remembered.
    pub(super) fn spare(&self) -> *mut Line {
        self.slots[0].data.load(Ordering::Relaxed).cast()
    }

    fn is_full(&self, slot: usize) -> bool {
        self.versions[slot].load(Ordering::Relaxed) % 2 == 1
    }
}

/// One variable: its key and its data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Variable {
    pub(super) obj: usize,
    pub(super) id: u64,
    pub(super) data: NonNull<u8>,
}
