//! References from a patch to an object of the patched system (kernel: sections `.klp.rela.*`).

use crate::addr::CodeAddr;
use crate::mem::Name;
use crate::port::Around;
use alloc::vec::Vec;

/// A symbol of the patched system: `.klp.sym.OBJECT.NAME,POSITION`.
#[derive(Debug, PartialEq, Eq)]
pub struct KlpSymbol {
    /// The object that it belongs to.
    pub object: Name,
    /// Its name there.
    pub name: Name,
    /// 0 if the name must be unique in the object, otherwise which of its symbols is meant, counted
    /// from 1.
    pub pos: u32,
}

/// One field to be relocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Where it is in the patched system.
    pub at: CodeAddr,
    /// The ELF relocation type.
    pub kind: u32,
    /// The addend.
    pub addend: i64,
    /// How many bytes belong to the image from `at` on, at most
    /// [`Relocator::MAX_LEN`](crate::port::Relocator::MAX_LEN): the field does not tell its own
    /// size.
    pub room: u8,
    /// What lies around it.
    pub around: Around,
    /// The address of the symbol, if that is known already, and what the field waits for is the base
    /// of the table of contents: this is what its [`Reloc`]'s symbol stands for.
    pub known: Option<u64>,
}

/// All references from one section of a patch to one symbol.
#[derive(Debug, PartialEq, Eq)]
pub struct Reloc {
    pub(crate) section: Name,
    symbol: KlpSymbol,
    pub(crate) detours: Detours,
    fields: Vec<Field>,
}

impl Reloc {
    /// References to `symbol` from `fields`, which lie in the section called `section` (for
    /// messages).
    ///
    /// # Safety
    ///
    /// Fields and detours lie in memory from [`Text::alloc`](crate::port::Text::alloc) that is not
    /// freed before the patch is gone; nothing else uses the detours.
    #[must_use]
    pub const unsafe fn new(
        section: Name,
        symbol: KlpSymbol,
        detours: Detours,
        fields: Vec<Field>,
    ) -> Self {
        Self {
            section,
            symbol,
            detours,
            fields,
        }
    }

    /// The symbol.
    #[must_use]
    pub const fn symbol(&self) -> &KlpSymbol {
        &self.symbol
    }

    /// The fields.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }
}

/// Memory beside the image that references to one symbol may lead through.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Detours {
    /// Eight bytes for the symbol's address
    /// ([`Support::AddressSlot`](crate::port::Support::AddressSlot)).
    pub slot: Option<CodeAddr>,
    /// Room for [`Arch::veneer`](crate::port::Arch::veneer)
    /// ([`Support::Veneer`](crate::port::Support::Veneer)).
    pub veneer: Option<CodeAddr>,
}
