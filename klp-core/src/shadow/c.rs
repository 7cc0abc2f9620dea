//! Shadow variables as C knows them: objects and data are pointers, constructors and destructors
//! may be null (kernel: `klp_shadow_*` in `include/linux/livepatch.h`). For hosts that offer these
//! functions to patches in C.

use super::{ShadowError, ShadowTable};
use core::alloc::Layout;
use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};
use lock_api::RawMutex;

/// `klp_shadow_ctor_t`: gets the object, the zeroed data and what the caller gave for it; another
/// answer than 0 is an error number.
pub type Ctor =
    unsafe extern "C" fn(obj: *mut c_void, data: *mut c_void, ctor_data: *mut c_void) -> c_int;

/// `klp_shadow_dtor_t`: gets the object and the data.
pub type Dtor = unsafe extern "C" fn(obj: *mut c_void, data: *mut c_void);

/// What is made of a variable: `size` bytes, and how they begin.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Bytes of data.
    pub size: usize,
    /// The constructor, if the data is not to stay zeroed.
    pub ctor: Option<Ctor>,
    /// For the constructor.
    pub ctor_data: *mut c_void,
}

impl Wanted {
    #[inline]
    fn layout(&self) -> Result<Layout, ShadowError> {
        Layout::array::<u8>(self.size).map_err(|_| ShadowError::OutOfMemory)
    }

    /// # Safety
    ///
    /// The result is called with `obj`'s new data, for which `ctor` was made.
    unsafe fn constructor(
        self,
        obj: *mut c_void,
    ) -> impl FnOnce(usize, NonNull<u8>) -> Result<(), i32> {
        move |_, data| {
            let Some(ctor) = self.ctor else { return Ok(()) };
            // SAFETY: the promise made when this was built.
            match unsafe { ctor(obj, data.as_ptr().cast(), self.ctor_data) } {
                0 => Ok(()),
                errno => Err(errno),
            }
        }
    }
}

/// `klp_shadow_get`: null if there is none.
#[inline]
pub fn get<L: RawMutex>(table: &ShadowTable<L>, obj: *mut c_void, id: u64) -> *mut c_void {
    table
        .get(obj.addr(), id)
        .map_or(ptr::null_mut(), |data| data.as_ptr().cast())
}

/// `klp_shadow_alloc`.
///
/// # Errors
///
/// As for [`ShadowTable::alloc`].
///
/// # Safety
///
/// The constructor may be called with `obj`, `wanted.size` zeroed bytes, and `wanted.ctor_data`.
#[inline]
pub unsafe fn alloc<L: RawMutex>(
    table: &ShadowTable<L>,
    obj: *mut c_void,
    id: u64,
    wanted: Wanted,
) -> Result<NonNull<u8>, ShadowError> {
    // SAFETY: the caller's promise.
    table.alloc(obj.expose_provenance(), id, wanted.layout()?, unsafe {
        wanted.constructor(obj)
    })
}

/// `klp_shadow_get_or_alloc`.
///
/// # Errors
///
/// As for [`ShadowTable::get_or_alloc`].
///
/// # Safety
///
/// As for [`alloc`](fn@alloc).
#[inline]
pub unsafe fn get_or_alloc<L: RawMutex>(
    table: &ShadowTable<L>,
    obj: *mut c_void,
    id: u64,
    wanted: Wanted,
) -> Result<NonNull<u8>, ShadowError> {
    // SAFETY: the caller's promise.
    table.get_or_alloc(obj.expose_provenance(), id, wanted.layout()?, unsafe {
        wanted.constructor(obj)
    })
}

/// `klp_shadow_free`.
///
/// # Safety
///
/// Nobody uses the variable any more; the destructor may be called with it.
#[inline]
pub unsafe fn free<L: RawMutex>(
    table: &ShadowTable<L>,
    obj: *mut c_void,
    id: u64,
    dtor: Option<Dtor>,
) {
    // SAFETY: the caller's promise.
    unsafe { table.free(obj.expose_provenance(), id, destructor(dtor)) };
}

/// `klp_shadow_free_all`.
///
/// # Safety
///
/// Nobody uses these variables any more; the destructor may be called with each.
#[inline]
pub unsafe fn free_all<L: RawMutex>(table: &ShadowTable<L>, id: u64, dtor: Option<Dtor>) {
    // SAFETY: the caller's promise.
    unsafe { table.free_all(id, destructor(dtor)) };
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
