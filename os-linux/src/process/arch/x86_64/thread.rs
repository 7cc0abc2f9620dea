//! Words of each thread's own, by the initial-exec way: see `tls.rs`.

use core::arch::asm;

/// The calling thread's word at `OFFSET` in `klp_os_linux_words`.
///
/// # Safety
///
/// There is a word at `OFFSET`.
#[inline]
pub(crate) unsafe fn get<const OFFSET: usize>() -> usize {
    let word;
    // SAFETY: the caller's promise.
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
///
/// # Safety
///
/// As for [`get`].
pub(crate) unsafe fn set<const OFFSET: usize>(word: usize) {
    // SAFETY: the caller's promise.
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

/// What the architecture calls the thread pointer is so much further up.
pub(crate) const POINTER_BIAS: u64 = 0;
