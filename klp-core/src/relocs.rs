//! Livepatch relocations of one object: resolve and apply when it is patched, clear when it goes
//! (kernel: `klp_apply_section_relocs`, `klp_clear_object_relocs`).
//!
//! A patch object can refer to anything in the patched system, local functions too. References to the base image are bound
//! when the patch is loaded; those to other objects are kept as [`Reloc`]s in [`Object`] until that object is there.

use crate::addr::CodeAddr;
use crate::error::{Error, PatchReason};
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::model::Object;
use crate::port::{Arch, Code, Fill, Platform, RelocError, Relocator, Support, Text};
use crate::sympos;
use alloc::vec::Vec;

/// A symbol of the patched system: `.klp.sym.OBJECT.NAME,POSITION`.
#[derive(Debug, PartialEq, Eq)]
pub struct KlpSymbol {
    /// The object that it belongs to.
    pub object: Name,
    /// Its name there.
    pub name: Name,
    /// 0 if the name must be unique in the object, otherwise which of its symbols is meant, counted from 1.
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
    /// How many bytes belong to the image from `at` on, at most [`Relocator::MAX_LEN`]: the field does not tell its own size.
    pub room: u8,
}

/// All references from one section of a patch to one symbol.
#[derive(Debug, PartialEq, Eq)]
pub struct Reloc {
    section: Name,
    symbol: KlpSymbol,
    detours: Detours,
    fields: Vec<Field>,
}

impl Reloc {
    /// References to `symbol` from `fields`, which lie in the section called `section` (for messages).
    ///
    /// # Safety
    ///
    /// Fields and detours lie in memory from [`Text::alloc`] that is not freed before the patch is gone; nothing else
    /// uses the detours.
    #[must_use]
    pub const unsafe fn new(section: Name, symbol: KlpSymbol, detours: Detours, fields: Vec<Field>) -> Self {
        Self { section, symbol, detours, fields }
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
    /// Eight bytes for the symbol's address ([`Support::AddressSlot`]).
    pub slot: Option<CodeAddr>,
    /// Room for [`Arch::veneer`] ([`Support::Veneer`]).
    pub veneer: Option<CodeAddr>,
}

/// Where a relocation led in the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Direct,
    Slot,
    Veneer,
}

/// Relocates the field in `bytes` against `symbol`, through a detour if its type asks for one or the symbol is out of reach.
pub(crate) fn relocate<R: Relocator>(
    field: &Field,
    bytes: &mut [u8],
    symbol: u64,
    detours: Detours,
) -> Result<Via, RelocError> {
    let &Field { at, kind, addend, .. } = field;
    let unsupported = RelocError::Unsupported { kind };
    match R::support(kind).ok_or(unsupported)? {
        Support::None => R::apply(kind, at, bytes, symbol, addend).map(|()| Via::Direct),
        Support::AddressSlot => {
            let slot = detours.slot.ok_or(unsupported)?;
            R::apply(kind, at, bytes, slot.get(), addend).map(|()| Via::Slot)
        }
        Support::Veneer => match (R::apply(kind, at, bytes, symbol, addend), detours.veneer) {
            (Err(RelocError::OutOfRange { .. }), Some(veneer)) => {
                R::apply(kind, at, bytes, veneer.get(), addend).map(|()| Via::Veneer)
            }
            (direct, _) => direct.map(|()| Via::Direct),
        },
    }
}

/// Resolves the symbols that wait for `object` and applies its relocations, all or none.
///
/// # Errors
///
/// [`Error::Patch`] naming the symbol that was not found or the relocation that was refused, [`Error::Port`],
/// [`Error::OutOfMemory`]. Nothing is written then, by the host neither.
///
/// # Safety
///
/// No task executes code of the patch that refers to `object`, and the relocations are not applied already.
pub unsafe fn apply<P: Platform>(platform: &P, patch: &str, object: &Object) -> Result<(), Error> {
    let mut writes = Vec::new();
    for reloc in object.relocs() {
        plan(platform, patch, object, reloc, &mut writes)?;
    }
    // The host first: what it did can always be undone.
    // SAFETY: the caller's promise.
    unsafe { platform.apply_relocs(patch, object.name()) }?;
    // SAFETY: the caller promises that nobody executes there; `Reloc::new`'s that the memory is the patch's own.
    unsafe { commit(platform, patch, &writes) }.inspect_err(|_| {
        // SAFETY: the caller's promise.
        unsafe { platform.clear_relocs(patch, object.name()) };
    })
}

/// Finds what [`apply`] would refuse, and shows each to `found`; writes nothing.
pub(crate) fn check<P: Platform>(platform: &P, patch: &str, object: &Object, found: &mut dyn FnMut(Error)) {
    for reloc in object.relocs() {
        if let Err(error) = plan(platform, patch, object, reloc, &mut Vec::new()) {
            found(error);
        }
    }
}

