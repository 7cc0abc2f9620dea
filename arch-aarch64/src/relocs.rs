//! Relocations of patch objects: "ELF for the Arm 64-bit Architecture", 5.7, as far as code for
//! patch objects uses it.
//!
//! Answers to the kernel's `apply_relocate_add` of `arch/arm64/kernel/module.c`.
#![deny(unsafe_code)]

use crate::AArch64;
use klp_core::port::{RelocError, Relocation, Relocator, Support};
use object::elf;

/// Where a field holds its value, and how much of it. Those from `Adr` on stand in an instruction,
/// the rest of which stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Nothing,
    Whole64,
    /// 32 bits, of a number with or without a sign.
    Any32,
    /// `adr`, `adrp`: 21 bits of the value divided by 2 to that power, in two pieces.
    Adr {
        shift: u32,
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
    /// `movz`, `movk`: 16 bits from bit `shift` on, at bit 5. Whether nothing may be above them.
    Move {
        shift: u32,
        all: bool,
    },
}

/// What the value is: `S` is the symbol or the slot, `A` the addend, `P` the place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// `S + A`
    Absolute,
    /// `S + A - P`
    Relative,
    /// `Page(S + A) - Page(P)`
    Pages,
}

/// The table. Those of thread-local storage, and those that need a global offset table as a whole,
/// are for the static and dynamic linkers, and not here.
fn describe(kind: u32) -> Option<(Field, Value, Support)> {
    let branch = |bits| Field::Signed {
        shift: 2,
        bits,
        at: if bits == 26 { 0 } else { 5 },
    };
    let low = |scale| (Field::Low12 { scale }, Value::Absolute, Support::None);
    let mov = |shift, all| (Field::Move { shift, all }, Value::Absolute, Support::None);
    let pages = |support| (Field::Adr { shift: 12 }, Value::Pages, support);
    Some(match elf::RelocationType(kind) {
        elf::R_AARCH64_NONE | elf::RelocationType(256) => {
            (Field::Nothing, Value::Absolute, Support::None)
        }
        elf::R_AARCH64_ABS64 => (Field::Whole64, Value::Absolute, Support::None),
        elf::R_AARCH64_PREL64 => (Field::Whole64, Value::Relative, Support::None),
        elf::R_AARCH64_ABS32 => (Field::Any32, Value::Absolute, Support::None),
        elf::R_AARCH64_PREL32 => (Field::Any32, Value::Relative, Support::None),
        elf::R_AARCH64_ADR_PREL_LO21 => (Field::Adr { shift: 0 }, Value::Relative, Support::None),
        elf::R_AARCH64_ADR_PREL_PG_HI21 => pages(Support::None),
        elf::R_AARCH64_ADR_GOT_PAGE => pages(Support::AddressSlot),
        elf::R_AARCH64_LD_PREL_LO19 => (branch(19), Value::Relative, Support::None),
        elf::R_AARCH64_GOT_LD_PREL19 => (branch(19), Value::Relative, Support::AddressSlot),
        elf::R_AARCH64_TSTBR14 => (branch(14), Value::Relative, Support::None),
        elf::R_AARCH64_CONDBR19 => (branch(19), Value::Relative, Support::None),
        elf::R_AARCH64_JUMP26 | elf::R_AARCH64_CALL26 => {
            (branch(26), Value::Relative, Support::Veneer)
        }
        elf::R_AARCH64_ADD_ABS_LO12_NC | elf::R_AARCH64_LDST8_ABS_LO12_NC => low(0),
        elf::R_AARCH64_LDST16_ABS_LO12_NC => low(1),
        elf::R_AARCH64_LDST32_ABS_LO12_NC => low(2),
        elf::R_AARCH64_LDST64_ABS_LO12_NC => low(3),
        elf::R_AARCH64_LDST128_ABS_LO12_NC => low(4),
        elf::R_AARCH64_LD64_GOT_LO12_NC => (
            Field::Low12 { scale: 3 },
            Value::Absolute,
            Support::AddressSlot,
        ),
        elf::R_AARCH64_MOVW_UABS_G0 => mov(0, true),
        elf::R_AARCH64_MOVW_UABS_G0_NC => mov(0, false),
        elf::R_AARCH64_MOVW_UABS_G1 => mov(16, true),
        elf::R_AARCH64_MOVW_UABS_G1_NC => mov(16, false),
        elf::R_AARCH64_MOVW_UABS_G2 => mov(32, true),
        elf::R_AARCH64_MOVW_UABS_G2_NC => mov(32, false),
        elf::R_AARCH64_MOVW_UABS_G3 => mov(48, true),
        _ => return None,
    })
}

