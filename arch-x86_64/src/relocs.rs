//! Relocations of patch objects: the psABI's table 4.9, as far as code for patch objects uses it.
//!
//! Answers to the kernel's `apply_relocate_add` and `clear_relocate_add` of
//! `arch/x86/kernel/module.c`.
#![deny(unsafe_code)]

use crate::X86_64;
use klp_core::addr::CodeAddr;
use klp_core::port::{Access, RelocError, Relocation, Relocator, Support};
use object::elf;

/// How a field holds its value. The names give its size in bits and how the processor extends it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Nothing,
    Whole64,
    Unsigned32,
    Signed32,
}

/// What the value is: `S` is the symbol or the slot, or how far a thread-local variable is from where, `A` the addend, `P` the place, `GOT` the base of
/// the image's slots.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// `S + A`
    Absolute,
    /// `S + A - P`
    Relative,
    /// `S + A - GOT`
    FromGot,
    /// `GOT + A - P`
    Got,
}

/// The table. Not here are those that only dynamic linkers meet, those of the descriptors of
/// thread-local variables (`-mtls-dialect=gnu2`), and those that no compiler writes: of fields of 8
/// and 16 bits, and of symbols' sizes.
fn describe(kind: u32) -> Option<(Field, Value, Support)> {
    use Field::{Nothing, Signed32, Unsigned32, Whole64};
    use Value::{Absolute, FromGot, Got, Relative};
    let thread_local = |field, value, access| Some((field, value, Support::ThreadLocal(access)));
    let (field, value) = match elf::RelocationType(kind) {
        elf::R_X86_64_NONE => (Nothing, Absolute),
        elf::R_X86_64_64 => (Whole64, Absolute),
        elf::R_X86_64_PC64 => (Whole64, Relative),
        elf::R_X86_64_32 => (Unsigned32, Absolute),
        elf::R_X86_64_32S => (Signed32, Absolute),
        elf::R_X86_64_PC32 => (Signed32, Relative),
        elf::R_X86_64_PLT32 => return Some((Signed32, Relative, Support::Veneer)),
        // The instruction is left as it is, although psABI B.2 lets a linker make it one that needs
        // no slot.
        elf::R_X86_64_GOTPCREL
        | elf::R_X86_64_GOTPCRELX
        | elf::R_X86_64_REX_GOTPCRELX
        | elf::R_X86_64_CODE_4_GOTPCRELX
        | elf::R_X86_64_CODE_5_GOTPCRELX
        | elf::R_X86_64_CODE_6_GOTPCRELX => {
            return Some((Signed32, Relative, Support::AddressSlot));
        }
        // The medium and large code models. A procedure linkage table is not needed: the distance to
        // a function has 64 bits.
        elf::R_X86_64_GOTPCREL64 => return Some((Whole64, Relative, Support::AddressSlot)),
        elf::R_X86_64_GOT32 => return Some((Signed32, FromGot, Support::AddressSlot)),
        elf::R_X86_64_GOT64 | elf::R_X86_64_GOTPLT64 => {
            return Some((Whole64, FromGot, Support::AddressSlot));
        }
        elf::R_X86_64_GOTOFF64 | elf::R_X86_64_PLTOFF64 => (Whole64, FromGot),
        // Code is left as it is, although linkers make it another access where they can: so it calls
        // `__tls_get_addr` for variables of the program, too.
        elf::R_X86_64_TLSGD => return thread_local(Signed32, Relative, Access::Index),
        elf::R_X86_64_TLSLD => return thread_local(Signed32, Relative, Access::ModuleIndex),
        elf::R_X86_64_DTPOFF32 => return thread_local(Signed32, Absolute, Access::Offset),
        elf::R_X86_64_DTPOFF64 => return thread_local(Whole64, Absolute, Access::Offset),
        elf::R_X86_64_GOTTPOFF
        | elf::R_X86_64_CODE_4_GOTTPOFF
        | elf::R_X86_64_CODE_5_GOTTPOFF
        | elf::R_X86_64_CODE_6_GOTTPOFF => {
            return thread_local(Signed32, Relative, Access::ThreadOffsetSlot);
        }
        elf::R_X86_64_TPOFF32 => return thread_local(Signed32, Absolute, Access::ThreadOffset),
        elf::R_X86_64_TPOFF64 => return thread_local(Whole64, Absolute, Access::ThreadOffset),
        elf::R_X86_64_GOTPC32 => (Signed32, Got),
        elf::R_X86_64_GOTPC64 => (Whole64, Got),
        _ => return None,
    };
    Some((field, value, Support::None))
}

