//! A greeter in C with a spelling mistake, compiled with entry pads: something small to patch by
//! hand.

use core::ffi::{c_char, c_int, c_uint, c_ulong};
use core::time::Duration;

/// The path of the patch object that corrects the mistake.
pub const PATCH: &str = env!("KLP_DEMO_GREETER_PATCH");

/// The name of that patch.
pub const PATCH_NAME: &str = "greeter_fix";

unsafe extern "C" {
    fn greeter_serve(out: *mut c_char, len: c_ulong, guest: c_uint, milliseconds: c_uint) -> c_int;
}

/// Greets a guest, who takes `time` to go away, and returns what was said.
#[must_use]
pub fn serve(guest: u32, time: Duration) -> String {
    let mut out = [0u8; 64];
    let millis = c_uint::try_from(time.as_millis()).unwrap_or(c_uint::MAX);
    // SAFETY: `out` has room for the length that is given.
    let said =
        unsafe { greeter_serve(out.as_mut_ptr().cast(), out.len() as c_ulong, guest, millis) };
    let said = usize::try_from(said).unwrap_or(0).min(out.len() - 1);
    String::from_utf8_lossy(&out[..said]).into_owned()
}