impl Field {
    fn len(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Whole64 => 8,
            _ => 4,
        }
    }

    /// The bits of the word that hold the value.
    fn mask(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Whole64 | Self::Any32 => u32::MAX,
            Self::Adr { .. } => 0x60ff_ffe0,
            Self::Signed { bits, at, .. } => ((1 << bits) - 1) << at,
            Self::Low12 { .. } => 0xfff << 10,
            Self::Move { .. } => 0xffff << 5,
        }
    }

    /// The value in its place in the word; `None` if it does not fit.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is cut off was checked, or is not asked for"
    )]
    fn encode(self, value: i64) -> Option<u32> {
        let signed = |shift: u32, bits: u32| {
            let units = value >> shift;
            let fits =
                units << shift == value && (-(1 << (bits - 1))..1 << (bits - 1)).contains(&units);
            fits.then_some(units as u32)
        };
        match self {
            Self::Nothing | Self::Whole64 => Some(0),
            // The ABI lets it be either (5.7.1).
            Self::Any32 => (i64::from(i32::MIN)..=i64::from(u32::MAX))
                .contains(&value)
                .then_some(value as u32),
            Self::Adr { shift } => {
                let number = signed(shift, 21)?;
                Some((number & 3) << 29 | (number >> 2 & 0x7_ffff) << 5)
            }
            Self::Signed { shift, bits, at } => Some(signed(shift, bits)? << at & self.mask()),
            Self::Low12 { scale } => {
                let low = value as u32 & 0xfff;
                (low % (1 << scale) == 0).then_some(low >> scale << 10)
            }
            Self::Move { shift, all } => {
                let rest = value as u64 >> shift;
                (!all || rest <= 0xffff).then_some((rest as u32 & 0xffff) << 5)
            }
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
            ..
        } = reloc;
        let (field, value, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        let target = symbol.wrapping_add_signed(addend);
        let value = match value {
            Value::Absolute => target,
            Value::Relative => target.wrapping_sub(place.get()),
            Value::Pages => page(target).wrapping_sub(page(place.get())),
        } as i64;
        let bad_place = RelocError::BadPlace { kind };
        let place = bytes.get_mut(..field.len()).ok_or(bad_place)?;
        let encoded = field
            .encode(value)
            .ok_or(RelocError::OutOfRange { kind, value })?;
        if field == Field::Whole64 {
            if place.iter().any(|&byte| byte != 0) {
                return Err(bad_place);
            }
            place.copy_from_slice(&value.to_le_bytes());
        } else if let Some(place) = place.first_chunk_mut() {
            let word = u32::from_le_bytes(*place);
            if word & field.mask() != 0 {
                return Err(bad_place);
            }
            *place = (word | encoded).to_le_bytes();
        }
        Ok(())
    }

    fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError> {
        let (field, _, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        let place = bytes
            .get_mut(..field.len())
            .ok_or(RelocError::BadPlace { kind })?;
        if field == Field::Whole64 {
            place.fill(0);
        } else if let Some(place) = place.first_chunk_mut() {
            *place = (u32::from_le_bytes(*place) & !field.mask()).to_le_bytes();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use klp_core::addr::CodeAddr;
    use klp_core::conformance::relocator::{Known, check};

    const PLACE: u64 = 0x40_1000;

    /// What comes of an instruction whose field is empty.
    fn apply(kind: elf::RelocationType, word: u32, symbol: u64) -> Result<u32, RelocError> {
        let mut bytes = word.to_le_bytes();
        let reloc = Relocation::new(kind.0, CodeAddr::new(PLACE), symbol, 0);
        let result = AArch64::apply(&reloc, &mut bytes);
        if result.is_err() {
            assert_eq!(bytes, word.to_le_bytes());
        }
        result.map(|()| u32::from_le_bytes(bytes))
    }

    /// Words before and after as GNU as and ld have them, for symbols at the addresses beside them
    /// and a place at 0x401000.
    #[test]
    fn instructions_are_the_linkers() {
        let cases = [
            (elf::R_AARCH64_CALL26, 0x9400_0000, 0x40_2000, 0x9400_0400), // bl
            (elf::R_AARCH64_CALL26, 0x9400_0000, 0x40_0ffc, 0x97ff_ffff),
            (elf::R_AARCH64_JUMP26, 0x1400_0000, 0x40_1010, 0x1400_0004), // b
            (elf::R_AARCH64_CONDBR19, 0x5400_0000, 0x40_1008, 0x5400_0040), // b.eq
            (elf::R_AARCH64_CONDBR19, 0xb500_0001, 0x40_0ffc, 0xb5ff_ffe1), // cbnz x1
            (elf::R_AARCH64_TSTBR14, 0xb7f8_0003, 0x40_0ffc, 0xb7ff_ffe3), // tbnz x3, #63
            (
                elf::R_AARCH64_ADR_PREL_PG_HI21,
                0x9000_0000,
                0x41_2345,
                0xb000_0080,
            ), // adrp x0
            (
                elf::R_AARCH64_ADR_PREL_PG_HI21,
                0x9000_0000,
                0x40_0fff,
                0xf0ff_ffe0,
            ),
            (
                elf::R_AARCH64_ADR_PREL_LO21,
                0x1000_0000,
                0x40_1005,
                0x3000_0020,
            ), // adr x0
            (
                elf::R_AARCH64_ADD_ABS_LO12_NC,
                0x9100_0000,
                0x41_2345,
                0x910d_1400,
            ), // add x0, x0
            (
                elf::R_AARCH64_LDST8_ABS_LO12_NC,
                0x3940_0000,
                0x41_2345,
                0x394d_1400,
            ), // ldrb w0
            (
                elf::R_AARCH64_LDST16_ABS_LO12_NC,
                0x7940_0000,
                0x41_2346,
                0x7946_8c00,
            ), // ldrh w0
            (
                elf::R_AARCH64_LDST32_ABS_LO12_NC,
                0xb940_0000,
                0x41_2344,
                0xb943_4400,
            ), // ldr w0
            (
                elf::R_AARCH64_LDST64_ABS_LO12_NC,
                0xf940_0000,
                0x41_2348,
                0xf941_a400,
            ), // ldr x0
            (
                elf::R_AARCH64_LDST128_ABS_LO12_NC,
                0x3dc0_0000,
                0x41_2340,
                0x3dc0_d000,
            ), // ldr q0
            (
                elf::R_AARCH64_LD_PREL_LO19,
                0x5800_0000,
                0x40_1010,
                0x5800_0080,
            ), // ldr x0
            (
                elf::R_AARCH64_MOVW_UABS_G3,
                0xd2e0_0000,
                0x1122_3344_5566_7788,
                0xd2e2_2440,
            ),
            (
                elf::R_AARCH64_MOVW_UABS_G2_NC,
                0xf2c0_0000,
                0x1122_3344_5566_7788,
                0xf2c6_6880,
            ),
            (
                elf::R_AARCH64_MOVW_UABS_G1_NC,
                0xf2a0_0000,
                0x1122_3344_5566_7788,
                0xf2aa_acc0,
            ),
            (
                elf::R_AARCH64_MOVW_UABS_G0_NC,
                0xf280_0000,
                0x1122_3344_5566_7788,
                0xf28e_f100,
            ),
            (elf::R_AARCH64_ABS32, 0, 0x1234_5678, 0x1234_5678),
            (elf::R_AARCH64_PREL32, 0, 0x40_0fff, 0xffff_ffff),
        ];
        for (kind, before, symbol, after) in cases {
            assert_eq!(
                apply(kind, before, symbol),
                Ok(after),
                "{kind:?}, {symbol:#x}"
            );
        }
    }

    #[test]
    fn data_is_whole() {
        let apply = |kind: elf::RelocationType| {
            let mut bytes = [0; 8];
            let reloc = Relocation::new(kind.0, CodeAddr::new(PLACE), PLACE - 2, 1);
            AArch64::apply(&reloc, &mut bytes).map(|()| i64::from_le_bytes(bytes))
        };
        assert_eq!(apply(elf::R_AARCH64_ABS64), Ok(0x40_0fff));
        assert_eq!(apply(elf::R_AARCH64_PREL64), Ok(-1));
    }

    #[test]
    fn the_edges_of_ranges() {
        let fits = |kind, symbol| match apply(kind, 0, symbol) {
            Ok(_) => true,
            Err(RelocError::OutOfRange { .. }) => false,
            Err(other) => panic!("{other}"),
        };
        let edges = [
            (elf::R_AARCH64_CALL26, (1 << 27) - 4, 4),
            (elf::R_AARCH64_CONDBR19, (1 << 20) - 4, 4),
            (elf::R_AARCH64_TSTBR14, (1 << 15) - 4, 4),
            (elf::R_AARCH64_ADR_PREL_LO21, (1 << 20) - 1, 1),
            (elf::R_AARCH64_ADR_PREL_PG_HI21, (1 << 32) - 4096, 4096),
        ];
        for (kind, last, unit) in edges {
            assert!(fits(kind, PLACE + last), "{kind:?}");
            assert!(!fits(kind, PLACE + last + unit), "{kind:?}");
            assert!(
                fits(kind, PLACE.wrapping_sub(last + unit)),
                "{kind:?}, down"
            );
            assert!(
                !fits(kind, PLACE.wrapping_sub(last + 2 * unit)),
                "{kind:?}, down"
            );
        }
        assert!(
            !fits(elf::R_AARCH64_CALL26, PLACE + 2),
            "between instructions"
        );
        assert!(
            !fits(elf::R_AARCH64_LDST64_ABS_LO12_NC, PLACE + 4),
            "not aligned"
        );
        assert!(fits(elf::R_AARCH64_MOVW_UABS_G0, 0xffff));
        assert!(!fits(elf::R_AARCH64_MOVW_UABS_G0, 0x1_0000));
        assert!(!fits(elf::R_AARCH64_MOVW_UABS_G1, 1 << 32));
        assert!(!fits(elf::R_AARCH64_MOVW_UABS_G2, 1 << 48));
        assert!(fits(elf::R_AARCH64_ABS32, 0xffff_ffff) && fits(elf::R_AARCH64_ABS32, u64::MAX));
        assert!(!fits(elf::R_AARCH64_ABS32, 1 << 32));
    }

    #[test]
    fn a_field_is_relocated_once() {
        let bl = apply(elf::R_AARCH64_CALL26, 0x9400_0000, PLACE + 8).expect("in range");
        let kind = elf::R_AARCH64_CALL26.0;
        assert_eq!(
            apply(elf::R_AARCH64_CALL26, bl, PLACE + 8),
            Err(RelocError::BadPlace { kind })
        );
    }

    #[test]
    fn conforms() {
        let known = [
            (elf::R_AARCH64_ABS64, 8, false),
            (elf::R_AARCH64_PREL64, 8, false),
            (elf::R_AARCH64_ABS32, 4, true),
            (elf::R_AARCH64_PREL32, 4, true),
            (elf::R_AARCH64_ADR_PREL_LO21, 4, true),
            (elf::R_AARCH64_ADR_PREL_PG_HI21, 4, true),
            (elf::R_AARCH64_ADR_GOT_PAGE, 4, true),
            (elf::R_AARCH64_LD_PREL_LO19, 4, true),
            (elf::R_AARCH64_GOT_LD_PREL19, 4, true),
            (elf::R_AARCH64_TSTBR14, 4, true),
            (elf::R_AARCH64_CONDBR19, 4, true),
            (elf::R_AARCH64_JUMP26, 4, true),
            (elf::R_AARCH64_CALL26, 4, true),
            (elf::R_AARCH64_ADD_ABS_LO12_NC, 4, false),
            (elf::R_AARCH64_LDST8_ABS_LO12_NC, 4, false),
            (elf::R_AARCH64_LDST16_ABS_LO12_NC, 4, false),
            (elf::R_AARCH64_LDST32_ABS_LO12_NC, 4, false),
            (elf::R_AARCH64_LDST64_ABS_LO12_NC, 4, false),
            (elf::R_AARCH64_LDST128_ABS_LO12_NC, 4, false),
            (elf::R_AARCH64_LD64_GOT_LO12_NC, 4, false),
            (elf::R_AARCH64_MOVW_UABS_G0_NC, 4, false),
        ];
        let known =
            known.map(|(elf::RelocationType(kind), len, limited)| Known { kind, len, limited });
        let unknown = [
            elf::R_AARCH64_COPY,
            elf::R_AARCH64_TLSLE_ADD_TPREL_HI12,
            elf::R_AARCH64_TLSDESC_ADR_PAGE21,
            elf::R_AARCH64_LD64_GOTPAGE_LO15,
            elf::RelocationType(0xffff),
        ];
        check::<AArch64>(&known, &unknown.map(|kind| kind.0));
    }
}
