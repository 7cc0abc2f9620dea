//! What is in the address space: objects, patch objects, and the unwind tables of both, kept in
//! step.

use super::error::Error;
use super::lock::{self, FutexLock, Mutex};
use super::objects::{Object, Objects};
use super::patches::Patches;
use super::retired::first_page;
use super::tables;
use super::unwind::Stacks;
use klp_core::elf::LoadedImage;

/// The objects and patches in memory.
#[derive(Default)]
pub(crate) struct Space {
    pub(crate) objects: Objects,
    pub(crate) patches: Patches,
    pub(crate) stacks: Stacks,
    /// Held while the tables are brought up to date.
    update: Mutex<()>,
}

impl Space {
    /// Takes notice of objects that came or went.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]; stacks in new objects cannot be trusted then.
    pub(crate) fn refresh(&self) -> Result<(), Error> {
        let _update = self.update.lock();
        // Should this be short of memory, `update` tries again, and says so.
        let mut came = |object: &Object| drop(tables::table_of(object));
        if self.objects.refresh(&mut came) {
            self.stacks.update(&self.objects, &self.patches.tables())
        } else {
            Ok(())
        }
    }

    /// All locks. Nobody who holds one of them waits for any other lock of the engine but those
    /// behind it, or for the dynamic linker.
    pub(crate) fn locks(&self) -> [&FutexLock; 4] {
        let [unwinders, images] = self.patches.locks();
        [
            lock::of(&self.update),
            unwinders,
            images,
            self.objects.lock(),
        ]
    }

    /// Adds a patch object.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`], and the image back.
    #[allow(
        clippy::result_large_err,
        reason = "the image comes back by value, once"
    )]
    pub(crate) fn add(&self, image: LoadedImage) -> Result<(), (LoadedImage, Error)> {
        let _update = self.update.lock();
        let page = first_page(image.image());
        self.patches.add(image)?;
        match self.stacks.update(&self.objects, &self.patches.tables()) {
            Ok(()) => Ok(()),
            Err(error) => match self.patches.take(page) {
                Some(image) => Err((image, error)),
                None => Ok(()),
            },
        }
    }

    /// Takes a patch object out, the one that begins with page number `page`; no walk goes through
    /// it any more.
    pub(crate) fn remove(&self, page: u64) -> Option<LoadedImage> {
        let _update = self.update.lock();
        let image = self.patches.take(page)?;
        // Without memory the old tables stay: they say nothing about memory that is not code any
        // more.
        let _ = self.stacks.update(&self.objects, &self.patches.tables());
        Some(image)
    }
}
