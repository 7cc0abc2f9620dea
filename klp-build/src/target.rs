//! The program or library that the original object files were linked into: which of its symbols is
//! which.

use crate::error::Why;
use object::elf;
use object::read::elf::{FileHeader, SectionHeader, SectionTable, Sym};
use object::{Endianness, read};
use std::collections::{BTreeMap, BTreeSet};

/// The symbols of a program or a library.
#[derive(Debug, Default)]
pub struct Target {
    /// The symbols of each name, in the order of their positions.
    by_name: BTreeMap<String, Vec<Named>>,
    /// What the functions at each address are called.
    at_address: BTreeMap<u64, BTreeSet<String>>,
    build_id: Option<Vec<u8>>,
}

/// A symbol of some name.
#[derive(Debug)]
struct Named {
    /// Its source file; `None`: all object files were linked to it. Linkers make hidden ones local,
    /// but keep them apart.
    source: Option<String>,
    /// Where it is, if it is a function.
    function: Option<u64>,
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
        let mut target = Self {
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
                elf::STT_SECTION | elf::STT_TLS => false,
                _ => true,
            };
            if !is_thing || symbol.st_shndx(endian) == elf::SHN_UNDEF {
                continue;
            }
            let local = symbol.st_bind() == elf::STB_LOCAL;
            let source = source.clone().filter(|_| local);
            let address = symbol.st_value(endian);
            let function = (symbol.st_type() == elf::STT_FUNC).then_some(address);
            let named = Named { source, function };
            found.push((order(address), name.into_owned(), named));
        }
        found.sort_by_key(|(order, ..)| *order);
        for (_, name, named) in found {
            if let Some(address) = named.function {
                let names = target.at_address.entry(address).or_default();
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

    /// Whether object files were linked to a symbol of that name.
    pub(crate) fn defines(&self, name: &str) -> bool {
        self.named(name).iter().any(|named| named.source.is_none())
    }

    /// What the code of a function is called, of which `position` tells which one is meant.
    pub(crate) fn names_of_code(&self, name: &str, position: u32) -> Vec<String> {
        let index = usize::try_from(position.saturating_sub(1)).unwrap_or(usize::MAX);
        let named = self.named(name).get(index);
        let address = named.and_then(|named| named.function);
        let names = address.and_then(|address| self.at_address.get(&address));
        names.into_iter().flatten().cloned().collect()
    }

    /// The position of a symbol, as livepatch symbols have it: 0 if there is no other of its name,
    /// otherwise its number among those, from 1. `source` is the name of its source file if it is
    /// local.
    pub(crate) fn position(&self, name: &str, source: Option<&str>) -> Result<u32, Why> {
        let named = self.named(name);
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

    fn named(&self, name: &str) -> &[Named] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }
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
