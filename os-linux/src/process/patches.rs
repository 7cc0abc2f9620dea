//! The patch objects in memory: what is needed to unwind through their functions and to name them.

use super::elf_file::part_of;
use super::error::Error;
use super::lock::Mutex;
use super::retired::{Retired, first_page};
use super::unwind;
use alloc::sync::Arc;
use klp_arch_x86_64::unwind::{EhFrame, Table};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::elf::LoadedImage;
use klp_core::engine::PatchId;

/// The patch objects in memory.
#[derive(Default)]
pub(crate) struct Patches {
    images: Mutex<Vec<Loaded>>,
}

struct Loaded {
    image: LoadedImage,
    owner: Owner,
    table: Option<Arc<Table>>,
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
        let section = image
            .eh_frame()
            .map(|(addr, bytes)| EhFrame { bytes, addr });
        let table = match section.map(|section| unwind::compile(section, image.image().text)) {
            Some(Ok(table)) => table.map(Arc::new),
            None => None,
            Some(Err(error)) => return Err((image, error)),
        };
        self.images.lock().push(Loaded {
            image,
            owner: Owner::New,
            table,
        });
        Ok(())
    }

    /// Says which patch the one is of that begins with page number `page`.
    pub(crate) fn own(&self, page: u64, patch: PatchId) {
        let mut images = self.images.lock();
        if let Some(loaded) = images
            .iter_mut()
            .find(|loaded| first_page(loaded.image.image()) == page)
        {
            loaded.owner = Owner::Patch(patch);
        }
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

    /// Takes the one that begins with page number `page`.
    pub(crate) fn take(&self, page: u64) -> Option<LoadedImage> {
        let mut images = self.images.lock();
        let index = images
            .iter()
            .position(|loaded| first_page(loaded.image.image()) == page)?;
        Some(images.swap_remove(index).image)
    }

    /// Keeps them as they are, until the guard is dropped.
    pub(crate) fn freeze(&self) -> impl Drop + '_ {
        self.images.lock()
    }

    /// Their unwind tables.
    pub(crate) fn tables(&self) -> Vec<Arc<Table>> {
        self.images
            .lock()
            .iter()
            .filter_map(|loaded| loaded.table.clone())
            .collect()
    }

    /// Reports the parts that the compiler split off the function at `addr`; `false` if that is in
    /// none of the images.
    pub(crate) fn parts_of(&self, addr: CodeAddr, found: &mut dyn FnMut(TextRange)) -> bool {
        let images = self.images.lock();
        let Some(loaded) = images
            .iter()
            .find(|loaded| loaded.image.image().text.contains(addr))
        else {
            return false;
        };
        let functions = loaded.image.functions();
        if let Some((name, _)) = functions.iter().find(|(_, range)| range.contains(addr)) {
            let parts = functions
                .iter()
                .filter(|(part, _)| part_of(part) == Some(&**name));
            parts.for_each(|(_, range)| found(*range));
        }
        true
    }

    /// The function that `addr` lies in, with its name.
    pub(crate) fn function_at(&self, addr: CodeAddr) -> Option<(TextRange, String)> {
        let images = self.images.lock();
        let loaded = images
            .iter()
            .find(|loaded| loaded.image.image().text.contains(addr))?;
        let functions = loaded.image.functions();
        let (name, range) = functions.iter().find(|(_, range)| range.contains(addr))?;
        Some((*range, name.to_string()))
    }
}
