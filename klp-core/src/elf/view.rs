//! A patch object's bytes as checked sections, symbols and relocations.
//!
//! The `object` crate knows where each field of ELF is; this file knows what a patch object may
//! look like. Everything is checked once, in [`View::parse`]: whoever holds a [`View`] can follow
//! its indices. No bytes make it panic.

use super::names::SYMBOL_PREFIX;
use super::{Refusal, SHF_RELA_LIVEPATCH, SHN_LIVEPATCH};
use crate::mem::{try_push, try_vec};
use crate::model::VMLINUX;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use object::elf;
use object::read::elf::{FileHeader, Rela as _, SectionHeader, SectionTable, Sym, SymbolTable};
use object::{Endianness, SymbolIndex};

type Header = elf::FileHeader64<Endianness>;

/// A patch object, checked.
///
/// # Invariants
///
/// Every section index and symbol index in it is one of its own.
#[derive(Debug)]
pub struct View<'a> {
    sections: Vec<Section<'a>>,
    symbols: Vec<Symbol<'a>>,
    /// The functions among the symbols, sorted by place.
    functions: Vec<usize>,
}

/// A section.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Its name.
    pub name: &'a str,
    /// `sh_type`.
    pub kind: u32,
    /// `sh_flags`.
    pub flags: SectionFlags,
    /// Its size in memory.
    pub len: u64,
    /// `sh_addralign`: 1 or a larger power of two.
    pub align: u64,
    /// Its bytes in the file; none if it only takes room in memory (`SHT_NOBITS`).
    pub bytes: &'a [u8],
    relas: &'a [elf::Rela64<Endianness>],
    target: usize,
    endian: Endianness,
}

bitflags::bitflags! {
    /// `sh_flags`: those that something depends on have names here.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SectionFlags: u64 {
        /// Its contents change.
        const WRITE = elf::SHF_WRITE.0;
        /// It is in memory.
        const ALLOC = elf::SHF_ALLOC.0;
        /// It is code.
        const EXECINSTR = elf::SHF_EXECINSTR.0;
        /// Each thread has its own.
        const TLS = elf::SHF_TLS.0;
        /// Its bytes in the file are compressed.
        const COMPRESSED = elf::SHF_COMPRESSED.0;
        /// It holds livepatch relocations.
        const RELA_LIVEPATCH = SHF_RELA_LIVEPATCH;
        const _ = !0;
    }
}

/// A symbol.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'a> {
    /// Its name; empty for sections' symbols.
    pub name: &'a str,
    /// `st_value`: in a section, the offset from its start.
    pub value: u64,
    /// `st_size`.
    pub len: u64,
    /// `STT_*`.
    pub kind: u8,
    /// `st_other`.
    pub other: u8,
    /// Whether it may stay undefined (`STB_WEAK`).
    pub weak: bool,
    /// Where it is defined.
    pub home: Home,
    /// Whether it is a livepatch symbol of the base image. Relocations ask for that more often than
    /// a long name should be read.
    pub(super) of_base_image: bool,
}

impl Symbol<'_> {
    /// Whether it is a variable of which each thread has its own.
    pub(super) fn is_thread_local(&self) -> bool {
        self.kind == elf::STT_TLS.0
    }
}

/// Where a symbol is defined.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Home {
    /// In another object, which exports it.
    Undefined,
    /// Nowhere: its value is what it is.
    Absolute,
    /// In the patched system (`SHN_LIVEPATCH`).
    Livepatch,
    /// In the section with this index.
    Section(usize),
}

/// A relocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rela {
    /// Where, from the start of the section to be relocated.
    pub offset: u64,
    /// The symbol's index.
    pub symbol: usize,
    /// The relocation type.
    pub kind: u32,
    /// The addend.
    pub addend: i64,
}

impl<'a> View<'a> {
    /// Checks the bytes of a patch object for the machine `machine` (`e_machine`), which has
    /// numbers with the most significant byte first if it is `big_endian`.
    ///
    /// # Errors
    ///
    /// Whatever is wrong first.
    pub fn parse(bytes: &'a [u8], machine: u16, big_endian: bool) -> Result<Self, Refusal> {
        let endian = if big_endian {
            Endianness::Big
        } else {
            Endianness::Little
        };
        let header = check_header(bytes, machine, endian)?;
        let table = header
            .sections(endian, bytes)
            .map_err(|_| Refusal::malformed("bad section table", "ELF header"))?;
        let (symbol_table, symbols) = read_symbols(&table, bytes, endian)?;
        let mut sections = try_vec(table.len())?;
        let mut names = Names::of(bytes);
        let mut left = bytes.len();
        for (index, section) in table.iter().enumerate() {
            let section = read_section((&table, endian), bytes, index, section, symbol_table)?;
            names.take(section.name)?;
            left = left.checked_sub(section.bytes.len()).ok_or_else(|| {
                Refusal::malformed("sections that share bytes of the file", section.name)
            })?;
            sections.push(section);
        }
        let mut view = Self {
            sections,
            symbols,
            functions: Vec::new(),
        };
        view.check_relas()?;
        view.index_functions()?;
        Ok(view)
    }

