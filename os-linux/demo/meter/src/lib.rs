//! A library in C++ that adds up the bytes of texts, and forgets what does not fit into the sum.
//!
//! The patch object [`PATCH`] has it throw an exception there, out of a function of a template that
//! is called by way of a virtual table, through code of the library that stays, into a handler that
//! is new ([`short`]) or stays, too ([`long`]). And `short` reads eight bytes at most, by a new
//! function that throws and catches.

use core::ffi::{CStr, c_char, c_int};

/// The path of the patch object.
pub const PATCH: &str = env!("KLP_DEMO_METER_PATCH");

unsafe extern "C" {
    fn meter_short(text: *const c_char) -> c_int;
    fn meter_long(text: *const c_char) -> c_int;
    safe fn meter_busy() -> c_int;
}

/// The sum of the bytes, in eight bits. Repaired: -2 if it does not fit.
#[must_use]
pub fn short(text: &CStr) -> i32 {
    // SAFETY: it reads the text, which ends with NUL.
    unsafe { meter_short(text.as_ptr()) }
}

/// The same in 16 bits; -1 if it does not fit.
#[must_use]
pub fn long(text: &CStr) -> i32 {
    // SAFETY: as in `short`.
    unsafe { meter_long(text.as_ptr()) }
}

/// How many calls are under way; more, if an exception has left one without cleaning up.
#[must_use]
pub fn busy() -> i32 {
    meter_busy()
}
