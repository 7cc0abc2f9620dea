// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Shadow variables (kernel: `shadow.c`), on klp-core's table.
//!
//! Who may not sleep says so by `gfp`: then interrupts are off while memory is asked for, which the
//! allocator sees (`memory.rs`).

use crate::host;
use crate::lock::ShadowLock;
use core::ffi::{c_uint, c_ulong, c_void};
use core::ptr::{self, NonNull};
use klp_core::shadow::{ShadowError, ShadowTable, c};

static SHADOWS: ShadowTable<ShadowLock> = ShadowTable::new();

/// Interrupts are off while there is one.
struct NoSleep(c_ulong);

impl NoSleep {
    fn new() -> Self {
        Self(host::klp_host_irq_save())
    }
}

impl Drop for NoSleep {
    fn drop(&mut self) {
        // SAFETY: `new` has saved them on this CPU.
        unsafe { host::klp_host_irq_restore(self.0) }
    }
}

/// What C gets; the log gets the rest. Makes the variable of `obj` by `make`, for somebody who says
/// by `gfp` whether he may sleep.
///
/// A table grows where its callers may sleep. If none of them may, a work item does it; which also
/// frees what was grown out of.
fn made(obj: *mut c_void, id: u64, gfp: c_uint, make: impl FnOnce() -> Result<NonNull<u8>, ShadowError>) -> *mut c_void {
    let may_sleep = host::klp_host_may_sleep(gfp);
    let made = {
        let _no_sleep = (!may_sleep).then(NoSleep::new);
        make()
    };
    match made {
        Ok(data) => {
            if SHADOWS.take_outgrown() || !may_sleep && SHADOWS.is_crowded(id) {
                host::klp_host_tidy_shadows_later();
            }
            return data.as_ptr().cast();
        }
        // SAFETY: it writes a line.
        Err(ShadowError::Duplicate { id, .. }) => unsafe { host::klp_host_shadow_refused(obj, id, 0) },
        // SAFETY: as above.
        Err(ShadowError::Constructor { id, errno, .. }) => unsafe { host::klp_host_shadow_refused(obj, id, errno) },
        Err(_) => {}
    }
    ptr::null_mut()
}

/// In a work item.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_tidy_shadows() {
    SHADOWS.make_room();
    let retired = SHADOWS.retire();
    if !retired.is_empty() {
        host::klp_host_synchronize_tasks();
        // SAFETY: nothing is left of what ran without waiting when the tables were retired: no
        // lookup, and no call that made a variable but those that wait for memory.
        unsafe { retired.free() };
    }
}

#[unsafe(no_mangle)]
extern "C" fn klp_shadow_get(obj: *mut c_void, id: u64) -> *mut c_void {
    c::get(&SHADOWS, obj, id)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_alloc(
    obj: *mut c_void,
    id: u64,
    size: usize,
    gfp: c_uint,
    ctor: Option<c::Ctor>,
    ctor_data: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    made(obj, id, gfp, || unsafe { c::alloc(&SHADOWS, obj, id, c::Wanted { size, ctor, ctor_data }) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_get_or_alloc(
    obj: *mut c_void,
    id: u64,
    size: usize,
    gfp: c_uint,
    ctor: Option<c::Ctor>,
    ctor_data: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    made(obj, id, gfp, || unsafe { c::get_or_alloc(&SHADOWS, obj, id, c::Wanted { size, ctor, ctor_data }) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_free(obj: *mut c_void, id: u64, dtor: Option<c::Dtor>) {
    // SAFETY: the caller promises that nobody uses the variable, and that its destructor may be
    // called.
    unsafe { c::free(&SHADOWS, obj, id, dtor) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn klp_shadow_free_all(id: u64, dtor: Option<c::Dtor>) {
    // SAFETY: as in `klp_shadow_free`.
    unsafe { c::free_all(&SHADOWS, id, dtor) };
}
