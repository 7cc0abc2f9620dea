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
        for (offset, byte) in bytes.iter_mut().enumerate() {
            let addr = addr.checked_add(offset as u64)?;
            let word = self.read(addr & !7)?.to_le_bytes();
            *byte = *word.get((addr & 7) as usize)?;
        }
        Some(())
    }
}

/// Memory that others may unmap while it is read, as the stack of a thread that may wake up at any
/// moment: the kernel copies it.
pub(crate) struct Copied {
    /// The page that was copied last, by its number.
    page: Cell<Option<u64>>,
    words: [Cell<u64>; WORDS],
}

/// Words of a page.
const WORDS: usize = (sys::PAGE / 8) as usize;

impl Copied {
    pub(crate) fn new() -> Self {
        Self {
            page: Cell::new(None),
            words: [const { Cell::new(0) }; WORDS],
        }
    }

    /// The eight bytes at `addr`, which must be a multiple of eight.
    pub(crate) fn read(&self, addr: u64) -> Option<u64> {
        let page = addr / sys::PAGE;
        if addr % 8 != 0 {
            return None;
        }
        if self.page.get() != Some(page) {
            self.page.set(None);
            if !sys::copy(page * sys::PAGE, &self.words) {
                return None;
            }
            self.page.set(Some(page));
        }
        let word = self.words.get((addr % sys::PAGE / 8) as usize)?;
        Some(word.get())
    }

    /// The `len` bytes at `addr`.
    pub(crate) fn bytes(&self, addr: u64, len: usize) -> Option<Vec<u8>> {
        let byte = |addr: u64| Some(self.read(addr & !7)?.to_le_bytes()[(addr & 7) as usize]);
        (addr..addr.checked_add(len as u64)?).map(byte).collect()
    }
}

/// Pages of code that were found readable in this round of looks at threads: most threads have
/// called the same code.
///
/// Between rounds it is closed, and every page is asked for.
pub(crate) struct CodePages {
    open: AtomicBool,
    /// Each at its number modulo the length. No code is in page 0.
    pages: [AtomicU64; 64],
}

impl Default for CodePages {
    fn default() -> Self {
        Self {
            open: AtomicBool::new(false),
            pages: [const { AtomicU64::new(0) }; 64],
        }
    }
}

impl CodePages {
    fn slot(&self, page: u64) -> &AtomicU64 {
        &self.pages[page as usize % self.pages.len()]
    }

    fn is_readable(&self, page: u64) -> bool {
        if self.open.load(Ordering::Relaxed) && self.slot(page).load(Ordering::Relaxed) == page {
            return page != 0;
        }
        let readable = sys::readable(page * sys::PAGE);
        if readable {
            self.slot(page).store(page, Ordering::Relaxed);
        }
        readable
    }

    /// The memory of code.
    pub(crate) fn memory(&self) -> Memory<impl Fn(u64) -> bool> {
        Memory::new(|page| self.is_readable(page))
    }

    /// Begins a round, which ends when the answer is dropped.
    pub(crate) fn round(&self) -> impl Drop + '_ {
        struct Round<'a>(&'a CodePages);
        impl Drop for Round<'_> {
            fn drop(&mut self) {
                self.0.open.store(false, Ordering::Relaxed);
            }
        }
        self.pages
            .iter()
            .for_each(|page| page.store(0, Ordering::Relaxed));
        self.open.store(true, Ordering::Relaxed);
        Round(self)
    }
}
