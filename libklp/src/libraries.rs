//! Shared libraries that the engine opens.

use crate::args::{engine, out, path};
use crate::error::{Failure, answer, attempt};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use klp_os_linux::process::{FutexLock, Library};
use lock_api::Mutex;
use std::collections::BTreeMap;

/// Those that are open, by the numbers that C has for them.
struct Open {
    last: u64,
    libraries: BTreeMap<u64, Library>,
}

static OPEN: Mutex<FutexLock, Open> = Mutex::new(Open {
    last: 0,
    libraries: BTreeMap::new(),
});

fn unknown(number: u64) -> Failure {
    Failure::misuse(format!("there is no library number {number}"))
}

/// `klp_open_library` of `<klp.h>`.
///
/// # Safety
///
/// `file` is null or a string, `library` is null or has room; and as for
/// [`Livepatch::open_library`](klp_os_linux::process::Livepatch::open_library).
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_open_library(file: *const c_char, library: *mut u64) -> c_int {
    answer(|| {
        let engine = engine()?;
        // SAFETY: the caller's promise.
        let (file, library) = unsafe { (path(file)?, out(library, "where the library is to go")?) };
        // SAFETY: the caller's promise.
        let opened = unsafe { engine.open_library(file) }?;
        let mut open = OPEN.lock();
        open.last += 1;
        *library = open.last;
        open.libraries.insert(*library, opened);
        Ok(0)
    })
}

/// `klp_symbol` of `<klp.h>`.
///
/// # Safety
///
/// `name` is null or a string.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_symbol(library: u64, name: *const c_char) -> *mut c_void {
    let found = attempt(|| {
        engine()?;
        if name.is_null() {
            return Err(Failure::misuse("the symbol's name is NULL"));
        }
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(name) };
        let open = OPEN.lock();
        let opened = open
            .libraries
            .get(&library)
            .ok_or_else(|| unknown(library))?;
        opened.symbol(name).ok_or_else(|| {
            let name = name.to_string_lossy();
            Failure::new(-libc::ENOENT, format!("there is no symbol '{name}'"))
        })
    });
    found.map_or(ptr::null_mut(), ptr::NonNull::as_ptr)
}

/// `klp_close_library` of `<klp.h>`.
///
/// # Safety
///
/// As for [`Library::close`].
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_close_library(library: u64) -> c_int {
    answer(|| {
        engine()?;
        let closed = OPEN.lock().libraries.remove(&library);
        // SAFETY: the caller's promise.
        unsafe { closed.ok_or_else(|| unknown(library))?.close() }?;
        Ok(0)
    })
}

/// `klp_adopt` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_adopt() -> c_int {
    answer(|| {
        engine()?.adopt()?;
        Ok(0)
    })
}
