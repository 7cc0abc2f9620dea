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
    /// A veneer ([`Arch::call_veneer`](super::Arch::call_veneer)), if a direct branch is refused as
    /// [out of range](RelocError::OutOfRange): the relocation then refers to the veneer.
    Veneer,
    /// The symbol is a thread-local variable, which has no address: the relocation refers to one of
    /// these.
    ThreadLocal(Access),
}

impl Support {
    /// Whether the relocation refers to a slot.
    #[must_use]
    pub const fn has_slot(self) -> bool {
        match self {
            Self::None | Self::Veneer => false,
            Self::AddressSlot => true,
            Self::ThreadLocal(access) => match access {
                Access::ThreadOffset | Access::Offset => false,
                Access::ThreadOffsetSlot | Access::Index | Access::ModuleIndex => true,
            },
        }
    }
}

/// How code gets to a thread-local variable ("ELF Handling For Thread-Local Storage", 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// By its distance from the thread pointer, which the code has in it (local exec).
    ThreadOffset,
    /// By a slot that holds that distance (initial exec).
    ThreadOffsetSlot,
    /// By a slot that holds the number of its object and its offset in the object's block, which is
    /// what `__tls_get_addr` is called with (general dynamic).
    Index,
    /// By a slot that holds the number of its object and 0: it leads to the object's block (local
    /// dynamic).
    ModuleIndex,
    /// By its offset in that block (local dynamic).
    Offset,
}

/// Where a relocation leads.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Via {
    /// To the symbol.
    #[default]
    Direct,
    /// To a slot that holds the symbol's address, or tells where a thread-local variable is.
    Slot,
    /// To a veneer that goes to the symbol.
    Veneer,
}

/// Who defines a symbol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The image, whose functions share what is worked out once for all of them.
    Image {
        /// The symbol's `st_other`, which tells on some machines where calls from there enter it.
        other: u8,
    },
    /// The patched system.
    System,
}

impl Default for Owner {
    fn default() -> Self {
        Self::Image { other: 0 }
    }
}

/// What of the image a relocation may depend on besides its own field and symbol.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Around {
    /// Who defines the symbol.
    pub owner: Owner,
    /// The base of the image's table of contents: its own ([`Relocator::OWN_TOC`]), or the patched
    /// object's ([`Relocator::SHARED_TOC`]).
    pub toc: Option<CodeAddr>,
    /// The place of the relocation that this one completes ([`Relocator::completes`]).
    pub pair: Option<CodeAddr>,
}

/// One relocation to be applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// The ELF relocation type.
    pub kind: u32,
    /// Where the field stands in the running system.
    pub place: CodeAddr,
    /// The address of the symbol, or of the slot or veneer that `via` speaks of; of a thread-local
    /// variable that is reached without a slot, the distance or offset ([`Access`]).
    pub symbol: u64,
    /// The addend.
    pub addend: i64,
    /// What stands at `symbol`.
    pub via: Via,
    /// What lies around.
    pub around: Around,
}

impl Relocation {
    /// Of the field at `place`, straight to `symbol`, with nothing around.
    #[must_use]
    pub const fn new(kind: u32, place: CodeAddr, symbol: u64, addend: i64) -> Self {
        Self {
            kind,
            place,
            symbol,
            addend,
            via: Via::Direct,
            around: Around {
                owner: Owner::Image { other: 0 },
                toc: None,
                pair: None,
            },
        }
    }
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
    /// The type is for thread-local variables, and the symbol is none; or the other way round.
    OtherSymbol {
        /// The ELF relocation type.
        kind: u32,
    },
    /// The thread-local variable is not known to be at the same distance from the thread pointer in
    /// all threads.
    NotStatic {
        /// The ELF relocation type.
        kind: u32,
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
                write!(
                    f,
                    "relocation type {kind} is out of range: value {value:#x}"
                )
            }
            Self::OtherSymbol { kind } => write!(
                f,
                "relocation type {kind} does not go with its symbol: only one of them is \
                 thread-local"
            ),
            Self::NotStatic { kind } => write!(
                f,
                "relocation type {kind} is for variables at the same distance from every thread's \
                 pointer, and nothing proves that this one is such: compile with \
                 -ftls-model=global-dynamic"
            ),
            Self::BadPlace { kind } => write!(
                f,
                "relocation type {kind} does not fit the bytes at its place"
            ),
        }
    }
}

