//! Relocations of patch objects: "ELF for the Arm 64-bit Architecture", 5.7, as far as code for
//! patch objects uses it.
//!
//! Answers to the kernel's `apply_relocate_add` of `arch/arm64/kernel/module.c`.
#![deny(unsafe_code)]

use crate::AArch64;
use klp_core::addr::CodeAddr;
use klp_core::port::{RelocError, Relocation, Relocator, Support};
use object::elf;

/// Where a field holds its value, and how much of it. Those from `Adr` on stand in an instruction,
/// the rest of which stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Nothing,
    /// So many bytes.
    Number {
        len: usize,
        limit: Limit,
    },
    /// `adr`, `adrp`: 21 bits of the value divided by 2 to that power, in two pieces. Whether nothing
    /// may be above them but the sign.
    Adr {
        shift: u32,
        all: bool,
    },
    /// `bits` of the value divided by 2 to the power of `shift`, at bit `at`.
    Signed {
        shift: u32,
        bits: u32,
        at: u32,
    },
    /// The lowest 12 bits of the value, without the lowest `scale`, at bit 10.
    Low12 {
        scale: u32,
    },
    /// The lowest 15 bits of the value, above which nothing may be, without the lowest three; at
    /// bit 10.
    Low15,
    /// `movz`, `movk`: 16 bits from bit `shift` on, at bit 5. Whether nothing may be above them.
    Move {
        shift: u32,
        all: bool,
    },
    /// `movz`, which becomes `movn` if the value is negative, and holds it the other way round then:
    /// 16 bits from bit `shift` on, at bit 5. Nothing may be above them but the sign.
    MoveSigned {
        shift: u32,
    },
}

/// Which numbers fit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// There are as many bytes as the value has.
    None,
    Signed,
    /// With a sign or without (5.7.1).
    Either,
}

/// The bit that makes a `movz` of a `movn`.
const MOVZ: u32 = 1 << 30;

/// What the value is: `S` is the symbol or the slot, `A` the addend, `P` the place, `GOT` the base of
/// the image's slots.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// `S + A`
    Absolute,
    /// `S + A - P`
    Relative,
    /// `Page(S + A) - Page(P)`
    Pages,
    /// `S + A - GOT`
    FromGot,
    /// `S + A - Page(GOT)`
    FromGotPage,
}

