//! The shadow variables of the process, for patches in Rust and in C (kernel: `kernel/livepatch/shadow.c`).

use super::Livepatch;
use super::lock::FutexLock;
use core::alloc::Layout;
use core::ffi::{c_int, c_uint, c_ulong, c_void};
use core::ptr::{self, NonNull};
use klp_core::addr::CodeAddr;
use klp_core::port::Platform;
use klp_core::shadow::{ShadowError, ShadowTable};

static SHADOWS: ShadowTable<FutexLock> = ShadowTable::new();

/// All shadow variables of this process: those of patches in C too.
#[must_use]
pub fn shadows() -> &'static ShadowTable<FutexLock> {
    &SHADOWS
}

/// The functions of `<klp/shadow.h>`, by which patch objects come to the variables. No linker knows them: a patch binds to them by name.
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

/// `klp_shadow_ctor_t`
type Ctor = unsafe extern "C" fn(obj: *mut c_void, data: *mut c_void, ctor_data: *mut c_void) -> c_int;
/// `klp_shadow_dtor_t`
type Dtor = unsafe extern "C" fn(obj: *mut c_void, data: *mut c_void);

extern "C" fn get(obj: *mut c_void, id: c_ulong) -> *mut c_void {
    SHADOWS.get(obj.addr(), id).map_or(ptr::null_mut(), |data| data.as_ptr().cast())
}

/// # Safety
///
/// `ctor` may be called with `obj`, `size` zeroed bytes, and `ctor_data`.
unsafe extern "C" fn alloc(
    obj: *mut c_void,
    id: c_ulong,
    size: usize,
    _flags: c_uint,
    ctor: Option<Ctor>,
    ctor_data: *mut c_void,
) -> *mut c_void {
    let make = |layout| {
        // SAFETY: the caller's promise.
        SHADOWS.alloc(obj.expose_provenance(), id, layout, unsafe { constructor(obj, ctor, ctor_data) })
    };
    answer(layout(size).and_then(make))
}

/// # Safety
///
/// As for [`alloc`].
unsafe extern "C" fn get_or_alloc(
    obj: *mut c_void,
    id: c_ulong,
    size: usize,
    _flags: c_uint,
    ctor: Option<Ctor>,
    ctor_data: *mut c_void,
) -> *mut c_void {
    let make = |layout| {
        // SAFETY: the caller's promise.
        SHADOWS.get_or_alloc(obj.expose_provenance(), id, layout, unsafe { constructor(obj, ctor, ctor_data) })
    };
    answer(layout(size).and_then(make))
}

/// # Safety
///
/// Nobody uses the variable any more; `dtor` may be called with it.
unsafe extern "C" fn free(obj: *mut c_void, id: c_ulong, dtor: Option<Dtor>) {
    // SAFETY: the caller's promise.
    unsafe { SHADOWS.free(obj.expose_provenance(), id, destructor(dtor)) };
}

/// # Safety
///
/// Nobody uses these variables any more; `dtor` may be called with each.
unsafe extern "C" fn free_all(id: c_ulong, dtor: Option<Dtor>) {
    // SAFETY: the caller's promise.
    unsafe { SHADOWS.free_all(id, destructor(dtor)) };
}

fn layout(size: usize) -> Result<Layout, ShadowError> {
    Layout::from_size_align(size, 1).map_err(|_| ShadowError::OutOfMemory)
}

/// # Safety
///
/// The result is called at most once, with data for which `ctor` was made.
unsafe fn constructor(
    obj: *mut c_void,
    ctor: Option<Ctor>,
    ctor_data: *mut c_void,
) -> impl FnOnce(usize, NonNull<u8>) -> Result<(), i32> {
    move |_, data| match ctor {
        None => Ok(()),
        // SAFETY: the promise made when this was built.
        Some(ctor) => match unsafe { ctor(obj, data.as_ptr().cast(), ctor_data) } {
            0 => Ok(()),
            errno => Err(errno),
        },
    }
}

/// # Safety
///
/// The result is called with objects and data for which `dtor` was made.
unsafe fn destructor(dtor: Option<Dtor>) -> impl FnMut(usize, NonNull<u8>) {
    move |obj, data| {
        if let Some(dtor) = dtor {
            // SAFETY: the promise made when this was built.
            unsafe { dtor(ptr::with_exposed_provenance_mut(obj), data.as_ptr().cast()) };
        }
    }
}

/// What C gets; the engine's log gets the rest.
fn answer(made: Result<NonNull<u8>, ShadowError>) -> *mut c_void {
    match made {
        Ok(data) => data.as_ptr().cast(),
        Err(error) => {
            if let (Some(livepatch), Some(event)) = (Livepatch::get(), error.event()) {
                livepatch.engine().host().event(&event);
            }
            ptr::null_mut()
        }
    }
}
