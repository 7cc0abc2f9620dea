//! The shadow variables of the process, for patches in Rust and in C (kernel:
//! `kernel/livepatch/shadow.c`).

use super::events;
use super::lock::ShadowLock;
use core::ffi::{c_uint, c_ulong, c_void};
use core::ptr::{self, NonNull};
use klp_core::addr::CodeAddr;
use klp_core::shadow::{ShadowError, ShadowTable, c};

static SHADOWS: ShadowTable<ShadowLock> = ShadowTable::new();

/// All shadow variables of this process: those of patches in C too.
#[must_use]
pub fn shadows() -> &'static ShadowTable<ShadowLock> {
    &SHADOWS
}

/// The functions of `<klp/shadow.h>`, by which patch objects come to the variables. No linker knows
/// them: a patch binds to them by name.
pub(crate) fn function(name: &str) -> Option<CodeAddr> {
    let function = match name {
        "klp_shadow_get" => get as *const (),
        "klp_shadow_alloc" => alloc as *const (),
        "klp_shadow_get_or_alloc" => get_or_alloc as *const (),
        "klp_shadow_free" => free as *const (),
        "klp_shadow_free_all" => free_all as *const (),
        _ => return None,
    };
    Some(CodeAddr::new(function as u64))
}

extern "C" fn get(obj: *mut c_void, id: c_ulong) -> *mut c_void {
    c::get(&SHADOWS, obj, id)
}

/// # Safety
///
/// As for [`c::alloc`].
unsafe extern "C" fn alloc(
    obj: *mut c_void,
    id: c_ulong,
    size: usize,
    _flags: c_uint,
    ctor: Option<c::Ctor>,
    ctor_data: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    answer(unsafe {
        c::alloc(
            &SHADOWS,
            obj,
            id,
            c::Wanted {
                size,
                ctor,
                ctor_data,
            },
        )
    })
}

/// # Safety
///
/// As for [`c::get_or_alloc`].
unsafe extern "C" fn get_or_alloc(
    obj: *mut c_void,
    id: c_ulong,
    size: usize,
    _flags: c_uint,
    ctor: Option<c::Ctor>,
    ctor_data: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    answer(unsafe {
        c::get_or_alloc(
            &SHADOWS,
            obj,
            id,
            c::Wanted {
                size,
                ctor,
                ctor_data,
            },
        )
    })
}

/// # Safety
///
/// As for [`c::free`].
unsafe extern "C" fn free(obj: *mut c_void, id: c_ulong, dtor: Option<c::Dtor>) {
    // SAFETY: the caller's promise.
    unsafe { c::free(&SHADOWS, obj, id, dtor) };
}

/// # Safety
///
/// As for [`c::free_all`].
unsafe extern "C" fn free_all(id: c_ulong, dtor: Option<c::Dtor>) {
    // SAFETY: the caller's promise.
    unsafe { c::free_all(&SHADOWS, id, dtor) };
}

/// What C gets; the engine's log gets the rest.
fn answer(made: Result<NonNull<u8>, ShadowError>) -> *mut c_void {
    match made {
        Ok(data) => data.as_ptr().cast(),
        Err(error) => {
            if let Some(event) = error.event() {
                events::write(&event);
            }
            ptr::null_mut()
        }
    }
}
