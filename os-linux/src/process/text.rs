//! Code of the running process: the port [`Text`].
//!
//! Instructions change under running threads, none of which is stopped, nor meets a breakpoint. A
//! change is one store of a word: a processor fetches all of the old bytes or all of the new ones.
//!
//! ```text
//!   90 90 90 90 90    a pad of several instructions (split), as it was built
//!   3d 90 90 90 90    one store of one byte: it is a single instruction now, `cmp $0x90909090,%eax`,
//!                     of which nobody at a function's entry notices anything (psABI 3.2.1: the
//!                     arithmetic flags mean nothing there). Then every core was serialised, and
//!                     every thread was seen outside of the four bytes behind the first one
//!   e9 xx xx xx xx    one store of eight bytes
//!   0f 1f 44 00 00    the same, when nothing is patched any more: one instruction, so that the next
//!                     change is one store again, and nobody need be seen outside of it
//! ```
//!
//! All other changes, from a single instruction to anything, are one store of eight bytes. The five
//! bytes lie in one aligned word if [`Arch::entry`](klp_core::port::Arch::entry) found such a place,
//! else at least in one line of the cache; where they do not, the change is refused. The processor
//! makes one access of a locked store within a line (Intel SDM volume 3, 9.1; it fetches lines as a
//! whole).
//!
//! Pages stay executable all the time, since other threads run in them; they are writable only for
//! that while.

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

/// The first byte of `cmp $imm32,%eax`, which with four more does nothing but set flags.
const CMP_EAX: u8 = 0x3d;

/// Bytes of a line of the cache.
const LINE: u64 = 64;

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

    /// The executable part of an object or image that contains all of `range`.
    fn code(&self, range: TextRange) -> Result<TextRange, Error> {
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
                .map(|(_, range)| range)
        };
        object
            .map(|segment| segment.range)
            .filter(|whole| contains(*whole))
            .or_else(image)
            .ok_or(Error::NotText { at: range.start() })
    }

    /// Whether `range` can be read.
    fn is_readable(&self, range: TextRange) -> bool {
        let object = self.space.objects.segment(range.start());
        object.is_some_and(|segment| segment.readable && range.end() <= segment.range.end())
            || self.images.part(range).is_some()
    }

    /// Checks that every place holds what is expected, and sums the places up to a range of pages
    /// for each piece of memory.
    fn check(&self, batch: &[Poke<'_>]) -> Result<Vec<TextRange>, Error> {
        let mut touched: Vec<TextRange> = Vec::new();
        let mut whole: Option<TextRange> = None;
        for poke in batch {
            let range = place(poke.at, poke.old)?;
            if poke.new.len() != poke.old.len() || poke.old.is_empty() {
                return Err(Error::TextChanged { at: poke.at });
            }
            if window(range).is_none() {
                return Err(Error::NotInOneLine { at: poke.at });
            }
            let same =
                whole.is_some_and(|whole| whole.contains(poke.at) && range.end() <= whole.end());
            if !same {
                whole = Some(self.code(range)?);
            }
            // SAFETY: `code` found the range mapped and readable.
            if unsafe { core::slice::from_raw_parts(poke.at.get() as *const u8, poke.old.len()) }
                != poke.old
            {
                return Err(Error::TextChanged { at: poke.at });
            }
            match touched.last_mut() {
                Some(last) if same => *last = hull(*last, range),
                _ => {
                    touched.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
                    touched.push(range);
                }
            }
        }
        Ok(touched)
    }

    /// The protocol at the top of this file.
    fn change(&self, batch: &[Poke<'_>]) -> Result<(), Error> {
        let split = || batch.iter().filter(|poke| poke.split);
        if split().next().is_some() {
            split().for_each(|poke| set_first(poke.at, CMP_EAX));
            let cleared = serialise().and_then(|()| Pads::new(batch, &self.space.stacks).clear());
            if let Err(error) = cleared {
                split().for_each(|poke| set_first(poke.at, poke.old[0]));
                let _ = serialise();
                return Err(error);
            }
        }
        for poke in batch {
            replace(poke.at, poke.new);
        }
        serialise().inspect_err(|_| {
            // Somebody took the call away since it was made at the beginning.
            batch.iter().for_each(|poke| replace(poke.at, poke.old));
        })
    }
}

// SAFETY: `poke` follows the protocol at the top of this file: a core executes the old bytes, what
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
        let _writable = Writable::new(touched, READ_EXEC)?;
        self.change(batch)
    }

    fn alloc(&self, near: TextRange, reach: u64, layout: ImageLayout) -> Result<Image, Error> {
        self.images.alloc(near, reach, layout)
    }

    unsafe fn free(&self, image: Image) {
        // SAFETY: the caller's promise.
        unsafe { self.images.free(image) };
    }

    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), Error> {
        let (mut text, mut rodata): (Vec<TextRange>, Vec<TextRange>) = (Vec::new(), Vec::new());
        for fill in batch {
            let range = place(fill.at, fill.bytes)?;
            let (part, whole) = self
                .images
                .part(range)
                .ok_or(Error::NotText { at: fill.at })?;
            let touched = match part {
                Part::Text => &mut text,
                Part::Rodata => &mut rodata,
                Part::Data => continue,
            };
            match touched.iter_mut().find(|each| whole.contains(each.start())) {
                Some(each) => *each = hull(*each, range),
                None => {
                    touched.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
                    touched.push(range);
                }
            }
        }
        let _text = Writable::new(text, Part::Text.protection())?;
        let _rodata = Writable::new(rodata, Part::Rodata.protection())?;
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
        }
        serialise()
    }
}

