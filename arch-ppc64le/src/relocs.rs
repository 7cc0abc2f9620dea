//! Relocations of patch objects: ELFv2 3.5, as far as code for patch objects uses it.
//!
//! Answers to the kernel's `apply_relocate_add` of `arch/powerpc/kernel/module_64.c`.
//!
//! # Calls
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
#![deny(unsafe_code)]

use crate::Ppc64Le;
use crate::opcodes::{BL, BRANCH_MASK, LD_R2_24_R1, NOP, primary, word};
use klp_core::addr::CodeAddr;
use klp_core::port::{Owner, RelocError, Relocation, Relocator, Support, Via};
use object::elf;

// Types that the crate `object` does not list.
const R_PPC64_REL24_NOTOC: elf::RelocationType = elf::RelocationType(116);
const R_PPC64_ENTRY: elf::RelocationType = elf::RelocationType(118);
const R_PPC64_PCREL_OPT: elf::RelocationType = elf::RelocationType(123);
const R_PPC64_PCREL34: elf::RelocationType = elf::RelocationType(132);
const R_PPC64_GOT_PCREL34: elf::RelocationType = elf::RelocationType(133);

/// Where a field holds its value, and how much of it. All but the first four stand in an
/// instruction, the rest of which stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    /// Hints for linkers.
    Nothing,
    Whole64,
    Signed32,
    /// 32 bits, of a number with or without a sign.
    Any32,
    /// `half16`: 16 bits.
    Half(Half),
    /// `half16ds`: the same without the lowest two bits, or without the lowest four if the
    /// instruction is one of form DQ.
    HalfDs(Half),
    /// `low24`, `low14`: a distance of that many bits and two more, which are zero.
    Branch {
        bits: u32,
    },
    /// `prefix34`: 18 bits of the first word and 16 of the second.
    Prefixed34,
}

/// Which 16 bits of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Half {
    shift: u32,
    /// Whether the bits below will be added with their sign: then these are one more if those are
    /// negative (`#ha`).
    adjusted: bool,
    limit: Limit,
}

/// What may be above these 16 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    Anything,
    Sign,
    SignOrZero,
}

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

const fn half(shift: u32, adjusted: bool, limit: Limit) -> Half {
    Half {
        shift,
        adjusted,
        limit,
    }
}

const WHOLE: Half = half(0, false, Limit::Sign);
const LO: Half = half(0, false, Limit::Anything);
const HI: Half = half(16, false, Limit::Sign);
const HA: Half = half(16, true, Limit::Sign);

/// The table. Those of thread-local storage, of linkage tables and of global offset tables in
/// memory of their own are for the static and dynamic linkers, and not here.
fn describe(kind: u32) -> Option<(Field, Value, Support)> {
    use Field::{Any32, Half, HalfDs, Nothing, Prefixed34, Signed32, Whole64};
    use Value::{Absolute, FromToc, Relative, Toc};
    let (field, value) = match elf::RelocationType(kind) {
        elf::R_PPC64_NONE | R_PPC64_ENTRY | R_PPC64_PCREL_OPT => (Nothing, Absolute),
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
        R_PPC64_GOT_PCREL34 => return Some((Prefixed34, Relative, Support::AddressSlot)),

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

impl Half {
    /// These bits of `value`; `None` if those above are not as they may be.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is cut off was checked, or is not asked for"
    )]
    fn of(self, value: i64) -> Option<u16> {
        let value = if self.adjusted {
            value.wrapping_add(0x8000)
        } else {
            value
        };
        let bits = value >> self.shift;
        let highest = match self.limit {
            Limit::Anything => return Some(bits as u16),
            Limit::Sign => i64::from(i16::MAX),
            Limit::SignOrZero => i64::from(u16::MAX),
        };
        (i64::from(i16::MIN)..=highest)
            .contains(&bits)
            .then_some(bits as u16)
    }
}

