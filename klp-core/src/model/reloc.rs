//! References from a patch to an object of the patched system (kernel: sections `.klp.rela.*`).

use crate::addr::CodeAddr;
use crate::mem::{Name, OutOfMemory, try_push};
use crate::port::Owner;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

/// A symbol of the patched system: `.klp.sym.OBJECT.NAME,POSITION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KlpSymbol<'a> {
    /// The object that it belongs to.
    pub object: &'a str,
    /// Its name there.
    pub name: &'a str,
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
    /// Who defines the symbol.
    pub owner: Owner,
    /// The number of the symbol, from [`Relocs::add_symbol`].
    pub symbol: u32,
    /// Where the field leads, if that is known already (to a symbol or to a slot that holds its
    /// address), and what it waits for is the base of the object's table of contents: this is what
    /// `symbol` stands for then.
    pub known: Option<u64>,
}

/// All references from a patch that wait for one object.
///
/// They are many: so names lie in one text, and each symbol is there, and looked up, once.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Relocs {
    /// The base of the image's own table of contents.
    pub(crate) toc: Option<CodeAddr>,
    /// The base of the object's, which the image shares: one of the symbols.
    pub(crate) shared_toc: Option<u32>,
    /// The patch's sections, each with the number of its first field; for messages.
    sections: Vec<(usize, Name)>,
    names: String,
    symbols: Vec<Referred>,
    fields: Vec<Field>,
}

/// A symbol, with its names as ranges of the text.
#[derive(Debug, PartialEq, Eq)]
struct Referred {
    object: Range<usize>,
    name: Range<usize>,
    pos: u32,
    thread_local: bool,
    detours: Detours,
}

impl Relocs {
    /// None, of an image whose own table of contents has its base at `toc`.
    pub(crate) fn with_toc(toc: Option<CodeAddr>) -> Self {
        Self {
            toc,
            ..Self::default()
        }
    }

    /// The fields that are added from here on lie in the section `name` of the patch.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn begin_section(&mut self, name: &str) -> Result<(), OutOfMemory> {
        let first = self.fields.len();
        if self
            .sections
            .last()
            .is_some_and(|(_, last)| **last == *name)
        {
            return Ok(());
        }
        try_push(&mut self.sections, (first, Name::new(name)?))
    }

    /// Adds a symbol, and returns its number.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    ///
    /// # Safety
    ///
    /// The detours lie in memory from [`Text::alloc`](crate::port::Text::alloc) that is not freed
    /// before the patch is gone; nothing else uses them.
    pub unsafe fn add_symbol(
        &mut self,
        symbol: KlpSymbol<'_>,
        detours: Detours,
    ) -> Result<u32, OutOfMemory> {
        let number = number(self.symbols.len())?;
        // Mostly it is the same as before.
        let last = self.symbols.last().map(|last| last.object.clone());
        let object = match last.filter(|last| self.names.get(last.clone()) == Some(symbol.object)) {
            Some(last) => last,
            None => self.keep(symbol.object)?,
        };
        let referred = Referred {
            object,
            name: self.keep(symbol.name)?,
            pos: symbol.pos,
            thread_local: false,
            detours,
        };
        try_push(&mut self.symbols, referred)?;
        Ok(number)
    }

    /// Adds a thread-local variable, and returns its number.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    ///
    /// # Safety
    ///
    /// As for [`add_symbol`](Self::add_symbol).
    pub unsafe fn add_thread_local(
        &mut self,
        symbol: KlpSymbol<'_>,
        detours: Detours,
    ) -> Result<u32, OutOfMemory> {
        // SAFETY: the caller's promise.
        let number = unsafe { self.add_symbol(symbol, detours) }?;
        if let Some(added) = self.symbols.last_mut() {
            added.thread_local = true;
        }
        Ok(number)
    }

    /// Adds the symbol that stands for the base of the object's table of contents.
    pub(crate) fn add_shared_toc(&mut self, symbol: KlpSymbol<'_>) -> Result<u32, OutOfMemory> {
        // SAFETY: there are no detours.
        let number = unsafe { self.add_symbol(symbol, Detours::default()) }?;
        self.shared_toc = Some(number);
        Ok(number)
    }

    /// Adds a field.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    ///
    /// # Safety
    ///
    /// It lies in memory from [`Text::alloc`](crate::port::Text::alloc) that is not freed before the
    /// patch is gone.
    pub unsafe fn add_field(&mut self, field: Field) -> Result<(), OutOfMemory> {
        try_push(&mut self.fields, field)
    }

    /// The fields.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    pub(crate) fn fields_mut(&mut self) -> impl Iterator<Item = &mut Field> {
        self.fields.iter_mut()
    }

    /// The symbols, in the order of their numbers.
    pub fn symbols(&self) -> impl ExactSizeIterator<Item = KlpSymbol<'_>> {
        self.symbols.iter().map(|symbol| KlpSymbol {
            object: self.text(&symbol.object),
            name: self.text(&symbol.name),
            pos: symbol.pos,
        })
    }

    /// What may be used on the way to each of the symbols.
    pub(crate) fn detours(&self) -> impl Iterator<Item = Detours> {
        self.symbols.iter().map(|symbol| symbol.detours)
    }

    /// Which of the symbols are thread-local variables, in the order of their numbers.
    pub(crate) fn thread_locals(&self) -> impl Iterator<Item = bool> {
        self.symbols.iter().map(|symbol| symbol.thread_local)
    }

    /// The names of the section and the symbol of field number `index`.
    pub(crate) fn names_of(&self, index: usize) -> (&str, &str) {
        let behind = self.sections.partition_point(|&(first, _)| first <= index);
        let section = behind
            .checked_sub(1)
            .and_then(|last| self.sections.get(last));
        let symbol = self.fields.get(index).map(|field| field.symbol as usize);
        let symbol = symbol.and_then(|symbol| self.symbols.get(symbol));
        (
            section.map_or("", |(_, name)| name),
            symbol.map_or("", |symbol| self.text(&symbol.name)),
        )
    }

    fn text(&self, range: &Range<usize>) -> &str {
        self.names.get(range.clone()).unwrap_or_default()
    }

    fn keep(&mut self, name: &str) -> Result<Range<usize>, OutOfMemory> {
        self.names.try_reserve(name.len())?;
        let start = self.names.len();
        self.names.push_str(name);
        Ok(start..self.names.len())
    }
}

fn number(len: usize) -> Result<u32, OutOfMemory> {
    u32::try_from(len).map_err(|_| OutOfMemory)
}

/// Memory beside the image that references to one symbol may lead through.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Detours {
    /// Eight bytes for the symbol's address
    /// ([`Support::AddressSlot`](crate::port::Support::AddressSlot)); of a thread-local variable, 40
    /// bytes for all slots that it may need
    /// ([`Support::ThreadLocal`](crate::port::Support::ThreadLocal)).
    pub slot: Option<CodeAddr>,
    /// Room for [`Arch::veneer`](crate::port::Arch::veneer)
    /// ([`Support::Veneer`](crate::port::Support::Veneer)).
    pub veneer: Option<CodeAddr>,
}
