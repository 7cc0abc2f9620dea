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
            "adrp {distance}, :gottprel:klp_os_linux_words",
            "ldr {distance}, [{distance}, :gottprel_lo12:klp_os_linux_words]",
            "mrs {pointer}, tpidr_el0",
            "add {pointer}, {pointer}, {distance}",
            "ldr {word}, [{pointer}, #{offset}]",
            offset = const OFFSET,
            distance = out(reg) _,
            pointer = out(reg) _,
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
            "adrp {distance}, :gottprel:klp_os_linux_words",
            "ldr {distance}, [{distance}, :gottprel_lo12:klp_os_linux_words]",
            "mrs {pointer}, tpidr_el0",
            "add {pointer}, {pointer}, {distance}",
            "str {word}, [{pointer}, #{offset}]",
            offset = const OFFSET,
            distance = out(reg) _,
            pointer = out(reg) _,
            word = in(reg) word,
            options(nostack, preserves_flags),
        );
    }
}

/// The thread's own pointer: right above where the C library keeps what it knows of the thread
/// ("ELF for the Arm 64-bit Architecture", 7.1; variant I of "ELF Handling For Thread-Local
/// Storage", 3), at the top of the stack that it has made for it.
#[inline]
pub(crate) fn thread_pointer() -> u64 {
    let pointer;
    // SAFETY: reads the register that every thread has for that.
    unsafe {
        asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nomem, nostack, preserves_flags));
    }
    pointer
}

/// What the architecture calls the thread pointer is so much further up.
pub(crate) const POINTER_BIAS: u64 = 0;
