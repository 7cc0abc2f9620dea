//! How instructions are changed under running threads.
//!
//! ```text
//!   1f 20 03 d5    nop: a pad's first instruction, as it was built, and when nothing is patched any
//!                  more
//!   xx xx xx 14    b: one aligned store of four bytes
//! ```
//!
//! A core that executes a word while it changes executes the old or the new one: the architecture
//! promises that of `nop` and `b` (Arm ARM, B2.2.5, "Concurrent modification and execution of
//! instructions"). That it executes the new one from some time on takes two things more, as for code
//! that is altogether new: what was stored must have come to where cores fetch instructions from
//! ([`written`]), and then each of them must pass a context synchronisation event, which is what
//! `membarrier` makes it do.

use super::super::word::WORD;
use core::arch::asm;
use klp_core::addr::TextRange;

pub(crate) use super::super::word::{replace, window};

/// No entry is of several instructions that have to become one first.
pub(crate) const SKIPS: Option<u8> = None;

/// What pages with code of an object with such `properties` are protected with, beside that they
/// can be read and executed: whether jumps into them must meet a landing pad, if the machine knows
/// of that ("ELF for the Arm 64-bit Architecture", "Program Property": the C library asks the kernel
/// for it).
pub(crate) fn guard(properties: &[u8]) -> i32 {
    /// The kernel's `<asm/hwcap.h>`.
    const HWCAP2_BTI: u64 = 1 << 17;
    // SAFETY: no memory is involved.
    let machine = unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_BTI != 0;
    if machine && wants_landing_pads(properties).unwrap_or(false) {
        libc::PROT_BTI
    } else {
        0
    }
}

/// Whether `GNU_PROPERTY_AARCH64_FEATURE_1_BTI` is among the properties ("Linux Extensions to gABI":
/// a note of type 5, called "GNU", whose contents are type, length and value of each, the value in
/// multiples of 8 bytes).
fn wants_landing_pads(properties: &[u8]) -> Option<bool> {
    const FEATURE_1_AND: u32 = 0xc000_0000;
    const FEATURE_1_BTI: u32 = 1;
    let number = |at: usize| {
        let bytes = properties.get(at..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    };
    let (name_len, kind) = (number(0)?, number(8)?);
    if name_len != 4 || kind != 5 || properties.get(12..16)? != b"GNU\0" {
        return None;
    }
    let mut at = 16;
    while number(at)? != FEATURE_1_AND {
        at += 8 + (number(at + 4)? as usize).checked_next_multiple_of(8)?;
    }
    Some(number(at + 8)? & FEATURE_1_BTI != 0)
}

/// Brings what was written to `range` to where every core fetches instructions from: cleans lines
/// of data caches to the point of unification, then invalidates those of instruction caches, in the
/// order that the architecture asks for (Arm ARM, B2.2.5).
///
/// # Safety
///
/// It can be read.
pub(crate) unsafe fn written(range: TextRange) {
    let cache_type: u64;
    // SAFETY: reads a register that Linux lets programs read (Arm ARM, "CTR_EL0").
    unsafe {
        asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nomem, nostack, preserves_flags));
    }
    // The shortest lines that there are: a power of two, in words.
    let data = WORD << (cache_type >> 16 & 0xf);
    let instructions = WORD << (cache_type & 0xf);
    let lines = |line: u64| {
        let first = range.start().get() / line * line;
        (first..range.end().get()).step_by(usize::try_from(line).unwrap_or(WORD as usize))
    };
    // SAFETY: caches hold copies: nothing changes but what is fetched. Linux lets programs do this
    // (SCTLR_EL1.UCI) where memory can be read, the caller's promise.
    unsafe {
        for at in lines(data) {
            asm!("dc cvau, {}", in(reg) at, options(nostack, preserves_flags));
        }
        asm!("dsb ish", options(nostack, preserves_flags));
        for at in lines(instructions) {
            asm!("ic ivau, {}", in(reg) at, options(nostack, preserves_flags));
        }
        asm!("dsb ish", "isb", options(nostack, preserves_flags));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_understood() {
        let property = |kind: u32, value: u32| [kind, 4, value, 0].map(u32::to_le_bytes).concat();
        let note = |properties: &[Vec<u8>]| {
            let contents = properties.concat();
            let head = [4, contents.len() as u32, 5].map(u32::to_le_bytes).concat();
            [&head[..], b"GNU\0", &contents].concat()
        };
        let (stack, other) = (property(1, 0x1000), property(0xc000_0001, 1));
        let wanted = |properties: &[Vec<u8>]| wants_landing_pads(&note(properties));
        assert_eq!(wanted(&[property(0xc000_0000, 3)]), Some(true));
        assert_eq!(wanted(&[stack, property(0xc000_0000, 1)]), Some(true));
        assert_eq!(wanted(&[property(0xc000_0000, 2)]), Some(false));
        assert_eq!(wanted(&[other]), None);
        let whole = note(&[property(0xc000_0000, 3)]);
        assert!((0..28).all(|len| wants_landing_pads(&whole[..len]).is_none()));
    }
}
