//! Relocations of patch objects: the psABI's table 4.9, as far as code for patch objects uses it.
//!
//! Answers to the kernel's `apply_relocate_add` and `clear_relocate_add` of
//! `arch/x86/kernel/module.c`.
#![deny(unsafe_code)]

use crate::X86_64;
use klp_core::port::{RelocError, Relocation, Relocator, Support};
use object::elf;

/// How a field holds its value. The names give its size in bits and how the processor extends it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Nothing,
    Whole64,
    Unsigned32,
    Signed32,
}

/// What the value is: `S` is the symbol, `A` the addend, `P` the place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// `S + A`
    Absolute,
    /// `S + A - P`
    Relative,
}

/// The table. Those of thread-local storage, of the procedure linkage table's own and of a global
/// offset table's base are for the static and dynamic linkers, and not here.
fn describe(kind: u32) -> Option<(Field, Value, Support)> {
    Some(match elf::RelocationType(kind) {
        elf::R_X86_64_NONE => (Field::Nothing, Value::Absolute, Support::None),
        elf::R_X86_64_64 => (Field::Whole64, Value::Absolute, Support::None),
        elf::R_X86_64_PC64 => (Field::Whole64, Value::Relative, Support::None),
        elf::R_X86_64_32 => (Field::Unsigned32, Value::Absolute, Support::None),
        elf::R_X86_64_32S => (Field::Signed32, Value::Absolute, Support::None),
        elf::R_X86_64_PC32 => (Field::Signed32, Value::Relative, Support::None),
        elf::R_X86_64_PLT32 => (Field::Signed32, Value::Relative, Support::Veneer),
        // The instruction is left as it is, although psABI B.2 lets a linker make it one that needs
        // no slot.
        elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
            (Field::Signed32, Value::Relative, Support::AddressSlot)
        }
        _ => return None,
    })
}

// SAFETY: the table of the psABI; any other type is refused.
#[allow(unsafe_code, reason = "an unsafe trait; all within is safe")]
unsafe impl Relocator for X86_64 {
    const MACHINE: u16 = elf::EM_X86_64.0;

    fn support(kind: u32) -> Option<Support> {
        describe(kind).map(|(_, _, support)| support)
    }

