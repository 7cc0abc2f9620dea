//! C functions that the example `consistency` patches: see `pairs.c`.

use core::ffi::{c_int, c_uint};

/// A function that returns which versions it saw: bit 0 the original one, bit 1 the replacement.
pub type Outer = unsafe extern "C" fn(c_uint) -> c_uint;

unsafe extern "C" {
    fn first(work: c_uint) -> c_uint;
    fn second(work: c_uint) -> c_uint;
    /// Computes between the calls of the pair.
    pub fn outer_spin(work: c_uint) -> c_uint;
    /// Sleeps between them, `work` microseconds.
    pub fn outer_sleep(work: c_uint) -> c_uint;
    /// Waits in system calls between them, `work` microseconds.
    pub fn outer_syscall(work: c_uint) -> c_uint;
    /// Is interrupted between them by a signal whose handler calls the pair as well.
    pub fn outer_signal(work: c_uint) -> c_uint;
    fn new_first(work: c_uint) -> c_uint;
    fn new_second(work: c_uint) -> c_uint;
    fn new_outer_spin(work: c_uint) -> c_uint;
    fn new_outer_sleep(work: c_uint) -> c_uint;
    fn new_outer_syscall(work: c_uint) -> c_uint;
    fn new_outer_signal(work: c_uint) -> c_uint;
    fn pairs_install_handler() -> c_int;
}

/// Every function that the patch changes together, and what replaces it.
pub const FUNCS: [(&str, Outer); 6] = [
    ("first", new_first),
    ("second", new_second),
    ("outer_spin", new_outer_spin),
    ("outer_sleep", new_outer_sleep),
    ("outer_syscall", new_outer_syscall),
    ("outer_signal", new_outer_signal),
];

/// Lets SIGUSR1 call the pair.
#[must_use]
pub fn install_handler() -> bool {
    // SAFETY: the handler calls functions that are safe in handlers, and touches its own thread's memory only.
    unsafe { pairs_install_handler() == 0 }
}

/// Keeps the originals in the program though only the library itself calls them.
#[must_use]
pub fn originals() -> [Outer; 2] {
    [first, second]
}