    /// Every section, by index; the one at index 0 is the null section.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// Every symbol, by index; the one at index 0 is the null symbol.
    #[must_use]
    pub fn symbols(&self) -> &[Symbol<'a>] {
        &self.symbols
    }

    /// The section called `name`, if there is exactly one.
    #[must_use]
    pub fn section(&self, name: &str) -> Option<(usize, &Section<'a>)> {
        let mut hits = self
            .sections
            .iter()
            .enumerate()
            .filter(|(_, section)| section.name == name);
        hits.next().filter(|_| hits.next().is_none())
    }

    /// The first value of `key` in `.modinfo`.
    #[must_use]
    pub fn modinfo(&self, key: &str) -> Option<&'a str> {
        self.modinfo_all(key).next()
    }

    /// Every value of `key` in `.modinfo`.
    pub fn modinfo_all(&self, key: &str) -> impl Iterator<Item = &'a str> {
        self.modinfo_entries().filter_map(move |entry| {
            let (name, value) = core::str::from_utf8(entry).ok()?.split_once('=')?;
            (name == key).then_some(value)
        })
    }

    /// What is in `.modinfo`, as `KEY=VALUE`.
    pub(super) fn modinfo_entries(&self) -> impl Iterator<Item = &'a [u8]> {
        let section = self.section(".modinfo");
        let bytes = section.map_or(&[][..], |(_, section)| section.bytes);
        bytes.split(|&byte| byte == 0)
    }

    /// The functions that begin at `offset` in the section with that index, by their symbols'
    /// indices: several if one has aliases.
    pub fn functions_at(&self, section: usize, offset: u64) -> impl Iterator<Item = usize> {
        let place = (Home::Section(section), offset);
        let first = self
            .functions
            .partition_point(|&index| self.place(index) < place);
        self.functions[first..]
            .iter()
            .copied()
            .take_while(move |&index| self.place(index) == place)
    }

    /// A symbol's name for messages: sections' symbols are called as their sections.
    #[must_use]
    pub fn symbol_name(&self, index: usize) -> &'a str {
        let symbol = &self.symbols[index];
        match symbol.home {
            Home::Section(section) if symbol.name.is_empty() => self.sections[section].name,
            _ => symbol.name,
        }
    }

    fn index_functions(&mut self) -> Result<(), Refusal> {
        let is_function = |symbol: &Symbol<'_>| {
            symbol.kind == elf::STT_FUNC.0
                && symbol.len > 0
                && matches!(symbol.home, Home::Section(_))
        };
        let mut functions = Vec::new();
        for (index, _) in self
            .symbols
            .iter()
            .enumerate()
            .filter(|(_, symbol)| is_function(symbol))
        {
            try_push(&mut functions, index)?;
        }
        functions.sort_unstable_by_key(|&index| self.place(index));
        self.functions = functions;
        Ok(())
    }

    fn place(&self, symbol: usize) -> (Home, u64) {
        (self.symbols[symbol].home, self.symbols[symbol].value)
    }

    fn check_relas(&self) -> Result<(), Refusal> {
        for section in &self.sections {
            if section.target >= self.sections.len() {
                return Err(Refusal::malformed(
                    "relocations of a section that does not exist",
                    section.name,
                ));
            }
            for rela in section.relas() {
                if rela.symbol >= self.symbols.len() {
                    return Err(Refusal::malformed(
                        "relocation against a symbol that does not exist",
                        section.name,
                    ));
                }
            }
        }
        Ok(())
    }
}

impl<'a> Section<'a> {
    /// Whether its type is `kind`.
    pub(super) fn is(&self, kind: elf::SectionType) -> bool {
        self.kind == kind.0
    }

    /// Whether it holds livepatch relocations, as far as its type and flags say.
    pub(super) fn is_klp_rela(&self) -> bool {
        self.is(elf::SHT_RELA) && self.flags.contains(SectionFlags::RELA_LIVEPATCH)
    }

