//! Code of the running process: the port [`Text`].
//!
//! Instructions change under running threads, none of which is stopped, nor meets a breakpoint. A
//! change is one store of a word: a processor fetches all of the old bytes or all of the new ones.
//! `arch/PROCESSOR/text.rs` has the bytes.
//!
//! Pages stay executable all the time, since other threads run in them; they are writable only for
//! that while.

use super::arch::text;
use super::error::Error;
use super::memory::{Images, Part, protect};
use super::pads::Pads;
use super::space::Space;
use super::sys::{self, Barrier};
use alloc::sync::Arc;
use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{CallC, Fill, Image, ImageLayout, Poke, Text};

const READ_EXEC: i32 = libc::PROT_READ | libc::PROT_EXEC;

/// The code of this process.
pub struct ProcessText {
    space: Arc<Space>,
    images: Images,
}

impl ProcessText {
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self {
            space,
            images: Images::default(),
        }
    }

    /// The executable part of an object or image that contains all of `range`, and how its pages are
    /// protected.
    fn code(&self, range: TextRange) -> Result<(TextRange, i32), Error> {
        let contains =
            |whole: TextRange| whole.start() <= range.start() && range.end() <= whole.end();
        let object = self
            .space
            .objects
            .segment(range.start())
            .filter(|segment| segment.executable);
        let image = || {
            self.images
                .part(range)
                .filter(|(part, _)| *part == Part::Text)
                .map(|(part, range)| (range, part.protection()))
        };
        object
            .map(|segment| (segment.range, READ_EXEC | segment.guard))
            .filter(|(whole, _)| contains(*whole))
            .or_else(image)
            .ok_or(Error::NotText { at: range.start() })
    }

    /// Whether `range` can be read.
    fn is_readable(&self, range: TextRange) -> bool {
        // Mostly it is in an image.
        self.images.part(range).is_some()
            || self
                .space
                .objects
                .segment(range.start())
                .is_some_and(|segment| segment.readable && range.end() <= segment.range.end())
    }

    /// Checks that every place holds what is expected, and sums the places up to a range of pages
    /// for each piece of memory.
    fn check(&self, batch: &[Poke<'_>]) -> Result<Vec<(TextRange, i32)>, Error> {
        let mut touched: Vec<(TextRange, i32)> = Vec::new();
        let mut found: Option<(TextRange, i32)> = None;
        for poke in batch {
            let range = place(poke.at, poke.old)?;
            if poke.new.len() != poke.old.len() || poke.old.is_empty() {
                return Err(Error::TextChanged { at: poke.at });
            }
            if text::window(range).is_none() {
                return Err(Error::NotInOneLine { at: poke.at });
            }
            let contains = |whole: TextRange| whole.contains(poke.at) && range.end() <= whole.end();
            let known = found.filter(|(whole, _)| contains(*whole));
            let same = known.is_some();
            let code = known.map_or_else(|| self.code(range), Ok)?;
            found = Some(code);
            // SAFETY: `code` found the range mapped and readable.
            if unsafe { core::slice::from_raw_parts(poke.at.get() as *const u8, poke.old.len()) }
                != poke.old
            {
                return Err(Error::TextChanged { at: poke.at });
            }
            match touched.last_mut() {
                Some((last, _)) if same => *last = hull(*last, range),
                _ => {
                    touched.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
                    touched.push((range, code.1));
                }
            }
        }
        Ok(touched)
    }

    /// Changes code as `arch/PROCESSOR/text.rs` says.
    ///
    /// # Safety
    ///
    /// As for [`Text::poke`]; `batch` was [checked](Self::check), and can be written to.
    unsafe fn change(&self, batch: &[Poke<'_>]) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        let set_first = |poke: &Poke<'_>, byte| unsafe { set_first(poke.at, byte) };
        // SAFETY: the caller's promise.
        let replace = |poke: &Poke<'_>, bytes| unsafe { text::replace(poke.at, bytes) };
        let split = || batch.iter().filter(|poke| poke.split);
        if let (Some(skips), Some(_)) = (text::SKIPS, split().next()) {
            split().for_each(|poke| set_first(poke, skips));
            let cleared = serialise().and_then(|()| Pads::new(batch, &self.space.stacks).clear());
            if let Err(error) = cleared {
                split().for_each(|poke| set_first(poke, poke.old[0]));
                let _ = serialise();
                return Err(error);
            }
        }
        for poke in batch {
            replace(poke, poke.new);
        }
        serialise().inspect_err(|_| {
            // Somebody took the call away since it was made at the beginning.
            batch.iter().for_each(|poke| replace(poke, poke.old));
        })
    }
}

// SAFETY: `poke` follows the protocol of `arch/PROCESSOR/text.rs`: a core executes the old bytes, what
// comes to the same, or the new bytes; a thread in the midst of several old instructions is moved,
// or nothing changes. `alloc` hands out each mapping once, and it is mapped
// here, as code of this process.
unsafe impl Text for ProcessText {
    type Error = Error;
    const CALL_C: Option<CallC> = Some(CallC::HERE);

    fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), Error> {
        if !self.is_readable(place(at, into)?) {
            return Err(Error::NotText { at });
        }
        // SAFETY: the range is mapped and readable.
        unsafe { ptr::copy_nonoverlapping(at.get() as *const u8, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    unsafe fn poke(&self, batch: &[Poke<'_>]) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        let touched = self.check(batch)?;
        // Before anything changes: the call may be denied by now.
        serialise()?;
        let _writable = Writable::new(touched)?;
        // SAFETY: the caller's promise, and what was done above.
        unsafe { self.change(batch) }
    }

    fn alloc(&self, near: TextRange, reach: u64, layout: ImageLayout) -> Result<Image, Error> {
        self.images.alloc(near, reach, layout)
    }

    unsafe fn free(&self, image: Image) {
        // SAFETY: the caller's promise.
        unsafe { self.images.free(image) };
    }

    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), Error> {
        let mut touched: Vec<(TextRange, i32)> = Vec::new();
        for fill in batch {
            let range = place(fill.at, fill.bytes)?;
            let (part, whole) = self
                .images
                .part(range)
                .ok_or(Error::NotText { at: fill.at })?;
            if part == Part::Data {
                continue;
            }
            let known = touched
                .iter_mut()
                .find(|(each, _)| whole.contains(each.start()));
            match known {
                Some((each, _)) => *each = hull(*each, range),
                None => {
                    touched.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
                    touched.push((range, part.protection()));
                }
            }
        }
        let _writable = Writable::new(touched)?;
        for fill in batch {
            // SAFETY: the place is in an image, and writable now; the caller promises that no task
            // executes it.
            unsafe {
                ptr::copy_nonoverlapping(
                    fill.bytes.as_ptr(),
                    fill.at.get() as *mut u8,
                    fill.bytes.len(),
                )
            };
            // SAFETY: as above.
            unsafe { text::written(place(fill.at, fill.bytes)?) };
        }
        serialise()
    }
}

/// Puts `byte` at `at`.
///
/// # Safety
///
/// The place is writable code, which is only written to here; the instruction that comes of it is
/// one that may be executed there.
unsafe fn set_first(at: CodeAddr, byte: u8) {
    // SAFETY: the caller's promise.
    unsafe { AtomicU8::from_ptr(at.get() as *mut u8) }.store(byte, Ordering::SeqCst);
}

/// Memory that is writable for as long as this lives.
struct Writable {
    /// With the protection that they get (back) afterwards.
    ranges: Vec<(TextRange, i32)>,
}

impl Writable {
    /// Makes the pages of `ranges` writable.
    fn new(ranges: Vec<(TextRange, i32)>) -> Result<Self, Error> {
        let mut writable = Self { ranges };
        for index in 0..writable.ranges.len() {
            let (range, after) = writable.ranges[index];
            // SAFETY: code stays executable, and only we write to it.
            if let Err(errno) = unsafe { protect(range, after | libc::PROT_WRITE) } {
                writable.ranges.truncate(index);
                return Err(Error::Os {
                    call: "mprotect",
                    errno,
                });
            }
        }
        Ok(writable)
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        for (range, after) in &self.ranges {
            // SAFETY: it is the protection that the pages had. If the kernel has no memory to split
            // a mapping, they stay writable, which harms nothing but defence in depth.
            let _ = unsafe { protect(*range, *after) };
        }
    }
}

fn place(at: CodeAddr, bytes: &[u8]) -> Result<TextRange, Error> {
    TextRange::new(at, bytes.len() as u64).ok_or(Error::NotText { at })
}

/// The smallest range that contains both.
fn hull(one: TextRange, other: TextRange) -> TextRange {
    let start = one.start().min(other.start());
    let end = one.end().max(other.end());
    TextRange::new(start, end.get() - start.get()).unwrap_or(one)
}

/// Makes every core execute what memory holds now.
fn serialise() -> Result<(), Error> {
    sys::barrier(Barrier::Core).map_err(Error::os("membarrier"))
}
