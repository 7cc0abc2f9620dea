//! How an instruction is changed where each is one aligned word: the same for all such processors.

use super::text;
use core::sync::atomic::{AtomicU32, Ordering};
use klp_core::addr::{CodeAddr, TextRange};

/// Bytes that are stored at once.
pub(crate) const WORD: u64 = 4;

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
        unsafe { text::written(range) };
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
