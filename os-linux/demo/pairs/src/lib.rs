//! C functions that the example `consistency` patches: see `pairs.c`.

use core::ffi::{c_int, c_uint};

/// A function that returns which versions it saw: bit 0 the original one, bits 1 and 2 the
/// replacements.
pub type Outer = unsafe extern "C-unwind" fn(c_uint) -> c_uint;

/// The shared library that comes and goes, and how patches call it.
pub const MODULE: (&str, &str) = (env!("KLP_PAIRS_MODULE"), "libpairs_module");

/// Patch objects that replace [`outer_loaded`] and what it calls, and each other.
pub const LOADED: [&str; 2] = [env!("KLP_PAIRS_LOADED_1"), env!("KLP_PAIRS_LOADED_2")];

macro_rules! outers {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident;)*) => {
        unsafe extern "C-unwind" {
            $($(#[$doc])* $vis fn $name(work: c_uint) -> c_uint;)*
        }
    };
}

outers! {
    fn first;
    fn second;
    /// Computes between the calls of the pair.
    pub fn outer_spin;
    /// Sleeps between them, `work` microseconds.
    pub fn outer_sleep;
    /// Waits in system calls between them, `work` microseconds.
    pub fn outer_syscall;
    /// Is interrupted between them by a signal whose handler calls the pair as well.
    pub fn outer_signal;
    /// Sleeps between the calls of another pair, which version 2 does not have.
    pub fn outer_extra;
    /// Is suspended between them, or left by an exception; see [`set_yield`].
    pub fn outer_yield;
    fn new1_outer_yield;
    fn new2_outer_yield;
    /// Sleeps between them, and ends in a jump to another function that is patched.
    pub fn outer_sibling;
    /// Sleeps between them in a part that the compiler split off.
    pub fn outer_cold;
    /// Sleeps between two calls of a function that patch objects replace.
    pub fn outer_loaded;
    fn new1_outer_sibling;
    fn new1_outer_cold;
    fn new2_outer_sibling;
    fn new2_outer_cold;
    fn new1_sibling;
    fn new2_sibling;
    fn new1_first;
    fn new1_second;
    fn new1_outer_spin;
    fn new1_outer_sleep;
    fn new1_outer_syscall;
    fn new1_outer_signal;
    fn new1_extra_first;
    fn new1_extra_second;
    fn new1_outer_extra;
    fn new1_module_first;
    fn new1_module_second;
    fn new1_module_outer;
    fn new2_first;
    fn new2_second;
    fn new2_outer_spin;
    fn new2_outer_sleep;
    fn new2_outer_syscall;
    fn new2_outer_signal;
    fn new2_module_first;
    fn new2_module_second;
    fn new2_module_outer;
}

unsafe extern "C" {
    static mut module_first: Option<Outer>;
    static mut module_second: Option<Outer>;
    static mut pairs_yield: Option<extern "C-unwind" fn()>;
    fn pairs_install_handler() -> c_int;
}

/// A function, and what replaces it.
pub type Replaced = (&'static str, Outer);

/// What version 1 changes in the program.
pub const FUNCS_1: [Replaced; 13] = [
    ("first", new1_first),
    ("second", new1_second),
    ("outer_spin", new1_outer_spin),
    ("outer_sleep", new1_outer_sleep),
    ("outer_syscall", new1_outer_syscall),
    ("outer_signal", new1_outer_signal),
    ("extra_first", new1_extra_first),
    ("extra_second", new1_extra_second),
    ("outer_extra", new1_outer_extra),
    ("outer_yield", new1_outer_yield),
    ("outer_sibling", new1_outer_sibling),
    ("outer_cold", new1_outer_cold),
    ("sibling", new1_sibling),
];

/// What version 1 changes in the shared library.
pub const MODULE_FUNCS_1: [Replaced; 3] = [
    ("module_first", new1_module_first),
    ("module_second", new1_module_second),
    ("module_outer", new1_module_outer),
];

/// What version 2 changes in the program.
pub const FUNCS_2: [Replaced; 10] = [
    ("first", new2_first),
    ("second", new2_second),
    ("outer_spin", new2_outer_spin),
    ("outer_sleep", new2_outer_sleep),
    ("outer_syscall", new2_outer_syscall),
    ("outer_signal", new2_outer_signal),
    ("outer_yield", new2_outer_yield),
    ("outer_sibling", new2_outer_sibling),
    ("outer_cold", new2_outer_cold),
    ("sibling", new2_sibling),
];

/// What version 2 changes in the shared library.
pub const MODULE_FUNCS_2: [Replaced; 3] = [
    ("module_first", new2_module_first),
    ("module_second", new2_module_second),
    ("module_outer", new2_module_outer),
];

/// Lets SIGUSR1 call the pair.
#[must_use]
pub fn install_handler() -> bool {
    // SAFETY: the handler calls functions that are safe in handlers, and touches its own thread's
    // memory only.
    unsafe { pairs_install_handler() == 0 }
}

/// Tells [`outer_yield`] how the coroutine that calls it is suspended.
///
/// # Safety
///
/// Nobody calls [`outer_yield`] yet.
pub unsafe fn set_yield(how: extern "C-unwind" fn()) {
    // SAFETY: the caller's promise: nobody reads it now.
    unsafe { pairs_yield = Some(how) };
}

/// Tells the replacements of the shared library's functions where these are.
///
/// # Safety
///
/// They are functions of the library, which stays as long as they are called, and no thread is
/// inside of any of them.
pub unsafe fn set_module(first: Outer, second: Outer) {
    // SAFETY: the caller's promise: nobody reads them now.
    unsafe {
        module_first = Some(first);
        module_second = Some(second);
    }
}

/// Keeps the originals in the program though only the library itself calls them.
#[must_use]
pub fn originals() -> [Outer; 2] {
    [first, second]
}
