//! Memory that holds code: segments of bytes at toy addresses.

use super::fault::SimError;
use super::shared::{Shared, World};
use crate::addr::{CodeAddr, TextRange};
use crate::port::{Fill, Image, ImageLayout, Poke, PortErrorKind, Text};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

const PAGE: u64 = 0x1000;

/// What is mapped.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Memory {
    segments: BTreeMap<u64, Vec<u8>>,
    images: Vec<Image>,
    /// Whether [`Text::alloc`] finds nothing any more.
    pub(super) exhausted: bool,
}

impl Memory {
    /// Maps `bytes` at `at`, where nothing is mapped.
    pub(super) fn map(&mut self, at: CodeAddr, bytes: Vec<u8>) {
        self.segments.insert(at.get(), bytes);
    }

    /// Takes away what was mapped at `at`.
    pub(super) fn unmap(&mut self, at: CodeAddr) {
        self.segments.remove(&at.get());
    }

    pub(super) fn bytes(&self, at: CodeAddr, len: usize) -> Option<&[u8]> {
        let (start, segment) = self.segments.range(..=at.get()).next_back()?;
        let from = usize::try_from(at.get() - start).ok()?;
        segment.get(from..from.checked_add(len)?)
    }

    pub(super) fn write(&mut self, at: CodeAddr, bytes: &[u8]) {
        if let Some((start, segment)) = self.segments.range_mut(..=at.get()).next_back() {
            let place = usize::try_from(at.get() - start)
                .ok()
                .and_then(|from| segment.get_mut(from..from + bytes.len()));
            if let Some(place) = place {
                place.copy_from_slice(bytes);
            }
        }
    }

    /// The eight bytes at `at`; those behind the end of the segment read as zeros.
    pub(super) fn word(&self, at: CodeAddr) -> [u8; 8] {
        let mut word = [0; 8];
        for (offset, byte) in (0..).zip(&mut word) {
            *byte = self
                .bytes(at.wrapping_add(offset), 1)
                .map_or(0, |found| found[0]);
        }
        word
    }

    pub(super) fn images(&self) -> &[Image] {
        &self.images
    }

    /// The image that holds `range`.
    fn image_of(&self, at: CodeAddr, len: usize) -> Option<&Image> {
        let last = at.wrapping_add((len as u64).saturating_sub(1));
        let holds = |part: &TextRange| part.contains(at) && part.contains(last);
        self.images
            .iter()
            .find(|image| [image.text, image.rodata, image.data].iter().any(holds))
    }

    fn is_free(&self, start: u64, len: u64) -> bool {
        let before = self.segments.range(..start + len).next_back();
        before.is_none_or(|(at, bytes)| at + bytes.len() as u64 <= start)
    }

    fn place(&self, near: TextRange, reach: u64, len: u64) -> Option<u64> {
        let low = near
            .end()
            .get()
            .saturating_sub(reach)
            .next_multiple_of(PAGE)
            .max(PAGE);
        let high = near.start().get().saturating_add(reach).checked_sub(len)?;
        let up = near.end().get().next_multiple_of(PAGE);
        // Upwards from the site, then downwards; an address space of toys is small.
        let upwards = (0..1 << 12)
            .map(|page| up + page * PAGE)
            .take_while(|at| *at <= high);
        let downwards = (1..1 << 12)
            .map_while(|page| up.checked_sub(page * PAGE))
            .take_while(|at| *at >= low);
        upwards
            .chain(downwards)
            .find(|at| *at <= high && self.is_free(*at, len))
    }

    fn alloc(&mut self, near: TextRange, reach: u64, layout: ImageLayout) -> Option<Image> {
        let pages = |len: u64| len.next_multiple_of(PAGE);
        let total = pages(layout.text) + pages(layout.rodata) + pages(layout.data);
        let text = self.place(near, reach, total).filter(|_| !self.exhausted)?;
        let rodata = text + pages(layout.text);
        let part = |at, len| TextRange::new(CodeAddr::new(at), len);
        let image = Image {
            text: part(text, layout.text)?,
            rodata: part(rodata, layout.rodata)?,
            data: part(rodata + pages(layout.rodata), layout.data)?,
        };
        for part in [image.text, image.rodata, image.data] {
            if !part.is_empty() {
                self.map(
                    part.start(),
                    alloc::vec![0; usize::try_from(part.len()).ok()?],
                );
            }
        }
        self.images.push(image);
        Some(image)
    }