/// Applies and clears single relocations: numbers in, bytes out.
///
/// # Safety
///
/// What it makes of code is executed: each relocation refers to what the psABI says that it does,
/// or is refused.
///
/// # For arch porters
///
/// Implement it on a unit struct from the psABI's table of relocations.
/// `klp_core::conformance::relocator` (feature `conformance`) is the test to call.
///
/// ```
/// use klp_core::port::{RelocError, Relocation, Relocator, Support};
///
/// /// A machine with two types: the symbol's address (1), and the distance from the table of
/// /// contents to the symbol (2).
/// struct Toy;
///
/// impl Toy {
///     fn field(kind: u32, bytes: &mut [u8]) -> Result<&mut [u8; 8], RelocError> {
///         Self::support(kind).ok_or(RelocError::Unsupported { kind })?;
///         bytes.first_chunk_mut().ok_or(RelocError::BadPlace { kind })
///     }
/// }
///
/// // SAFETY: the toy's ABI is the comment above.
/// unsafe impl Relocator for Toy {
///     const MACHINE: u16 = 0xfeed;
///     fn support(kind: u32) -> Option<Support> {
///         matches!(kind, 1 | 2).then_some(Support::None)
///     }
///     const OWN_TOC: Option<&'static str> = Some("_TOC_");
///     fn apply(reloc: &Relocation, bytes: &mut [u8]) -> Result<(), RelocError> {
///         let field = Self::field(reloc.kind, bytes)?;
///         let base = match (reloc.kind, reloc.around.toc) {
///             (1, _) => 0,
///             (_, Some(toc)) => toc.get(),
///             (kind, None) => return Err(RelocError::BadPlace { kind }),
///         };
///         let value = reloc.symbol.wrapping_add_signed(reloc.addend).wrapping_sub(base);
///         *field = value.to_le_bytes();
///         Ok(())
///     }
///     fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError> {
///         *Self::field(kind, bytes)? = [0; 8];
///         Ok(())
///     }
/// }
/// # let mut bytes = [0; 8];
/// # let reloc = Relocation::new(1, klp_core::addr::CodeAddr::new(0), 7, 1);
/// # Toy::apply(&reloc, &mut bytes).unwrap();
/// # assert_eq!(bytes, [8, 0, 0, 0, 0, 0, 0, 0]);
/// ```
pub unsafe trait Relocator: 'static {
    /// The `e_machine` of the objects that it relocates.
    const MACHINE: u16;

    /// Whether its objects, and the addresses in their slots, have the most significant byte first.
    const BIG_ENDIAN: bool = false;

    /// Most bytes that one relocation changes.
    const MAX_LEN: usize = 8;

    /// The symbol by which code refers to the base of its object's table of contents, if an image
    /// has one of its own (x86-64, AArch64: `_GLOBAL_OFFSET_TABLE_`): that is where the image's
    /// slots begin.
    const OWN_TOC: Option<&'static str> = None;

    /// The symbol by which code refers to the base of its object's table of contents, if an image
    /// has none of its own but shares that of the object that it patches (ppc64: `.TOC.`). Every
    /// function of the image finds it there: so it can patch one object only. What depends on it
    /// waits for that object.
    const SHARED_TOC: Option<&'static str> = None;

    /// Whether relocations of type `kind` depend on a table of contents.
    fn uses_toc(kind: u32) -> bool {
        let _ = kind;
        false
    }

    /// Whether relocations of type `kind` complete another one of the same section, whose place
    /// their symbol marks (RISC-V: `R_RISCV_PCREL_LO12_I`). They are applied with symbol and addend
    /// of that one, and its place as [`Around::pair`].
    fn completes(kind: u32) -> bool {
        let _ = kind;
        false
    }

    /// What relocations of type `kind` need; `None` if the type is unknown.
    fn support(kind: u32) -> Option<Support>;

    /// Relocates the field at the start of `bytes`.
    ///
    /// # Errors
    ///
    /// [`RelocError`]; `bytes` is as before.
    fn apply(reloc: &Relocation, bytes: &mut [u8]) -> Result<(), RelocError>;

    /// Makes the field what the object file holds there (kernel: `clear_relocate_add`).
    ///
    /// # Errors
    ///
    /// [`RelocError`]; `bytes` is as before.
    fn clear(kind: u32, bytes: &mut [u8]) -> Result<(), RelocError>;
}
