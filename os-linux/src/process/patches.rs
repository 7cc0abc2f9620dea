//! The patch objects in memory: what is needed to unwind through their functions and to name them.
//!
//! The engine walks stacks by a table of its own. The process's [unwinders](super::unwinders) are
//! told of each patch object for as long as it is here.

use super::arch::{EhFrame, Table};
use super::error::Error;
use super::lock::{self, FutexLock, Mutex};
use super::retired::{Retired, first_page};
use super::tables;
use super::unwinders::Unwinder;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::elf::LoadedImage;
use klp_core::elf::names::part_of;
use klp_core::engine::PatchId;
use std::hash::{DefaultHasher, Hasher};

/// The patch objects in memory.
#[derive(Default)]
pub(crate) struct Patches {
    /// Taken before that of `images`.
    unwinders: Mutex<Unwinders>,
    images: Mutex<Vec<Loaded>>,
    /// How many there are, for who asks often; changes under the lock of `images`.
    count: AtomicUsize,
}

/// Those that are told of every image.
#[derive(Default)]
struct Unwinders {
    known: Vec<Unwinder>,
    /// Objects that arrived before this one were looked at.
    next: u64,
}

struct Loaded {
    image: LoadedImage,
    owner: Owner,
    /// What it was made of.
    file: Option<Digest>,
    table: Option<Arc<Table>>,
    /// What the compiler split off functions, by where those start.
    parts: Vec<(CodeAddr, TextRange)>,
}

/// Which patch an image is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// One that the engine does not know yet.
    New,
    Patch(PatchId),
    /// One that the engine has forgotten.
    Retired,
}

/// Tells the bytes of one file from those of others, unless somebody wants them to look alike: who
/// may have a file enabled need not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    len: usize,
    hash: u64,
}

impl Digest {
    pub(crate) fn of(file: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(file);
        Self {
            len: file.len(),
            hash: hasher.finish(),
        }
    }
}

impl Patches {
    /// Adds one.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`], and the image back.
    #[allow(
        clippy::result_large_err,
        reason = "the image comes back by value, once"
    )]
    pub(crate) fn add(&self, image: LoadedImage) -> Result<(), (LoadedImage, Error)> {
        let table =
            match eh_frame(&image).map(|section| tables::compile(section, image.image().text)) {
                Some(Ok(table)) => table.map(Arc::new),
                None => None,
                Some(Err(error)) => return Err((image, error)),
            };
        let unwinders = self.unwinders.lock();
        let mut images = self.images.lock();
        if images.try_reserve(1).is_err() {
            return Err((image, Error::OutOfMemory));
        }
        unwinders.tell(&image);
        images.push(Loaded {
            parts: parts(&image),
            image,
            owner: Owner::New,
            file: None,
            table,
        });
        self.count.store(images.len(), Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// The number of the first object that was not looked at for unwinders.
    pub(crate) fn next_object(&self) -> u64 {
        self.unwinders.lock().next
    }

    /// From here on, `found` are told of every patch object, too. They were found in objects that
    /// arrived before `next`.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]; nobody was told anything.
    pub(crate) fn meet(&self, found: &[Unwinder], next: u64) -> Result<(), Error> {
        let mut unwinders = self.unwinders.lock();
        unwinders
            .known
            .try_reserve(found.len())
            .map_err(|_| Error::OutOfMemory)?;
        unwinders.next = unwinders.next.max(next);
        for unwinder in found {
            if unwinders.known.iter().any(|known| known.is(*unwinder)) {
                continue;
            }
            unwinders.known.push(*unwinder);
            for section in self
                .images
                .lock()
                .iter()
                .filter_map(|loaded| eh_frame(&loaded.image))
            {
                // SAFETY: it is told once, now that it is known; the image stays until `take`.
                unsafe { unwinder.tell(section) };
            }
        }
        Ok(())
    }

    /// Says which patch the one is of that begins with page number `page`, and of which file it was
    /// made.
    pub(crate) fn own(&self, page: u64, patch: PatchId, file: Digest) {
        let mut images = self.images.lock();
        if let Some(loaded) = images
            .iter_mut()
            .find(|loaded| first_page(loaded.image.image()) == page)
        {
            loaded.owner = Owner::Patch(patch);
            loaded.file = Some(file);
        }
    }

    /// The patch that was made of `file`, if the engine knows it still.
    pub(crate) fn made_of(&self, file: Digest) -> Option<PatchId> {
        let images = self.images.lock();
        let mut made = images.iter().filter(|loaded| loaded.file == Some(file));
        made.find_map(|loaded| match loaded.owner {
            Owner::Patch(patch) => Some(patch),
            Owner::New | Owner::Retired => None,
        })
    }

    /// The engine has forgotten `patch`. If it was loaded from a file, says which page its image
    /// begins with.
    pub(crate) fn retire(&self, patch: PatchId) -> Option<u64> {
        let mut images = self.images.lock();
        let loaded = images
            .iter_mut()
            .find(|loaded| loaded.owner == Owner::Patch(patch))?;
        loaded.owner = Owner::Retired;
        Some(first_page(loaded.image.image()))
    }

    /// Images of patches that the engine has forgotten.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub(crate) fn retired(&self) -> Result<Vec<Retired>, Error> {
        let images = self.images.lock();
        let retired = images
            .iter()
            .filter(|loaded| loaded.owner == Owner::Retired);
        let mut list = Vec::new();
        list.try_reserve(retired.clone().count())
            .map_err(|_| Error::OutOfMemory)?;
        list.extend(retired.map(|loaded| Retired::new(loaded.image.image())));
        Ok(list)
    }

    /// How many images of patches there are that the engine has forgotten.
    pub(crate) fn count_retired(&self) -> usize {
        let images = self.images.lock();
        let retired = |loaded: &&Loaded| loaded.owner == Owner::Retired;
        images.iter().filter(retired).count()
    }

    /// Whether the one that begins with page number `page` is among them.
    pub(crate) fn is_retired(&self, page: u64) -> bool {
        self.images.lock().iter().any(|loaded| {
            loaded.owner == Owner::Retired && first_page(loaded.image.image()) == page
        })
    }

    /// Takes the one that begins with page number `page`. Nobody unwinds through it any more.
    pub(crate) fn take(&self, page: u64) -> Option<LoadedImage> {
        let unwinders = self.unwinders.lock();
        let mut images = self.images.lock();
        let index = images
            .iter()
            .position(|loaded| first_page(loaded.image.image()) == page)?;
        let image = images.swap_remove(index).image;
        self.count.store(images.len(), Ordering::Relaxed);
        unwinders.forget(&image);
        Some(image)
    }

    /// Both locks, in their order.
    pub(crate) fn locks(&self) -> [&FutexLock; 2] {
        [lock::of(&self.unwinders), lock::of(&self.images)]
    }

    /// Their unwind tables.
    pub(crate) fn tables(&self) -> Vec<Arc<Table>> {
        self.images
            .lock()
            .iter()
            .filter_map(|loaded| loaded.table.clone())
            .collect()
    }

    /// Reports the parts that the compiler split off the function that starts at `func`; `false` if
    /// that is in none of the images.
    pub(crate) fn parts_of(&self, func: CodeAddr, found: &mut dyn FnMut(TextRange)) -> bool {
        if self.is_empty() {
            return false;
        }
        let images = self.images.lock();
        let Some(loaded) = images
            .iter()
            .find(|loaded| loaded.image.image().text.contains(func))
        else {
            return false;
        };
        let first = loaded.parts.partition_point(|(start, _)| *start < func);
        let its = loaded.parts[first..]
            .iter()
            .take_while(|(start, _)| *start == func);
        its.for_each(|(_, part)| found(*part));
        true
    }

    /// Shows `look` the function that `addr` lies in, and its name.
    pub(crate) fn look_at_function<R>(
        &self,
        addr: CodeAddr,
        look: impl FnOnce(TextRange, &str) -> R,
    ) -> Option<R> {
        if self.is_empty() {
            return None;
        }
        let images = self.images.lock();
        let mut images = images.iter();
        let loaded = images.find(|loaded| loaded.image.image().text.contains(addr))?;
        let functions = loaded.image.functions();
        let behind = functions.partition_point(|(_, range)| range.start() <= addr);
        // Mostly the last one; a symbol that hand-written code has inside a function is shorter.
        let mut before = functions[..behind].iter().rev();
        let (name, range) = before.find(|(_, range)| range.contains(addr))?;
        Some(look(*range, name))
    }
}

