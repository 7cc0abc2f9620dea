//! Words of each thread's own, at a place that handlers may read.
//!
//! In a library that comes by `dlopen`, a variable of `std::thread_local!` has no place until a
//! thread touches it: then the dynamic linker calls `malloc`, maybe in the midst of a `malloc` that
//! a signal has interrupted. Here the place is found by the *initial-exec* way ("ELF Handling For
//! Thread-Local Storage", 4.4.6): at the same distance from every thread's own pointer
//! which the dynamic linker sets aside when it loads the library, for all threads that there
//! are and will be. It keeps some room for that, and refuses the library if there is none left. In
//! an executable the link editor puts the distance into the instruction.
//!
//! They are variables of assembly, since Rust has no way to say this of some of its own.

use super::arch::thread;
use core::arch::global_asm;

global_asm!(
    ".pushsection .tbss.klp_os_linux_words,\"awT\",@nobits",
    ".globl klp_os_linux_words",
    ".hidden klp_os_linux_words",
    ".type klp_os_linux_words,@object",
    ".size klp_os_linux_words,24",
    ".p2align 4",
    "klp_os_linux_words:",
    ".zero 24",
    ".popsection",
);

/// Where the thread's record is; see `records.rs`.
pub(crate) const RECORD: usize = 0;

/// The thread's fork under way; see `fork.rs`.
pub(crate) const FORK: usize = 8;

/// The thread's id, once it was asked for; see `lock.rs`.
pub(crate) const TID: usize = 16;

/// The calling thread's word at `OFFSET`, one of those above; 0 at first.
#[inline]
pub(crate) fn get<const OFFSET: usize>() -> usize {
    const { assert!(OFFSET == RECORD || OFFSET == FORK || OFFSET == TID) };
    // SAFETY: reads the thread's own word, which lives as long as the thread.
    unsafe { thread::get::<OFFSET>() }
}

/// From here on, it is `word`.
pub(crate) fn set<const OFFSET: usize>(word: usize) {
    const { assert!(OFFSET == RECORD || OFFSET == FORK || OFFSET == TID) };
    // SAFETY: writes the thread's own word.
    unsafe { thread::set::<OFFSET>(word) }
}
