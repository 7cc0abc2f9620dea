//! The engine as a library for a program that knows nothing of Rust: to be loaded by `dlopen`
//! (`libplugin.so`), or linked (`libplugin.a`). `os-linux/tests/plugin.rs` tries both.
//!
//! Each function says 0 if all went well, and writes to stderr what did not.

use core::ffi::{CStr, c_char, c_int};
use klp_core::engine::PatchId;
use klp_os_linux::process::{Livepatch, Options};
use std::sync::OnceLock;
use std::time::Duration;

static PATCH: OnceLock<PatchId> = OnceLock::new();

fn answer<T, E: core::fmt::Display>(result: Result<T, E>) -> c_int {
    match result {
        Ok(_) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

/// Runs `act` with the engine and the patch, and waits until every thread has moved.
fn act<T>(act: impl FnOnce(&'static Livepatch, PatchId) -> Result<T, klp_core::Error>) -> c_int {
    let (Some(livepatch), Some(patch)) = (Livepatch::get(), PATCH.get()) else {
        return 1;
    };
    let acted = answer(act(livepatch, *patch));
    if acted == 0 && !livepatch.wait(Duration::from_secs(10)) {
        for blocker in livepatch.engine().blockers(*patch).unwrap_or_default() {
            eprintln!("{blocker}");
        }
        return 1;
    }
    acted
}

/// Makes the process one that can be patched.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_init() -> c_int {
    answer(Livepatch::init(Options::default()))
}

/// Loads the patch object at `path`. Once.
///
/// # Safety
///
/// `path` ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plugin_load(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy();
    let Some(livepatch) = Livepatch::get() else {
        return 1;
    };
    answer(livepatch.load_file(&*path).map(|patch| PATCH.set(patch)))
}

/// Enables it.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_enable() -> c_int {
    act(Livepatch::enable)
}

/// Disables it.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_disable() -> c_int {
    act(Livepatch::disable)
}
