//! The parts of an object's file that are not mapped: its symbol table and the addresses of its
//! sections.

use core::hash::BuildHasher;
use klp_core::addr::{CodeAddr, TextRange};
use object::LittleEndian;
use object::elf::{
    FileHeader64, SHN_UNDEF, SHT_DYNSYM, SHT_NOTE, SHT_SYMTAB, STB_LOCAL, STT_FUNC, STT_NOTYPE,
    STT_OBJECT, SectionType, Sym64,
};
use object::read::elf::{FileHeader, SectionHeader, SectionTable, Sym};
use object::{ReadCache, ReadRef};
use std::collections::HashMap;
use std::fs::File;
use std::hash::RandomState;
use std::path::Path;
use std::sync::OnceLock;

const LE: LittleEndian = LittleEndian;

/// What was read of an object's file. Addresses are the file's own.
#[derive(Debug, Default)]
pub(crate) struct ElfFile {
    pub(crate) build_id: Option<Vec<u8>>,
    sections: Vec<(String, u64, u64)>,
    symbols: Vec<Symbol>,
    names: Vec<u8>,
    by_name: NameIndex,
    functions: OnceLock<Vec<(u64, u64, usize)>>,
    /// Symbols called `NAME.cold` or `NAME.cold.N`, each with the length of `NAME`, sorted by that.
    parts: OnceLock<Vec<(usize, usize)>>,
}

/// A symbol that has an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    name: u32,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) local: bool,
    function: bool,
}

/// Symbols by the hash of their names; those with the same hash are chained in the table's order.
#[derive(Debug, Default)]
struct NameIndex {
    hasher: RandomState,
    first: HashMap<u64, usize>,
    next: Vec<Option<usize>>,
}

impl ElfFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as the end of a sentence about it.
    pub(crate) fn read(path: &Path) -> Result<Self, &'static str> {
        let file = File::open(path).map_err(|_| "cannot be opened")?;
        let cache = ReadCache::new(file);
        Self::parse(&cache).map_err(|_| "is not an ELF file that can be read")
    }

    fn parse<'a, R: ReadRef<'a>>(data: R) -> object::Result<Self> {
        let header = FileHeader64::<LittleEndian>::parse(data)?;
        let sections = header.sections(LE, data)?;
        let mut file = Self::default();
        for section in sections.iter() {
            let name = String::from_utf8_lossy(sections.section_name(LE, section)?).into_owned();
            file.sections
                .push((name, section.sh_addr(LE), section.sh_size(LE)));
            if section.sh_type(LE) == SHT_NOTE && file.build_id.is_none() {
                file.build_id = build_id(section.data(LE, data)?).map(<[u8]>::to_vec);
            }
        }
        for kind in [SHT_SYMTAB, SHT_DYNSYM] {
            if file.read_symbols(&sections, kind, data)? {
                break;
            }
        }
        file.by_name = NameIndex::new(&file);
        Ok(file)
    }

    /// Reads the symbol table of type `kind`; says whether there is one.
    fn read_symbols<'a, R: ReadRef<'a>>(
        &mut self,
        sections: &SectionTable<'a, FileHeader64<LittleEndian>, R>,
        kind: SectionType,
        data: R,
    ) -> object::Result<bool> {
        let Some((section, symbols)) = sections.iter().find_map(|section| {
            let symbols: &[Sym64<LittleEndian>] = section.data_as_array(LE, data).ok()?;
            (section.sh_type(LE) == kind).then_some((section, symbols))
        }) else {
            return Ok(false);
        };
        let names = sections.section(object::SectionIndex(section.sh_link(LE) as usize))?;
        self.names = names.data(LE, data)?.to_vec();
        let has_address = |symbol: &&Sym64<LittleEndian>| {
            symbol.st_shndx(LE) != SHN_UNDEF
                && matches!(symbol.st_type(), STT_FUNC | STT_OBJECT | STT_NOTYPE)
        };
        self.symbols = symbols
            .iter()
            .filter(has_address)
            .map(|symbol| Symbol {
                name: symbol.st_name(LE),
                addr: symbol.st_value(LE),
                len: symbol.st_size(LE),
                local: symbol.st_bind() == STB_LOCAL,
                function: symbol.st_type() == STT_FUNC,
            })
            .collect();
        Ok(true)
    }

    /// The address and length of the section `name`.
    pub(crate) fn section(&self, name: &str) -> Option<TextRange> {
        let (_, addr, len) = self.sections.iter().find(|(each, ..)| each == name)?;
        TextRange::new(CodeAddr::new(*addr), *len)
    }

    /// The symbols called `name`, in the order of the table.
    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Symbol> {
        self.by_name
            .find(name.as_bytes())
            .filter_map(|index| self.symbols.get(index))
            .filter(move |symbol| self.name_bytes(symbol) == name.as_bytes())
    }

    /// The function that `addr` lies in, and its symbol.
    pub(crate) fn function_at(&self, addr: u64) -> Option<&Symbol> {
        let functions = self.functions.get_or_init(|| self.sorted_functions());
        let behind = functions.partition_point(|&(start, ..)| start <= addr);
        let (_, end, index) = *functions.get(behind.checked_sub(1)?)?;
        if addr < end {
            self.symbols.get(index)
        } else {
            None
        }
    }

    /// The parts that a compiler split off functions called `name`.
    pub(crate) fn parts_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Symbol> {
        let whole =
            |&(index, len): &(usize, usize)| self.name_bytes(&self.symbols[index]).get(..len);
        let parts = self.parts.get_or_init(|| {
            let part = |(index, symbol)| part_of(self.name(symbol)).map(|name| (index, name.len()));
            let mut parts: Vec<_> = self.symbols.iter().enumerate().filter_map(part).collect();
            parts.sort_by(|one, other| whole(one).cmp(&whole(other)));
            parts
        });
        let name = Some(name.as_bytes());
        let from = parts.partition_point(|part| whole(part) < name);
        let same = parts[from..]
            .iter()
            .take_while(move |part| whole(part) == name);
        same.filter_map(|(index, _)| self.symbols.get(*index))
    }

    /// The symbol's name.
    pub(crate) fn name(&self, symbol: &Symbol) -> &str {
        core::str::from_utf8(self.name_bytes(symbol)).unwrap_or("?")
    }

    fn name_bytes(&self, symbol: &Symbol) -> &[u8] {
        let rest = self.names.get(symbol.name as usize..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// Functions by address; of several at one address, the one that comes first in the table.
    fn sorted_functions(&self) -> Vec<(u64, u64, usize)> {
        let mut functions: Vec<_> = self
            .symbols
            .iter()
            .enumerate()
            .filter(|(_, symbol)| symbol.function && symbol.len > 0)
            .map(|(index, symbol)| (symbol.addr, symbol.addr.saturating_add(symbol.len), index))
            .collect();
        functions.sort_unstable_by_key(|&(start, _, index)| (start, index));
        functions.dedup_by_key(|&mut (start, ..)| start);
        functions
    }
}

/// The function that a symbol called `symbol` is a part of: `NAME` of `NAME.cold` and
/// `NAME.cold.N`.
pub(crate) fn part_of(symbol: &str) -> Option<&str> {
    let (name, number) = symbol.rsplit_once(".cold")?;
    let digits = number
        .strip_prefix('.')
        .unwrap_or(if number.is_empty() { "0" } else { "" });
    (!digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())).then_some(name)
}

