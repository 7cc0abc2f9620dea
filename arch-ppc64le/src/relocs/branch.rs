//! Where branches lead, and what stands behind calls.
//!
//! All functions of an image share one table of contents, so calls among them go to the local
//! entry, and nothing else is to be done. A call out of the image goes through a veneer
//! ([`Arch::call_veneer`](klp_core::port::Arch::call_veneer)), which enters the function at its
//! global entry, and saves the caller's register 2 before. The compiler has left a `nop` behind
//! such a call, which becomes the instruction that restores it (ELFv2 2.2.1.1, "External Call,
//! Caller Uses TOC"). Where there is none (the compiler took the function for one of its own, as
//! with hidden visibility) or where it is a jump, the reference is refused: there is nothing that
//! would restore register 2.
//!
//! A caller that does not use register 2 (Power10's code, `R_PPC64_REL24_NOTOC`) needs no `nop`,
//! and comes to the veneer behind what saves the register (2.2.1.2): so it may be a jump, too.
//! Calls between the two kinds of code within an image, for which a linker makes stubs (2.2.1.4,
//! 2.2.1.5), are refused.

use crate::opcodes::{BL, BRANCH_MASK, LD_R2_24_R1, NOP, word};
use klp_core::addr::CodeAddr;
use klp_core::port::{Owner, RelocError, Relocation, Via};
use object::elf;

/// The distance of a branch.
pub(super) fn distance(reloc: &Relocation, toc: bool) -> Result<i64, RelocError> {
    let &Relocation {
        kind,
        place,
        symbol,
        addend,
        via,
        around,
    } = reloc;
    let to = |address: u64| {
        let to = CodeAddr::new(address.wrapping_add_signed(addend));
        place.distance_to(to)
    };
    match (via, around.owner) {
        (Via::Direct, Owner::Image { other }) => {
            let entry = local_entry(other, toc).ok_or(RelocError::BadPlace { kind })?;
            Ok(to(symbol.wrapping_add(entry)))
        }
        // Wherever it is: it is to be entered at its global entry.
        (Via::Direct, Owner::System) => Err(RelocError::OutOfRange {
            kind,
            value: to(symbol),
        }),
        // Past the instruction that saves register 2: after a jump, the place for that is not the
        // caller's.
        _ if !toc => Ok(to(symbol.wrapping_add(4))),
        _ => Ok(to(symbol)),
    }
}

/// Where the local entry of a function is, in bytes behind its symbol's address, for calls of a
/// caller in the same image; `None` if such a call cannot be made (ELFv2 3.4.1, "Symbol Values", on
/// the three bits of `st_other`).
fn local_entry(other: u8, toc: bool) -> Option<u64> {
    match (other >> 5, toc) {
        (0, _) => Some(0),
        // It may change register 2, and its callers have nothing that restores it.
        (1, toc) => (!toc).then_some(0),
        // It asks for register 2 at its local entry, which such a caller has not.
        (_, false) | (7, _) => None,
        (power, true) => Some(1 << power),
    }
}

/// What stands behind a branch of kind `kind`, made of what `before` says, when it leads as `via`
/// says.
pub(super) fn behind_call(kind: u32, via: Via, before: &[u8]) -> Result<Option<u32>, RelocError> {
    let bad_place = Err(RelocError::BadPlace { kind });
    let restores = kind == elf::R_PPC64_REL24.0;
    let is_call = word(before).is_some_and(|branch| branch & BRANCH_MASK == BL);
    let next = before.get(4..).and_then(word);
    match (via, next) {
        // It was done already, or what is restored is not what was saved.
        (Via::Direct, Some(LD_R2_24_R1)) if restores && is_call => bad_place,
        (Via::Direct, _) => Ok(None),
        _ if !restores => Ok(None),
        _ if !is_call => bad_place,
        (_, Some(NOP)) => Ok(Some(LD_R2_24_R1)),
        _ => bad_place,
    }
}