// SAFETY: the table of the psABI; any other type is refused.
#[allow(unsafe_code, reason = "an unsafe trait; all within is safe")]
unsafe impl Relocator for X86_64 {
    const MACHINE: u16 = elf::EM_X86_64.0;

    /// psABI 4.4.2: it resolves to the table's base.
    const OWN_TOC: Option<&'static str> = Some("_GLOBAL_OFFSET_TABLE_");

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
            around,
            ..
        } = reloc;
        let (field, value, _) = describe(kind).ok_or(RelocError::Unsupported { kind })?;
        let got = || {
            around
                .toc
                .map(CodeAddr::get)
                .ok_or(RelocError::BadPlace { kind })
        };
        let target = symbol.wrapping_add_signed(addend);
        let value = match value {
            Value::Absolute => target,
            Value::Relative => target.wrapping_sub(place.get()),
            Value::FromGot => target.wrapping_sub(got()?),
            Value::Got => got()?.wrapping_add_signed(addend).wrapping_sub(place.get()),
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
    use klp_core::conformance::relocator::{Known, check};

    const PLACE: u64 = 0x7f00_0000_1000;
    const GOT: u64 = 0x7f00_0012_3450;

    fn apply(kind: elf::RelocationType, symbol: u64, addend: i64) -> Result<[u8; 9], RelocError> {
        apply_from(CodeAddr::new(GOT), kind, symbol, addend)
    }

    fn apply_from(
        got: CodeAddr,
        kind: elf::RelocationType,
        symbol: u64,
        addend: i64,
    ) -> Result<[u8; 9], RelocError> {
        let mut bytes = [0, 0, 0, 0, 0, 0, 0, 0, 0x5a];
        let mut reloc = Relocation::new(kind.0, CodeAddr::new(PLACE), symbol, addend);
        reloc.around.toc = Some(got);
        let result = X86_64::apply(&reloc, &mut bytes);
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
            elf::R_X86_64_CODE_4_GOTPCRELX,
            elf::R_X86_64_CODE_5_GOTPCRELX,
            elf::R_X86_64_CODE_6_GOTPCRELX,
            elf::R_X86_64_GOTPCREL64,
            elf::R_X86_64_TLSGD,
            elf::R_X86_64_TLSLD,
            elf::R_X86_64_GOTTPOFF,
            elf::R_X86_64_CODE_4_GOTTPOFF,
            elf::R_X86_64_CODE_5_GOTTPOFF,
            elf::R_X86_64_CODE_6_GOTTPOFF,
        ] {
            assert_eq!(
                apply(kind, PLACE + 0x14, -4),
                Ok([0x10, 0, 0, 0, 0, 0, 0, 0, 0x5a])
            );
        }
        for kind in [
            elf::R_X86_64_GOT32,
            elf::R_X86_64_GOT64,
            elf::R_X86_64_GOTPLT64,
            elf::R_X86_64_GOTOFF64,
            elf::R_X86_64_PLTOFF64,
        ] {
            assert_eq!(
                apply(kind, GOT + 0x18, -8),
                Ok([0x10, 0, 0, 0, 0, 0, 0, 0, 0x5a])
            );
        }
        // Variables lie before the thread pointer, and their blocks have a beginning.
        let tpoff = |kind| apply(kind, -0x18_i64 as u64, 8);
        let before = [0xf0, 255, 255, 255, 0, 0, 0, 0, 0x5a];
        assert_eq!(tpoff(elf::R_X86_64_TPOFF32), Ok(before));
        let before = [0xf0, 255, 255, 255, 255, 255, 255, 255, 0x5a];
        assert_eq!(tpoff(elf::R_X86_64_TPOFF64), Ok(before));
        for kind in [elf::R_X86_64_DTPOFF32, elf::R_X86_64_DTPOFF64] {
            assert_eq!(apply(kind, 0x18, -8), Ok([0x10, 0, 0, 0, 0, 0, 0, 0, 0x5a]));
        }
        // Wherever the symbol is.
        for kind in [elf::R_X86_64_GOTPC32, elf::R_X86_64_GOTPC64] {
            assert_eq!(
                apply(kind, 0, 2),
                Ok([0x52, 0x24, 0x12, 0, 0, 0, 0, 0, 0x5a])
            );
        }
    }

    #[test]
    fn what_is_counted_from_a_table_needs_one() {
        for kind in [
            elf::R_X86_64_GOT32,
            elf::R_X86_64_GOTOFF64,
            elf::R_X86_64_GOTPC32,
        ] {
            let refused = X86_64::apply(
                &Relocation::new(kind.0, CodeAddr::new(PLACE), GOT, 0),
                &mut [0; 8],
            );
            assert_eq!(refused, Err(RelocError::BadPlace { kind: kind.0 }));
        }
    }

    /// Of each type: the address that 0 stands for, the lowest number and the highest.
    #[test]
    fn the_edges_of_ranges() {
        let signed = (i64::from(i32::MIN), i64::from(i32::MAX));
        let edges = [
            (elf::R_X86_64_32, 0, (0, i64::from(u32::MAX))),
            (elf::R_X86_64_32S, 0, signed),
            (elf::R_X86_64_PC32, PLACE, signed),
            (elf::R_X86_64_PLT32, PLACE, signed),
            (elf::R_X86_64_GOT32, GOT, signed),
            (elf::R_X86_64_GOTPCREL, PLACE, signed),
            (elf::R_X86_64_GOTPCRELX, PLACE, signed),
            (elf::R_X86_64_REX_GOTPCRELX, PLACE, signed),
            (elf::R_X86_64_CODE_4_GOTPCRELX, PLACE, signed),
            (elf::R_X86_64_CODE_5_GOTPCRELX, PLACE, signed),
            (elf::R_X86_64_CODE_6_GOTPCRELX, PLACE, signed),
            (elf::R_X86_64_TLSGD, PLACE, signed),
            (elf::R_X86_64_TLSLD, PLACE, signed),
            (elf::R_X86_64_GOTTPOFF, PLACE, signed),
            (elf::R_X86_64_CODE_4_GOTTPOFF, PLACE, signed),
            (elf::R_X86_64_CODE_5_GOTTPOFF, PLACE, signed),
            (elf::R_X86_64_CODE_6_GOTTPOFF, PLACE, signed),
            (elf::R_X86_64_DTPOFF32, 0, signed),
            (elf::R_X86_64_TPOFF32, 0, signed),
        ];
        let at_edges = |apply: &dyn Fn(i64) -> Result<[u8; 9], RelocError>,
                        elf::RelocationType(kind),
                        (lowest, highest): (i64, i64)| {
            for value in [lowest, highest] {
                let [a, b, c, d, rest @ ..] = apply(value).expect("it fits");
                assert_eq!([a, b, c, d], (value as u32).to_le_bytes());
                assert_eq!(rest, [0, 0, 0, 0, 0x5a]);
            }
            for value in [lowest - 1, highest + 1] {
                assert_eq!(apply(value), Err(RelocError::OutOfRange { kind, value }));
            }
        };
        for (kind, zero, edges) in edges {
            let symbol = |value| apply(kind, u64::wrapping_add_signed(zero, value), 0);
            at_edges(&symbol, kind, edges);
            at_edges(&|value| apply(kind, zero, value), kind, edges);
        }
        let got = |value| {
            let got = CodeAddr::new(PLACE.wrapping_add_signed(value));
            apply_from(got, elf::R_X86_64_GOTPC32, 0, 0)
        };
        at_edges(&got, elf::R_X86_64_GOTPC32, signed);
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
            (elf::R_X86_64_CODE_4_GOTPCRELX, 4, true),
            (elf::R_X86_64_GOTPCREL64, 8, false),
            (elf::R_X86_64_TLSGD, 4, true),
            (elf::R_X86_64_TLSLD, 4, true),
            (elf::R_X86_64_DTPOFF32, 4, true),
            (elf::R_X86_64_DTPOFF64, 8, false),
            (elf::R_X86_64_GOTTPOFF, 4, true),
            (elf::R_X86_64_CODE_4_GOTTPOFF, 4, true),
            (elf::R_X86_64_CODE_5_GOTTPOFF, 4, true),
            (elf::R_X86_64_CODE_6_GOTTPOFF, 4, true),
            (elf::R_X86_64_TPOFF32, 4, true),
            (elf::R_X86_64_TPOFF64, 8, false),
        ];
        let known =
            known.map(|(elf::RelocationType(kind), len, limited)| Known { kind, len, limited });
        let unknown = [
            elf::R_X86_64_COPY,
            elf::R_X86_64_DTPMOD64,
            elf::R_X86_64_GOTPC32_TLSDESC,
            elf::R_X86_64_TLSDESC_CALL,
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
