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

/// The functions of `<klp/shadow.h>`, by which patch objects come to the variables: a patch binds to
/// them by name, whether the program exports them or not.
pub(crate) fn function(name: &str) -> Option<CodeAddr> {
    let function = match name {
        "klp_shadow_get" => klp_shadow_get as *const (),
        "klp_shadow_alloc" => klp_shadow_alloc as *const (),
        "klp_shadow_get_or_alloc" => klp_shadow_get_or_alloc as *const (),
        "klp_shadow_free" => klp_shadow_free as *const (),
        "klp_shadow_free_all" => klp_shadow_free_all as *const (),
        _ => return None,
    };
    Some(CodeAddr::new(function as u64))
}

#[unsafe(no_mangle)]
extern "C" fn klp_shadow_get(obj: *mut c_void, id: c_ulong) -> *mut c_void {
    c::get(&SHADOWS, obj, id)
}

/// # Safety
///
/// As for [`c::alloc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_alloc(
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
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_get_or_alloc(
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
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_free(obj: *mut c_void, id: c_ulong, dtor: Option<c::Dtor>) {
    // SAFETY: the caller's promise.
    unsafe { c::free(&SHADOWS, obj, id, dtor) };
}

/// # Safety
///
/// As for [`c::free_all`].
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_free_all(id: c_ulong, dtor: Option<c::Dtor>) {
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