    /// The relocations in it (`SHT_RELA`).
    pub fn relas(&self) -> impl ExactSizeIterator<Item = Rela> + Clone + 'a {
        let endian = self.endian;
        self.relas.iter().map(move |rela| Rela {
            offset: rela.r_offset(endian),
            symbol: rela.r_sym(endian, false) as usize,
            kind: rela.r_type(endian, false).0,
            addend: rela.r_addend(endian),
        })
    }

    /// The index of the section that its relocations are about (`sh_info`); 0 if it has none.
    #[must_use]
    pub const fn target(&self) -> usize {
        self.target
    }

    /// The number in the `len` bytes from `offset` on, eight at most.
    pub(super) fn number(&self, offset: u64, len: u64) -> Option<u64> {
        let bytes = self.bytes[self.range(offset, len)?].iter();
        let add = |number, byte: &u8| number << 8 | u64::from(*byte);
        Some(match self.endian {
            Endianness::Little => bytes.rev().fold(0, add),
            Endianness::Big => bytes.fold(0, add),
        })
    }

    /// The bytes from `offset` to the next NUL, as text.
    #[must_use]
    pub fn text_at(&self, offset: u64) -> Option<&'a str> {
        let tail = self.bytes.get(usize::try_from(offset).ok()?..)?;
        let end = tail.iter().position(|&byte| byte == 0)?;
        core::str::from_utf8(&tail[..end]).ok()
    }

    /// `len` bytes from `offset` on, as a range of [`bytes`](Section::bytes).
    #[must_use]
    pub fn range(&self, offset: u64, len: u64) -> Option<Range<usize>> {
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= self.bytes.len() as u64)?;
        Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
    }
}

fn check_header(bytes: &[u8], machine: u16, endian: Endianness) -> Result<&Header, Refusal> {
    let in_header = |what| Refusal::malformed(what, "ELF header");
    let (header, _) =
        object::pod::from_bytes::<Header>(bytes).map_err(|()| in_header("truncated file"))?;
    let ident = &header.e_ident;
    if ident.magic != elf::ELFMAG || ident.version != elf::EV_CURRENT {
        return Err(in_header("not an ELF file"));
    }
    if ident.class != elf::ELFCLASS64 {
        return Err(Refusal::unsupported("ELF that is not 64-bit", "ELF header"));
    }
    let (data, order) = match endian {
        Endianness::Little => (elf::ELFDATA2LSB, "ELF that is not little-endian"),
        Endianness::Big => (elf::ELFDATA2MSB, "ELF that is not big-endian"),
    };
    if ident.data != data {
        return Err(Refusal::unsupported(order, "ELF header"));
    }
    let elf::Machine(found) = header.e_machine(endian);
    if found != machine {
        return Err(Refusal::Reason(crate::error::PatchReason::ForeignMachine {
            machine: found,
            expected: machine,
        }));
    }
    if header.e_type(endian) != elf::ET_REL {
        return Err(in_header("not a relocatable file"));
    }
    Ok(header)
}

fn read_section<'a>(
    (table, endian): (&SectionTable<'a, Header>, Endianness),
    file: &'a [u8],
    index: usize,
    header: &'a elf::SectionHeader64<Endianness>,
    symbol_table: usize,
) -> Result<Section<'a>, Refusal> {
    let (kind, flags) = (elf::SHT_NULL.0, SectionFlags::empty());
    let none = Section {
        name: "",
        kind,
        flags,
        len: 0,
        align: 1,
        bytes: &[],
        relas: &[],
        target: 0,
        endian,
    };
    if header.sh_type(endian) == elf::SHT_NULL {
        return Ok(none);
    }
    let name = table
        .section_name(endian, header)
        .ok()
        .and_then(|name| core::str::from_utf8(name).ok());
    let name =
        name.ok_or_else(|| Refusal::malformed("bad section name", Index("section", index)))?;
    let mut section = Section {
        name,
        kind: header.sh_type(endian).0,
        flags: SectionFlags::from_bits_retain(header.sh_flags(endian).0),
        len: header.sh_size(endian),
        align: header.sh_addralign(endian).max(1),
        bytes: header
            .data(endian, file)
            .map_err(|_| Refusal::malformed("section reaches behind the end of the file", name))?,
        ..none
    };
    if !section.align.is_power_of_two() {
        return Err(Refusal::malformed("alignment is not a power of two", name));
    }
    if section.is(elf::SHT_RELA) {
        let relas = header.rela(endian, file).ok().flatten();
        let (relas, link) =
            relas.ok_or_else(|| Refusal::malformed("bad relocation section", name))?;
        if link.0 != symbol_table {
            return Err(Refusal::malformed(
                "relocations that use another symbol table",
                name,
            ));
        }
        section.relas = relas;
        section.target = header.sh_info(endian) as usize;
    }
    Ok(section)
}