/// The table. Those of thread-local storage, and those that only dynamic linkers meet, are not here.
fn describe(kind: u32) -> Option<(Field, Value, Support)> {
    let branch = |bits| Field::Signed {
        shift: 2,
        bits,
        at: if bits == 26 { 0 } else { 5 },
    };
    let low = |scale| (Field::Low12 { scale }, Value::Absolute, Support::None);
    let mov = |shift, all| (Field::Move { shift, all }, Value::Absolute, Support::None);
    let adrp = |all| Field::Adr { shift: 12, all };
    let pages = |support| (adrp(true), Value::Pages, support);
    let number = |len, limit| Field::Number { len, limit };
    let (whole, signed32) = (number(8, Limit::None), number(4, Limit::Signed));
    let either = |len| number(len, Limit::Either);
    let distance = |field| (field, Value::Relative, Support::None);
    let signed = |shift, value| (Field::MoveSigned { shift }, value, Support::None);
    let rest = |shift| distance(Field::Move { shift, all: false });
    let slot = |field, value| (field, value, Support::AddressSlot);
    Some(match elf::RelocationType(kind) {
        elf::R_AARCH64_NONE | elf::RelocationType(256) => {
            (Field::Nothing, Value::Absolute, Support::None)
        }
        elf::R_AARCH64_ABS64 => (whole, Value::Absolute, Support::None),
        elf::R_AARCH64_PREL64 => distance(whole),
        elf::R_AARCH64_ABS32 => (either(4), Value::Absolute, Support::None),
        elf::R_AARCH64_PREL32 => distance(either(4)),
        elf::R_AARCH64_ABS16 => (either(2), Value::Absolute, Support::None),
        elf::R_AARCH64_PREL16 => distance(either(2)),
        elf::R_AARCH64_PLT32 => (signed32, Value::Relative, Support::Veneer),
        elf::R_AARCH64_GOTPCREL32 => slot(signed32, Value::Relative),
        elf::R_AARCH64_GOTREL64 => (whole, Value::FromGot, Support::None),
        elf::R_AARCH64_GOTREL32 => (either(4), Value::FromGot, Support::None),
        elf::R_AARCH64_ADR_PREL_LO21 => distance(Field::Adr {
            shift: 0,
            all: true,
        }),
        elf::R_AARCH64_ADR_PREL_PG_HI21 => pages(Support::None),
        elf::R_AARCH64_ADR_PREL_PG_HI21_NC => (adrp(false), Value::Pages, Support::None),
        elf::R_AARCH64_ADR_GOT_PAGE => pages(Support::AddressSlot),
        elf::R_AARCH64_LD_PREL_LO19 | elf::R_AARCH64_CONDBR19 => distance(branch(19)),
        elf::R_AARCH64_GOT_LD_PREL19 => slot(branch(19), Value::Relative),
        elf::R_AARCH64_TSTBR14 => distance(branch(14)),
        elf::R_AARCH64_JUMP26 | elf::R_AARCH64_CALL26 => {
            (branch(26), Value::Relative, Support::Veneer)
        }
        elf::R_AARCH64_ADD_ABS_LO12_NC | elf::R_AARCH64_LDST8_ABS_LO12_NC => low(0),
        elf::R_AARCH64_LDST16_ABS_LO12_NC => low(1),
        elf::R_AARCH64_LDST32_ABS_LO12_NC => low(2),
        elf::R_AARCH64_LDST64_ABS_LO12_NC => low(3),
        elf::R_AARCH64_LDST128_ABS_LO12_NC => low(4),
        elf::R_AARCH64_LD64_GOT_LO12_NC => slot(Field::Low12 { scale: 3 }, Value::Absolute),
        elf::R_AARCH64_LD64_GOTPAGE_LO15 => slot(Field::Low15, Value::FromGotPage),
        elf::R_AARCH64_LD64_GOTOFF_LO15 => slot(Field::Low15, Value::FromGot),
        elf::R_AARCH64_MOVW_UABS_G0 => mov(0, true),
        elf::R_AARCH64_MOVW_UABS_G0_NC => mov(0, false),
        elf::R_AARCH64_MOVW_UABS_G1 => mov(16, true),
        elf::R_AARCH64_MOVW_UABS_G1_NC => mov(16, false),
        elf::R_AARCH64_MOVW_UABS_G2 => mov(32, true),
        elf::R_AARCH64_MOVW_UABS_G2_NC => mov(32, false),
        elf::R_AARCH64_MOVW_UABS_G3 => mov(48, true),
        elf::R_AARCH64_MOVW_SABS_G0 => signed(0, Value::Absolute),
        elf::R_AARCH64_MOVW_SABS_G1 => signed(16, Value::Absolute),
        elf::R_AARCH64_MOVW_SABS_G2 => signed(32, Value::Absolute),
        elf::R_AARCH64_MOVW_PREL_G0 => signed(0, Value::Relative),
        elf::R_AARCH64_MOVW_PREL_G0_NC => rest(0),
        elf::R_AARCH64_MOVW_PREL_G1 => signed(16, Value::Relative),
        elf::R_AARCH64_MOVW_PREL_G1_NC => rest(16),
        elf::R_AARCH64_MOVW_PREL_G2 => signed(32, Value::Relative),
        elf::R_AARCH64_MOVW_PREL_G2_NC => rest(32),
        elf::R_AARCH64_MOVW_PREL_G3 => signed(48, Value::Relative),
        _ => return None,
    })
}

