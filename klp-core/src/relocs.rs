//! Livepatch relocations of one object: resolve and apply when it is patched, clear when it goes
//! (kernel: `klp_apply_section_relocs`, `klp_clear_object_relocs`).
//!
//! A patch object can refer to anything in the patched system, local functions too. References to
//! the base image are bound when the patch is loaded; those to other objects are kept as [`Reloc`]s
//! in [`Object`] until that object is there.

use crate::addr::CodeAddr;
use crate::error::{Error, PatchReason};
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::model::Object;
pub use crate::model::reloc::{Detours, Field, KlpSymbol, Reloc};
use crate::port::{
    Arch, Code, Fill, Platform, RelocError, Relocation, Relocator, Support, Text, Via,
};
use crate::sympos;
use alloc::vec::Vec;

/// Relocates the field in `bytes` against `symbol`, through a detour if its type asks for one or
/// the symbol is out of reach; says where it leads.
pub(crate) fn relocate<R: Relocator>(
    field: &Field,
    bytes: &mut [u8],
    symbol: u64,
    detours: Detours,
) -> Result<Via, RelocError> {
    let &Field {
        at,
        kind,
        addend,
        around,
        ..
    } = field;
    let unsupported = RelocError::Unsupported { kind };
    let mut apply = |symbol, via| {
        R::apply(
            &Relocation {
                kind,
                place: at,
                symbol,
                addend,
                via,
                around,
            },
            bytes,
        )
        .map(|()| via)
    };
    match R::support(kind).ok_or(unsupported)? {
        Support::None => apply(symbol, Via::Direct),
        Support::AddressSlot => apply(detours.slot.ok_or(unsupported)?.get(), Via::Slot),
        Support::Veneer => match (apply(symbol, Via::Direct), detours.veneer) {
            (Err(RelocError::OutOfRange { .. }), Some(veneer)) => apply(veneer.get(), Via::Veneer),
            (direct, _) => direct,
        },
    }
}

/// Resolves the symbols that wait for `object` and applies its relocations, all or none.
///
/// # Errors
///
/// [`Error::Patch`] naming the symbol that was not found or the relocation that was refused,
/// [`Error::Port`], [`Error::OutOfMemory`]. Nothing is written then, by the host neither.
///
/// # Safety
///
/// No task executes code of the patch that refers to `object`, and the relocations are not applied
/// already.
pub unsafe fn apply<P: Platform>(platform: &P, patch: &str, object: &Object) -> Result<(), Error> {
    let mut writes = Vec::new();
    for reloc in object.relocs() {
        plan(platform, patch, object, reloc, &mut writes)?;
    }
    // The host first: what it did can always be undone.
    // SAFETY: the caller's promise.
    unsafe { platform.apply_relocs(patch, object.name()) }?;
    // SAFETY: the caller promises that nobody executes there; `Reloc::new`'s that the memory is the
    // patch's own.
    unsafe { commit(platform, patch, &writes) }.inspect_err(|_| {
        // SAFETY: the caller's promise.
        unsafe { platform.clear_relocs(patch, object.name()) };
    })
}

/// Finds what [`apply`] would refuse, and shows each to `found`; writes nothing.
pub(crate) fn check<P: Platform>(
    platform: &P,
    patch: &str,
    object: &Object,
    found: &mut dyn FnMut(Error),
) {
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
    let symbol = resolve(platform, patch, reloc.symbol())?;
    let mut used = Detours::default();
    for field in reloc.fields() {
        let (mut bound, mut value) = (*field, symbol.get());
        if let Some(known) = field.known {
            bound.around.toc = Some(symbol);
            value = known;
        }
        edit(platform, patch, object, (reloc, field), writes, |bytes| {
            match relocate::<P::Relocator>(&bound, bytes, value, reloc.detours)? {
                Via::Direct => {}
                Via::Slot => used.slot = reloc.detours.slot,
                Via::Veneer => used.veneer = reloc.detours.veneer,
            }
            Ok(())
        })?;
    }
    if let Some(at) = used.slot {
        try_push(
            writes,
            Write {
                at,
                bytes: slot::<P::Relocator>(symbol)?,
            },
        )?;
    }
    if let Some(at) = used.veneer {
        try_push(
            writes,
            Write {
                at,
                bytes: P::Arch::call_veneer(at, symbol),
            },
        )?;
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
        for field in reloc.fields() {
            edit(
                platform,
                patch,
                object,
                (reloc, field),
                &mut writes,
                |bytes| P::Relocator::clear(field.kind, bytes),
            )?;
        }
    }
    // SAFETY: as in `apply`.
    unsafe { commit(platform, patch, &writes) }?;
    // SAFETY: the caller's promise.
    unsafe { platform.clear_relocs(patch, object.name()) };
    Ok(())
}

