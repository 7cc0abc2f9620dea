//! Reading memory that may not be there: the kernel is asked first, in signal handlers, or copies
//! it.

use super::sys;
use core::cell::Cell;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Reads stack memory, asking the kernel first whether a page can be read.
///
/// Rules from an object's own tables lead to real stack slots only, but a stack that a bug has
/// overwritten must not kill the process here.
pub(crate) fn stack_memory() -> Memory<impl Fn(u64) -> bool> {
    Memory::new(|page| sys::readable(page * sys::PAGE))
}

/// Reads memory of pages that can be read.
pub(crate) struct Memory<R> {
    /// Says whether a page can be read, by its number.
    is_readable: R,
    /// The page that was last found readable.
    page: Cell<Option<u64>>,
}

impl<R: Fn(u64) -> bool> Memory<R> {
    fn new(is_readable: R) -> Self {
        Self {
            is_readable,
            page: Cell::new(None),
        }
    }

    /// The eight bytes at `addr`, which must be a multiple of eight.
    pub(crate) fn read(&self, addr: u64) -> Option<u64> {
        let page = addr / sys::PAGE;
        if addr % 8 != 0 || self.page.get() != Some(page) && !(self.is_readable)(page) {
            return None;
        }
        self.page.set(Some(page));
        // SAFETY: the page can be read, and an aligned word does not leave it. Another thread may
        // write the word at this moment, hence volatile: no value is assumed.
        Some(unsafe { ptr::read_volatile(addr as *const u64) })
    }

    /// The words from `addr` on, which must be a multiple of eight, up to the end of the page;
    /// `None` if it cannot be read.
    pub(crate) fn page_from(&self, addr: u64) -> Option<impl Iterator<Item = u64>> {
        self.read(addr)?;
        let end = (addr / sys::PAGE + 1) * sys::PAGE;
        // SAFETY: as in `read`.
        Some(
            (addr..end)
                .step_by(8)
                .map(|addr| unsafe { ptr::read_volatile(addr as *const u64) }),
        )
    }

    /// Fills `bytes` from `addr` on; `None` if they cannot all be read.
    pub(crate) fn read_bytes(&self, addr: u64, bytes: &mut [u8]) -> Option<()> {
        let (mut addr, mut rest) = (addr, bytes);
        while !rest.is_empty() {
            let word = self.read(addr & !7)?.to_le_bytes();
            let word = word.get((addr & 7) as usize..)?;
            let (now, later) = rest.split_at_mut(word.len().min(rest.len()));
            now.copy_from_slice(word.get(..now.len())?);
            addr = addr.checked_add(now.len() as u64)?;
            rest = later;
        }
        Some(())
    }
}

/// Memory that others may unmap while it is read, as the stack of a thread that may wake up at any
/// moment: the kernel copies it.
pub(crate) struct Copied {
    /// The address of the first word that was copied last, and how many could be.
    from: Cell<u64>,
    len: Cell<usize>,
    words: [Cell<u64>; 2 * WORDS],
}

/// Words of a page.
const WORDS: usize = (sys::PAGE / 8) as usize;

impl Copied {
    pub(crate) fn new() -> Self {
        Self {
            from: Cell::new(0),
            len: Cell::new(0),
            words: [const { Cell::new(0) }; 2 * WORDS],
        }
    }

    /// Begins with what lies above `sp` and below `end`: often enough that is all that is ever asked
    /// for.
    pub(crate) fn stack(sp: u64, end: u64) -> Self {
        let (new, from) = (Self::new(), sp / 8 * 8);
        new.copy(
            from,
            usize::try_from((end - from) / 8).unwrap_or(usize::MAX),
        );
        new
    }

    /// Copies at most `len` words.
    fn copy(&self, from: u64, len: usize) {
        let room = self.words.get(..len).unwrap_or(&self.words);
        self.len.set(sys::copy(from, room) / 8);
        self.from.set(from);
    }

    /// The eight bytes at `addr`, which must be a multiple of eight.
    #[inline]
    pub(crate) fn read(&self, addr: u64) -> Option<u64> {
        self.known(addr).or_else(|| {
            self.copy(addr / sys::PAGE * sys::PAGE, usize::MAX);
            self.known(addr)
        })
    }

    /// Some words from `addr` on, one at least, which must be a multiple of eight; `None` if it
    /// cannot be read.
    pub(crate) fn words(&self, addr: u64) -> Option<impl Iterator<Item = u64>> {
        self.read(addr)?;
        let from = usize::try_from((addr - self.from.get()) / 8).ok()?;
        Some(self.words.get(from..self.len.get())?.iter().map(Cell::get))
    }

    fn known(&self, addr: u64) -> Option<u64> {
        let offset = addr.wrapping_sub(self.from.get());
        let index = usize::try_from(offset / 8).ok()?;
        let known = self.words.get(..self.len.get())?;
        known.get(index).filter(|_| offset % 8 == 0).map(Cell::get)
    }

    /// The `len` bytes at `addr`.
    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Option<Vec<u8>> {
        let byte = |addr: u64| Some(self.read(addr & !7)?.to_le_bytes()[(addr & 7) as usize]);
        (addr..addr.checked_add(len as u64)?).map(byte).collect()
    }
}

/// What was found in this round of looks at threads: most threads have called the same code. No
/// address 0 is ever found.
///
/// Between rounds it is closed, and nothing is known.
pub(crate) struct Known<const SLOTS: usize> {
    open: AtomicBool,
    /// Each at its place, or at one of the next few.
    found: [AtomicU64; SLOTS],
}

impl<const SLOTS: usize> Default for Known<SLOTS> {
    fn default() -> Self {
        Self {
            open: AtomicBool::new(false),
            found: [const { AtomicU64::new(0) }; SLOTS],
        }
    }
}

impl<const SLOTS: usize> Known<SLOTS> {
    /// Whether it was found before, or is found by `look` now.
    pub(crate) fn or_look(&self, what: u64, look: impl FnOnce() -> bool) -> bool {
        let open = self.open.load(Ordering::Relaxed);
        if open
            && what != 0
            && self
                .slots(what)
                .any(|slot| slot.load(Ordering::Relaxed) == what)
        {
            return true;
        }
        let found = look();
        if found && open {
            let free = self
                .slots(what)
                .find(|slot| slot.load(Ordering::Relaxed) == 0);
            let slot = free.or_else(|| self.slots(what).next());
            slot.inspect(|slot| slot.store(what, Ordering::Relaxed));
        }
        found
    }

    /// Where `what` may be.
    fn slots(&self, what: u64) -> impl Iterator<Item = &AtomicU64> {
        let place = what.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (place..place + 4).map(|at| &self.found[at as usize % SLOTS])
    }

    /// Begins a round, which ends when the answer is dropped.
    pub(crate) fn round(&self) -> impl Drop + '_ {
        struct Round<'a>(&'a AtomicBool);
        impl Drop for Round<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Relaxed);
            }
        }
        let found = self.found.iter();
        found.for_each(|slot| slot.store(0, Ordering::Relaxed));
        self.open.store(true, Ordering::Relaxed);
        Round(&self.open)
    }
}

/// Pages of code that can be read.
pub(crate) type CodePages = Known<64>;

impl CodePages {
    /// The memory of code.
    pub(crate) fn memory(&self) -> Memory<impl Fn(u64) -> bool> {
        Memory::new(|page| self.or_look(page, || sys::readable(page * sys::PAGE)))
    }
}
