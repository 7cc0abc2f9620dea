//! Relocations of patch objects: ELFv2 3.5, as far as code for patch objects uses it.
//!
//! Answers to the kernel's `apply_relocate_add` of `arch/powerpc/kernel/module_64.c`.
#![deny(unsafe_code)]

mod branch;
mod field;

use crate::Ppc64Le;
use crate::opcodes::{BL, BRANCH_MASK, LD_R2_24_R1, NOP, word};
use field::{Field, Half, Limit, half, number, set_number};
use klp_core::addr::CodeAddr;
use klp_core::port::{RelocError, Relocation, Relocator, Support};
use object::elf;

// Types that the crate `object` does not list.
const R_PPC64_REL24_NOTOC: elf::RelocationType = elf::RelocationType(116);
const R_PPC64_ENTRY: elf::RelocationType = elf::RelocationType(118);
const R_PPC64_PLTSEQ: elf::RelocationType = elf::RelocationType(119);
const R_PPC64_PLTCALL: elf::RelocationType = elf::RelocationType(120);
const R_PPC64_PLTSEQ_NOTOC: elf::RelocationType = elf::RelocationType(121);
const R_PPC64_PLTCALL_NOTOC: elf::RelocationType = elf::RelocationType(122);
const R_PPC64_PCREL_OPT: elf::RelocationType = elf::RelocationType(123);
const R_PPC64_PCREL34: elf::RelocationType = elf::RelocationType(132);
const R_PPC64_GOT_PCREL34: elf::RelocationType = elf::RelocationType(133);
const R_PPC64_PLT_PCREL34: elf::RelocationType = elf::RelocationType(134);
const R_PPC64_PLT_PCREL34_NOTOC: elf::RelocationType = elf::RelocationType(135);

/// What the value is: `S` is the symbol, the slot or the veneer, `A` the addend, `P` the place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// `S + A`
    Absolute,
    /// `S + A - P`
    Relative,
    /// `S + A - .TOC.`
    FromToc,
    /// `.TOC. + A`
    Toc,
    /// `L - P`, of a branch to a function; whether the caller uses register 2.
    Call { toc: bool },
}

const WHOLE: Half = half(0, false, Limit::Sign);
const LO: Half = half(0, false, Limit::Anything);
const HI: Half = half(16, false, Limit::Sign);
const HA: Half = half(16, true, Limit::Sign);

/// The table. Those of thread-local storage, and those that only dynamic linkers meet, are not here.
///
/// What refers to a linkage table refers to a slot: it holds the function's address, which callers
/// have in register 12 when they jump there.
fn describe(kind: u32) -> Option<(Field, Value, Support)> {
    use Field::{Any32, Half, HalfDs, Nothing, Prefixed34, Signed32, Whole64};
    use Value::{Absolute, FromToc, Relative, Toc};
    let slot = |field, value| Some((field, value, Support::AddressSlot));
    let (field, value) = match elf::RelocationType(kind) {
        elf::R_PPC64_NONE
        | R_PPC64_ENTRY
        | R_PPC64_PLTSEQ
        | R_PPC64_PLTCALL
        | R_PPC64_PLTSEQ_NOTOC
        | R_PPC64_PLTCALL_NOTOC
        | R_PPC64_PCREL_OPT => (Nothing, Absolute),
        elf::R_PPC64_ADDR64 | elf::R_PPC64_UADDR64 => (Whole64, Absolute),
        elf::R_PPC64_REL64 => (Whole64, Relative),
        elf::R_PPC64_TOC => (Whole64, Toc),
        elf::R_PPC64_ADDR32 | elf::R_PPC64_UADDR32 => (Any32, Absolute),
        elf::R_PPC64_REL32 => (Signed32, Relative),

        elf::R_PPC64_ADDR16 => (Half(half(0, false, Limit::SignOrZero)), Absolute),
        elf::R_PPC64_ADDR16_LO => (Half(LO), Absolute),
        elf::R_PPC64_ADDR16_HI => (Half(HI), Absolute),
        elf::R_PPC64_ADDR16_HA => (Half(HA), Absolute),
        elf::R_PPC64_ADDR16_HIGH => (Half(half(16, false, Limit::Anything)), Absolute),
        elf::R_PPC64_ADDR16_HIGHA => (Half(half(16, true, Limit::Anything)), Absolute),
        elf::R_PPC64_ADDR16_HIGHER => (Half(half(32, false, Limit::Anything)), Absolute),
        elf::R_PPC64_ADDR16_HIGHERA => (Half(half(32, true, Limit::Anything)), Absolute),
        elf::R_PPC64_ADDR16_HIGHEST => (Half(half(48, false, Limit::Anything)), Absolute),
        elf::R_PPC64_ADDR16_HIGHESTA => (Half(half(48, true, Limit::Anything)), Absolute),
        elf::R_PPC64_ADDR16_DS => (HalfDs(WHOLE), Absolute),
        elf::R_PPC64_ADDR16_LO_DS => (HalfDs(LO), Absolute),

        elf::R_PPC64_TOC16 => (Half(WHOLE), FromToc),
        elf::R_PPC64_TOC16_LO => (Half(LO), FromToc),
        elf::R_PPC64_TOC16_HI => (Half(HI), FromToc),
        elf::R_PPC64_TOC16_HA => (Half(HA), FromToc),
        elf::R_PPC64_TOC16_DS => (HalfDs(WHOLE), FromToc),
        elf::R_PPC64_TOC16_LO_DS => (HalfDs(LO), FromToc),

        elf::R_PPC64_REL16 => (Half(WHOLE), Relative),
        elf::R_PPC64_REL16_LO => (Half(LO), Relative),
        elf::R_PPC64_REL16_HI => (Half(HI), Relative),
        elf::R_PPC64_REL16_HA => (Half(HA), Relative),

        R_PPC64_PCREL34 => (Prefixed34, Relative),
        R_PPC64_GOT_PCREL34 | R_PPC64_PLT_PCREL34 | R_PPC64_PLT_PCREL34_NOTOC => {
            return slot(Prefixed34, Relative);
        }
        elf::R_PPC64_GOT16 => return slot(Half(WHOLE), FromToc),
        elf::R_PPC64_GOT16_LO | elf::R_PPC64_PLT16_LO => return slot(Half(LO), FromToc),
        elf::R_PPC64_GOT16_HI | elf::R_PPC64_PLT16_HI => return slot(Half(HI), FromToc),
        elf::R_PPC64_GOT16_HA | elf::R_PPC64_PLT16_HA => return slot(Half(HA), FromToc),
        elf::R_PPC64_GOT16_DS => return slot(HalfDs(WHOLE), FromToc),
        elf::R_PPC64_GOT16_LO_DS | elf::R_PPC64_PLT16_LO_DS => {
            return slot(HalfDs(LO), FromToc);
        }

        elf::R_PPC64_REL14 => (Field::Branch { bits: 14 }, Value::Call { toc: true }),
        elf::R_PPC64_REL24 => {
            let call = Value::Call { toc: true };
            return Some((Field::Branch { bits: 24 }, call, Support::Veneer));
        }
        R_PPC64_REL24_NOTOC => {
            let call = Value::Call { toc: false };
            return Some((Field::Branch { bits: 24 }, call, Support::Veneer));
        }
        _ => return None,
    };
    Some((field, value, Support::None))
}

