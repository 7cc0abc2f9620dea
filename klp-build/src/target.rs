//! The program or library that the original object files were linked into: which of its symbols is
//! which.

use crate::error::Why;
use klp_core::elf::code;
use object::elf;
use object::read::elf::{FileHeader, SectionHeader, SectionTable, Sym};
use object::{Endianness, read};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The symbols of a program or a library.
#[derive(Debug, Default)]
pub struct Target {
    /// The symbols of each name, in the order of their positions.
    by_name: BTreeMap<String, Vec<Named>>,
    /// The same of thread-local variables, which have positions of their own.
    thread_locals: BTreeMap<String, Vec<Named>>,
    /// What others define.
    imports: BTreeSet<String>,
    /// What the functions at each address are called.
    at_address: BTreeMap<u64, BTreeSet<String>>,
    build_id: Option<Vec<u8>>,
    /// Its sections with code, with their addresses; none if it has yet to be linked, as modules of
    /// kernels: relocations change that.
    code: Vec<(u64, Vec<u8>)>,
}

/// A symbol of some name.
#[derive(Debug)]
struct Named {
    /// Its source file; `None`: all object files were linked to it. Linkers make hidden ones local,
    /// but keep them apart.
    source: Option<String>,
    address: u64,
    /// Its size.
    len: u64,
    is_function: bool,
}

impl Target {
    /// Reads an ELF file of 64 bits that is not stripped: a program, a library, or a module of a
    /// kernel.
    ///
    /// # Errors
    ///
    /// It is no such file.
    pub fn read(file: &[u8]) -> Result<Self, read::Error> {
        Self::read_by(file, |_| 0)
    }

    /// The same of a Linux kernel's `vmlinux`: Linux counts its symbols by their addresses
    /// (`kallsyms_on_each_match_symbol`).
    ///
    /// # Errors
    ///
    /// It is no such file.
    pub fn read_vmlinux(file: &[u8]) -> Result<Self, read::Error> {
        Self::read_by(file, |address| address)
    }

