//! Shared libraries that are opened through the engine: the modules of a process.

use super::adopt::Visit;
use super::error::LoadError;
use super::libraries::Opened;
use super::linker::Handle;
use super::livepatch::Livepatch;
use super::objects::Object;
use alloc::sync::Arc;
use core::ffi::{CStr, c_void};
use core::ptr::NonNull;
use std::path::Path;

/// A shared library that was loaded with [`Livepatch::open_library`].
///
/// One that is dropped without [`close`](Library::close) stays loaded until the process ends.
#[derive(Debug)]
pub struct Library {
    livepatch: &'static Livepatch,
    handle: Handle,
}

impl Livepatch {
    /// Loads the shared library at `path` and applies the enabled patches to it, before the caller
    /// gets hold of any of its functions. Its constructors have run by then: unlike a kernel's
    /// module loader, the dynamic linker lets nobody in between. Libraries that it needs and that
    /// came with it are [adopted](Livepatch::adopt).
    ///
    /// # Errors
    ///
    /// [`LoadError::Library`] if the dynamic linker refuses; [`LoadError::Engine`] if a patch does
    /// not fit it, or a library that came with it, or a callback vetoed;
    /// [`Error::NameTaken`](super::Error::NameTaken) if a patch in force names it and another
    /// object is called the same. It is unloaded again then.
    ///
    /// # Safety
    ///
    /// The library's constructors do no harm, and none of its functions is on any stack when they
    /// return.
    pub unsafe fn open_library(
        &'static self,
        path: impl AsRef<Path>,
    ) -> Result<Library, LoadError> {
        let path = path.as_ref();
        let visit = Visit::begin_loading(self)?;
        // SAFETY: the caller's promise.
        let handle = unsafe { Handle::open(path) }.map_err(|why| LoadError::Library {
            path: path.to_owned(),
            why,
        })?;
        let library = Library {
            livepatch: self,
            handle,
        };
        if let Err(error) = library.come() {
            // SAFETY: nobody has had anything of it.
            unsafe { library.handle.close() }.map_err(LoadError::Process)?;
            return Err(error);
        }
        let since = visit.end();
        let came_with_it =
            |object: &Object| object.arrival >= since && self.engine().patches_object(&object.name);
        if let Err(error) = self.adopt_if(came_with_it) {
            // SAFETY: as above.
            unsafe { library.close() }?;
            return Err(error);
        }
        Ok(library)
    }
}

impl Library {
    /// The address of an exported symbol.
    #[must_use]
    pub fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        self.handle.symbol(name)
    }

    /// Takes the patches back from the library and unloads it, if it is not open as another
    /// `Library`. If something else holds it (a plain `dlopen`, another library), it stays loaded;
    /// it is [adopted](Livepatch::adopt) then if a patch in force names it, so it is unpatched only
    /// for a moment.
    ///
    /// # Errors
    ///
    /// [`LoadError::Engine`] if it stays loaded and cannot be patched again; [`LoadError::Process`]
    /// if the dynamic linker fails.
    ///
    /// # Safety
    ///
    /// As for `dlclose`: if this is the last `Library` of it, no thread is inside of it, or of
    /// functions that replace its functions, and nobody uses its symbols any more.
    pub unsafe fn close(self) -> Result<(), LoadError> {
        let livepatch = self.livepatch;
        let visit = Visit::begin(livepatch);
        // SAFETY: the caller's promise.
        let left = unsafe { self.leave() };
        // SAFETY: the caller's promise.
        let closed = unsafe { self.handle.close() };
        drop(visit);
        let refreshed = livepatch.space().refresh();
        left.iter().for_each(|object| object.left());
        closed.and(refreshed).map_err(LoadError::Process)?;
        let Some(left) = left else { return Ok(()) };
        livepatch.adopt_if(|object| {
            core::ptr::eq(object, &*left) && livepatch.engine().patches_object(&object.name)
        })
    }

    /// Makes it alive, or counts one more user.
    fn come(&self) -> Result<(), LoadError> {
        let livepatch = self.livepatch;
        livepatch.space().refresh().map_err(LoadError::Process)?;
        let object = self
            .handle
            .place()
            .and_then(|place| livepatch.space().objects.at(place));
        let mut known = livepatch.libraries.lock();
        let id = self.handle.id();
        match known.opened.iter_mut().find(|opened| opened.handle == id) {
            Some(opened) => opened.users += 1,
            None => {
                let object = match object.filter(|object| !livepatch.may_stay_stranger(object)) {
                    Some(object) => livepatch.let_in(&mut known, &object)?.then_some(object),
                    None => None,
                };
                known.opened.push(Opened {
                    handle: id,
                    users: 1,
                    object,
                });
            }
        }
        Ok(())
    }

    /// Counts one user less. After the last one, patches have nothing to do with it any more; it is
    /// returned then.
    ///
    /// # Safety
    ///
    /// As for [`close`](Library::close).
    unsafe fn leave(&self) -> Option<Arc<Object>> {
        let mut known = self.livepatch.libraries.lock();
        let index = known
            .opened
            .iter()
            .position(|opened| opened.handle == self.handle.id())?;
        known.opened[index].users -= 1;
        if known.opened[index].users > 0 {
            return None;
        }
        let object = known.opened.swap_remove(index).object?;
        // SAFETY: the last user promises that no thread is inside of it.
        unsafe { self.livepatch.let_go(&mut known, &object) };
        Some(object)
    }
}