impl Field {
    fn len(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Number { len, .. } => len,
            _ => 4,
        }
    }

    /// The bits of an instruction that hold the value.
    fn mask(self) -> u32 {
        match self {
            Self::Nothing | Self::Number { .. } => 0,
            Self::Adr { .. } => 0x60ff_ffe0,
            Self::Signed { bits, at, .. } => ((1 << bits) - 1) << at,
            Self::Low12 { .. } | Self::Low15 => 0xfff << 10,
            Self::Move { .. } => 0xffff << 5,
            Self::MoveSigned { .. } => 0xffff << 5 | MOVZ,
        }
    }

    /// An instruction as the object file has it.
    fn cleared(self, word: u32) -> u32 {
        let movz = match self {
            Self::MoveSigned { .. } => MOVZ,
            _ => 0,
        };
        word & !self.mask() | movz
    }

    /// The value in its place in an instruction; `None` if it does not fit.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is cut off was checked, or is not asked for"
    )]
    fn encode(self, value: i64) -> Option<u32> {
        // `bits` of the value without the lowest `shift`, which are zero.
        let signed = |shift: u32, bits: u32| {
            let units = value >> shift;
            let fits =
                units << shift == value && (-(1 << (bits - 1))..1 << (bits - 1)).contains(&units);
            fits.then_some(units as u32)
        };
        match self {
            Self::Nothing | Self::Number { .. } => Some(0),
            Self::Adr { shift, all } => {
                let number = if all {
                    signed(shift, 21)?
                } else {
                    (value >> shift) as u32
                };
                Some((number & 3) << 29 | (number >> 2 & 0x7_ffff) << 5)
            }
            Self::Signed { shift, bits, at } => Some(signed(shift, bits)? << at & self.mask()),
            Self::Low12 { scale } => {
                let low = value as u32 & 0xfff;
                (low % (1 << scale) == 0).then_some(low >> scale << 10)
            }
            Self::Low15 => {
                let fits = (0..1 << 15).contains(&value) && value % 8 == 0;
                fits.then_some((value as u32) >> 3 << 10)
            }
            Self::Move { shift, all } => {
                let rest = value as u64 >> shift;
                (!all || rest <= 0xffff).then_some((rest as u32 & 0xffff) << 5)
            }
            Self::MoveSigned { shift } => {
                let rest = value >> shift;
                let (bits, movz) = if rest < 0 { (!rest, 0) } else { (rest, MOVZ) };
                (bits <= 0xffff).then_some((bits as u32) << 5 | movz)
            }
        }
    }
}

impl Limit {
    fn allows(self, len: usize, value: i64) -> bool {
        // The sign, or, if there need not be one, the highest bit.
        let highest = 1_i64 << (len * 8 - 1);
        match self {
            Self::None => true,
            Self::Signed => (-highest..highest).contains(&value),
            Self::Either => (-highest..highest * 2).contains(&value),
        }
    }
}

/// Clears the lowest 12 bits.
fn page(address: u64) -> u64 {
    address & !0xfff
}

// SAFETY: the table of the ABI; any other type is refused.
#[allow(unsafe_code, reason = "an unsafe trait; all within is safe")]
unsafe impl Relocator for AArch64 {
    const MACHINE: u16 = elf::EM_AARCH64.0;

    /// The linker's name for the base.
    const OWN_TOC: Option<&'static str> = Some("_GLOBAL_OFFSET_TABLE_");

    fn support(kind: u32) -> Option<Support> {
        describe(kind).map(|(_, _, support)| support)
    }

    /// The field must hold zero before: AArch64 keeps addends in the relocation entries, and a field
    /// that is not zero has been relocated already.
    #[allow(clippy::cast_possible_wrap, reason = "a distance has a sign")]
    fn apply(reloc: &Relocation, bytes: &mut [u8]) -> Result<(), RelocError> {
        let &Relocation {
            kind,
            place,
            symbol,
            addend,
            around,
            ..
        } = reloc;
        let (field, value, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        let bad_place = RelocError::BadPlace { kind };
        let got = || around.toc.map(CodeAddr::get).ok_or(bad_place);
        let target = symbol.wrapping_add_signed(addend);
        let value = match value {
            Value::Absolute => target,
            Value::Relative => target.wrapping_sub(place.get()),
            Value::Pages => page(target).wrapping_sub(page(place.get())),
            Value::FromGot => target.wrapping_sub(got()?),
            Value::FromGotPage => target.wrapping_sub(page(got()?)),
        } as i64;
        let out_of_range = RelocError::OutOfRange { kind, value };
        let place = bytes.get_mut(..field.len()).ok_or(bad_place)?;
        if let Field::Number { len, limit } = field {
            if !limit.allows(len, value) {
                return Err(out_of_range);
            }
            if place.iter().any(|&byte| byte != 0) {
                return Err(bad_place);
            }
            for (byte, new) in place.iter_mut().zip(value.to_le_bytes()) {
                *byte = new;
            }
        } else if let Some(place) = place.first_chunk_mut() {
            let encoded = field.encode(value).ok_or(out_of_range)?;
            let word = u32::from_le_bytes(*place);
            if word != field.cleared(word) {
                return Err(bad_place);
            }
            *place = (word & !field.mask() | encoded).to_le_bytes();
        }
        Ok(())
    }

    fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError> {
        let (field, _, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        let place = bytes
            .get_mut(..field.len())
            .ok_or(RelocError::BadPlace { kind })?;
        if let Field::Number { .. } = field {
            place.fill(0);
        } else if let Some(place) = place.first_chunk_mut() {
            *place = field.cleared(u32::from_le_bytes(*place)).to_le_bytes();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
