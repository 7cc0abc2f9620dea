//! What C has given.

use crate::error::Failure;
use core::ffi::{CStr, c_char};
use klp_core::engine::PatchId;
use klp_os_linux::process::Livepatch;
use std::path::Path;

/// The engine.
pub(crate) fn engine() -> Result<&'static Livepatch, Failure> {
    let why = || Failure::new(-libc::ENXIO, "klp_init was not called");
    Livepatch::get().ok_or_else(why)
}

/// A patch.
pub(crate) fn patch(number: u64) -> Result<PatchId, Failure> {
    let id = PatchId::from_number(number);
    match engine()?.engine().with_patch(id, |_| ()) {
        Err(klp_core::Error::ApiMisuse(_)) => Err(Failure::misuse(format!(
            "there is no patch number {number}"
        ))),
        found => found.map(|()| id).map_err(Failure::from),
    }
}

/// Several patches.
///
/// # Safety
///
/// `patches` is null, or `count` of them are there.
pub(crate) unsafe fn patches(patches: *const u64, count: usize) -> Result<Vec<PatchId>, Failure> {
    if patches.is_null() || count == 0 {
        return Err(Failure::misuse("no patch is given"));
    }
    fits::<u64>(count)?;
    // SAFETY: the caller's promise.
    let numbers = unsafe { core::slice::from_raw_parts(patches, count) };
    numbers.iter().map(|number| patch(*number)).collect()
}

/// Whether there can be so many.
pub(crate) fn fits<T>(count: usize) -> Result<(), Failure> {
    if count > isize::MAX.unsigned_abs() / size_of::<T>() {
        return Err(Failure::misuse(format!("{count} is more than memory has")));
    }
    Ok(())
}

/// A string; `what` it is for.
///
/// # Safety
///
/// `string` is null, or a string that stays for `'a`.
pub(crate) unsafe fn string<'a>(string: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if string.is_null() {
        return Err(Failure::misuse(format!("{what} is NULL")));
    }
    // SAFETY: the caller's promise.
    let string = unsafe { CStr::from_ptr(string) };
    string.to_str().map_err(|_| {
        Failure::misuse(format!(
            "{what} is not UTF-8: {}",
            string.to_bytes().escape_ascii()
        ))
    })
}

/// A path.
///
/// # Safety
///
/// As for [`string`].
pub(crate) unsafe fn path<'a>(path: *const c_char) -> Result<&'a Path, Failure> {
    // SAFETY: the caller's promise.
    unsafe { string(path, "the path") }.map(Path::new)
}

/// Where a result goes.
///
/// # Safety
///
/// `to` is null, or there is room for a `T`, which nobody else looks at during `'a`.
pub(crate) unsafe fn out<'a, T>(to: *mut T, what: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { to.as_mut() }.ok_or_else(|| Failure::misuse(format!("{what} is NULL")))
}

/// A function to call back.
pub(crate) fn function<F>(function: Option<F>) -> Result<F, Failure> {
    function.ok_or_else(|| Failure::misuse("the function to be called is NULL"))
}
