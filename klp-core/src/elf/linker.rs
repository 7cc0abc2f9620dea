//! Builds the contents of a patch object's image: copies sections and binds references (ELF gABI,
//! "Relocation").

use super::Refusal;
use super::layout::{Layout, Part, Spot};
use super::manifest::ObjectEntry;
use super::names::{RelaName, SymbolName};
use super::view::{Home, Rela, Section, SectionFlags, Symbol, View};
use crate::addr::CodeAddr;
use crate::error::{Error, PatchReason, SymbolFault};
use crate::mem::{Name, try_push, try_vec};
use crate::model::VMLINUX;
use crate::port::{
    Arch, Around, Fill, Image, Owner, Platform, Relocator, Support, SymbolResolver, Text, Via,
};
use crate::relocs::{self, Detours, Field, KlpSymbol, Relocs, Value};
use alloc::vec::Vec;
use object::elf;

/// Builds the contents of an image.
pub(super) struct Linker<'a, 'v, P: Platform> {
    platform: &'v P,
    patch: &'v str,
    view: &'v View<'a>,
    layout: &'v Layout,
    image: Image,
    text: Vec<u8>,
    rodata: Vec<u8>,
    /// What is not just zeros.
    data: Vec<u8>,
    /// By symbol index, once they are known.
    values: Vec<Option<Value>>,
    /// The base of the table of contents.
    toc: Option<CodeAddr>,
}

/// The livepatch relocations that wait for one object.
pub(super) struct Waiting<'a> {
    pub(super) object: &'a str,
    pub(super) relocs: Relocs,
}

/// The symbol by whose number fields wait for the table of contents of the patched object: the null
/// symbol, which is no livepatch symbol, before all symbols get their numbers in [`Relocs`].
const TOC: u32 = 0;

impl<'a, 'v, P: Platform> Linker<'a, 'v, P> {
    /// Copies the sections.
    pub(super) fn new(
        platform: &'v P,
        patch: &'v str,
        view: &'v View<'a>,
        layout: &'v Layout,
        image: Image,
    ) -> Result<Self, Error> {
        let mut values = try_vec(view.symbols().len())?;
        values.resize(view.symbols().len(), None);
        let mut linker = Self {
            platform,
            patch,
            view,
            layout,
            image,
            text: filled(layout.size.text, P::Arch::FILL)?,
            rodata: filled(layout.size.rodata, 0)?,
            data: filled(layout.filled_data, 0)?,
            values,
            toc: P::Relocator::OWN_TOC.map(|_| layout.toc.addr(&image)),
        };
        for (section, spot) in view.sections().iter().zip(&layout.sections) {
            if let (Some(spot), false) = (*spot, section.bytes.is_empty()) {
                linker
                    .bytes_at(spot, section.bytes.len())?
                    .copy_from_slice(section.bytes);
            }
        }
        Ok(linker)
    }

