//! Words of each thread's own, by the initial-exec way: see `tls.rs`.

use core::arch::{asm, global_asm};

// How far the words are from each thread's own pointer, which the linkers write there. Assembly
// cannot look it up by register 2: the compiler does not know that it counts on it.
global_asm!(
    ".pushsection .data.rel.ro,\"aw\",@progbits",
    ".hidden klp_os_linux_words_at",
    ".globl klp_os_linux_words_at",
    ".type klp_os_linux_words_at,@object",
    ".size klp_os_linux_words_at,8",
    ".balign 8",
    "klp_os_linux_words_at:",
    ".quad klp_os_linux_words@tprel",
    ".popsection",
);

// SAFETY: defined above, a number that never changes.
unsafe extern "C" {
    #[link_name = "klp_os_linux_words_at"]
    safe static WORDS_AT: u64;
}

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
            "add {place}, 13, {distance}",
            "ld {word}, {offset}({place})",
            offset = const OFFSET,
            distance = in(reg) WORDS_AT,
            place = out(reg_nonzero) _,
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
            "add {place}, 13, {distance}",
            "std {word}, {offset}({place})",
            offset = const OFFSET,
            distance = in(reg) WORDS_AT,
            place = out(reg_nonzero) _,
            word = in(reg) word,
            options(nostack, preserves_flags),
        );
    }
}

/// Right above where the C library keeps what it knows of the thread, at the top of the stack that
/// it has made for it: the thread's own pointer is 0x7000 bytes further up (ELFv2 3.7.2, "TLS
/// Runtime Handling").
#[inline]
pub(crate) fn thread_pointer() -> u64 {
    let pointer: u64;
    // SAFETY: reads the register that every thread has for that.
    unsafe {
        asm!("mr {}, 13", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    pointer - 0x7000
}

/// What the architecture calls the thread pointer is so much further up (ELFv2 3.7.2).
pub(crate) const POINTER_BIAS: u64 = 0x7000;
