//! Livepatch relocations of one object: resolve and apply when it is patched, clear when it goes
//! (kernel: `klp_apply_section_relocs`, `klp_clear_object_relocs`).
//!
//! A patch object can refer to anything in the patched system, local functions too. References to
//! the base image are bound when the patch is loaded; those to other objects are kept as [`Relocs`]
//! in [`Object`] until that object is there.

use crate::addr::CodeAddr;
use crate::error::{Error, PatchReason};
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::model::Object;
pub use crate::model::reloc::{Detours, Field, KlpSymbol, Relocs};
use crate::port::{
    Access, Arch, Around, Code, Fill, Platform, RelocError, Relocation, Relocator, Support, Text,
    ThreadLocal, Via,
};
use crate::sympos;
use alloc::vec::Vec;

/// What a symbol stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    Address(CodeAddr),
    ThreadLocal(ThreadLocal),
}

/// The size of the slots of a thread-local variable: what is called its index, the same of the
/// beginning of its object's block, and its distance from the thread pointer.
pub(crate) const THREAD_LOCAL_SLOTS: u64 = 40;

/// Relocates the field in `bytes` against `symbol`, through a detour if its type asks for one or
/// the symbol is out of reach; says where it leads.
pub(crate) fn relocate<R: Relocator>(
    field: &Field,
    around: Around,
    bytes: &mut [u8],
    symbol: Value,
    detours: Detours,
) -> Result<Via, RelocError> {
    let &Field {
        at, kind, addend, ..
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
    let slot = || detours.slot.map(CodeAddr::get).ok_or(unsupported);
    match (R::support(kind).ok_or(unsupported)?, symbol) {
        (Support::None, Value::Address(symbol)) => apply(symbol.get(), Via::Direct),
        (Support::AddressSlot, Value::Address(_)) => apply(slot()?, Via::Slot),
        (Support::Veneer, Value::Address(symbol)) => {
            match (apply(symbol.get(), Via::Direct), detours.veneer) {
                (Err(RelocError::OutOfRange { .. }), Some(veneer)) => {
                    apply(veneer.get(), Via::Veneer)
                }
                (direct, _) => direct,
            }
        }
        (Support::ThreadLocal(access), Value::ThreadLocal(variable)) => {
            let from_thread_pointer = variable
                .from_thread_pointer
                .ok_or(RelocError::NotStatic { kind });
            match access {
                Access::ThreadOffset => apply(from_thread_pointer? as u64, Via::Direct),
                Access::Offset => apply(variable.offset, Via::Direct),
                Access::Index => apply(slot()?, Via::Slot),
                Access::ModuleIndex => apply(slot()?.wrapping_add(16), Via::Slot),
                Access::ThreadOffsetSlot => {
                    from_thread_pointer?;
                    apply(slot()?.wrapping_add(32), Via::Slot)
                }
            }
        }
        (Support::ThreadLocal(_), Value::Address(_)) | (_, Value::ThreadLocal(_)) => {
            Err(RelocError::OtherSymbol { kind })
        }
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
    let writes = plan(platform, patch, object, &mut Err)?;
    // The host first: what it did can always be undone.
    // SAFETY: the caller's promise.
    unsafe { platform.apply_relocs(patch, object.name()) }?;
    // SAFETY: the caller promises that nobody executes there; `Relocs`'s that the memory is the
    // patch's own.
    unsafe { writes.commit(platform, patch) }.inspect_err(|_| {
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
    let mut note = |error| {
        found(error);
        Ok(())
    };
    if let Err(error) = plan(platform, patch, object, &mut note) {
        found(error);
    }
}

/// What is known of a symbol while relocations are worked out.
struct Target {
    /// `None`: it was refused.
    value: Option<Value>,
    detours: Detours,
    /// A field leads through the slot.
    slot: bool,
    /// A field leads through the veneer.
    veneer: bool,
}

/// Works out what the relocations of `object` make of the patch's code. What is refused is shown to
/// `refuse`, which says whether to go on.
fn plan<P: Platform>(
    platform: &P,
    patch: &str,
    object: &Object,
    refuse: &mut dyn FnMut(Error) -> Result<(), Error>,
) -> Result<Writes, Error> {
    let relocs = object.relocs();
    let mut targets = try_vec(relocs.symbols().len())?;
    let symbols = relocs.symbols().zip(relocs.thread_locals());
    for ((symbol, is_thread_local), detours) in symbols.zip(relocs.detours()) {
        let value = match resolve(platform, patch, symbol, is_thread_local) {
            Ok(value) => Some(value),
            Err(error) => {
                refuse(error)?;
                None
            }
        };
        targets.push(Target {
            value,
            detours,
            slot: false,
            veneer: false,
        });
    }
    let mut writes = Writes::default();
    writes.reserve(relocs.fields().len())?;
    let shared_toc = relocs
        .shared_toc
        .map(|toc| match targets.get(toc as usize)?.value? {
            Value::Address(toc) => Some(toc),
            Value::ThreadLocal(_) => None,
        });
    for (index, field) in relocs.fields().iter().enumerate() {
        let Some(target) = targets.get_mut(field.symbol as usize) else {
            return Err(Error::Bug("a field refers to a symbol that does not exist"));
        };
        // What was not found has been refused already.
        let (Some(symbol), Some(toc)) = (
            target.value,
            shared_toc.map_or(Some(relocs.toc), |toc| toc.map(Some)),
        ) else {
            continue;
        };
        let around = Around {
            owner: field.owner,
            toc,
            pair: None,
        };
        let edited = writes.edit(platform, patch, object, index, |bytes| {
            if let Some(known) = field.known {
                let detours = Detours {
                    slot: Some(CodeAddr::new(known)),
                    veneer: None,
                };
                let known = Value::Address(CodeAddr::new(known));
                relocate::<P::Relocator>(field, around, bytes, known, detours)?;
                return Ok(());
            }
            match relocate::<P::Relocator>(field, around, bytes, symbol, target.detours)? {
                Via::Direct => {}
                Via::Slot => target.slot = true,
                Via::Veneer => target.veneer = true,
            }
            Ok(())
        });
        if let Err(error) = edited {
            refuse(error)?;
        }
    }
    for target in targets {
        let Some(value) = target.value else { continue };
        if let Some(at) = target.detours.slot.filter(|_| target.slot) {
            writes.push(at, &slot::<P::Relocator>(value))?;
        }
        let veneer = target.detours.veneer.filter(|_| target.veneer);
        if let (Some(at), Value::Address(addr)) = (veneer, value) {
            writes.push(at, &P::Arch::call_veneer(at, addr))?;
        }
    }
    Ok(writes)
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
    let mut writes = Writes::default();
    for (index, field) in object.relocs().fields().iter().enumerate() {
        writes.edit(platform, patch, object, index, |bytes| {
            P::Relocator::clear(field.kind, bytes)
        })?;
    }
    // SAFETY: as in `apply`.
    unsafe { writes.commit(platform, patch) }?;
    // SAFETY: the caller's promise.
    unsafe { platform.clear_relocs(patch, object.name()) };
    Ok(())
}

/// What a symbol of the patched system stands for.
pub(crate) fn resolve<P: Platform>(
    platform: &P,
    patch: &str,
    symbol: KlpSymbol<'_>,
    is_thread_local: bool,
) -> Result<Value, Error> {
    let KlpSymbol { object, name, pos } = symbol;
    let symbols = platform.symbols();
    let found = if is_thread_local {
        let found = sympos::find_thread_local(symbols, object, name, pos);
        found.map(|found| found.map(Value::ThreadLocal))
    } else {
        let found = sympos::find_reference(symbols, object, name, pos);
        found.map(|found| found.map(|found| Value::Address(found.addr)))
    };
    found
        .map_err(|error| Error::port("looking up symbols", patch, &error))?
        .map_err(|why| {
            Name::new(symbol.name).map_or(Error::OutOfMemory, |name| {
                Error::patch(
                    patch,
                    Some(symbol.object),
                    None,
                    PatchReason::Unresolved { symbol: name, why },
                )
            })
        })
}

/// The contents of a symbol's slots.
pub(crate) fn slot<R: Relocator>(
    symbol: Value,
) -> heapless::Vec<u8, { THREAD_LOCAL_SLOTS as usize }> {
    let words: &[u64] = match symbol {
        Value::Address(addr) => &[addr.get()],
        Value::ThreadLocal(ThreadLocal {
            module,
            offset,
            from_thread_pointer,
        }) => {
            // What is not known is not asked for.
            let from_thread_pointer = from_thread_pointer.unwrap_or(0) as u64;
            &[module, offset, module, 0, from_thread_pointer]
        }
    };
    let bytes = words.iter().flat_map(|word| match R::BIG_ENDIAN {
        true => word.to_be_bytes(),
        false => word.to_le_bytes(),
    });
    bytes.collect()
}

/// Bytes that will be written.
#[derive(Default)]
struct Writes {
    /// One behind the other.
    bytes: Vec<u8>,
    places: Vec<Write>,
    before: Piece,
}

/// Where some of the bytes go.
struct Write {
    at: CodeAddr,
    len: usize,
}

impl Writes {
    /// Makes room for so many fields, as large as most are.
    fn reserve(&mut self, fields: usize) -> Result<(), OutOfMemory> {
        self.bytes.try_reserve(fields * 4)?;
        Ok(self.places.try_reserve(fields)?)
    }

    /// Notes that `bytes` go to `at`.
    fn push(&mut self, at: CodeAddr, bytes: &[u8]) -> Result<(), OutOfMemory> {
        self.bytes.try_reserve(bytes.len())?;
        let last = self.places.last_mut();
        match last.filter(|last| last.at.wrapping_add(last.len as u64) == at) {
            Some(last) => last.len += bytes.len(),
            None => {
                let len = bytes.len();
                try_push(&mut self.places, Write { at, len })?;
            }
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads the bytes at field number `index`, lets `change` change them, and notes what has
    /// changed: not more, as the room of a field may hold its neighbours too.
    fn edit<P: Platform>(
        &mut self,
        platform: &P,
        patch: &str,
        object: &Object,
        index: usize,
        change: impl FnOnce(&mut [u8]) -> Result<(), RelocError>,
    ) -> Result<(), Error> {
        let fields = object.relocs().fields().get(index..).unwrap_or_default();
        let Some(field) = fields.first() else {
            return Err(Error::Bug("there are fewer fields"));
        };
        let old = { self.before.bytes_at(platform.text(), fields) }
            .map_err(|error| Error::port("reading relocations", patch, &error))?;
        let mut new = Code::from_slice(old)
            .map_err(|()| Error::Bug("a field has more room than any relocation needs"))?;
        if let Err(error) = change(&mut new) {
            let (section, symbol) = object.relocs().names_of(index);
            return Err(refused(patch, object.name(), section, symbol, error));
        }
        let differs = |(old, new): (&u8, &u8)| old != new;
        let Some(first) = old.iter().zip(&new).position(differs) else {
            return Ok(());
        };
        let last = old.iter().zip(&new).rposition(differs).unwrap_or(first);
        let at = field.at.wrapping_add(first as u64);
        self.push(at, &new[first..=last])?;
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`Text::fill`].
    unsafe fn commit<P: Platform>(&self, platform: &P, patch: &str) -> Result<(), Error> {
        if self.places.is_empty() {
            return Ok(());
        }
        let mut batch = try_vec(self.places.len())?;
        let mut rest = &*self.bytes;
        for write in &self.places {
            let (bytes, behind) = rest.split_at(write.len);
            let at = write.at;
            batch.push(Fill { at, bytes });
            rest = behind;
        }
        // SAFETY: the caller's promise.
        unsafe { platform.text().fill(&batch) }
            .map_err(|error| Error::port("applying relocations", patch, &error))
    }
}

/// A piece of the patch's memory, as it is before anything is written. Fields lie close together:
/// so a piece is read for several of them at once.
#[derive(Default)]
struct Piece {
    start: CodeAddr,
    bytes: heapless::Vec<u8, { Self::LEN as usize }>,
}

impl Piece {
    const LEN: u64 = 256;
    /// The parts of an image begin on pages of their own: all between two fields on a page can be
    /// read, as they can.
    const PAGE: u64 = 4096;

    /// The bytes at the first of `fields`. Those at the next ones are read with them.
    fn bytes_at<T: Text>(&mut self, text: &T, fields: &[Field]) -> Result<&[u8], T::Error> {
        let Some(field) = fields.first() else {
            return Ok(&[]);
        };
        if self.known(field).is_none() {
            let at = field.at.get();
            let limit = Self::LEN.min(Self::PAGE - at % Self::PAGE);
            let ends = fields.iter().map(|next| {
                let start = next.at.get().wrapping_sub(at);
                start.saturating_add(u64::from(next.room))
            });
            let len = ends.take_while(|end| *end <= limit).max();
            let len = len.unwrap_or_default().max(u64::from(field.room));
            let mut bytes = heapless::Vec::new();
            // It fits, as `room` does.
            let _ = bytes.resize_default(len as usize);
            text.read(field.at, &mut bytes)?;
            *self = Self {
                start: field.at,
                bytes,
            };
        }
        Ok(self.known(field).unwrap_or_default())
    }

    fn known(&self, field: &Field) -> Option<&[u8]> {
        let start = field.at.get().wrapping_sub(self.start.get());
        let bytes = self.bytes.get(usize::try_from(start).ok()?..)?;
        bytes.get(..usize::from(field.room))
    }
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