    /// The field must hold zero before: x86-64 keeps addends in the relocation entries, and a field
    /// that is not zero has been relocated already.
    fn apply(reloc: &Relocation, bytes: &mut [u8]) -> Result<(), RelocError> {
        let &Relocation {
            kind,
            place,
            symbol,
            addend,
            ..
        } = reloc;
        let (field, value, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        let value = match value {
            Value::Absolute => symbol.wrapping_add_signed(addend),
            Value::Relative => symbol.wrapping_add_signed(addend).wrapping_sub(place.get()),
        } as i64;
        let out_of_range = RelocError::OutOfRange { kind, value };
        let place = field_of(kind, field, bytes)?;
        if place.iter().any(|&byte| byte != 0) {
            return Err(RelocError::BadPlace { kind });
        }
        match field {
            Field::Nothing => {}
            Field::Whole64 => place.copy_from_slice(&value.to_le_bytes()),
            Field::Unsigned32 => {
                place.copy_from_slice(
                    &u32::try_from(value)
                        .map_err(|_| out_of_range)?
                        .to_le_bytes(),
                );
            }
            Field::Signed32 => {
                place.copy_from_slice(
                    &i32::try_from(value)
                        .map_err(|_| out_of_range)?
                        .to_le_bytes(),
                );
            }
        }
        Ok(())
    }

    fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError> {
        let (field, _, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        field_of(kind, field, bytes)?.fill(0);
        Ok(())
    }
}

/// The bytes of the field at the start of `bytes`.
fn field_of(kind: u32, field: Field, bytes: &mut [u8]) -> Result<&mut [u8], RelocError> {
    let len = match field {
        Field::Nothing => 0,
        Field::Whole64 => 8,
        Field::Unsigned32 | Field::Signed32 => 4,
    };
    bytes.get_mut(..len).ok_or(RelocError::BadPlace { kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use klp_core::addr::CodeAddr;
    use klp_core::conformance::relocator::{Known, check};

    const PLACE: u64 = 0x7f00_0000_1000;

    fn apply(kind: elf::RelocationType, symbol: u64, addend: i64) -> Result<[u8; 9], RelocError> {
        let mut bytes = [0, 0, 0, 0, 0, 0, 0, 0, 0x5a];
        let result = X86_64::apply(
            &Relocation::new(kind.0, CodeAddr::new(PLACE), symbol, addend),
            &mut bytes,
        );
        if result.is_err() {
            assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0x5a]);
        }
        result.map(|()| bytes)
    }

    #[test]
    fn values_are_the_psabis() {
        assert_eq!(
            apply(elf::R_X86_64_NONE, 1, 2),
            Ok([0, 0, 0, 0, 0, 0, 0, 0, 0x5a])
        );
        assert_eq!(
            apply(elf::R_X86_64_64, 0x1122_3344_5566_7780, 8),
            Ok([0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x5a])
        );
        assert_eq!(
            apply(elf::R_X86_64_PC64, PLACE - 2, 0),
            Ok([0xfe, 255, 255, 255, 255, 255, 255, 255, 0x5a])
        );
        assert_eq!(
            apply(elf::R_X86_64_PC32, PLACE + 0x104, -4),
            Ok([0, 1, 0, 0, 0, 0, 0, 0, 0x5a])
        );
        assert_eq!(
            apply(elf::R_X86_64_PLT32, PLACE, -4),
            Ok([0xfc, 255, 255, 255, 0, 0, 0, 0, 0x5a])
        );
        assert_eq!(
            apply(elf::R_X86_64_32, 0xffff_fff0, 0xf),
            Ok([255, 255, 255, 255, 0, 0, 0, 0, 0x5a])
        );
        assert_eq!(
            apply(elf::R_X86_64_32S, 0xffff_ffff_8000_0000, 0),
            Ok([0, 0, 0, 0x80, 0, 0, 0, 0, 0x5a])
        );
        for kind in [
            elf::R_X86_64_GOTPCREL,
            elf::R_X86_64_GOTPCRELX,
            elf::R_X86_64_REX_GOTPCRELX,
        ] {
            assert_eq!(
                apply(kind, PLACE + 0x14, -4),
                Ok([0x10, 0, 0, 0, 0, 0, 0, 0, 0x5a])
            );
        }
    }

    #[test]
    fn the_edges_of_ranges() {
        let refused = |kind: elf::RelocationType, symbol, value| {
            assert_eq!(
                apply(kind, symbol, 0),
                Err(RelocError::OutOfRange {
                    kind: kind.0,
                    value
                })
            );
        };
        assert!(apply(elf::R_X86_64_PC32, PLACE + 0x7fff_ffff, 0).is_ok());
        refused(elf::R_X86_64_PC32, PLACE + 0x8000_0000, 0x8000_0000);
        assert!(apply(elf::R_X86_64_PC32, PLACE - 0x8000_0000, 0).is_ok());
        refused(elf::R_X86_64_PLT32, PLACE - 0x8000_0001, -0x8000_0001);
        assert!(apply(elf::R_X86_64_32, 0xffff_ffff, 0).is_ok());
        refused(elf::R_X86_64_32, 0x1_0000_0000, 0x1_0000_0000);
        refused(elf::R_X86_64_32, u64::MAX, -1);
        assert!(apply(elf::R_X86_64_32S, u64::MAX, 0).is_ok());
        refused(elf::R_X86_64_32S, 0x8000_0000, 0x8000_0000);
    }

    #[test]
    fn conforms() {
        let known = [
            (elf::R_X86_64_64, 8, false),
            (elf::R_X86_64_PC64, 8, false),
            (elf::R_X86_64_PC32, 4, true),
            (elf::R_X86_64_PLT32, 4, true),
            (elf::R_X86_64_32, 4, true),
            (elf::R_X86_64_32S, 4, true),
            (elf::R_X86_64_GOTPCREL, 4, true),
            (elf::R_X86_64_GOTPCRELX, 4, true),
            (elf::R_X86_64_REX_GOTPCRELX, 4, true),
        ];
        let known =
            known.map(|(elf::RelocationType(kind), len, limited)| Known { kind, len, limited });
        let unknown = [
            elf::R_X86_64_COPY,
            elf::R_X86_64_TLSGD,
            elf::R_X86_64_TPOFF32,
            elf::R_X86_64_GOTTPOFF,
            elf::RelocationType(0xffff),
        ];
        check::<X86_64>(&known, &unknown.map(|kind| kind.0));
    }

    #[test]
    fn a_field_is_relocated_once() {
        let mut bytes = apply(elf::R_X86_64_PC32, PLACE + 8, 0).expect("in range");
        let again = Relocation::new(elf::R_X86_64_PC32.0, CodeAddr::new(PLACE), PLACE + 9, 0);
        let again = X86_64::apply(&again, &mut bytes);
        assert_eq!(
            again,
            Err(RelocError::BadPlace {
                kind: elf::R_X86_64_PC32.0
            })
        );
        assert_eq!(bytes[0], 8);
    }
}