/// The index of the symbol table's section, and the symbols.
fn read_symbols<'a>(
    table: &SectionTable<'a, Header>,
    file: &'a [u8],
    endian: Endianness,
) -> Result<(usize, Vec<Symbol<'a>>), Refusal> {
    let bad = |what| Refusal::malformed(what, "symbol table");
    let tables = table
        .iter()
        .filter(|section| section.sh_type(endian) == elf::SHT_SYMTAB)
        .count();
    if tables != 1 {
        return Err(bad("there must be exactly one"));
    }
    let symbols = table
        .symbols(endian, file, elf::SHT_SYMTAB)
        .map_err(|_| bad("it does not fit the file"))?;
    let mut read = try_vec(symbols.len())?;
    let mut names = Names::of(file);
    for (index, symbol) in symbols.iter().enumerate() {
        let symbol = read_symbol((&symbols, endian), index, symbol, table.len())?;
        names.take(symbol.name)?;
        try_push(&mut read, symbol)?;
    }
    Ok((symbols.section().0, read))
}

/// How many bytes of names may still be read.
///
/// Names may share bytes, so those of a small file could take any amount of time. Of what a
/// compiler writes, they are never many times as long as the file.
struct Names {
    left: usize,
}

impl Names {
    fn of(file: &[u8]) -> Self {
        const TIMES: usize = 64;
        Self {
            left: file.len().saturating_mul(TIMES),
        }
    }

    fn take(&mut self, name: &str) -> Result<(), Refusal> {
        let left = self.left.checked_sub(name.len());
        self.left = left.ok_or_else(|| {
            Refusal::malformed("names that share most of their bytes", "string table")
        })?;
        Ok(())
    }
}

fn read_symbol<'a>(
    (table, endian): (&SymbolTable<'a, Header>, Endianness),
    index: usize,
    symbol: &'a elf::Sym64<Endianness>,
    sections: usize,
) -> Result<Symbol<'a>, Refusal> {
    let name = table
        .symbol_name(endian, symbol)
        .ok()
        .and_then(|name| core::str::from_utf8(name).ok());
    let name = name.ok_or_else(|| Refusal::malformed("bad symbol name", Index("symbol", index)))?;
    let in_section = |section: usize| match section {
        section if (1..sections).contains(&section) => Ok(Home::Section(section)),
        _ => Err(Refusal::malformed(
            "symbol in a section that does not exist",
            name,
        )),
    };
    let home = match symbol.st_shndx(endian) {
        elf::SHN_UNDEF => Home::Undefined,
        elf::SHN_ABS => Home::Absolute,
        elf::SymbolSection(SHN_LIVEPATCH) => Home::Livepatch,
        elf::SHN_COMMON => {
            return Err(Refusal::unsupported(
                "common symbol (compile with -fno-common)",
                name,
            ));
        }
        // A table has the indices that do not fit into symbols (ELF gABI, "Special Sections",
        // `SHT_SYMTAB_SHNDX`).
        elf::SHN_XINDEX => {
            let section = table.shndx(endian, SymbolIndex(index));
            in_section(section.and_then(|it| usize::try_from(it).ok()).unwrap_or(0))?
        }
        elf::SymbolSection(elf::SHN_LORESERVE..) => {
            return Err(Refusal::unsupported("symbol in a reserved section", name));
        }
        elf::SymbolSection(section) => in_section(section.into())?,
    };
    Ok(Symbol {
        name,
        value: symbol.st_value(endian),
        len: symbol.st_size(endian),
        kind: symbol.st_type().0,
        other: symbol.st_other().0,
        weak: symbol.st_bind() == elf::STB_WEAK,
        home,
        of_base_image: home == Home::Livepatch && is_of_base_image(name),
    })
}

/// Whether `name` is that of a livepatch symbol of the base image.
fn is_of_base_image(name: &str) -> bool {
    let rest = name.strip_prefix(SYMBOL_PREFIX);
    rest.and_then(|rest| rest.strip_prefix(VMLINUX))
        .is_some_and(|rest| rest.starts_with('.'))
}

/// "section 7"
struct Index(&'static str, usize);

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}