/// Works out what `reloc` makes of the patch's code.
fn plan<P: Platform>(
    platform: &P,
    patch: &str,
    object: &Object,
    reloc: &Reloc,
    writes: &mut Vec<Write>,
) -> Result<(), Error> {
    let symbol = resolve(platform, patch, &reloc.symbol)?;
    let mut used = Detours::default();
    for field in &reloc.fields {
        edit(platform, patch, object, (reloc, field), writes, |bytes| {
            match relocate::<P::Relocator>(field, bytes, symbol.get(), reloc.detours)? {
                Via::Direct => {}
                Via::Slot => used.slot = reloc.detours.slot,
                Via::Veneer => used.veneer = reloc.detours.veneer,
            }
            Ok(())
        })?;
    }
    if let Some(at) = used.slot {
        try_push(writes, Write { at, bytes: slot(symbol)? })?;
    }
    if let Some(at) = used.veneer {
        try_push(writes, Write { at, bytes: P::Arch::veneer(at, symbol) })?;
    }
    Ok(())
}

/// Makes the fields what the patch object holds there, so that [`apply`] can be called again.
///
/// # Errors
///
/// [`Error::Port`] or [`Error::OutOfMemory`]; nothing is written then.
///
/// # Safety
///
/// No task executes code of the patch that refers to `object`.
pub unsafe fn clear<P: Platform>(platform: &P, patch: &str, object: &Object) -> Result<(), Error> {
    let mut writes = Vec::new();
    for reloc in object.relocs() {
        for field in &reloc.fields {
            edit(platform, patch, object, (reloc, field), &mut writes, |bytes| P::Relocator::clear(field.kind, bytes))?;
        }
    }
    // SAFETY: as in `apply`.
    unsafe { commit(platform, patch, &writes) }?;
    // SAFETY: the caller's promise.
    unsafe { platform.clear_relocs(patch, object.name()) };
    Ok(())
}

/// The address of a symbol of the patched system.
pub(crate) fn resolve<P: Platform>(platform: &P, patch: &str, symbol: &KlpSymbol) -> Result<CodeAddr, Error> {
    sympos::find(platform.symbols(), &symbol.object, &symbol.name, symbol.pos)
        .map_err(|error| Error::port("looking up symbols", patch, &error))?
        .map(|found| found.addr)
        .map_err(|why| {
            Name::new(&symbol.name).map_or(Error::OutOfMemory, |name| {
                Error::patch(patch, Some(&symbol.object), None, PatchReason::Unresolved { symbol: name, why })
            })
        })
}

/// The contents of an address slot.
pub(crate) fn slot(symbol: CodeAddr) -> Result<Code, Error> {
    Code::from_slice(&symbol.get().to_le_bytes()).map_err(|()| Error::Bug("an address does not fit a slot"))
}

/// Bytes that will be written.
struct Write {
    at: CodeAddr,
    bytes: Code,
}

/// Reads the bytes at a field, lets `change` change them, and notes what has changed: not more, as the room of a field may
/// hold its neighbours too.
fn edit<P: Platform>(
    platform: &P,
    patch: &str,
    object: &Object,
    (reloc, field): (&Reloc, &Field),
    writes: &mut Vec<Write>,
    change: impl FnOnce(&mut [u8]) -> Result<(), RelocError>,
) -> Result<(), Error> {
    let mut old = Code::new();
    old.resize_default(usize::from(field.room))
        .map_err(|()| Error::Bug("a field has more room than any relocation needs"))?;
    platform.text().read(field.at, &mut old).map_err(|error| Error::port("reading relocations", patch, &error))?;
    let mut new = old.clone();
    if let Err(error) = change(&mut new) {
        return Err(refused(patch, object.name(), &reloc.section, &reloc.symbol.name, error));
    }
    let differs = |(old, new): (&u8, &u8)| old != new;
    let Some(first) = old.iter().zip(&new).position(differs) else { return Ok(()) };
    let last = old.iter().zip(&new).rposition(differs).unwrap_or(first);
    let bytes = Code::from_slice(&new[first..=last]).map_err(|()| Error::Bug("a part is longer than the whole"))?;
    try_push(writes, Write { at: field.at.wrapping_add(first as u64), bytes })?;
    Ok(())
}

/// The error for a relocation that was refused.
pub(crate) fn refused(patch: &str, object: &str, section: &str, symbol: &str, error: RelocError) -> Error {
    let reason = || -> Result<PatchReason, OutOfMemory> {
        Ok(PatchReason::Relocation { section: Name::new(section)?, symbol: Name::new(symbol)?, error })
    };
    reason().map_or(Error::OutOfMemory, |reason| Error::patch(patch, Some(object), None, reason))
}

/// # Safety
///
/// As for [`Text::fill`].
unsafe fn commit<P: Platform>(platform: &P, patch: &str, writes: &[Write]) -> Result<(), Error> {
    if writes.is_empty() {
        return Ok(());
    }
    let mut batch = try_vec(writes.len())?;
    batch.extend(writes.iter().map(|write| Fill { at: write.at, bytes: &write.bytes }));
    // SAFETY: the caller's promise.
    unsafe { platform.text().fill(&batch) }.map_err(|error| Error::port("applying relocations", patch, &error))
}