impl Field {
    fn len(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Half(_) => 2,
            Self::Any32 | Self::Signed32 | Self::HalfDs(_) | Self::Branch { .. } => 4,
            Self::Whole64 | Self::Prefixed34 => 8,
        }
    }

    /// The bits that hold the value, of [`len`](Self::len) bytes that are `now`, as one number. (A
    /// field of two words has the first in the lower half.)
    fn mask(self, now: u64) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Half(_) => 0xffff,
            Self::HalfDs(_) => 0xffff & !lowest(now),
            Self::Any32 | Self::Signed32 => u32::MAX.into(),
            Self::Branch { bits } => ((1 << bits) - 1) << 2,
            Self::Whole64 => u64::MAX,
            Self::Prefixed34 => 0x0000_ffff_0003_ffff,
        }
    }

    /// The value in its place in bytes that are `now`; `None` if it does not fit.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is cut off was checked"
    )]
    fn encode(self, now: u64, value: i64) -> Option<u64> {
        let fits = |bits: u32| (-(1_i64 << (bits - 1))..1 << (bits - 1)).contains(&value);
        match self {
            Self::Nothing => Some(0),
            Self::Whole64 => Some(value as u64),
            Self::Signed32 => fits(32).then_some(u64::from(value as u32)),
            Self::Any32 => {
                (fits(32) || value == i64::from(value as u32)).then_some(u64::from(value as u32))
            }
            Self::Half(half) => half.of(value).map(u64::from),
            Self::HalfDs(half) => half
                .of(value)
                .map(u64::from)
                .filter(|bits| bits & lowest(now) == 0),
            Self::Branch { bits } => {
                (fits(bits + 2) && value & 3 == 0).then_some(value as u64 & self.mask(now))
            }
            Self::Prefixed34 => fits(34).then_some({
                let value = value as u64;
                value >> 16 & 0x3_ffff | (value & 0xffff) << 32
            }),
        }
    }
}

