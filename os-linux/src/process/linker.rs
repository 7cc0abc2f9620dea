//! The dynamic linker: handles of loaded libraries (`dlopen(3)`, `dlinfo(3)`).
//!
//! Each of its functions here waits for the dynamic linker's own lock, which a thread holds
//! throughout a `dlopen`, the library's constructors included. These may call the engine. So nobody
//! calls any of them while holding a lock of the engine.

use super::error::Error;
use super::objects::Object;
use super::sys::Errno;
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{self, NonNull};
use klp_core::addr::CodeAddr;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A loaded library, held in memory. Without [`close`](Handle::close) it is held until the process
/// ends.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Handle(NonNull<c_void>);

// SAFETY: the dynamic linker's functions may be called by any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// The beginning of what the dynamic linker tells of a library (`link.h`).
#[repr(C)]
struct LinkMap {
    addr: u64,
    name: *const c_char,
    dynamic: u64,
}

/// `dlinfo(3)`, which `libc` has for glibc only: musl's is the same.
const RTLD_DI_LINKMAP: c_int = 2;

unsafe extern "C" {
    fn dlinfo(handle: *mut c_void, request: c_int, info: *mut c_void) -> c_int;
}

impl Handle {
    /// Loads the library at `path`; its constructors have run then.
    ///
    /// # Errors
    ///
    /// The dynamic linker's words.
    ///
    /// # Safety
    ///
    /// Its constructors do no harm.
    pub(crate) unsafe fn open(path: &Path) -> Result<Self, String> {
        let name =
            CString::new(path.as_os_str().as_bytes()).map_err(|_| "its name has a NUL in it")?;
        // SAFETY: the caller's promise.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        NonNull::new(handle).map(Self).ok_or_else(last_words)
    }

    /// Holds `object`, and waits until it is completely loaded if another thread is at it. `None`
    /// if it was unloaded meanwhile, or is none that the dynamic linker lets one hold (the vdso).
    ///
    /// The dynamic linker compares names before it looks for files: so it finds what it called that
    /// way itself, whatever is at that path by now.
    pub(crate) fn hold(object: &Object) -> Option<Self> {
        let name = object.linker_name();
        // SAFETY: nothing is loaded, so no constructor runs.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        let handle = NonNull::new(handle).map(Self)?;
        if handle
            .place()
            .is_some_and(|place| object.segment(place).is_some())
        {
            return Some(handle);
        }
        // Another one has come under that name.
        // SAFETY: it is held by whoever loaded it.
        let _ = unsafe { handle.close() };
        None
    }

    /// An address inside of the library.
    pub(crate) fn place(&self) -> Option<CodeAddr> {
        let mut map: *const LinkMap = ptr::null();
        // SAFETY: the handle is open; a pointer is written.
        let failed =
            unsafe { dlinfo(self.0.as_ptr(), RTLD_DI_LINKMAP, (&raw mut map).cast()) } != 0;
        // SAFETY: the library's description stays while the handle is open, and these fields do not
        // change.
        unsafe { map.as_ref() }
            .filter(|_| !failed)
            .map(|map| CodeAddr::new(map.dynamic))
    }

    /// The address of an exported symbol.
    pub(crate) fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the handle is open.
        NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) })
    }

    /// Lets go of the library. If nobody else holds it, it is unloaded.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]; it stays loaded then.
    ///
    /// # Safety
    ///
    /// If nobody else holds it, no thread is inside of it, and nobody uses its symbols any more.
    pub(crate) unsafe fn close(self) -> Result<(), Error> {
        // SAFETY: the handle is open, and is not used afterwards; the caller promises the rest.
        match unsafe { libc::dlclose(self.0.as_ptr()) } {
            0 => Ok(()),
            _ => Err(Error::Os {
                call: "dlclose",
                errno: Errno(libc::EINVAL),
            }),
        }
    }

    /// What tells it from other libraries while it is open.
    pub(crate) fn id(&self) -> usize {
        self.0.as_ptr().addr()
    }
}

fn last_words() -> String {
    // SAFETY: the text stays until the thread calls the dynamic linker again.
    unsafe {
        let error = libc::dlerror();
        if error.is_null() {
            "unknown error".into()
        } else {
            CStr::from_ptr(error).to_string_lossy().into_owned()
        }
    }
}
