//! Memory for code near other code: finding gaps, and keeping account of what was handed out.

use super::error::Error;
use super::lock::Mutex;
use super::maps::{self, Mapping};
use super::sys::{self, Errno, page_size};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{Image, ImageLayout};

/// The lowest address that is used, as the kernel's default for `vm.mmap_min_addr`.
const LOWEST: u64 = 0x1_0000;
/// Kept free below a stack, which grows down: the usual limit of its size, and as much again.
const STACK_ROOM: u64 = 16 << 20;

/// The images that were handed out.
#[derive(Default)]
pub(crate) struct Images {
    live: Mutex<Vec<Image>>,
}

/// What a part of an image may be used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    Text,
    Rodata,
    Data,
}

impl Part {
    pub(crate) const fn protection(self) -> i32 {
        match self {
            Self::Text => libc::PROT_READ | libc::PROT_EXEC,
            Self::Rodata => libc::PROT_READ,
            Self::Data => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

impl Images {
    /// See [`Text::alloc`](klp_core::port::Text::alloc).
    pub(crate) fn alloc(
        &self,
        near: TextRange,
        reach: u64,
        layout: ImageLayout,
    ) -> Result<Image, Error> {
        let none = || Error::NoMemoryInReach { near };
        let pages = |len: u64| len.checked_next_multiple_of(page_size());
        let lens = [layout.text, layout.rodata, layout.data];
        let [text, rodata, data] = lens.map(pages);
        let (text, rodata, data) = (
            text.ok_or_else(none)?,
            rodata.ok_or_else(none)?,
            data.ok_or_else(none)?,
        );
        let len = text
            .checked_add(rodata)
            .and_then(|sum| sum.checked_add(data))
            .ok_or_else(none)?;
        self.live
            .lock()
            .try_reserve(1)
            .map_err(|_| Error::OutOfMemory)?;

        let start = if len == 0 {
            near.start().get()
        } else {
            reserve(near, reach, len)?
        };
        let part =
            |start: u64, len: u64| TextRange::new(CodeAddr::new(start), len).ok_or_else(none);
        let image = Image {
            text: part(start, layout.text)?,
            rodata: part(start + text, layout.rodata)?,
            data: part(start + text + rodata, layout.data)?,
        };
        for (part, range) in parts(&image) {
            // SAFETY: the pages were reserved just now; nobody uses them.
            if let Err(errno) = unsafe { protect(range, part.protection()) } {
                // SAFETY: as above.
                unsafe { unmap(&image) };
                return Err(Error::Os {
                    call: "mprotect",
                    errno,
                });
            }
        }
        self.live.lock().push(image);
        Ok(image)
    }

    /// See [`Text::free`](klp_core::port::Text::free).
    ///
    /// # Safety
    ///
    /// As there.
    pub(crate) unsafe fn free(&self, image: Image) {
        let mut live = self.live.lock();
        if let Some(index) = live.iter().position(|each| *each == image) {
            live.swap_remove(index);
            // SAFETY: the caller's promise; it was handed out by `alloc`, and is taken back once.
            unsafe { unmap(&image) };
        }
    }

    /// The part of an image that contains all of `range`.
    pub(crate) fn part(&self, range: TextRange) -> Option<(Part, TextRange)> {
        let live = self.live.lock();
        live.iter()
            .flat_map(parts)
            .find(|(_, part)| part.start() <= range.start() && range.end() <= part.end())
    }
}

fn parts(image: &Image) -> impl Iterator<Item = (Part, TextRange)> + use<> {
    [
        (Part::Text, image.text),
        (Part::Rodata, image.rodata),
        (Part::Data, image.data),
    ]
    .into_iter()
    .filter(|(_, range)| !range.is_empty())
}

/// Gives back the pages of all parts.
///
/// # Safety
///
/// Nobody uses them any more.
unsafe fn unmap(image: &Image) {
    for (_, range) in parts(image) {
        let (start, len) = pages_of(range);
        // SAFETY: the caller's promise.
        unsafe { sys::unmap(start, len) };
    }
}

/// Changes the protection of the pages that `range` touches.
///
/// # Safety
///
/// What is in the pages agrees with `protection`.
pub(crate) unsafe fn protect(range: TextRange, protection: i32) -> Result<(), Errno> {
    let (start, len) = pages_of(range);
    // SAFETY: the caller's promise.
    unsafe { sys::protect(start, len, protection) }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "addresses have 64 bits on this machine"
)]
fn pages_of(range: TextRange) -> (usize, usize) {
    let page = page_size();
    let start = range.start().get() / page * page;
    let end = range.end().get().next_multiple_of(page);
    (start as usize, (end - start) as usize)
}

/// Reserves `len` bytes, all within `reach` of all of `near`.
fn reserve(near: TextRange, reach: u64, len: u64) -> Result<u64, Error> {
    let none = || Error::NoMemoryInReach { near };
    // Somebody else may be faster and take a gap; then the map is read again.
    for _ in 0..8 {
        let window = Window::new(near, reach, len).ok_or_else(none)?;
        let start = window.best(&mappings()?, near).ok_or_else(none)?;
        #[allow(
            clippy::cast_possible_truncation,
            reason = "addresses have 64 bits on this machine"
        )]
        match sys::reserve_at(start as usize, len as usize) {
            Ok(()) => return Ok(start),
            Err(Errno(libc::EEXIST)) => {}
            Err(errno) => {
                return Err(Error::Os {
                    call: "mmap",
                    errno,
                });
            }
        }
    }
    Err(none())
}

