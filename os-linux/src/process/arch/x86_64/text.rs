//! How instructions are changed under running threads.
//!
//! ```text
//!   90 90 90 90 90    a pad of several instructions (split), as it was built
//!   3d 90 90 90 90    one store of one byte: it is a single instruction now, `cmp $0x90909090,%eax`,
//!                     of which nobody at a function's entry notices anything (psABI 3.2.1: the
//!                     arithmetic flags mean nothing there). Then every core was serialised, and
//!                     every thread was seen outside of the four bytes behind the first one
//!   e9 xx xx xx xx    one store of eight bytes
//!   0f 1f 44 00 00    the same, when nothing is patched any more: one instruction, so that the next
//!                     change is one store again, and nobody need be seen outside of it
//! ```
//!
//! All other changes, from a single instruction to anything, are one store of eight bytes. The five
//! bytes lie in one aligned word if [`Arch::entry`](klp_core::port::Arch::entry) found such a place,
//! else at least in one line of the cache; where they do not, the change is refused. The processor
//! makes one access of a locked store within a line (Intel SDM volume 3, 9.1; it fetches lines as a
//! whole).

use klp_core::addr::{CodeAddr, TextRange};

/// The first byte of an instruction that leads over the pad of several which it stands in:
/// `cmp $imm32,%eax`, which with four more does nothing but set flags.
pub(crate) const SKIPS: Option<u8> = Some(0x3d);

/// Bytes of a line of the cache.
const LINE: u64 = 64;

/// The eight bytes around `range` that are stored at once; `None` if there are none in one line of
/// the cache.
pub(crate) fn window(range: TextRange) -> Option<u64> {
    const WORD: u64 = 8;
    let (start, end) = (range.start().get(), range.end().get());
    let line = start / LINE * LINE;
    let aligned = start / WORD * WORD;
    if end <= aligned + WORD {
        Some(aligned)
    } else if end - start <= WORD && end <= line + LINE {
        Some(start.min(line + LINE - WORD))
    } else {
        None
    }
}

/// Puts `bytes`, which have a [`window`], at `at` by one store.
///
/// # Safety
///
/// The place is writable code, which is only written to here; the instruction that comes of it is
/// one that may be executed there.
pub(crate) unsafe fn replace(at: CodeAddr, bytes: &[u8]) {
    let Some(start) = TextRange::new(at, bytes.len() as u64).and_then(window) else {
        return;
    };
    let from = (at.get() - start) as usize;
    // SAFETY: the window is in one line, so on one page, for which the caller promises. A locked
    // store needs no alignment.
    unsafe {
        let window = start as *mut u64;
        let mut word = window.read_unaligned().to_le_bytes();
        word[from..from + bytes.len()].copy_from_slice(bytes);
        core::arch::asm!(
            "xchg [{window}], {word}",
            window = in(reg) window,
            word = inout(reg) u64::from_le_bytes(word) => _,
            options(nostack, preserves_flags),
        );
    }
}

/// What pages with code of an object with such `properties` are protected with, beside that they
/// can be read and executed: nothing.
pub(crate) fn guard(_properties: &[u8]) -> i32 {
    0
}

/// What was written to `range` is what cores fetch from then on: their caches see each other's
/// stores (Intel SDM volume 3, 12.6).
///
/// # Safety
///
/// It can be read.
pub(crate) unsafe fn written(_range: TextRange) {}
