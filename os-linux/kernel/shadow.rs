// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Shadow variables (kernel: `shadow.c`), on klp-core's table.
//!
//! Who may not sleep says so by `gfp`: then interrupts are off while memory is asked for, which the allocator sees (`memory.rs`).

use crate::host;
use crate::lock::ShadowLock;
use core::alloc::Layout;
use core::ffi::{c_int, c_uint, c_void};
use core::ptr::{self, NonNull};
use klp_core::shadow::{ShadowError, ShadowTable};

static SHADOWS: ShadowTable<ShadowLock> = ShadowTable::new();

type Ctor = Option<unsafe extern "C" fn(obj: *mut c_void, data: *mut c_void, ctor_data: *mut c_void) -> c_int>;
type Dtor = Option<unsafe extern "C" fn(obj: *mut c_void, data: *mut c_void)>;

/// The kernel's slab gives out memory of this alignment; the table at least that.
const ALIGN: usize = 8;

/// Interrupts are off while there is one, if it was made for somebody who may not sleep.
struct NoSleep(Option<usize>);

impl NoSleep {
    fn new(gfp: c_uint) -> Self {
        Self((!host::klp_host_may_sleep(gfp)).then(|| host::klp_host_irq_save() as usize))
    }
}

impl Drop for NoSleep {
    fn drop(&mut self) {
        if let Some(flags) = self.0 {
            // SAFETY: `new` has saved them on this CPU.
            unsafe { host::klp_host_irq_restore(flags as _) }
        }
    }
}

fn key(obj: *mut c_void) -> usize {
    obj.expose_provenance()
}

fn pointer(data: Option<NonNull<u8>>) -> *mut c_void {
    data.map_or(ptr::null_mut(), |data| data.as_ptr().cast())
}

/// Makes a variable by `make`, which gets its layout and constructor.
///
/// # Safety
///
/// `ctor` is null, or may be called with `obj` and `ctor_data`.
unsafe fn make(
    obj: *mut c_void,
    size: usize,
    gfp: c_uint,
    ctor: Ctor,
    ctor_data: *mut c_void,
    make: impl FnOnce(Layout, &dyn Fn(usize, NonNull<u8>) -> Result<(), i32>) -> Result<NonNull<u8>, ShadowError>,
) -> *mut c_void {
    let Ok(layout) = Layout::from_size_align(size, ALIGN) else { return ptr::null_mut() };
    let construct = |_, data: NonNull<u8>| match ctor {
        None => Ok(()),
        // SAFETY: the caller's promise; the data is new.
        Some(ctor) => match unsafe { ctor(obj, data.as_ptr().cast(), ctor_data) } {
            0 => Ok(()),
            errno => Err(errno),
        },
    };
    let made = {
        let _no_sleep = NoSleep::new(gfp);
        make(layout, &construct)
    };
    match made {
        Ok(data) => return data.as_ptr().cast(),
        // SAFETY: it writes a line.
        Err(ShadowError::Duplicate { id, .. }) => unsafe { host::klp_host_shadow_refused(obj, id, 0) },
        // SAFETY: as above.
        Err(ShadowError::Constructor { id, errno, .. }) => unsafe { host::klp_host_shadow_refused(obj, id, errno) },
        Err(_) => {}
    }
    ptr::null_mut()
}

#[unsafe(no_mangle)]
extern "C" fn klp_shadow_get(obj: *mut c_void, id: u64) -> *mut c_void {
    pointer(SHADOWS.get(key(obj), id))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_alloc(
    obj: *mut c_void,
    id: u64,
    size: usize,
    gfp: c_uint,
    ctor: Ctor,
    ctor_data: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { make(obj, size, gfp, ctor, ctor_data, |layout, ctor| SHADOWS.alloc(key(obj), id, layout, ctor)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_get_or_alloc(
    obj: *mut c_void,
    id: u64,
    size: usize,
    gfp: c_uint,
    ctor: Ctor,
    ctor_data: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { make(obj, size, gfp, ctor, ctor_data, |layout, ctor| SHADOWS.get_or_alloc(key(obj), id, layout, ctor)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_free(obj: *mut c_void, id: u64, dtor: Dtor) {
    // SAFETY: the caller promises that nobody uses the variable, and that its destructor may be called.
    unsafe { SHADOWS.free(key(obj), id, |_, data| destroy(dtor, obj, data)) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_free_all(id: u64, dtor: Dtor) {
    let object = ptr::with_exposed_provenance_mut::<c_void>;
    // SAFETY: as in `klp_shadow_free`.
    unsafe { SHADOWS.free_all(id, |obj, data| destroy(dtor, object(obj), data)) };
}

/// # Safety
///
/// `dtor` is null, or may be called with `obj` and `data`.
unsafe fn destroy(dtor: Dtor, obj: *mut c_void, data: NonNull<u8>) {
    if let Some(dtor) = dtor {
        // SAFETY: the caller's promise.
        unsafe { dtor(obj, data.as_ptr().cast()) }
    }
}
