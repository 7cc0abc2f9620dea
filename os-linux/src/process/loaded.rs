//! What the dynamic linker has loaded (`dl_iterate_phdr(3)`).

use super::sys::SignalMask;
use core::ops::ControlFlow;

/// Shows every object, the executable first, until `each` breaks off. None of them is unmapped
/// meanwhile, and no signal reaches the calling thread: the linker's lock is the thread's own then,
/// and a child that a handler forks would be another thread.
pub(crate) fn each(each: &mut dyn FnMut(&libc::dl_phdr_info) -> ControlFlow<()>) {
    unsafe extern "C" fn callback(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        each: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: `each` is the reference given below, `info` is valid during the callback.
        let (each, info) = unsafe {
            (
                &mut *each.cast::<&mut dyn FnMut(&libc::dl_phdr_info) -> ControlFlow<()>>(),
                &*info,
            )
        };
        libc::c_int::from(each(info).is_break())
    }
    let _blocked = SignalMask::all();
    let mut each = each;
    // SAFETY: the callback gets what it expects.
    unsafe { libc::dl_iterate_phdr(Some(callback), (&raw mut each).cast()) };
}
