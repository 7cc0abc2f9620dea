//! Words of each thread's own, at a place that handlers may read.
//!
//! In a library that comes by `dlopen`, a variable of `std::thread_local!` has no place until a
//! thread touches it: then the dynamic linker calls `malloc`, maybe in the midst of a `malloc` that
//! a signal has interrupted. Here the place is found by the *initial-exec* way ("ELF Handling For
//! Thread-Local Storage", 4.4.6): at the same distance from every thread's own pointer
//! (`fs`), which the dynamic linker sets aside when it loads the library, for all threads that there
//! are and will be. It keeps some room for that, and refuses the library if there is none left. In
//! an executable the link editor puts the distance into the instruction.
//!
//! They are variables of assembly, since Rust has no way to say this of some of its own.

use core::arch::{asm, global_asm};

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
    let word;
    // SAFETY: reads the thread's own word, which lives as long as the thread.
    unsafe {
        asm!(
            "mov {word}, qword ptr [rip + klp_os_linux_words@GOTTPOFF]",
            "mov {word}, qword ptr fs:[{word} + {offset}]",
            offset = const OFFSET,
            word = out(reg) word,
            options(nostack, preserves_flags, readonly),
        );
    }
    word
}

/// From here on, it is `word`.
pub(crate) fn set<const OFFSET: usize>(word: usize) {
    const { assert!(OFFSET == RECORD || OFFSET == FORK || OFFSET == TID) };
    // SAFETY: writes the thread's own word.
    unsafe {
        asm!(
            "mov {place}, qword ptr [rip + klp_os_linux_words@GOTTPOFF]",
            "mov qword ptr fs:[{place} + {offset}], {word}",
            offset = const OFFSET,
            place = out(reg) _,
            word = in(reg) word,
            options(nostack, preserves_flags),
        );
    }
}

/// The thread's own pointer: where the C library keeps what it knows of the thread, at the very top
/// of the stack that it has made for it ("ELF Handling For Thread-Local Storage", 3.4.6: the word
/// there is its own address).
#[inline]
pub(crate) fn thread_pointer() -> u64 {
    let pointer;
    // SAFETY: reads the word that every thread has there.
    unsafe {
        asm!(
            "mov {pointer}, qword ptr fs:[0]",
            pointer = out(reg) pointer,
            options(nostack, preserves_flags, readonly),
        );
    }
    pointer
}
