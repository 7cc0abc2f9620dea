//! What C programs call: the functions of `<klp/context.h>`.

use super::{Context, enter, free, leave, misused};
use crate::process::arch::registers;
use crate::process::slots::Slot;
use core::ffi::{CStr, c_char, c_void};
use core::ptr;

/// What C gets for `context`.
fn handle(context: Option<Context>) -> *mut c_void {
    context.map_or(ptr::null_mut(), |context| {
        ptr::from_ref(context.0).cast_mut().cast()
    })
}

/// # Safety
///
/// `handle` is null, or what [`handle`] has made.
unsafe fn slot<'a>(handle: *mut c_void) -> Option<&'a Slot> {
    // SAFETY: slots are never unmapped.
    unsafe { handle.cast::<Slot>().as_ref() }
}

/// `klp_context_new` of `<klp/context.h>`.
///
/// # Safety
///
/// `name` is null or a string.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_context_new(name: *const c_char) -> *mut c_void {
    let name = if name.is_null() {
        c""
    } else {
        // SAFETY: the caller's promise.
        unsafe { CStr::from_ptr(name) }
    };
    handle(Context::new(name.to_str().unwrap_or_default()))
}

/// `klp_context_of_thread` of `<klp/context.h>`.
#[unsafe(no_mangle)]
extern "C" fn klp_context_of_thread() -> *mut c_void {
    handle(Context::of_thread())
}

/// `klp_context_free` of `<klp/context.h>`.
///
/// # Safety
///
/// As for [`Context::free`]; or `context` is null.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_context_free(context: *mut c_void) {
    // SAFETY: the caller's promise.
    if let Some(slot) = unsafe { slot(context) } {
        free(slot);
    }
}

/// The part of `klp_context_leave` that `<klp/context.h>` does not do itself. Null is a context
/// that could not be registered.
///
/// # Safety
///
/// As for [`Context::leave`]; `regs` are the registers of the function that calls
/// `klp_context_leave`, all of them.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_context_leave_from(context: *mut c_void, regs: *const registers::Left) {
    // SAFETY: the caller's promise.
    match unsafe { (slot(context), regs.as_ref()) } {
        (Some(slot), Some(regs)) => leave(slot, regs),
        _ => misused(),
    }
}

/// `klp_context_enter` of `<klp/context.h>`.
///
/// # Safety
///
/// As for [`Context::enter`].
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_context_enter(context: *mut c_void) {
    // SAFETY: the caller's promise.
    match unsafe { slot(context) } {
        Some(slot) => enter(slot),
        None => misused(),
    }
}
