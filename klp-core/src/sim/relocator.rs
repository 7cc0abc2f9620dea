//! Relocations of the toy machine.

use crate::addr::CodeAddr;
use crate::port::{RelocError, Relocation, Relocator, Support};

/// Eight bytes: the symbol's address plus the addend.
pub const ABS64: u32 = 1;
/// Four bytes: the distance from the field to the symbol; reaches
/// [`Arch::REACH`](crate::port::Arch::REACH) either way.
pub const NEAR32: u32 = 2;
/// Four bytes: the distance from the field to a slot that holds the symbol's address.
pub const SLOT32: u32 = 3;

/// The toy machine's [`Relocator`]. A field holds zeros until it is relocated.
#[derive(Clone, Copy, Debug)]
pub struct SimRelocator;

impl SimRelocator {
    fn len(kind: u32) -> Result<usize, RelocError> {
        match kind {
            ABS64 => Ok(8),
            NEAR32 | SLOT32 => Ok(4),
            _ => Err(RelocError::Unsupported { kind }),
        }
    }

    fn field(kind: u32, bytes: &mut [u8]) -> Result<&mut [u8], RelocError> {
        bytes
            .get_mut(..Self::len(kind)?)
            .ok_or(RelocError::BadPlace { kind })
    }
}

// SAFETY: the toy machine's relocations are what is defined here.
unsafe impl Relocator for SimRelocator {
    const MACHINE: u16 = 0x7079;

    fn support(kind: u32) -> Option<Support> {
        match kind {
            ABS64 => Some(Support::None),
            NEAR32 => Some(Support::Veneer),
            SLOT32 => Some(Support::AddressSlot),
            _ => None,
        }
    }

    fn apply(reloc: &Relocation, bytes: &mut [u8]) -> Result<(), RelocError> {
        let &Relocation {
            kind,
            place,
            symbol,
            addend,
            ..
        } = reloc;
        let field = Self::field(kind, bytes)?;
        if field.iter().any(|byte| *byte != 0) {
            return Err(RelocError::BadPlace { kind });
        }
        let target = symbol.wrapping_add_signed(addend);
        if kind == ABS64 {
            field.copy_from_slice(&target.to_le_bytes());
            return Ok(());
        }
        let value = place.distance_to(CodeAddr::new(target));
        match i32::try_from(value) {
            Ok(near) if near.unsigned_abs() <= 1 << 20 => {
                field.copy_from_slice(&near.to_le_bytes())
            }
            _ => return Err(RelocError::OutOfRange { kind, value }),
        }
        Ok(())
    }

    fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError> {
        Self::field(kind, bytes)?.fill(0);
        Ok(())
    }
}