    /// Binds every reference that can be bound now, and returns the others.
    pub(super) fn link(&mut self, objects: &[ObjectEntry<'a>]) -> Result<Vec<Waiting<'a>>, Error> {
        let view = self.view;
        let mut waiting = Vec::new();
        for relas in view.sections() {
            let Some(spot) = self.layout.sections[relas.target()] else {
                if relas.is_klp_rela() {
                    return Err(self.malformed(
                        "livepatch relocations of a section that is not loaded",
                        relas.name,
                    ));
                }
                continue;
            };
            let object = if relas.flags.contains(SectionFlags::RELA_LIVEPATCH) {
                self.check_klp_relas(relas)?
            } else {
                self.check_plain_relas(relas)?;
                VMLINUX
            };
            if object == VMLINUX {
                for rela in relas.relas() {
                    if self.shares_toc(rela) {
                        self.put_off_toc(objects, relas, spot, rela, &mut waiting)?;
                    } else {
                        self.bind(object, relas, spot, rela)?;
                    }
                }
            } else if objects.iter().any(|entry| entry.name == object) {
                let relocs = self.waiting_for(object, relas, &mut waiting)?;
                for rela in relas.relas() {
                    let field = self.field(relas, spot, rela)?;
                    // SAFETY: `field` checks that it lies in its section, which is memory of the
                    // image, and not freed before the patch is gone (`LoadedImage::unload`).
                    unsafe { relocs.add_field(field) }?;
                }
            } else {
                return Err(self.malformed(
                    "livepatch relocations wait for an object that is not patched",
                    relas.name,
                ));
            }
        }
        self.fill_slots()?;
        self.name_symbols(objects, &mut waiting)?;
        Ok(waiting)
    }

    /// Writes the contents into the image.
    pub(super) fn fill(&self) -> Result<(), Error> {
        let parts = [
            (self.image.text, &self.text),
            (self.image.rodata, &self.rodata),
            (self.image.data, &self.data),
        ];
        let mut batch = heapless::Vec::<Fill<'_>, 3>::new();
        batch.extend(
            parts
                .iter()
                .filter(|(_, bytes)| !bytes.is_empty())
                .map(|(part, bytes)| Fill {
                    at: part.start(),
                    bytes,
                }),
        );
        // SAFETY: the image is newly allocated, as large as its layout, and nobody knows of it yet.
        unsafe { self.platform.text().fill(&batch) }
            .map_err(|error| Error::port("filling memory for the patch object", self.patch, &error))
    }

    /// The contents of a section, as they will be in memory; `None` if they will not be there, or
    /// are only zeros.
    pub(super) fn contents(&self, section: usize) -> Option<&[u8]> {
        let spot = self.layout.sections[section]?;
        let part = match spot.part {
            Part::Text => &self.text,
            Part::Rodata => &self.rodata,
            Part::Data => &self.data,
        };
        part.get(usize::try_from(spot.offset).ok()?..)?
            .get(..self.view.sections()[section].bytes.len())
    }

    /// Checks a relocation section that is not livepatch.
    fn check_plain_relas(&self, relas: &Section<'a>) -> Result<(), Error> {
        let symbols = relas.relas().map(|rela| &self.view.symbols()[rela.symbol]);
        match { symbols }.find(|symbol| symbol.home == Home::Livepatch) {
            Some(symbol) => {
                let what = "livepatch symbol used outside of livepatch relocations";
                Err(self.malformed(what, symbol.name))
            }
            None => Ok(()),
        }
    }

    /// Checks a livepatch relocation section and returns the object that it waits for.
    fn check_klp_relas(&self, relas: &Section<'a>) -> Result<&'a str, Error> {
        let waits_for = RelaName::parse(relas.name)
            .map_err(|_| self.malformed("section has an incorrectly formatted name", relas.name))?
            .object;
        let mut offsets = try_vec(relas.relas().len())?;
        offsets.extend(relas.relas().map(|rela| rela.offset));
        offsets.sort_unstable();
        if offsets.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(self.malformed("two livepatch relocations of one field", relas.name));
        }
        for rela in relas.relas() {
            let symbol = &self.view.symbols()[rela.symbol];
            if symbol.home != Home::Livepatch {
                let name = self.view.symbol_name(rela.symbol);
                return Err(self.malformed("symbol is not marked as a livepatch symbol", name));
            }
            if waits_for != VMLINUX && symbol.of_base_image {
                let what = "invalid access to vmlinux symbol from module-specific livepatch relocation section";
                return Err(self.malformed(what, symbol.name));
            }
        }
        Ok(waits_for)
    }

    /// Relocates one field of the contents.
    fn bind(
        &mut self,
        object: &str,
        relas: &Section<'a>,
        spot: Spot,
        rela: Rela,
    ) -> Result<(), Error> {
        let mut field = self.field(relas, spot, rela)?;
        let mut around = Around {
            owner: field.owner,
            toc: self.toc,
            pair: None,
        };
        let rela = if P::Relocator::completes(rela.kind) {
            let first = self.completed(relas, rela)?;
            around.pair = Some(spot.addr(&self.image).wrapping_add(first.offset));
            around.owner = self.owner(first.symbol);
            field.addend = first.addend;
            Rela {
                symbol: first.symbol,
                ..rela
            }
        } else {
            rela
        };
        let value = self.value(rela.symbol)?;
        let detours = self.detours(rela.symbol);
        let spot = Spot {
            offset: spot.offset + rela.offset,
            ..spot
        };
        let bytes = self.bytes_at(spot, usize::from(field.room))?;
        let via = relocs::relocate::<P::Relocator>(&field, around, bytes, value, detours).map_err(
            |error| {
                relocs::refused(
                    self.patch,
                    object,
                    self.view.sections()[relas.target()].name,
                    self.view.symbol_name(rela.symbol),
                    error,
                )
            },
        )?;
        if let (Via::Veneer, Some(spot), Some(at)) =
            (via, self.layout.veneers[rela.symbol], detours.veneer)
        {
            if let Value::Address(value) = value {
                let veneer = P::Arch::call_veneer(at, value);
                self.bytes_at(spot, veneer.len())?.copy_from_slice(&veneer);
            }
        }
        Ok(())
    }

    /// The relocation of `relas` that `rela` completes.
    fn completed(&self, relas: &Section<'a>, rela: Rela) -> Result<Rela, Error> {
        let symbol = &self.view.symbols()[rela.symbol];
        let here = symbol.home == Home::Section(relas.target());
        let first = relas
            .relas()
            .find(|first| first.offset == symbol.value && !P::Relocator::completes(first.kind));
        first.filter(|_| here).ok_or_else(|| {
            self.malformed(
                "relocation completes none of its section",
                self.view.symbol_name(rela.symbol),
            )
        })
    }

    /// Gives the symbols that fields wait for their numbers in [`Relocs`], and their names.
    fn name_symbols(
        &self,
        objects: &[ObjectEntry<'a>],
        waiting: &mut [Waiting<'a>],
    ) -> Result<(), Error> {
        let mut numbers = try_vec(self.view.symbols().len())?;
        numbers.resize(self.view.symbols().len(), TOC);
        for Waiting { object, relocs } in waiting {
            let mut used = try_vec(relocs.fields().len())?;
            used.extend(relocs.fields().iter().map(|field| field.symbol));
            used.sort_unstable();
            used.dedup();
            for index in used.into_iter().filter(|&index| index != TOC) {
                let is_thread_local = self.view.symbols()[index as usize].is_thread_local();
                let symbol = self.klp_symbol(&self.view.symbols()[index as usize])?;
                let detours = self.detours(index as usize);
                // SAFETY: the detours of the layout are this symbol's own, in memory of the image.
                numbers[index as usize] = unsafe {
                    match is_thread_local {
                        true => relocs.add_thread_local(symbol, detours),
                        false => relocs.add_symbol(symbol, detours),
                    }
                }?;
            }
            let waits_for_toc =
                |field: &Field| field.symbol == TOC || P::Relocator::uses_toc(field.kind);
            if let (Some(name), true) = (
                P::Relocator::SHARED_TOC,
                relocs.fields().iter().any(waits_for_toc),
            ) {
                if objects.len() != 1 {
                    let what = "table of contents of several objects";
                    return Err(Refusal::unsupported(what, name).of(self.patch));
                }
                let pos = 0;
                let symbol = KlpSymbol { object, name, pos };
                numbers[TOC as usize] = relocs.add_shared_toc(symbol)?;
            }
            for field in relocs.fields_mut() {
                field.symbol = numbers[field.symbol as usize];
            }
        }
        Ok(())
    }

    /// Whether `rela` depends on the table of contents of the patched object.
    fn shares_toc(&self, rela: Rela) -> bool {
        P::Relocator::SHARED_TOC.is_some()
            && (P::Relocator::uses_toc(rela.kind) || self.is_toc(rela.symbol))
    }

    fn is_toc(&self, symbol: usize) -> bool {
        let symbol = &self.view.symbols()[symbol];
        symbol.home == Home::Undefined && P::Relocator::SHARED_TOC == Some(symbol.name)
    }

    /// Lets `rela`, which depends on the table of contents of the patched object, wait for that.
    fn put_off_toc(
        &mut self,
        objects: &[ObjectEntry<'a>],
        relas: &Section<'a>,
        spot: Spot,
        rela: Rela,
        waiting: &mut Vec<Waiting<'a>>,
    ) -> Result<(), Error> {
        let [object] = objects else {
            let what = "table of contents of several objects";
            let section = self.view.sections()[relas.target()].name;
            return Err(Refusal::unsupported(what, section).of(self.patch));
        };
        let mut field = self.field(relas, spot, rela)?;
        if self.view.symbols()[rela.symbol].home != Home::Livepatch {
            field.symbol = TOC;
            let (is_toc, uses_toc) = (self.is_toc(rela.symbol), P::Relocator::uses_toc(rela.kind));
            let slot = match P::Relocator::support(rela.kind) {
                Some(Support::AddressSlot) => self.detours(rela.symbol).slot,
                _ => None,
            };
            if !is_toc {
                let Value::Address(value) = self.value(rela.symbol)? else {
                    return Err(Error::Bug("what the image defines is thread-local"));
                };
                field.known = Some(slot.unwrap_or(value).get());
            } else if slot.is_some() {
                let (what, name) = ("slot for the base of a table of contents", relas.name);
                return Err(Refusal::unsupported(what, name).of(self.patch));
            } else if uses_toc {
                // The base itself, and no distance from it.
                field.known = Some(0);
            }
        }
        // SAFETY: as in `link`.
        Ok(unsafe {
            self.waiting_for(object.name, relas, waiting)?
                .add_field(field)
        }?)
    }

    /// What waits for `object`, with the section that `relas` are of as the last one.
    fn waiting_for<'w>(
        &self,
        object: &'a str,
        relas: &Section<'a>,
        waiting: &'w mut Vec<Waiting<'a>>,
    ) -> Result<&'w mut Relocs, Error> {
        let known = waiting.iter().position(|other| other.object == object);
        let index = known.unwrap_or(waiting.len());
        if known.is_none() {
            let relocs = Relocs::with_toc(self.toc);
            try_push(waiting, Waiting { object, relocs })?;
        }
        let found = waiting.get_mut(index).map(|waiting| &mut waiting.relocs);
        let relocs = found.ok_or(Error::Bug("what was added is gone"))?;
        relocs.begin_section(self.view.sections()[relas.target()].name)?;
        Ok(relocs)
    }

    /// The field of `rela`, one of `relas`, in the section that these are of.
    fn field(&self, relas: &Section<'_>, spot: Spot, rela: Rela) -> Result<Field, Error> {
        let section = &self.view.sections()[relas.target()];
        let left = (section.bytes.len() as u64)
            .checked_sub(rela.offset)
            .filter(|&left| left > 0);
        let left = left.ok_or_else(|| {
            self.malformed("relocation behind the end of its section", section.name)
        })?;
        Ok(Field {
            at: spot.addr(&self.image).wrapping_add(rela.offset),
            kind: rela.kind,
            addend: rela.addend,
            room: left.min(P::Relocator::MAX_LEN as u64) as u8,
            owner: self.owner(rela.symbol),
            // Symbols of ELF have numbers of 32 bits.
            symbol: u32::try_from(rela.symbol).map_err(|_| Error::OutOfMemory)?,
            known: None,
        })
    }

    fn owner(&self, index: usize) -> Owner {
        let symbol = &self.view.symbols()[index];
        match symbol.home {
            Home::Undefined | Home::Livepatch => Owner::System,
            Home::Absolute | Home::Section(_) => Owner::Image {
                other: symbol.other,
            },
        }
    }

    /// What a symbol stands for, bound at its first use.
    fn value(&mut self, index: usize) -> Result<Value, Error> {
        if let Some(value) = self.values[index] {
            return Ok(value);
        }
        let symbol = &self.view.symbols()[index];
        let unsupported = |what| Err(Refusal::unsupported(what, symbol.name).of(self.patch));
        let addr = match (elf::SymbolType(symbol.kind), symbol.home) {
            (elf::STT_GNU_IFUNC, _) => return unsupported("indirect function"),
            (_, Home::Livepatch) => {
                let value = self.resolve(symbol)?;
                self.values[index] = Some(value);
                return Ok(value);
            }
            (elf::STT_TLS, _) => return unsupported("thread-local symbol"),
            (_, Home::Absolute) => symbol.value,
            (_, Home::Section(section)) => match self.layout.sections[section] {
                Some(spot) => spot.addr(&self.image).get().wrapping_add(symbol.value),
                None => {
                    return Err(self.malformed(
                        "reference to a section that is not loaded",
                        self.view.symbol_name(index),
                    ));
                }
            },
            (_, Home::Undefined) if index == 0 => 0,
            (_, Home::Undefined) if P::Relocator::OWN_TOC == Some(symbol.name) => {
                self.layout.toc.addr(&self.image).get()
            }
            (_, Home::Undefined) => match self.exported(symbol)? {
                Some(addr) => addr.get(),
                None if symbol.weak => 0,
                None => {
                    let reason = PatchReason::Unresolved {
                        symbol: Name::new(symbol.name)?,
                        why: SymbolFault::NotFound,
                    };
                    return Err(Error::patch(self.patch, None, None, reason));
                }
            },
        };
        let value = Value::Address(CodeAddr::new(addr));
        self.values[index] = Some(value);
        Ok(value)
    }

    fn exported(&self, symbol: &Symbol<'_>) -> Result<Option<CodeAddr>, Error> {
        let symbols = self.platform.symbols();
        symbols
            .exported(symbol.name)
            .map_err(|error| Error::port("looking up symbols", self.patch, &error))
    }

    fn resolve(&self, symbol: &Symbol<'a>) -> Result<Value, Error> {
        let is_thread_local = symbol.is_thread_local();
        let symbol = self.klp_symbol(symbol)?;
        relocs::resolve(self.platform, self.patch, symbol, is_thread_local)
    }

    fn klp_symbol(&self, symbol: &Symbol<'a>) -> Result<KlpSymbol<'a>, Error> {
        let SymbolName { object, name, pos } = SymbolName::parse(symbol.name)
            .map_err(|_| self.malformed("symbol has an incorrectly formatted name", symbol.name))?;
        Ok(KlpSymbol { object, name, pos })
    }

    /// Puts the addresses that are known into their slots.
    fn fill_slots(&mut self) -> Result<(), Error> {
        for index in 0..self.values.len() {
            if let (Some(value), Some(spot)) = (self.values[index], self.layout.slots[index]) {
                let slot = relocs::slot::<P::Relocator>(value);
                self.bytes_at(spot, slot.len())?.copy_from_slice(&slot);
            }
        }
        Ok(())
    }

    fn detours(&self, symbol: usize) -> Detours {
        Detours {
            slot: self.layout.slots[symbol].map(|spot| spot.addr(&self.image)),
            veneer: self.layout.veneers[symbol].map(|spot| spot.addr(&self.image)),
        }
    }

    fn bytes_at(&mut self, spot: Spot, len: usize) -> Result<&mut [u8], Error> {
        let part = match spot.part {
            Part::Text => &mut self.text,
            Part::Rodata => &mut self.rodata,
            Part::Data => &mut self.data,
        };
        let start = usize::try_from(spot.offset).map_err(|_| Error::OutOfMemory)?;
        let bytes = part.get_mut(start..).and_then(|tail| tail.get_mut(..len));
        bytes.ok_or(Error::Bug("a section lies outside of the image"))
    }

    fn malformed(&self, what: &'static str, place: &str) -> Error {
        Refusal::malformed(what, place).of(self.patch)
    }
}

fn filled(len: u64, with: u8) -> Result<Vec<u8>, Error> {
    let len = usize::try_from(len).map_err(|_| Error::OutOfMemory)?;
    let mut bytes = try_vec(len)?;
    bytes.resize(len, with);
    Ok(bytes)
}
