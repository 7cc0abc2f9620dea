//! Shared libraries that come and go while the process runs: the modules of a process.

use super::Livepatch;
use super::error::{Error, LoadError};
use super::sys::Errno;
use core::ffi::{CStr, c_void};
use core::ptr::NonNull;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A shared library that was loaded with [`Livepatch::open_library`].
#[derive(Debug)]
pub struct Library {
    livepatch: &'static Livepatch,
    handle: NonNull<c_void>,
    /// The objects that came with it, as patches name them: itself and libraries that it needs.
    objects: Vec<String>,
}

// SAFETY: the dynamic linker's functions may be called by any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Livepatch {
    /// Loads the shared library at `path` and applies the enabled patches to it, before the caller gets hold of any of its
    /// functions. Its constructors have run by then: unlike a kernel's module loader, the dynamic linker lets nobody in between.
    ///
    /// # Errors
    ///
    /// [`LoadError::Library`] if the dynamic linker refuses; [`LoadError::Engine`] if a patch does not fit it or a callback
    /// vetoed: the library is unloaded again then.
    ///
    /// # Safety
    ///
    /// The library's constructors do no harm, and none of its functions is on any stack when they return.
    pub unsafe fn open_library(&'static self, path: impl AsRef<Path>) -> Result<Library, LoadError> {
        let path = path.as_ref();
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| LoadError::Library { path: path.to_owned(), why: "its name has a NUL in it".into() })?;
        let before = self.object_names()?;
        // SAFETY: the caller's promise.
        let handle = NonNull::new(unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) })
            .ok_or_else(|| LoadError::Library { path: path.to_owned(), why: linker_error() })?;
        let mut library = Library { livepatch: self, handle, objects: Vec::new() };
        for object in self.object_names()? {
            if before.contains(&object) {
                continue;
            }
            if let Err(error) = self.engine().object_coming(&object) {
                // SAFETY: nobody has had anything of it.
                unsafe { library.close() }?;
                return Err(LoadError::Engine(error));
            }
            library.objects.push(object);
        }
        Ok(library)
    }

    fn object_names(&self) -> Result<Vec<String>, LoadError> {
        self.space().refresh().map_err(LoadError::Process)?;
        Ok(self.space().objects.all().iter().map(|object| object.name.clone()).collect())
    }
}

impl Library {
    /// The address of an exported symbol.
    #[must_use]
    pub fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the handle is open.
        NonNull::new(unsafe { libc::dlsym(self.handle.as_ptr(), name.as_ptr()) })
    }

    /// Takes the patches back from the library and unloads it. If something else holds it, it stays loaded, and patched.
    ///
    /// # Errors
    ///
    /// [`LoadError::Engine`] if it stays loaded and cannot be patched again.
    ///
    /// # Safety
    ///
    /// As for `dlclose`: no thread is inside of it, or of functions that replace its functions, and nobody uses its symbols any more.
    pub unsafe fn close(self) -> Result<(), LoadError> {
        // A patch that is enabled from here on must not get into it any more, and none that is being enabled now half.
        let objects = &self.livepatch.space().objects;
        let frozen = self.livepatch.engine().freeze();
        objects.hide(&self.objects);
        drop(frozen);
        for object in &self.objects {
            self.livepatch.engine().object_going(object);
        }
        // SAFETY: the handle is open, and is not used afterwards; the caller promises the rest.
        let closed = unsafe { libc::dlclose(self.handle.as_ptr()) };
        objects.unhide(&self.objects);
        if closed != 0 {
            return Err(LoadError::Process(Error::Os { call: "dlclose", errno: Errno(libc::EINVAL) }));
        }
        let still_there = self.livepatch.object_names()?;
        for object in self.objects.iter().filter(|object| still_there.contains(object)) {
            self.livepatch.engine().object_coming(object).map_err(LoadError::Engine)?;
        }
        Ok(())
    }
}

fn linker_error() -> String {
    // SAFETY: the text stays until the thread calls the dynamic linker again.
    unsafe {
        let error = libc::dlerror();
        if error.is_null() { "unknown error".into() } else { CStr::from_ptr(error).to_string_lossy().into_owned() }
    }
}
