//! Patches, and their transitions.

use crate::args::{engine, fits, out, patch, patches, path, string};
use crate::error::{Failure, answer};
use core::ffi::{c_char, c_int, c_long, c_void};
use core::time::Duration;
use klp_core::Poll;
use klp_core::engine::PatchId;
use klp_os_linux::process::Livepatch;

/// Does something with a patch.
fn with<R>(
    number: u64,
    what: impl FnOnce(&'static Livepatch, PatchId) -> Result<R, klp_core::Error>,
) -> c_int {
    answer(|| {
        what(engine()?, patch(number)?)?;
        Ok(0)
    })
}

/// `klp_load_file` of `<klp.h>`.
///
/// # Safety
///
/// `file` is null or a string; `patch` is null or has room.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_load_file(file: *const c_char, patch: *mut u64) -> c_int {
    answer(|| {
        let engine = engine()?;
        // SAFETY: the caller's promise.
        let (file, patch) = unsafe { (path(file)?, out(patch, "where the patch is to go")?) };
        *patch = engine.load_file(file)?.number();
        Ok(0)
    })
}

/// `klp_load` of `<klp.h>`.
///
/// # Safety
///
/// `object` is null or has `size` bytes; `name` is null or a string; `patch` is null or has room.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_load(
    object: *const c_void,
    size: usize,
    name: *const c_char,
    patch: *mut u64,
) -> c_int {
    answer(|| {
        let engine = engine()?;
        if object.is_null() {
            return Err(Failure::misuse("the patch object is NULL"));
        }
        fits::<u8>(size)?;
        // SAFETY: the caller's promise.
        let (object, name, patch) = unsafe {
            (
                core::slice::from_raw_parts(object.cast(), size),
                string(name, "the patch's name")?,
                out(patch, "where the patch is to go")?,
            )
        };
        *patch = engine.load(object, name)?.number();
        Ok(0)
    })
}

/// `klp_unload` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_unload(patch: u64) -> c_int {
    with(patch, |engine, id| engine.unload(id))
}

/// `klp_free_removed` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_free_removed() -> c_int {
    answer(|| {
        let kept = engine()?.free_removed();
        Ok(c_int::try_from(kept).unwrap_or(c_int::MAX))
    })
}

/// `klp_find` of `<klp.h>`.
///
/// # Safety
///
/// `name` is null or a string; `patch` is null or has room.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_find(name: *const c_char, patch: *mut u64) -> c_int {
    answer(|| {
        let engine = engine()?;
        // SAFETY: the caller's promise.
        let (name, patch) = unsafe {
            (
                string(name, "the patch's name")?,
                out(patch, "where the patch is to go")?,
            )
        };
        let unknown = || Failure::new(-libc::ENOENT, format!("there is no patch '{name}'"));
        *patch = engine.engine().find(name).ok_or_else(unknown)?.number();
        Ok(0)
    })
}

/// `klp_enable` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_enable(patch: u64) -> c_int {
    with(patch, Livepatch::enable)
}

/// `klp_enable_all` of `<klp.h>`.
///
/// # Safety
///
/// `all` is null or there are `count` of them.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_enable_all(all: *const u64, count: usize) -> c_int {
    answer(|| {
        // SAFETY: the caller's promise.
        engine()?.enable_all(&unsafe { patches(all, count) }?)?;
        Ok(0)
    })
}

/// `klp_disable` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_disable(patch: u64) -> c_int {
    with(patch, |engine, id| engine.disable(id))
}

/// `klp_disable_all` of `<klp.h>`.
///
/// # Safety
///
/// `all` is null or there are `count` of them.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_disable_all(all: *const u64, count: usize) -> c_int {
    answer(|| {
        // SAFETY: the caller's promise.
        engine()?.disable_all(&unsafe { patches(all, count) }?)?;
        Ok(0)
    })
}

/// `klp_reverse` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_reverse(patch: u64) -> c_int {
    with(patch, |engine, id| engine.engine().reverse(id))
}

/// `klp_kick` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_kick(patch: u64) -> c_int {
    with(patch, |engine, id| engine.engine().kick(id))
}

/// `klp_force` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_force(patch: u64) -> c_int {
    with(patch, |engine, id| engine.engine().force(id))
}

/// `klp_poll` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_poll() -> c_long {
    answer(|| {
        Ok(match engine()?.engine().poll() {
            Poll::Idle | Poll::Complete { .. } => 0,
            // Where they cannot be counted, there are some.
            Poll::Waiting { pending, .. } => {
                c_long::try_from(pending).unwrap_or(c_long::MAX).max(1)
            }
        })
    })
}

/// `klp_wait` of `<klp.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_wait(milliseconds: c_long) -> c_int {
    answer(|| {
        let engine = engine()?;
        let time = match u64::try_from(milliseconds) {
            Ok(milliseconds) => Duration::from_millis(milliseconds).min(LONG),
            Err(_) if milliseconds == -1 => {
                while !engine.wait(LONG) {}
                return Ok(0);
            }
            Err(_) => {
                let why = format!("a time of {milliseconds} milliseconds");
                return Err(Failure::misuse(why));
            }
        };
        if engine.wait(time) {
            return Ok(0);
        }
        let why = format!("the transition is not finished after {time:?}; it goes on");
        Err(Failure::new(-libc::ETIMEDOUT, why))
    })
}

/// Longer than anybody waits, and such that clocks can add it.
const LONG: Duration = Duration::from_secs(u32::MAX as u64);