// SAFETY: the table of the ABI; any other type is refused.
#[allow(unsafe_code, reason = "an unsafe trait; all within is safe")]
unsafe impl Relocator for Ppc64Le {
    const MACHINE: u16 = elf::EM_PPC64.0;

    /// The linker's name for the base (ELFv2 3.3). `.toc` sections of an image are reached from
    /// there like any other of its data.
    const SHARED_TOC: Option<&'static str> = Some(".TOC.");

    fn uses_toc(kind: u32) -> bool {
        describe(kind).is_some_and(|(_, value, _)| matches!(value, Value::FromToc | Value::Toc))
    }

    fn support(kind: u32) -> Option<Support> {
        describe(kind).map(|(_, _, support)| support)
    }

    /// The field must hold zero before: ELFv2 keeps addends in the relocation entries, and a field
    /// that is not zero has been relocated already. (In prefixed instructions, assemblers may put
    /// the addend there, too.)
    #[allow(clippy::cast_possible_wrap, reason = "a distance has a sign")]
    fn apply(reloc: &Relocation, bytes: &mut [u8]) -> Result<(), RelocError> {
        let kind = reloc.kind;
        let (field, value, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        let bad_place = RelocError::BadPlace { kind };
        if bytes.len() < field.len() {
            return Err(bad_place);
        }
        let target = reloc.symbol.wrapping_add_signed(reloc.addend);
        let toc = || Ok(reloc.around.toc.ok_or(bad_place)?.get());
        let value = match value {
            Value::Absolute => target as i64,
            Value::Relative => reloc.place.distance_to(CodeAddr::new(target)),
            Value::FromToc => target.wrapping_sub(toc()?) as i64,
            Value::Toc => toc()?.wrapping_add_signed(reloc.addend) as i64,
            Value::Call { toc } => branch::distance(reloc, toc)?,
        };
        let now = number(bytes, field.len());
        let encoded = field
            .encode(now, value)
            .ok_or(RelocError::OutOfRange { kind, value })?;
        let before = now & field.mask(now);
        let is_addend = field == Field::Prefixed34 && field.encode(0, reloc.addend) == Some(before);
        if before != 0 && !is_addend {
            return Err(bad_place);
        }
        let now = now & !before;
        if let Field::Branch { bits: 24 } = field {
            if let Some(next) = branch::behind_call(kind, reloc.via, bytes)? {
                let place = bytes.get_mut(4..8).ok_or(bad_place)?;
                place.copy_from_slice(&next.to_le_bytes());
            }
        }
        set_number(bytes, field.len(), now | encoded);
        Ok(())
    }

    fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError> {
        let (field, _, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        if bytes.len() < field.len() {
            return Err(RelocError::BadPlace { kind });
        }
        let now = number(bytes, field.len());
        let is_call = word(bytes).is_some_and(|branch| branch & BRANCH_MASK == BL);
        if kind == elf::R_PPC64_REL24.0 && is_call {
            if let Some(next) = bytes.get_mut(4..8) {
                if word(next) == Some(LD_R2_24_R1) {
                    next.copy_from_slice(&NOP.to_le_bytes());
                }
            }
        }
        set_number(bytes, field.len(), now & !field.mask(now));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
