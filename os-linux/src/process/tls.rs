//! A word of each thread's own, at a place that handlers may read: where its record is.
//!
//! In a library that comes by `dlopen`, a variable of `std::thread_local!` has no place until a
//! thread touches it: then the dynamic linker calls `malloc`, maybe in the midst of a `malloc` that
//! a signal has interrupted. Here the place is found by the *initial-exec* way ("ELF Handling For
//! Thread-Local Storage", 4.4.6): a word at the same distance from every thread's own pointer
//! (`fs`), which the dynamic linker sets aside when it loads the library, for all threads that there
//! are and will be. It keeps some room for that, and refuses the library if there is none left. In
//! an executable the link editor puts the distance into the instruction.
//!
//! The variable is one of assembly, since Rust has no way to say this of one of its own.

use core::arch::{asm, global_asm};

global_asm!(
    ".pushsection .tbss.klp_os_linux_record,\"awT\",@nobits",
    ".globl klp_os_linux_record",
    ".hidden klp_os_linux_record",
    ".type klp_os_linux_record,@object",
    ".size klp_os_linux_record,8",
    ".p2align 3",
    "klp_os_linux_record:",
    ".zero 8",
    ".popsection",
);

/// The calling thread's word; 0 at first.
#[inline]
pub(crate) fn get() -> usize {
    let word;
    // SAFETY: reads the thread's own word, which lives as long as the thread.
    unsafe {
        asm!(
            "mov {word}, qword ptr [rip + klp_os_linux_record@GOTTPOFF]",
            "mov {word}, qword ptr fs:[{word}]",
            word = out(reg) word,
            options(nostack, preserves_flags, readonly),
        );
    }
    word
}

/// From here on it is `word`.
pub(crate) fn set(word: usize) {
    // SAFETY: writes the thread's own word.
    unsafe {
        asm!(
            "mov {place}, qword ptr [rip + klp_os_linux_record@GOTTPOFF]",
            "mov qword ptr fs:[{place}], {word}",
            place = out(reg) _,
            word = in(reg) word,
            options(nostack, preserves_flags),
        );
    }
}
