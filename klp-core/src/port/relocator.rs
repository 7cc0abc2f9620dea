//! Relocations of patch objects.

use crate::addr::CodeAddr;
use core::fmt;

/// What a relocation type needs besides the symbol's address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Support {
    /// Nothing.
    None,
    /// A slot that holds the symbol's address: the relocation refers to the slot.
    AddressSlot,
    /// A veneer, if the symbol is out of the branch's reach: the relocation then refers to the veneer.
    Veneer,
}

/// Why a relocation was refused. Nothing was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RelocError {
    /// The architecture's engine does not know the type.
    Unsupported {
        /// The ELF relocation type.
        kind: u32,
    },
    /// The value does not fit the field.
    OutOfRange {
        /// The ELF relocation type.
        kind: u32,
        /// The value, as the ABI computes it.
        value: i64,
    },
    /// The field is not as [`Relocator::apply`] expects it before, or reaches behind the buffer.
    BadPlace {
        /// The ELF relocation type.
        kind: u32,
    },
}

impl fmt::Display for RelocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported { kind } => write!(f, "relocation type {kind} is not supported"),
            Self::OutOfRange { kind, value } => {
                write!(f, "relocation type {kind} is out of range: value {value:#x}")
            }
            Self::BadPlace { kind } => write!(f, "relocation type {kind} does not fit the bytes at its place"),
        }
    }
}

/// Applies and clears single relocations: numbers in, bytes out.
///
/// # Safety
///
/// What it makes of code is executed: each relocation refers to what the psABI says that it does, or is refused.
///
/// # For arch porters
///
/// Implement it on a unit struct from the psABI's table of relocations. `klp_core::conformance::relocator` (feature `conformance`) is
/// the test to call.
pub unsafe trait Relocator: 'static {
    /// The `e_machine` of the objects that it relocates.
    const MACHINE: u16;

    /// Most bytes that one relocation changes.
    const MAX_LEN: usize = 8;

    /// What relocations of type `kind` need; `None` if the type is unknown.
    fn support(kind: u32) -> Option<Support>;

    /// Relocates the field at the start of `bytes`, which stands at `place` in the running system, against a symbol (or slot, or
    /// veneer) at `symbol`.
    ///
    /// # Errors
    ///
    /// [`RelocError`]; `bytes` is as before.
    fn apply(kind: u32, place: CodeAddr, bytes: &mut [u8], symbol: u64, addend: i64) -> Result<(), RelocError>;

    /// Makes the field what the object file holds there (kernel: `clear_relocate_add`).
    ///
    /// # Errors
    ///
    /// [`RelocError`]; `bytes` is as before.
    fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError>;
}