impl Unwinders {
    /// Tells all of them of an image that comes.
    fn tell(&self, image: &LoadedImage) {
        for (unwinder, section) in self.with(image) {
            // SAFETY: the loader has relocated the section and put a zero word behind it; the image
            // stays until `Patches::take`.
            unsafe { unwinder.tell(section) };
        }
    }

    /// Has all of them forget an image that goes.
    fn forget(&self, image: &LoadedImage) {
        for (unwinder, section) in self.with(image) {
            // SAFETY: everybody here was told of every image.
            unsafe { unwinder.forget(section) };
        }
    }

    fn with<'a>(&self, image: &'a LoadedImage) -> impl Iterator<Item = (Unwinder, EhFrame<'a>)> {
        let section = eh_frame(image);
        self.known
            .iter()
            .filter_map(move |unwinder| Some((*unwinder, section?)))
    }
}

fn parts(image: &LoadedImage) -> Vec<(CodeAddr, TextRange)> {
    let functions = image.functions();
    let parts = || {
        functions
            .iter()
            .filter_map(|(name, range)| Some((part_of(name)?, *range)))
    };
    if parts().next().is_none() {
        return Vec::new();
    }
    let mut by_name: Vec<_> = functions.iter().collect();
    by_name.sort_unstable_by_key(|(name, _)| &**name);
    let mut parts: Vec<_> = parts()
        .flat_map(|(name, part)| {
            let first = by_name.partition_point(|(each, _)| &**each < name);
            let same = by_name[first..]
                .iter()
                .take_while(move |(each, _)| **each == *name);
            same.map(move |(_, range)| (range.start(), part))
        })
        .collect();
    parts.sort_unstable_by_key(|(start, part)| (*start, part.start()));
    parts
}

fn eh_frame(image: &LoadedImage) -> Option<EhFrame<'_>> {
    let (addr, bytes) = image.eh_frame()?;
    Some(EhFrame { bytes, addr })
}
