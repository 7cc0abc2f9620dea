//! Calling code of patch images by the machine's C calling convention.

use crate::addr::CodeAddr;
use core::ffi::{c_int, c_void};

/// How a host calls functions in its [`Image`](super::Image)s: one way for each type that callbacks
/// in C have.
#[derive(Clone, Copy, Debug)]
pub struct CallC {
    /// Calls an `int (*)(T *)`.
    pub int: unsafe fn(function: CodeAddr, argument: *mut c_void) -> c_int,
    /// Calls a `void (*)(T *)`.
    pub void: unsafe fn(function: CodeAddr, argument: *mut c_void),
}

impl CallC {
    /// A function is called at its address: for hosts whose images lie in the engine's own address
    /// space, executable.
    pub const HERE: Self = Self {
        int: call_int,
        void: call_void,
    };
}

/// # Safety
///
/// There is an `int (*)(T *)` at `function`, and it may be called with `argument`.
unsafe fn call_int(function: CodeAddr, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    let function: unsafe extern "C" fn(*mut c_void) -> c_int =
        unsafe { core::mem::transmute(pointer(function)) };
    // SAFETY: the caller's promise.
    unsafe { function(argument) }
}

/// # Safety
///
/// There is a `void (*)(T *)` at `function`, and it may be called with `argument`.
unsafe fn call_void(function: CodeAddr, argument: *mut c_void) {
    // SAFETY: the caller's promise.
    let function: unsafe extern "C" fn(*mut c_void) =
        unsafe { core::mem::transmute(pointer(function)) };
    // SAFETY: the caller's promise.
    unsafe { function(argument) }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "an address of this machine"
)]
fn pointer(function: CodeAddr) -> *const () {
    core::ptr::with_exposed_provenance(function.get() as usize)
}