    fn free(&mut self, image: Image) -> bool {
        let known = self.images.iter().position(|other| *other == image);
        if let Some(index) = known {
            self.images.swap_remove(index);
            self.free_segments(image);
        }
        known.is_some()
    }
}

impl Memory {
    /// Drops all images with their contents.
    pub(super) fn forget_images(&mut self) {
        for image in core::mem::take(&mut self.images) {
            self.free_segments(image);
        }
    }

    fn free_segments(&mut self, image: Image) {
        for part in [image.text, image.rodata, image.data]
            .iter()
            .filter(|part| !part.is_empty())
        {
            self.segments.remove(&part.start().get());
        }
    }
}

/// The simulated OS's [`Text`].
#[derive(Clone, Debug)]
pub struct SimText(pub(super) Arc<Shared>);

// SAFETY: `poke` is one step of the simulation, and no task takes another step in between: each
// sees the old bytes or the new ones. Images are never handed out twice at a time.
unsafe impl Text for SimText {
    type Error = SimError;

    fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), SimError> {
        let _inside = self.0.enter("Text::read")?;
        let world = self.0.world();
        let found = world.memory.bytes(at, into.len());
        into.copy_from_slice(found.ok_or(SimError {
            call: "Text::read",
            kind: PortErrorKind::NotFound,
        })?);
        Ok(())
    }

    unsafe fn poke(&self, batch: &[Poke<'_>]) -> Result<(), SimError> {
        let refused = |kind| SimError {
            call: "Text::poke",
            kind,
        };
        let _inside = self.0.enter("Text::poke")?;
        let mut world = self.0.world();
        let mut free_from = CodeAddr::new(0);
        for poke in batch {
            let as_told = world.memory.bytes(poke.at, poke.old.len()) == Some(poke.old);
            if !as_told {
                return Err(refused(PortErrorKind::Held));
            }
            if poke.old.len() != poke.new.len() || poke.at < free_from {
                return Err(refused(PortErrorKind::Failed));
            }
            free_from = poke.at.wrapping_add(poke.old.len() as u64);
        }
        for poke in batch {
            world.leave_pad(poke);
            world.memory.write(poke.at, poke.new);
        }
        Ok(())
    }

    fn alloc(&self, near: TextRange, reach: u64, layout: ImageLayout) -> Result<Image, SimError> {
        let none = SimError {
            call: "Text::alloc",
            kind: PortErrorKind::NoMemoryInReach,
        };
        let _inside = self.0.enter_or("Text::alloc", none.kind)?;
        let image = self.0.world().memory.alloc(near, reach, layout);
        image.ok_or(none)
    }

    unsafe fn free(&self, image: Image) {
        let _inside = self.0.inside();
        let mut world = self.0.world();
        world.forbid_tasks_in(image.text, "freed");
        if !world.memory.free(image) {
            world.violation(format!("{image:?} is freed, but not allocated"));
        }
    }

    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), SimError> {
        let _inside = self.0.enter("Text::fill")?;
        let mut world = self.0.world();
        if batch
            .iter()
            .any(|fill| world.memory.image_of(fill.at, fill.bytes.len()).is_none())
        {
            return Err(SimError {
                call: "Text::fill",
                kind: PortErrorKind::Denied,
            });
        }
        for fill in batch {
            if let Some(range) = TextRange::new(fill.at, fill.bytes.len() as u64) {
                world.forbid_tasks_in(range, "filled");
            }
            world.memory.write(fill.at, fill.bytes);
        }
        Ok(())
    }
}

impl World {
    /// Moves tasks out of a pad of several instructions before it is rewritten, as [`Poke::split`]
    /// asks.
    fn leave_pad(&mut self, poke: &Poke<'_>) {
        let Some(inner) = TextRange::new(
            poke.at.wrapping_add(1),
            (poke.old.len() as u64).saturating_sub(1),
        ) else {
            return;
        };
        for task in self
            .tasks
            .values_mut()
            .filter(|task| inner.contains(task.pc))
        {
            if poke.split {
                task.pc = poke.body;
            } else {
                let line = format!(
                    "a task stands in the middle of {}, which is rewritten as one instruction",
                    poke.at
                );
                self.violations.push(line);
            }
        }
    }

    /// Notes a violation if a task is in `range`, will be next, or will return there.
    pub(super) fn forbid_tasks_in(&mut self, range: TextRange, what: &str) {
        for (id, task) in &self.tasks {
            if task.places().any(|place| range.contains(place)) {
                self.violations
                    .push(format!("{range:?} is {what} while task {} is in it", id.0));
            }
        }
    }
}