/// Where a reservation may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    first: u64,
    last: u64,
    len: u64,
}

impl Window {
    fn new(near: TextRange, reach: u64, len: u64) -> Option<Self> {
        let first = near
            .end()
            .get()
            .saturating_sub(reach)
            .max(LOWEST)
            .next_multiple_of(page_size());
        let end = near
            .start()
            .get()
            .saturating_add(reach)
            .min(maps::highest());
        let last = end.checked_sub(len)? / page_size() * page_size();
        (first <= last).then_some(Self { first, last, len })
    }

    /// The best place in the gaps between `mappings`, which are sorted: the nearest below `near`,
    /// since the heap grows into the gaps above; else the farthest above.
    fn best(&self, mappings: &[(u64, u64)], near: TextRange) -> Option<u64> {
        let page = page_size();
        let starts = mappings.iter().map(|&(start, _)| start);
        let starts = starts.chain([maps::highest()]);
        let ends = [LOWEST]
            .into_iter()
            .chain(mappings.iter().map(|&(_, end)| end));
        let places = ends.zip(starts).filter_map(|(gap_start, gap_end)| {
            let first = self.first.max(gap_start.next_multiple_of(page));
            let last = self.last.min(gap_end.checked_sub(self.len)? / page * page);
            (first <= last).then_some(last)
        });
        let (below, above): (Vec<u64>, Vec<u64>) =
            places.partition(|&place| place < near.start().get());
        below.last().or(above.last()).copied()
    }
}

/// What is mapped, with the room that the main stack needs to grow.
pub(crate) fn mappings() -> Result<Vec<(u64, u64)>, Error> {
    Ok(maps::mappings()?.iter().map(with_room).collect())
}

fn with_room(mapping: &Mapping) -> (u64, u64) {
    let room = if mapping.name() == "[stack]" {
        STACK_ROOM
    } else {
        0
    };
    let range = &mapping.range;
    (range.start.saturating_sub(room), range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64) -> TextRange {
        TextRange::new(CodeAddr::new(start), len).expect("does not wrap")
    }

    #[test]
    fn the_nearest_gap_below_is_taken_and_the_farthest_above_only_if_there_is_none() {
        // No page is larger than 64 KiB.
        let near = range(0x500_0000, 0x1_0000);
        let window = Window::new(near, 0x200_0000, 0x2_0000).expect("there is room");
        assert_eq!(
            window,
            Window {
                first: 0x301_0000,
                last: 0x6fe_0000,
                len: 0x2_0000
            }
        );
        let maps = [(0x400_0000, 0x410_0000), (0x4ff_0000, 0x600_0000)];
        assert_eq!(window.best(&maps, near), Some(0x4fd_0000));
        let maps = [(LOWEST, 0x510_0000), (0x511_0000, 0x600_0000)];
        assert_eq!(
            window.best(&maps, near),
            Some(0x6fe_0000),
            "a gap that is too small is passed over"
        );
        let maps = [(LOWEST, 0x700_0000)];
        assert_eq!(window.best(&maps, near), None);
        assert_eq!(
            Window::new(near, 0x1_ffff, 0x4_0000),
            None,
            "too large for the reach"
        );
    }

    #[test]
    fn the_main_stack_has_room_to_grow() {
        let maps = maps::mappings().expect("there is a /proc");
        let stack = maps.iter().find(|mapping| mapping.name() == "[stack]");
        let stack = stack.expect("there is one");
        assert!(
            mappings()
                .expect("as above")
                .contains(&(stack.range.start - STACK_ROOM, stack.range.end))
        );
    }

    #[test]
    fn an_image_is_in_reach_and_protected_and_can_be_given_back() {
        let images = Images::default();
        let near = range(reserve as *const () as u64, 16);
        let layout = ImageLayout {
            text: 5000,
            rodata: 1,
            data: 10,
        };
        let image = images
            .alloc(near, 1 << 31, layout)
            .expect("there is memory near this code");
        for (part, place) in parts(&image) {
            assert!(near.start().distance_to(place.start()).unsigned_abs() < 1 << 31);
            assert_eq!(images.part(place), Some((part, place)));
        }
        assert_eq!(
            (image.text.len(), image.rodata.len(), image.data.len()),
            (5000, 1, 10)
        );
        // SAFETY: the memory is ours and writable.
        unsafe { *(image.data.start().get() as *mut u8) = 1 };
        // SAFETY: nobody uses it.
        unsafe { images.free(image) };
        assert!(images.part(image.text).is_none());
        assert!(!sys::readable(image.text.start().get()));
    }
}
