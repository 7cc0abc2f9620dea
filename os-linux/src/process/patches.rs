//! The patch objects in memory: what is needed to unwind through their functions and to name them.

use super::error::Error;
use super::lock::Mutex;
use super::symbol_table::part_of;
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
    /// The patch that it is of, once the engine knows it.
    patch: Option<PatchId>,
    table: Option<Arc<Table>>,
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
            patch: None,
            table,
        });
        Ok(())
    }

    /// Says which patch the one at `addr` is of.
    pub(crate) fn own(&self, addr: CodeAddr, patch: PatchId) {
        let mut images = self.images.lock();
        if let Some(loaded) = images
            .iter_mut()
            .find(|loaded| loaded.image.image().text.contains(addr))
        {
            loaded.patch = Some(patch);
        }
    }

    /// Where the code of `patch` is, if it was loaded from a file.
    pub(crate) fn code_of(&self, patch: PatchId) -> Option<CodeAddr> {
        let images = self.images.lock();
        let loaded = images.iter().find(|loaded| loaded.patch == Some(patch))?;
        Some(loaded.image.image().text.start())
    }

    /// Takes the one whose code contains `addr`.
    pub(crate) fn take(&self, addr: CodeAddr) -> Option<LoadedImage> {
        let mut images = self.images.lock();
        let index = images
            .iter()
            .position(|loaded| loaded.image.image().text.contains(addr))?;
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