/// Memory that is writable for as long as this lives.
struct Writable {
    ranges: Vec<TextRange>,
    after: i32,
}

impl Writable {
    /// Makes the pages of `ranges` writable; afterwards they get the protection `after` (back).
    fn new(ranges: Vec<TextRange>, after: i32) -> Result<Self, Error> {
        let mut writable = Self { ranges, after };
        for index in 0..writable.ranges.len() {
            // SAFETY: code stays executable, and only we write to it.
            if let Err(errno) = unsafe { protect(writable.ranges[index], after | libc::PROT_WRITE) }
            {
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
        for range in &self.ranges {
            // SAFETY: it is the protection that the pages had. If the kernel has no memory to split
            // a mapping, they stay writable, which harms nothing but defence in depth.
            let _ = unsafe { protect(*range, self.after) };
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

/// The eight bytes around `range` that are stored at once; `None` if there are none in one line of
/// the cache.
fn window(range: TextRange) -> Option<u64> {
    const WORD: u64 = 8;
    let (start, end) = (range.start().get(), range.end().get());
    let line = start / LINE * LINE;
    let aligned = start / WORD * WORD;
    if end <= aligned + WORD {
        Some(aligned)
    } else if end - start <= WORD && end <= line + LINE {
        Some(start.min(line + LINE - WORD))
    } else {
        None
    }
}

fn set_first(at: CodeAddr, byte: u8) {
    // SAFETY: the place is mapped and writable, and code is only written to by us.
    unsafe { AtomicU8::from_ptr(at.get() as *mut u8) }.store(byte, Ordering::SeqCst);
}

/// Puts `bytes`, of which `check` has found that they have a window, at `at` by one store.
fn replace(at: CodeAddr, bytes: &[u8]) {
    let Some(start) = place(at, bytes).ok().and_then(window) else {
        return;
    };
    let from = (at.get() - start) as usize;
    // SAFETY: the window is in one line, so on one page, which is mapped and writable, and code is
    // only written to by us. A locked store needs no alignment.
    unsafe {
        let window = start as *mut u64;
        let mut word = window.read_unaligned().to_le_bytes();
        word[from..from + bytes.len()].copy_from_slice(bytes);
        core::arch::asm!(
            "xchg [{window}], {word}",
            window = in(reg) window,
            word = inout(reg) u64::from_le_bytes(word) => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Makes every core execute what memory holds now.
fn serialise() -> Result<(), Error> {
    sys::barrier(Barrier::Core).map_err(Error::os("membarrier"))
}
