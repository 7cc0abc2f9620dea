//! Room for contexts: a [`Slot`] for each, in blocks that are never unmapped. What is done with
//! them is in `contexts.rs`.

use super::arch::{Regs, registers};
use super::sys::map_zeroed;
use core::fmt::Write;
use core::ptr;
use core::sync::atomic::{AtomicI8, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use klp_core::port::{TaskId, TaskName, TaskState};

/// Ids of contexts begin here: no thread has such an id.
pub(crate) const FIRST_ID: u64 = 1 << 32;

/// What a context is doing.
pub(crate) mod phase {
    /// There is none in the slot.
    pub(crate) const FREE: u8 = 0;
    /// It is registered, and was neither entered nor left. Its state means nothing.
    pub(crate) const FRESH: u8 = 1;
    /// A thread runs on it.
    pub(crate) const RUNNING: u8 = 2;
    /// Nobody does.
    pub(crate) const SUSPENDED: u8 = 3;
    /// As `SUSPENDED`, and nobody may enter it: its stack is being walked.
    pub(crate) const VISITED: u8 = 4;
    /// The thread is gone that ran on it, or whose own stack it was.
    pub(crate) const DEAD: u8 = 5;
}

/// Room for one context.
#[repr(align(64))]
pub(crate) struct Slot {
    pub(crate) phase: AtomicU8,
    state: AtomicI8,
    /// The thread whose own stack it is; 0: of none.
    pub(crate) home: AtomicU32,
    /// Its [`TaskId`].
    id: AtomicU64,
    /// The registers to walk its stack with while it is suspended, in the order of
    /// `<klp/context.h>`.
    pub(crate) regs: [AtomicU64; size_of::<registers::Left>() / 8],
    name: [AtomicU8; NAME],
    /// The next free slot.
    next: AtomicPtr<Slot>,
}

/// Bytes of a context's name at most.
const NAME: usize = klp_core::config::TASK_NAME_LEN;

impl Slot {
    pub(crate) fn state(&self) -> TaskState {
        TaskState::from_i8(self.state.load(Ordering::SeqCst)).unwrap_or(TaskState::Idle)
    }

    pub(crate) fn set_state(&self, state: TaskState) {
        self.state.store(state as i8, Ordering::SeqCst);
    }

    pub(crate) fn phase(&self) -> u8 {
        self.phase.load(Ordering::Acquire)
    }

    pub(crate) fn id(&self) -> TaskId {
        TaskId(self.id.load(Ordering::Relaxed))
    }

    /// From `from` to `to`; says which phase it is in if that is not `from`.
    pub(crate) fn turn(&self, from: u8, to: u8) -> Result<(), u8> {
        self.phase
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
    }

    /// The thread that runs on it is gone.
    pub(crate) fn abandon(&self) {
        let _ = self.turn(phase::RUNNING, phase::DEAD);
    }

    /// Whether there may be something on its stack.
    pub(crate) fn lives(&self) -> bool {
        matches!(
            self.phase(),
            phase::RUNNING | phase::SUSPENDED | phase::VISITED
        )
    }

    pub(crate) fn is_suspended(&self) -> bool {
        matches!(self.phase(), phase::SUSPENDED | phase::VISITED)
    }

    pub(crate) fn regs(&self) -> Regs {
        // `leave` has written them before it turned to `SUSPENDED`.
        let regs = core::array::from_fn(|index| self.regs[index].load(Ordering::Relaxed));
        registers::left(regs)
    }

    pub(crate) fn name(&self) -> TaskName {
        let mut bytes = [0; NAME];
        for (byte, stored) in bytes.iter_mut().zip(&self.name) {
            *byte = stored.load(Ordering::Relaxed);
        }
        let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        let mut name = TaskName::new();
        for letter in core::str::from_utf8(&bytes[..len])
            .unwrap_or_default()
            .chars()
        {
            let _ = name.push(letter);
        }
        if name.is_empty() {
            let _ = write!(name, "context {}", self.id().0 - FIRST_ID);
        }
        name
    }

    fn set_name(&self, name: &str) {
        let mut len = name.len().min(NAME);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let letters = name.as_bytes()[..len]
            .iter()
            .copied()
            .chain(core::iter::repeat(0));
        for (stored, letter) in self.name.iter().zip(letters) {
            stored.store(letter, Ordering::Relaxed);
        }
    }
}

/// Slots of one block.
const CHUNK: usize = 512;

/// A block of slots, never unmapped. All zeros is what it begins with.
struct Chunk {
    slots: [Slot; CHUNK],
    next: AtomicPtr<Chunk>,
}

static FIRST: AtomicPtr<Chunk> = AtomicPtr::new(ptr::null_mut());

/// Every slot, used or not.
pub(crate) fn slots() -> impl Iterator<Item = &'static Slot> {
    // SAFETY: a chunk is published whole, and never unmapped.
    let chunk =
        |link: &AtomicPtr<Chunk>| unsafe { link.load(Ordering::Acquire).as_ref::<'static>() };
    core::iter::successors(chunk(&FIRST), move |last| chunk(&last.next))
        .flat_map(|chunk| &chunk.slots)
}

/// What contexts have in common; part of the registry.
pub(crate) struct Pool {
    /// The first of the free slots.
    free: AtomicPtr<Slot>,
    /// The id of the last context.
    last: u64,
}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self {
            free: AtomicPtr::new(ptr::null_mut()),
            last: FIRST_ID,
        }
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<&'static Slot> {
        if self.free.load(Ordering::Relaxed).is_null() {
            self.grow()?;
        }
        // SAFETY: slots are never unmapped.
        let slot: &'static Slot = unsafe { self.free.load(Ordering::Relaxed).as_ref() }?;
        self.free
            .store(slot.next.load(Ordering::Relaxed), Ordering::Relaxed);
        self.last += 1;
        slot.id.store(self.last, Ordering::Relaxed);
        slot.home.store(0, Ordering::Relaxed);
        slot.set_state(TaskState::Idle);
        slot.set_name(name);
        slot.phase.store(phase::FRESH, Ordering::Release);
        Some(slot)
    }

    pub(crate) fn give_back(&mut self, slot: &'static Slot) {
        slot.phase.store(phase::FREE, Ordering::Release);
        slot.next
            .store(self.free.load(Ordering::Relaxed), Ordering::Relaxed);
        self.free
            .store(ptr::from_ref(slot).cast_mut(), Ordering::Relaxed);
    }

    fn grow(&mut self) -> Option<()> {
        let chunk = map_zeroed(size_of::<Chunk>()).ok()?.cast::<Chunk>();
        // SAFETY: the mapping is new, large enough, aligned to a page, and zeros are a chunk of
        // free slots.
        let new: &'static Chunk = unsafe { &*chunk };
        new.next
            .store(FIRST.load(Ordering::Relaxed), Ordering::Relaxed);
        FIRST.store(chunk, Ordering::Release);
        new.slots.iter().for_each(|slot| self.give_back(slot));
        Some(())
    }

    /// After `fork`, in the child: the calling thread, which was `before`, is `now`. The stacks of
    /// other threads are not run on any more.
    #[allow(
        clippy::unused_self,
        clippy::needless_pass_by_ref_mut,
        reason = "the lock's guard is what permits it"
    )]
    pub(crate) fn keep_only_those_of(&mut self, before: u32, now: u32) {
        for slot in slots() {
            match slot.home.load(Ordering::Relaxed) {
                0 => {}
                home if home == before => slot.home.store(now, Ordering::Relaxed),
                _ if slot.is_suspended() => slot.phase.store(phase::DEAD, Ordering::Relaxed),
                _ => {}
            }
        }
    }
}