    /// Symbols of the same `order` stay in that of the table.
    fn read_by(file: &[u8], order: impl Fn(u64) -> u64) -> Result<Self, read::Error> {
        let header = elf::FileHeader64::<Endianness>::parse(file)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, file)?;
        let symbols = sections.symbols(endian, file, elf::SHT_SYMTAB)?;
        // All that they say is there.
        for section in sections.iter() {
            section.data(endian, file)?;
        }
        let mut code = Vec::new();
        if header.e_type(endian) != elf::ET_REL {
            code::sections(file, |section| {
                let end = section.offset.saturating_add(section.len);
                let range = usize::try_from(section.offset)
                    .ok()
                    .zip(usize::try_from(end).ok());
                let bytes = range.and_then(|(start, end)| file.get(start..end));
                code.push((section.addr, bytes.unwrap_or_default().to_vec()));
            })?;
        }
        let mut target = Self {
            code,
            build_id: build_id(&sections, endian, file)?,
            ..Self::default()
        };
        let (mut source, mut found) = (None, Vec::new());
        for symbol in symbols.iter() {
            let name = String::from_utf8_lossy(symbol.name(endian, symbols.strings())?);
            let is_thing = match symbol.st_type() {
                elf::STT_FILE => {
                    source = Some(name.into_owned()).filter(|name| !name.is_empty());
                    continue;
                }
                kind => kind != elf::STT_SECTION,
            };
            let is_thread_local = symbol.st_type() == elf::STT_TLS;
            if symbol.st_shndx(endian) == elf::SHN_UNDEF {
                if is_thread_local {
                    continue;
                }
                // GNU ld writes the version behind the name: `puts@GLIBC_2.2.5`.
                let name = name.split('@').next().unwrap_or_default();
                target.imports.insert(name.to_owned());
                continue;
            }
            if !is_thing {
                continue;
            }
            let local = symbol.st_bind() == elf::STB_LOCAL;
            let source = source.clone().filter(|_| local);
            let address = symbol.st_value(endian);
            let named = Named {
                source,
                address,
                len: symbol.st_size(endian),
                is_function: symbol.st_type() == elf::STT_FUNC,
            };
            // Of thread-local variables, it is no address.
            if is_thread_local {
                let its = target.thread_locals.entry(name.into_owned());
                its.or_default().push(named);
                continue;
            }
            found.push((order(address), name.into_owned(), named));
        }
        found.sort_by_key(|(order, ..)| *order);
        for (_, name, named) in found {
            if named.is_function {
                let names = target.at_address.entry(named.address).or_default();
                names.insert(name.clone());
            }
            target.by_name.entry(name).or_default().push(named);
        }
        Ok(target)
    }

    /// What tells the build from all others; `None`: it was linked without `--build-id`.
    #[must_use]
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// Whether others define what is called so, for all object files of the target.
    pub(crate) fn imports(&self, name: &str) -> bool {
        self.imports.contains(name)
    }

    /// Whether the target has a symbol of that name, be it a local one.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Whether something tells the build from all others: its build-id, or its code.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.build_id.is_some() || !self.code.is_empty()
    }

    /// Whether object files were linked to a symbol of that name.
    pub(crate) fn defines(&self, name: &str) -> bool {
        self.named(name).iter().any(|named| named.source.is_none())
    }

    /// What the code of a function is called, of which `position` tells which one is meant.
    pub(crate) fn names_of_code(&self, name: &str, position: u32) -> Vec<String> {
        let index = usize::try_from(position.saturating_sub(1)).unwrap_or(usize::MAX);
        let named = self.named(name).get(index);
        let function = named.filter(|named| named.is_function);
        let names = function.and_then(|named| self.at_address.get(&named.address));
        names.into_iter().flatten().cloned().collect()
    }

    /// What SHA-256 makes of all its code, in hexadecimal; `None` if it has yet to be linked.
    pub(crate) fn text(&self) -> Option<String> {
        let mut digest = Sha256::new();
        self.code.iter().for_each(|(_, bytes)| digest.update(bytes));
        (!self.code.is_empty()).then(|| hex(&digest.finalize()))
    }

    /// The size of a function, and what SHA-256 makes of its code; `None` if it has yet to be
    /// linked. `position` is that of [`position`](Self::position).
    pub(crate) fn function(&self, name: &str, position: u32) -> Option<(u64, String)> {
        let all = self.named(name);
        let named = all.get(usize::try_from(position.saturating_sub(1)).ok()?)?;
        let bytes = self.code.iter().find_map(|(addr, bytes)| {
            let start = usize::try_from(named.address.checked_sub(*addr)?).ok()?;
            bytes.get(start..start.checked_add(usize::try_from(named.len).ok()?)?)
        })?;
        Some((named.len, hex(&Sha256::digest(bytes))))
    }

    /// The position of a symbol, as livepatch symbols have it: 0 if there is no other of its name,
    /// otherwise its number among those, from 1. `source` is the name of its source file if it is
    /// local.
    pub(crate) fn position(&self, name: &str, source: Option<&str>) -> Result<u32, Why> {
        position(self.named(name), source)
    }

    /// The same of a thread-local variable.
    pub(crate) fn thread_local_position(
        &self,
        name: &str,
        source: Option<&str>,
    ) -> Result<u32, Why> {
        let named = self.thread_locals.get(name);
        position(named.map_or(&[], Vec::as_slice), source)
    }

    fn named(&self, name: &str) -> &[Named] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }
}

/// The position of the one of `named` that comes from `source`.
fn position(named: &[Named], source: Option<&str>) -> Result<u32, Why> {
    let mut fitting = (1..)
        .zip(named)
        .filter(|(_, each)| each.source.as_deref() == source);
    match (named, fitting.next(), fitting.next()) {
        ([], ..) => Err(Why::NotInTarget),
        ([_], ..) => Ok(0),
        (_, Some((position, _)), None) => Ok(position),
        (named, ..) => Err(Why::Position { count: named.len() }),
    }
}

/// Bytes as `.modinfo` has them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn build_id(
    sections: &SectionTable<'_, elf::FileHeader64<Endianness>>,
    endian: Endianness,
    file: &[u8],
) -> read::Result<Option<Vec<u8>>> {
    for section in sections.iter() {
        let Some(mut notes) = section.notes(endian, file)? else {
            continue;
        };
        while let Some(note) = notes.next()? {
            if note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID {
                return Ok(Some(note.desc().to_vec()));
            }
        }
    }
    Ok(None)
}