/// The build-id in a sequence of ELF notes.
pub(crate) fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let word =
        |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let align = |len: u32| usize::try_from(len).ok()?.checked_next_multiple_of(4);
    loop {
        let (name_len, len, kind) = (word(notes, 0)?, word(notes, 4)?, word(notes, 8)?);
        let begin = 12 + align(name_len)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16)? == b"GNU\0" {
            return notes.get(begin..begin + usize::try_from(len).ok()?);
        }
        notes = notes.get(begin.checked_add(align(len)?)?..)?;
    }
}

impl NameIndex {
    fn new(file: &ElfFile) -> Self {
        let mut index = Self {
            next: vec![None; file.symbols.len()],
            ..Self::default()
        };
        for (number, symbol) in file.symbols.iter().enumerate().rev() {
            let hash = index.hasher.hash_one(file.name_bytes(symbol));
            index.next[number] = index.first.insert(hash, number);
        }
        index
    }

    fn find(&self, name: &[u8]) -> impl Iterator<Item = usize> {
        let first = self.first.get(&self.hasher.hash_one(name)).copied();
        core::iter::successors(first, |&number| self.next.get(number).copied().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_knows_its_own_functions() {
        let file = ElfFile::read(Path::new("/proc/self/exe")).expect("it is an ELF file");
        let main = file.named("main").next().expect("a program has a main");
        assert!(main.function && !main.local);
        assert_eq!(
            file.name(
                file.function_at(main.addr + main.len - 1)
                    .expect("it has a length")
            ),
            "main"
        );
        assert!(file.named("no such function").next().is_none());
        assert!(
            file.section(".text")
                .expect("a program has code")
                .contains(CodeAddr::new(main.addr))
        );
    }

    #[test]
    fn parts_have_the_name_of_their_function() {
        assert_eq!(part_of("work.cold"), Some("work"));
        assert_eq!(part_of("work.cold.12"), Some("work"));
        assert_eq!(part_of("work.constprop.0.cold"), Some("work.constprop.0"));
        for other in [
            "work",
            "work.cold.",
            "work.cold.x",
            "work.colder",
            "work.part.0",
        ] {
            assert_eq!(part_of(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(ElfFile::read(Path::new("/proc/self/cmdline")).is_err());
        assert!(ElfFile::read(Path::new("/no/such/file")).is_err());
    }

    #[test]
    fn a_build_id_is_found_behind_other_notes() {
        let mut notes = Vec::new();
        for (name, kind, data) in [
            (&b"abcde\0\0\0"[..], 3_u32, &b"1234"[..]),
            (b"GNU\0", 3, b"id!!"),
        ] {
            let name_len = if name.len() == 8 { 6 } else { 4_u32 };
            notes.extend_from_slice(&name_len.to_le_bytes());
            notes.extend_from_slice(&4_u32.to_le_bytes());
            notes.extend_from_slice(&kind.to_le_bytes());
            notes.extend_from_slice(name);
            notes.extend_from_slice(data);
        }
        assert_eq!(build_id(&notes), Some(&b"id!!"[..]));
        for len in 0..notes.len() {
            assert_eq!(build_id(&notes[..len]), None);
        }
    }
}
