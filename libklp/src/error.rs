//! What C gets when something fails: a number, and words.

use core::ffi::{CStr, c_char, c_int};
use core::fmt::Display;
use klp_os_linux::process::LoadError;
use std::cell::RefCell;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Why a function fails.
pub(crate) struct Failure {
    errno: c_int,
    text: String,
}

impl Failure {
    /// `errno` is negative.
    pub(crate) fn new(errno: c_int, text: impl Display) -> Self {
        Self {
            errno,
            text: text.to_string(),
        }
    }

    /// With the path that it is about.
    pub(crate) fn at(self, path: &Path) -> Self {
        Self::new(
            self.errno,
            format_args!("{}: {}", path.display(), self.text),
        )
    }

    /// The caller has made a mistake.
    pub(crate) fn misuse(text: impl Display) -> Self {
        Self::new(-libc::EINVAL, text)
    }
}

impl From<klp_core::Error> for Failure {
    fn from(error: klp_core::Error) -> Self {
        Self::new(error.errno(), error)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::new(error.errno(), error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(match error.kind() {
            std::io::ErrorKind::AddrInUse => libc::EADDRINUSE,
            std::io::ErrorKind::PermissionDenied => libc::EPERM,
            std::io::ErrorKind::NotFound => libc::ENOENT,
            _ => libc::EIO,
        });
        Self::new(-errno, error)
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Does `what`, and says how it ended. No panic gets out.
pub(crate) fn answer<T: From<c_int>>(what: impl FnOnce() -> Result<T, Failure>) -> T {
    attempt(what).unwrap_or_else(T::from)
}

/// Does `what`; if it fails, keeps the words for the thread and returns the number.
pub(crate) fn attempt<T>(what: impl FnOnce() -> Result<T, Failure>) -> Result<T, c_int> {
    let bug = |_| {
        Err(Failure::new(
            -libc::ENOTRECOVERABLE,
            "a bug in the library: it panicked",
        ))
    };
    let done = catch_unwind(AssertUnwindSafe(what)).unwrap_or_else(bug);
    done.map_err(|failure| {
        // A thread that is about to end has no words any more.
        let _ = LAST.try_with(|last| *last.borrow_mut() = text(&failure.text));
        failure.errno
    })
}

/// For C: without what ends a string there.
pub(crate) fn text(words: &str) -> CString {
    CString::new(words.replace('\0', "\\0")).unwrap_or_default()
}

/// `klp_last_error` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_last_error() -> *const c_char {
    const NONE: &CStr = c"";
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(NONE.as_ptr())
}
