//! The debug sections of an object file, as a linker would lay them out.
//!
//! An object file's sections are not laid out yet. So each gets addresses of its own, and the
//! relocations of the debug sections are applied with these; sections of one name, of which
//! compilers make one for each type (`-fdebug-types-section`), become one.

use crate::unit::{Home, Reloc, Section, Unit};
use gimli::{EndianSlice, RunTimeEndian};
use object::{Endian, Endianness, elf};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;

type Result<T, E = String> = core::result::Result<T, E>;

/// Where the first section with code is.
const FIRST_ADDRESS: u64 = 0x10000;

/// The debug sections of an object file, with their relocations applied.
#[derive(Debug)]
pub(crate) struct DebugSections {
    endian: RunTimeEndian,
    contents: BTreeMap<String, Vec<u8>>,
    /// Where each section of the object file begins: those with code have addresses, the debug
    /// sections places among those of their name.
    starts: Vec<u64>,
}

impl DebugSections {
    /// Those of `unit`; `None` if it has none, or none that say anything of types.
    ///
    /// # Errors
    ///
    /// Why they cannot be read.
    pub(crate) fn read(unit: &Unit) -> Result<Option<Self>> {
        let endian = match unit.header.endian {
            Endianness::Little => RunTimeEndian::Little,
            Endianness::Big => RunTimeEndian::Big,
        };
        let (mut contents, mut starts) = (BTreeMap::<String, Vec<u8>>::new(), Vec::new());
        let mut address = FIRST_ADDRESS;
        for section in &unit.sections {
            starts.push(match debug_name(section) {
                Some(name) => {
                    let all = contents.entry(name).or_default();
                    let start = all.len() as u64;
                    all.extend_from_slice(&uncompressed(unit.header.endian, section)?);
                    start
                }
                None => {
                    let start = address;
                    address = address.saturating_add(section.len).saturating_add(64) & !15;
                    start
                }
            });
        }
        if !contents.contains_key(".debug_info") {
            return Ok(None);
        }
        for (section, start) in unit.sections.iter().zip(&starts) {
            let Some(bytes) = debug_name(section).and_then(|name| contents.get_mut(&name)) else {
                continue;
            };
            for reloc in &section.relocs {
                apply(unit, &starts, *start, reloc, bytes)
                    .ok_or_else(|| format!("a relocation of {} is not known", section.name))?;
            }
        }
        Ok(Some(Self {
            endian,
            contents,
            starts,
        }))
    }

    /// The bytes of the section with that name.
    pub(crate) fn section(&self, name: &str) -> EndianSlice<'_, RunTimeEndian> {
        let bytes = self.contents.get(name).map_or(&[][..], Vec::as_slice);
        EndianSlice::new(bytes, self.endian)
    }

    /// The address that symbol `symbol` of `unit` has here.
    pub(crate) fn address(&self, unit: &Unit, symbol: usize) -> Option<u64> {
        let start = self.starts.get(unit.section_of(symbol)?)?;
        start.checked_add(unit.symbols[symbol].value)
    }
}

/// What a debug section is called when it is not compressed.
fn debug_name(section: &Section) -> Option<String> {
    let name = section.name.replacen(".zdebug_", ".debug_", 1);
    let is_kept = name.starts_with(".debug_") && !section.has(elf::SHF_ALLOC);
    is_kept.then_some(name)
}

/// The contents of a section (ELF gABI, "Compressed sections"; older ones begin with `ZLIB`).
fn uncompressed(endian: Endianness, section: &Section) -> Result<Cow<'_, [u8]>> {
    const HEADER: usize = 24;
    const OLD_HEADER: usize = 12;
    let bytes = &section.bytes;
    let damaged = || format!("the compressed section {} is damaged", section.name);
    let (data, len) = if section.has(elf::SHF_COMPRESSED) {
        let (header, data) = bytes.split_at_checked(HEADER).ok_or_else(damaged)?;
        let kind = header.first_chunk().ok_or_else(damaged)?;
        let len = header[8..].first_chunk().ok_or_else(damaged)?;
        if endian.read_u32(*kind) != elf::ELFCOMPRESS_ZLIB.0 {
            let name = &section.name;
            return Err(format!("{name} is compressed by something else than zlib"));
        }
        (data, endian.read_u64(*len))
    } else if section.name.starts_with(".zdebug_") {
        let (header, data) = bytes.split_at_checked(OLD_HEADER).ok_or_else(damaged)?;
        let len = header.strip_prefix(b"ZLIB").and_then(<[u8]>::first_chunk);
        (data, u64::from_be_bytes(*len.ok_or_else(damaged)?))
    } else {
        return Ok(Cow::Borrowed(bytes));
    };
    let mut contents = Vec::new();
    let mut reader = flate2::read::ZlibDecoder::new(data).take(len.saturating_add(1));
    reader.read_to_end(&mut contents).map_err(|_| damaged())?;
    if contents.len() as u64 != len {
        return Err(damaged());
    }
    Ok(Cow::Owned(contents))
}

/// Applies a relocation of the debug section that is at `start` of `bytes`.
fn apply(unit: &Unit, starts: &[u64], start: u64, reloc: &Reloc, bytes: &mut [u8]) -> Option<()> {
    let Some(width) = width(unit.header.machine, reloc.kind)? else {
        return Some(());
    };
    let symbol = unit.symbols.get(reloc.symbol)?;
    let base = match symbol.home {
        Home::Section(section) => starts.get(section)?.wrapping_add(symbol.value),
        Home::Outside | Home::Absolute | Home::Common => symbol.value,
    };
    let value = base.wrapping_add_signed(reloc.addend);
    let at = usize::try_from(start.checked_add(reloc.at)?).ok()?;
    let field = bytes.get_mut(at..at.checked_add(width)?)?;
    match unit.header.endian {
        Endianness::Little => field.copy_from_slice(&value.to_le_bytes()[..width]),
        Endianness::Big => field.copy_from_slice(&value.to_be_bytes()[8 - width..]),
    }
    Some(())
}

/// The bytes of what a relocation of this kind writes; `Some(None)` if nothing here needs it: it
/// is of a thread's own variables. `None`: it is not known.
fn width(machine: elf::Machine, kind: u32) -> Option<Option<usize>> {
    let (eight, four, ignored): (_, &[_], &[_]) = match machine {
        elf::EM_X86_64 => (
            elf::R_X86_64_64,
            &[elf::R_X86_64_32, elf::R_X86_64_32S],
            &[
                elf::R_X86_64_NONE,
                elf::R_X86_64_DTPOFF64,
                elf::R_X86_64_DTPOFF32,
            ],
        ),
        elf::EM_AARCH64 => (
            elf::R_AARCH64_ABS64,
            &[elf::R_AARCH64_ABS32],
            &[elf::R_AARCH64_NONE, elf::R_AARCH64_TLS_DTPREL],
        ),
        elf::EM_PPC64 => (
            elf::R_PPC64_ADDR64,
            &[elf::R_PPC64_ADDR32],
            &[elf::R_PPC64_NONE, elf::R_PPC64_DTPREL64],
        ),
        _ => return None,
    };
    let is = |kinds: &[elf::RelocationType]| kinds.iter().any(|each| each.0 == kind);
    match () {
        () if eight.0 == kind => Some(Some(8)),
        () if is(four) => Some(Some(4)),
        () if is(ignored) => Some(None),
        () => None,
    }
}