/// The lowest bits of a field `half16ds`, which belong to the instruction: four of form DQ (`lq`;
/// `lxv`, `stxv`; `lxvp`, `stxvp`), otherwise two.
#[allow(clippy::cast_possible_truncation, reason = "one word of both")]
fn lowest(now: u64) -> u64 {
    let word = now as u32;
    match (primary(word), word & 3) {
        (6 | 56, _) | (61, 1) => 0b1111,
        _ => 0b11,
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

/// The distance of a branch.
fn call(reloc: &Relocation, toc: bool) -> Result<i64, RelocError> {
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

/// What stands behind a branch of kind `kind`, made of what `before` says, when it leads as `via`
/// says.
fn behind_call(kind: u32, via: Via, before: &[u8]) -> Result<Option<u32>, RelocError> {
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
            Value::Call { toc } => call(reloc, toc)?,
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
            if let Some(next) = behind_call(kind, reloc.via, bytes)? {
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

/// The first `len` bytes as a number.
fn number(bytes: &[u8], len: usize) -> u64 {
    let bytes = bytes.iter().take(len).rev();
    bytes.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn set_number(bytes: &mut [u8], len: usize, number: u64) {
    for (place, byte) in bytes.iter_mut().take(len).zip(number.to_le_bytes()) {
        *place = byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opcodes::STD_R2_24_R1;
    use alloc::vec::Vec;
    use klp_arch_tests::code::bytes;
    use klp_core::conformance::relocator::{Known, check};
    use klp_core::port::{Arch, Around};

    const PLACE: u64 = 0x1000_1000;
    const TOC: u64 = 0x1002_8000;

    fn reloc(kind: elf::RelocationType, symbol: u64) -> Relocation {
        let mut reloc = Relocation::new(kind.0, CodeAddr::new(PLACE), symbol, 0);
        reloc.around.toc = Some(CodeAddr::new(TOC));
        reloc
    }

    /// What comes of words whose field is empty; cleared, they are as before.
    fn apply(reloc: &Relocation, words: &[u32]) -> Result<Vec<u32>, RelocError> {
        let before = bytes(words);
        let mut bytes = before.clone();
        Ppc64Le::apply(reloc, &mut bytes).inspect_err(|_| assert_eq!(bytes, before))?;
        let after = bytes.chunks_exact(4).filter_map(word).collect();
        Ppc64Le::clear(reloc.kind, &mut bytes).expect("it was applied");
        assert_eq!(bytes, before, "type {}", reloc.kind);
        Ok(after)
    }

    /// Words before and after as GNU as and ld 2.40 have them, for symbols at the addresses beside
    /// them, a place at 0x10001000 and a table of contents based at 0x10028000.
    #[test]
    fn instructions_are_the_linkers() {
        let cases: [(_, u64, &[u32], &[u32]); 31] = [
            // bl sym; nop
            (
                elf::R_PPC64_REL24,
                0x1000_2000,
                &[0x4800_0001, NOP],
                &[0x4800_1001, NOP],
            ),
            (
                elf::R_PPC64_REL24,
                0x1000_0ffc,
                &[0x4800_0001, NOP],
                &[0x4bff_fffd, NOP],
            ),
            // b sym
            (
                elf::R_PPC64_REL24,
                0x1000_1010,
                &[0x4800_0000],
                &[0x4800_0010],
            ),
            // beq sym; bdnz sym
            (
                elf::R_PPC64_REL14,
                0x1000_1008,
                &[0x4182_0000],
                &[0x4182_0008],
            ),
            (
                elf::R_PPC64_REL14,
                0x1000_0ffc,
                &[0x4200_0000],
                &[0x4200_fffc],
            ),
            // .long sym; .long sym - .; .quad sym; .quad sym - .
            (elf::R_PPC64_ADDR32, 0x1234_5678, &[0], &[0x1234_5678]),
            (elf::R_PPC64_REL32, 0x1000_0fff, &[0], &[0xffff_ffff]),
            (elf::R_PPC64_ADDR64, 0x1234_5678, &[0, 0], &[0x1234_5678, 0]),
            (elf::R_PPC64_REL64, 0x1000_0fff, &[0, 0], &[!0, !0]),
            // addi r3,r3,sym@l; lis r3,sym@h; lis r3,sym@ha
            (
                elf::R_PPC64_ADDR16_LO,
                0x1234_a678,
                &[0x3863_0000],
                &[0x3863_a678],
            ),
            (
                elf::R_PPC64_ADDR16_HI,
                0x1234_a678,
                &[0x3c60_0000],
                &[0x3c60_1234],
            ),
            (
                elf::R_PPC64_ADDR16_HA,
                0x1234_a678,
                &[0x3c60_0000],
                &[0x3c60_1235],
            ),
            // ld r3,sym@l(r3); lxv vs34,sym@l(r3)
            (
                elf::R_PPC64_ADDR16_LO_DS,
                0x1234_a678,
                &[0xe863_0000],
                &[0xe863_a678],
            ),
            (
                elf::R_PPC64_ADDR16_LO_DS,
                0x1234_a670,
                &[0xf443_0009],
                &[0xf443_a679],
            ),
            // lis r3,sym@high; lis r3,sym@higha
            (
                elf::R_PPC64_ADDR16_HIGH,
                0x1122_3344_5566_7788,
                &[0x3c60_0000],
                &[0x3c60_5566],
            ),
            (
                elf::R_PPC64_ADDR16_HIGHA,
                0x1122_3344_5566_a788,
                &[0x3c60_0000],
                &[0x3c60_5567],
            ),
            // ori r3,r3,sym@higher; sym@highera
            (
                elf::R_PPC64_ADDR16_HIGHER,
                0x1122_3344_a566_7788,
                &[0x6063_0000],
                &[0x6063_3344],
            ),
            (
                elf::R_PPC64_ADDR16_HIGHERA,
                0x1122_3344_a566_7788,
                &[0x6063_0000],
                &[0x6063_3344],
            ),
            // lis r3,sym@highest; sym@highesta
            (
                elf::R_PPC64_ADDR16_HIGHEST,
                0x1122_b344_5566_7788,
                &[0x3c60_0000],
                &[0x3c60_1122],
            ),
            (
                elf::R_PPC64_ADDR16_HIGHESTA,
                0x1122_b344_5566_7788,
                &[0x3c60_0000],
                &[0x3c60_1122],
            ),
            // addi r3,r2,sym@toc; ld r3,sym@toc(r2)
            (
                elf::R_PPC64_TOC16,
                TOC - 0x1234,
                &[0x3862_0000],
                &[0x3862_edcc],
            ),
            (
                elf::R_PPC64_TOC16_DS,
                TOC - 0x1234,
                &[0xe862_0000],
                &[0xe862_edcc],
            ),
            // addis r3,r2,sym@toc@ha; sym@toc@h; addi r3,r3,sym@toc@l
            (
                elf::R_PPC64_TOC16_HA,
                TOC + 0x1_a678,
                &[0x3c62_0000],
                &[0x3c62_0002],
            ),
            (
                elf::R_PPC64_TOC16_HI,
                TOC + 0x1_a678,
                &[0x3c62_0000],
                &[0x3c62_0001],
            ),
            (
                elf::R_PPC64_TOC16_LO,
                TOC + 0x1_a678,
                &[0x3863_0000],
                &[0x3863_a678],
            ),
            // ld r3,sym@toc@l(r3); lxv vs34,sym@toc@l(r3)
            (
                elf::R_PPC64_TOC16_LO_DS,
                TOC + 0x1_a678,
                &[0xe863_0000],
                &[0xe863_a678],
            ),
            (
                elf::R_PPC64_TOC16_LO_DS,
                TOC + 0x1_a670,
                &[0xf443_0009],
                &[0xf443_a679],
            ),
            // addis r2,r12,(sym - .)@ha; addi r2,r2,(sym - .)@l
            (
                elf::R_PPC64_REL16_HA,
                0x1002_a100,
                &[0x3c4c_0000],
                &[0x3c4c_0003],
            ),
            (
                elf::R_PPC64_REL16_LO,
                0x1002_a100,
                &[0x3842_0000],
                &[0x3842_9100],
            ),
            // pla r3,sym; plwz r9,sym
            (
                R_PPC64_PCREL34,
                0x1002_a100,
                &[0x0610_0000, 0x3860_0000],
                &[0x0610_0002, 0x3860_9100],
            ),
            (
                R_PPC64_PCREL34,
                0x1000_0ff0,
                &[0x0610_0000, 0x8120_0000],
                &[0x0613_ffff, 0x8120_fff0],
            ),
        ];
        for (kind, symbol, before, after) in cases {
            assert_eq!(
                apply(&reloc(kind, symbol), before).as_deref(),
                Ok(after),
                "{kind:?}, {symbol:#x}"
            );
        }
    }

    fn call_of(kind: elf::RelocationType, via: Via, owner: Owner) -> Relocation {
        let mut reloc = reloc(kind, PLACE + 0x100);
        reloc.via = via;
        reloc.around.owner = owner;
        reloc
    }

    #[test]
    fn calls_within_the_image_go_to_the_local_entry() {
        let (bl, b) = (0x4800_0001, 0x4800_0000);
        let own = |kind, other, word| {
            let reloc = call_of(kind, Via::Direct, Owner::Image { other });
            apply(&reloc, &[word, NOP]).map(|words| (words[0] - word, words[1]))
        };
        // `.localentry` as GNU as puts it into `st_other`: 0, 4, 8, 16, 32, 64.
        for (other, entry) in [
            (0, 0),
            (0x40, 4),
            (0x60, 8),
            (0x80, 16),
            (0xa0, 32),
            (0xc0, 64),
        ] {
            // Its lowest two bits are the visibility.
            for word in [bl, b] {
                let expected = Ok((0x100 + entry, NOP));
                assert_eq!(own(elf::R_PPC64_REL24, other | 2, word), expected);
            }
        }
        assert_eq!(own(R_PPC64_REL24_NOTOC, 0x20, bl), Ok((0x100, NOP)));
        assert_eq!(own(R_PPC64_REL24_NOTOC, 0, b), Ok((0x100, NOP)));
        // Between code with a table of contents and code without.
        for (kind, other) in [
            (elf::R_PPC64_REL24, 0x20),
            (elf::R_PPC64_REL24, 0xe0),
            (R_PPC64_REL24_NOTOC, 0x60),
        ] {
            let refused = Err(RelocError::BadPlace { kind: kind.0 });
            assert_eq!(own(kind, other, bl), refused, "{kind:?}, {other:#x}");
        }
    }

    #[test]
    fn calls_out_of_the_image_go_through_a_veneer() {
        let (bl, b) = (0x4800_0001, 0x4800_0000);
        for kind in [elf::R_PPC64_REL24, R_PPC64_REL24_NOTOC] {
            // However near it is.
            let direct = apply(&call_of(kind, Via::Direct, Owner::System), &[bl, NOP]);
            let value = 0x100;
            let kind = kind.0;
            assert_eq!(direct, Err(RelocError::OutOfRange { kind, value }));
            assert_eq!(Ppc64Le::support(kind), Some(Support::Veneer));
        }
        let veneer = |kind, words: &[u32]| apply(&call_of(kind, Via::Veneer, Owner::System), words);
        assert_eq!(
            veneer(elf::R_PPC64_REL24, &[bl, NOP]).as_deref(),
            Ok(&[0x4800_0101, LD_R2_24_R1][..])
        );
        assert_eq!(
            veneer(R_PPC64_REL24_NOTOC, &[bl, 0x3863_0001]).as_deref(),
            Ok(&[0x4800_0105, 0x3863_0001][..])
        );
        assert_eq!(
            veneer(R_PPC64_REL24_NOTOC, &[b, NOP]).as_deref(),
            Ok(&[0x4800_0104, NOP][..])
        );
        // Nothing would restore register 2.
        let refused = |kind: elf::RelocationType| Err(RelocError::BadPlace { kind: kind.0 });
        for words in [&[bl, 0x3863_0001][..], &[bl], &[b, NOP], &[b]] {
            let found = veneer(elf::R_PPC64_REL24, words);
            assert_eq!(found, refused(elf::R_PPC64_REL24), "{words:x?}");
        }
    }

    #[test]
    fn what_a_veneer_saves_is_what_the_call_restores() {
        let at = CodeAddr::new(PLACE);
        let veneer = Ppc64Le::call_veneer(at, CodeAddr::new(0x1122));
        assert_eq!(word(&veneer), Some(STD_R2_24_R1));
        assert_eq!(veneer[4..], Ppc64Le::veneer(at, CodeAddr::new(0x1122))[..]);
    }

    #[test]
    fn the_base_of_the_table() {
        let used = (0..256).filter(|&kind| Ppc64Le::uses_toc(kind));
        assert!(used.eq([47, 48, 49, 50, 51, 63, 64]), "R_PPC64_TOC…");
        let base = apply(&reloc(elf::R_PPC64_TOC, 0), &[0, 0]);
        assert_eq!(base.as_deref(), Ok(&[TOC as u32, 0][..]));
        for kind in [
            elf::R_PPC64_TOC,
            elf::R_PPC64_TOC16_HA,
            elf::R_PPC64_TOC16_LO_DS,
        ] {
            let mut reloc = reloc(kind, TOC);
            reloc.around = Around::default();
            let none = Err(RelocError::BadPlace { kind: kind.0 });
            assert_eq!(apply(&reloc, &[0, 0]), none, "without one");
        }
    }

    #[test]
    fn the_edges_of_ranges() {
        let fits = |kind, symbol, word| match apply(&reloc(kind, symbol), &[word, 0]) {
            Ok(_) => true,
            Err(RelocError::OutOfRange { .. }) => false,
            Err(other) => panic!("{other}"),
        };
        let edges = [
            (elf::R_PPC64_REL24, PLACE, (1 << 25) - 4, 4, 0x4800_0001),
            (elf::R_PPC64_REL14, PLACE, (1 << 15) - 4, 4, 0x4182_0000),
            (elf::R_PPC64_REL32, PLACE, (1 << 31) - 1, 1, 0),
            (elf::R_PPC64_REL16, PLACE, (1 << 15) - 1, 1, 0),
            (elf::R_PPC64_REL16_HI, PLACE, (1 << 31) - 1, 1, 0),
            (elf::R_PPC64_REL16_HA, PLACE, (1 << 31) - 0x8001, 1, 0),
            (elf::R_PPC64_TOC16, TOC, (1 << 15) - 1, 1, 0),
            (elf::R_PPC64_TOC16_DS, TOC, (1 << 15) - 4, 4, 0xe862_0000),
            (elf::R_PPC64_TOC16_HA, TOC, (1 << 31) - 0x8001, 1, 0),
            (R_PPC64_PCREL34, PLACE, (1 << 33) - 1, 1, 0x0610_0000),
            (R_PPC64_GOT_PCREL34, PLACE, (1 << 33) - 1, 1, 0x0410_0000),
        ];
        for (kind, base, last, unit, word) in edges {
            assert!(fits(kind, base + last, word), "{kind:?}");
            assert!(!fits(kind, base + last + unit, word), "{kind:?}");
            // As far down as up, and one more; those with rounding, as much more as it adds.
            let rounding = if last % 0x1_0000 == 0x7fff && last > 1 << 16 {
                0x1_0000
            } else {
                0
            };
            let lowest = base.wrapping_sub(last + unit + rounding);
            assert!(fits(kind, lowest, word), "{kind:?}, down");
            assert!(
                !fits(kind, lowest.wrapping_sub(unit), word),
                "{kind:?}, down"
            );
        }
        assert!(!fits(elf::R_PPC64_REL24, PLACE + 2, 0x4800_0001));
        assert!(!fits(elf::R_PPC64_TOC16_LO_DS, TOC + 2, 0xe863_0000), "ld");
        assert!(fits(elf::R_PPC64_TOC16_LO_DS, TOC + 4, 0xe863_0000), "ld");
        for (word, what) in [
            (0xf443_0009, "lxv"),
            (0xe063_0000, "lq"),
            (0x1843_0000, "lxvp"),
        ] {
            assert!(!fits(elf::R_PPC64_TOC16_LO_DS, TOC + 4, word), "{what}");
            assert!(fits(elf::R_PPC64_TOC16_LO_DS, TOC + 16, word), "{what}");
        }
        assert!(fits(elf::R_PPC64_ADDR16, 0xffff, 0) && fits(elf::R_PPC64_ADDR16, !0, 0));
        assert!(!fits(elf::R_PPC64_ADDR16, 0x1_0000, 0));
        assert!(fits(elf::R_PPC64_ADDR32, 0xffff_ffff, 0) && fits(elf::R_PPC64_ADDR32, !0, 0));
        assert!(!fits(elf::R_PPC64_ADDR32, 1 << 32, 0));
        assert!(!fits(elf::R_PPC64_ADDR16_HI, 1 << 31, 0));
        assert!(fits(elf::R_PPC64_ADDR16_HIGH, 1 << 31, 0));
    }

    /// GNU as does that.
    #[test]
    fn a_prefixed_instruction_may_hold_the_addend() {
        let addend = Relocation {
            addend: 16,
            ..reloc(R_PPC64_PCREL34, PLACE + 0x100)
        };
        let pla = |field: u32| {
            [0x0610_0000, 0x3860_0000 | field]
                .map(u32::to_le_bytes)
                .concat()
        };
        for before in [0, 16] {
            let mut bytes = pla(before);
            assert_eq!(Ppc64Le::apply(&addend, &mut bytes), Ok(()));
            assert_eq!(bytes, pla(0x110));
            assert!(
                Ppc64Le::apply(&addend, &mut bytes).is_err(),
                "relocated already"
            );
        }
    }

    #[test]
    fn a_field_is_relocated_once() {
        for (kind, words) in [
            (elf::R_PPC64_REL24, [0x4800_0101, NOP]),
            (elf::R_PPC64_REL24, [0x4800_0001, LD_R2_24_R1]),
            (elf::R_PPC64_TOC16_HA, [0x3c62_0002, 0]),
            (R_PPC64_PCREL34, [0x0610_0002, 0x3860_0000]),
            (R_PPC64_PCREL34, [0x0610_0000, 0x3860_9100]),
            (elf::R_PPC64_ADDR64, [0, 1]),
        ] {
            let refused = Err(RelocError::BadPlace { kind: kind.0 });
            assert_eq!(
                apply(&reloc(kind, PLACE + 8), &words),
                refused,
                "{words:x?}"
            );
        }
    }

    /// What a hint says is left aside.
    #[test]
    fn hints_change_nothing() {
        for kind in [elf::R_PPC64_NONE, R_PPC64_ENTRY, R_PPC64_PCREL_OPT] {
            let words = [0x0410_0000, 0xe520_0000];
            assert_eq!(
                apply(&reloc(kind, PLACE), &words).as_deref(),
                Ok(&words[..])
            );
        }
    }

    #[test]
    fn conforms() {
        let known = [
            (elf::R_PPC64_ADDR64, 8, false),
            (elf::R_PPC64_REL64, 8, false),
            (elf::R_PPC64_ADDR32, 4, true),
            (elf::R_PPC64_REL32, 4, true),
            (elf::R_PPC64_ADDR16_LO, 2, false),
            (elf::R_PPC64_ADDR16_HI, 2, true),
            (elf::R_PPC64_ADDR16_HA, 2, true),
            (elf::R_PPC64_ADDR16_HIGH, 2, false),
            (elf::R_PPC64_ADDR16_HIGHA, 2, false),
            (elf::R_PPC64_ADDR16_LO_DS, 4, false),
            (elf::R_PPC64_REL16, 2, true),
            (elf::R_PPC64_REL16_LO, 2, false),
            (R_PPC64_PCREL34, 8, true),
            (R_PPC64_GOT_PCREL34, 8, true),
            (elf::R_PPC64_REL14, 4, true),
            (elf::R_PPC64_REL24, 4, true),
            (R_PPC64_REL24_NOTOC, 4, true),
        ];
        let known =
            known.map(|(elf::RelocationType(kind), len, limited)| Known { kind, len, limited });
        let unknown = [
            elf::R_PPC64_COPY,
            elf::R_PPC64_TLS,
            elf::R_PPC64_TPREL16_HA,
            elf::R_PPC64_GOT_TLSGD16_HA,
            elf::R_PPC64_GOT_TPREL16_DS,
            elf::R_PPC64_DTPREL64,
            // The linkage table's and the global offset table's.
            elf::R_PPC64_GOT16_HA,
            elf::R_PPC64_PLT16_HA,
            elf::RelocationType(119), // R_PPC64_PLTSEQ
            elf::RelocationType(120), // R_PPC64_PLTCALL
            elf::RelocationType(134), // R_PPC64_PLT_PCREL34
            elf::RelocationType(148), // R_PPC64_GOT_TLSGD_PCREL34
            // The local entry as a number.
            elf::RelocationType(117), // R_PPC64_ADDR64_LOCAL
            elf::RelocationType(0xffff),
        ];
        check::<Ppc64Le>(&known, &unknown.map(|kind| kind.0));
    }
}
