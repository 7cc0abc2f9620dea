//! How instructions are changed under running threads.
//!
//! ```text
//!   00 00 00 60    nop: a pad's first instruction, as it was built, and when nothing is patched any
//!                  more
//!   xx xx xx 4b    b: one aligned store of four bytes
//! ```
//!
//! A core that executes a word while it changes executes the old or the new one: the architecture
//! promises that of `nop` and `b` (Power ISA, book II, 1.8, "Concurrent Modification and Execution of
//! Instructions"). That it executes the new one from some time on takes two things more, as for code
//! that is altogether new: what was stored must have come to where cores fetch instructions from
//! ([`written`]), and then each of them must synchronise its context, which is what `membarrier`
//! makes it do.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use klp_core::addr::{CodeAddr, TextRange};

/// No entry is of several instructions that have to become one first.
pub(crate) const SKIPS: Option<u8> = None;

/// Bytes that are stored at once.
const WORD: u64 = 4;

/// The four bytes that `range` is, as they are stored at once; `None` if it is not such a word.
pub(crate) fn window(range: TextRange) -> Option<u64> {
    let start = range.start().get();
    (start % WORD == 0 && range.len() == WORD).then_some(start)
}

/// Puts `bytes`, which have a [`window`], at `at` by one store.
///
/// # Safety
///
/// The place is writable code, which is only written to here; the instruction that comes of it is
/// one that may be executed there.
pub(crate) unsafe fn replace(at: CodeAddr, bytes: &[u8]) {
    let range = TextRange::new(at, bytes.len() as u64);
    if let (Some(word), Some(bytes)) = (range.and_then(window), bytes.first_chunk()) {
        // SAFETY: the caller's promise; it is aligned.
        let word = unsafe { AtomicU32::from_ptr(word as *mut u32) };
        word.store(u32::from_le_bytes(*bytes), Ordering::SeqCst);
    }
    if let Some(range) = range {
        // SAFETY: the caller's promise.
        unsafe { written(range) };
    }
}

/// What pages with code of an object with such `properties` are protected with, beside that they
/// can be read and executed: nothing.
pub(crate) fn guard(_properties: &[u8]) -> i32 {
    0
}

/// Brings what was written to `range` to where every core fetches instructions from: stores lines of
/// data caches, then invalidates those of instruction caches (Power ISA, book II, 1.8).
///
/// # Safety
///
/// It can be read.
pub(crate) unsafe fn written(range: TextRange) {
    // Programs are told how long lines are (the kernel's <asm/auxvec.h>).
    const AT_DCACHEBSIZE: libc::c_ulong = 19;
    const AT_ICACHEBSIZE: libc::c_ulong = 20;
    let lines = |kind| {
        // SAFETY: no memory is involved.
        let len = unsafe { libc::getauxval(kind) };
        let len = if len.is_power_of_two() { len } else { WORD };
        let first = range.start().get() / len * len;
        (first..range.end().get()).step_by(usize::try_from(len).unwrap_or(WORD as usize))
    };
    // SAFETY: caches hold copies: nothing changes but what is fetched. Programs may do this where
    // memory can be read, the caller's promise.
    unsafe {
        for at in lines(AT_DCACHEBSIZE) {
            asm!("dcbst 0, {}", in(reg) at, options(nostack, preserves_flags));
        }
        asm!("sync", options(nostack, preserves_flags));
        for at in lines(AT_ICACHEBSIZE) {
            asm!("icbi 0, {}", in(reg) at, options(nostack, preserves_flags));
        }
        asm!("sync", "isync", options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_one_aligned_word() {
        let range = |at, len| TextRange::new(CodeAddr::new(at), len).expect("it does not wrap");
        assert_eq!(window(range(0x1004, 4)), Some(0x1004));
        for (at, len) in [(0x1002, 4), (0x1004, 8), (0x1004, 2), (0x1004, 0)] {
            assert_eq!(window(range(at, len)), None);
        }
    }
}
