//! The program or library that the original object files were linked into: which of its symbols is
//! which.

use crate::error::Why;
use klp_core::elf::code;
use object::elf;
use object::read::elf::{FileHeader, SectionHeader, SectionTable, Sym};
use object::{Endianness, read};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The symbols of a program or a library.
#[derive(Debug, Default)]
pub struct Target {
    /// The source files of the symbols of each name, in the order of the table; `None` for symbols
    /// that all object files were linked to. Linkers make hidden ones local, but keep them apart.
    by_name: BTreeMap<String, Vec<Named>>,
    build_id: Option<Vec<u8>>,
    /// Its sections with code, with their addresses; none if it has yet to be linked, as modules of
    /// kernels: relocations change that.
    code: Vec<(u64, Vec<u8>)>,
}

/// A symbol, of which the name is known.
#[derive(Debug)]
struct Named {
    source: Option<String>,
    addr: u64,
    len: u64,
}

impl Target {
    /// Reads an ELF file of 64 bits that is not stripped.
    ///
    /// # Errors
    ///
    /// It is no such file.
    pub fn read(file: &[u8]) -> Result<Self, read::Error> {
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
        let mut source = None;
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
            let named = target.by_name.entry(name.into_owned()).or_default();
            named.push(Named {
                source,
                addr: symbol.st_value(endian),
                len: symbol.st_size(endian),
            });
        }
        Ok(target)
    }

    /// What tells the build from all others; `None`: it was linked without `--build-id`.
    #[must_use]
    pub fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_deref()
    }

    /// Whether something tells the build from all others: its build-id, or its code.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.build_id.is_some() || !self.code.is_empty()
    }

    /// Whether object files were linked to a symbol of that name.
    pub(crate) fn defines(&self, name: &str) -> bool {
        self.by_name
            .get(name)
            .is_some_and(|all| all.iter().any(|named| named.source.is_none()))
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
        let all = self.by_name.get(name)?;
        let named = all.get(usize::try_from(position.saturating_sub(1)).ok()?)?;
        let bytes = self.code.iter().find_map(|(addr, bytes)| {
            let start = usize::try_from(named.addr.checked_sub(*addr)?).ok()?;
            bytes.get(start..start.checked_add(usize::try_from(named.len).ok()?)?)
        })?;
        Some((named.len, hex(&Sha256::digest(bytes))))
    }

    /// The position of a symbol, as livepatch symbols have it: 0 if there is no other of its name,
    /// otherwise its number among those, from 1. `source` is the name of its source file if it is
    /// local.
    pub(crate) fn position(&self, name: &str, source: Option<&str>) -> Result<u32, Why> {
        let all = self.by_name.get(name).map_or(&[][..], Vec::as_slice);
        let mut fitting = (1..)
            .zip(all)
            .filter(|(_, each)| each.source.as_deref() == source);
        match (all, fitting.next(), fitting.next()) {
            ([], ..) => Err(Why::NotInTarget),
            ([_], ..) => Ok(0),
            (_, Some((position, _)), None) => Ok(position),
            (all, ..) => Err(Why::Position { count: all.len() }),
        }
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
