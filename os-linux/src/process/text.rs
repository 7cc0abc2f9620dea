//! Code of the running process: the port [`Text`].
//!
//! Live instructions change under running threads by the way of a breakpoint (kernel:
//! `text_poke_bp_batch` in `arch/x86/kernel/alternative.c`):
//!
//! ```text
//!   old old old     as it was
//!   cc  old old     every core has been serialised; threads go around, at Poke::resume
//!                   (split) every thread stood still once, and was moved out of the middle
//!   cc  new new     every core has been serialised
//!   new new new     every core has been serialised; no thread is left in the SIGTRAP handler
//! ```
//!
//! Pages stay executable all the time, since other threads run in them; they are writable only for
//! that while.

use super::error::Error;
use super::memory::{Images, Part, protect};
use super::pads::Pads;
use super::records::Mask;
use super::scan;
use super::space::Space;
use super::stop::{self, Records};
use super::sys::{self, Barrier};
use super::trap::{self, INT3};
use alloc::sync::Arc;
use core::ptr;
use core::sync::atomic::{AtomicU8, Ordering};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{CallC, Fill, Image, ImageLayout, Poke, TaskId, Text};

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

    /// The protocol at the top of this file, from the first breakpoint to the last byte.
    fn change(&self, batch: &[Poke<'_>]) -> Result<(), Error> {
        for poke in batch {
            set_first(poke.at, INT3);
        }
        let cleared = sys::barrier(Barrier::Core)
            .map_err(Error::os("membarrier"))
            .and_then(|()| {
                if batch.iter().any(|poke| poke.split) {
                    Pads::new(batch, &self.space.stacks).clear()
                } else {
                    Ok(())
                }
            });
        if let Err(error) = cleared {
            for poke in batch {
                set_first(poke.at, poke.old[0]);
            }
            let _ = sys::barrier(Barrier::Core);
            return Err(error);
        }
        for poke in batch {
            let tail = poke.at.wrapping_add(1);
            // SAFETY: the place is mapped and writable; no core executes its tail, since all go
            // around.
            unsafe {
                ptr::copy_nonoverlapping(
                    poke.new[1..].as_ptr(),
                    tail.get() as *mut u8,
                    poke.new.len() - 1,
                )
            };
        }
        serialise();
        for poke in batch {
            set_first(poke.at, poke.new[0]);
        }
        serialise();
        Ok(())
    }
}

// SAFETY: `poke` follows the protocol at the top of this file: a core executes the old bytes, the
// breakpoint, or the new bytes, and is serialised between; a thread in the midst of several old
// instructions is moved, or nothing changes. `alloc` hands out each mapping once, and it is mapped
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
        if !trap::is_in_place() {
            return Err(Error::SignalTaken {
                signal: libc::SIGTRAP,
            });
        }
        check_masks()?;
        let _writable = Writable::new(touched, READ_EXEC)?;
        trap::around(batch, || self.change(batch))
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
        serialise();
        Ok(())
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

/// Refuses if a thread blocks SIGTRAP for longer than a moment: the kernel kills a process whose
/// thread meets a breakpoint like that.
///
/// What a thread does with its mask is its own business at any time, so this finds threads that
/// block signals for good (to leave them to another thread, say). Each thread is looked at here
/// once; after that, whenever it is stopped.
fn check_masks() -> Result<(), Error> {
    let (mut tasks, mut records) = (Vec::new(), Records::new());
    match stop::all_threads(&mut tasks, &mut records) {
        Ok(()) | Err(Error::Churn) => {}
        Err(error) => return Err(error),
    }
    for (&task, record) in tasks.iter().zip(&records) {
        let Some(record) = record else { continue };
        if record.trap_known_open() {
            continue;
        }
        match blocks_trap_for_long(task) {
            Some(true) => {
                return Err(Error::ThreadBlocksTrap {
                    task,
                    name: scan::name(task),
                });
            }
            Some(false) => record.set_trap_mask(Mask::Open),
            None => {}
        }
    }
    Ok(())
}

/// Looks several times, for a second: libc blocks every signal for moments, as when it starts a
/// thread, and where many threads want to run, such a moment may be long.
fn blocks_trap_for_long(task: TaskId) -> Option<bool> {
    const LOOKS: u32 = 11;
    for look in 0..LOOKS {
        if let Some(doublings) = look.checked_sub(1) {
            sys::nap(core::time::Duration::from_millis(1 << doublings));
        }
        let status = scan::status(task)?;
        if status.dead {
            return None;
        }
        if !status.blocks(libc::SIGTRAP) {
            return Some(false);
        }
    }
    Some(true)
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

fn set_first(at: CodeAddr, byte: u8) {
    // SAFETY: the place is mapped and writable, and code is only written to by us.
    unsafe { AtomicU8::from_ptr(at.get() as *mut u8) }.store(byte, Ordering::SeqCst);
}

/// Makes every core execute what memory holds now.
fn serialise() {
    if sys::barrier(Barrier::Core).is_err() {
        // The command was registered at the beginning and has no other reason to fail. Going on
        // would be worse.
        std::process::abort();
    }
}
