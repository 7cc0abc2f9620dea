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

use super::super::word::WORD;
use core::arch::asm;
use klp_core::addr::TextRange;

pub(crate) use super::super::word::{replace, window};

/// No entry is of several instructions that have to become one first.
pub(crate) const SKIPS: Option<u8> = None;

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