/// The address of a symbol of the patched system.
pub(crate) fn resolve<P: Platform>(
    platform: &P,
    patch: &str,
    symbol: &KlpSymbol,
) -> Result<CodeAddr, Error> {
    sympos::find(platform.symbols(), &symbol.object, &symbol.name, symbol.pos)
        .map_err(|error| Error::port("looking up symbols", patch, &error))?
        .map(|found| found.addr)
        .map_err(|why| {
            Name::new(&symbol.name).map_or(Error::OutOfMemory, |name| {
                Error::patch(
                    patch,
                    Some(&symbol.object),
                    None,
                    PatchReason::Unresolved { symbol: name, why },
                )
            })
        })
}

/// The contents of an address slot.
pub(crate) fn slot<R: Relocator>(symbol: CodeAddr) -> Result<Code, Error> {
    let symbol = symbol.get();
    let bytes = if R::BIG_ENDIAN {
        symbol.to_be_bytes()
    } else {
        symbol.to_le_bytes()
    };
    Code::from_slice(&bytes).map_err(|()| Error::Bug("an address does not fit a slot"))
}

/// Bytes that will be written.
struct Write {
    at: CodeAddr,
    bytes: Code,
}

/// Reads the bytes at a field, lets `change` change them, and notes what has changed: not more, as
/// the room of a field may hold its neighbours too.
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
    platform
        .text()
        .read(field.at, &mut old)
        .map_err(|error| Error::port("reading relocations", patch, &error))?;
    let mut new = old.clone();
    if let Err(error) = change(&mut new) {
        return Err(refused(
            patch,
            object.name(),
            &reloc.section,
            &reloc.symbol().name,
            error,
        ));
    }
    let differs = |(old, new): (&u8, &u8)| old != new;
    let Some(first) = old.iter().zip(&new).position(differs) else {
        return Ok(());
    };
    let last = old.iter().zip(&new).rposition(differs).unwrap_or(first);
    let bytes = Code::from_slice(&new[first..=last])
        .map_err(|()| Error::Bug("a part is longer than the whole"))?;
    try_push(
        writes,
        Write {
            at: field.at.wrapping_add(first as u64),
            bytes,
        },
    )?;
    Ok(())
}

/// The error for a relocation that was refused.
pub(crate) fn refused(
    patch: &str,
    object: &str,
    section: &str,
    symbol: &str,
    error: RelocError,
) -> Error {
    let reason = || -> Result<PatchReason, OutOfMemory> {
        Ok(PatchReason::Relocation {
            section: Name::new(section)?,
            symbol: Name::new(symbol)?,
            error,
        })
    };
    reason().map_or(Error::OutOfMemory, |reason| {
        Error::patch(patch, Some(object), None, reason)
    })
}

/// # Safety
///
/// As for [`Text::fill`].
unsafe fn commit<P: Platform>(platform: &P, patch: &str, writes: &[Write]) -> Result<(), Error> {
    if writes.is_empty() {
        return Ok(());
    }
    let mut batch = try_vec(writes.len())?;
    batch.extend(writes.iter().map(|write| Fill {
        at: write.at,
        bytes: &write.bytes,
    }));
    // SAFETY: the caller's promise.
    unsafe { platform.text().fill(&batch) }
        .map_err(|error| Error::port("applying relocations", patch, &error))
}
