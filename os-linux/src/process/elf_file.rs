//! What of an object's file is not mapped: its symbol table, the addresses of its sections; and what
//! tells it from others.

use super::arch::{CHOSEN, COPY, THREAD_OFFSET};
use super::symbol_table::{Symbol, SymbolTable};
use core::ops::Range;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::elf;
use klp_core::elf::code::CodeSection;
use object::LittleEndian;
use object::elf::{
    DF_SYMBOLIC, DT_FLAGS, DT_SYMBOLIC, FileHeader64, PF_X, PT_LOAD, PT_NOTE, SHN_UNDEF,
    SHT_DYNSYM, SHT_SYMTAB,
};
use object::read::elf::{FileHeader, ProgramHeader, Rela, SectionHeader, SectionTable, Sym};
use object::{ReadCache, ReadRef};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

const LE: LittleEndian = LittleEndian;

/// What was read of an object's file. Addresses are the file's own.
#[derive(Debug, Default)]
pub(crate) struct ElfFile {
    pub(crate) build_id: Option<Vec<u8>>,
    /// Address and length of each segment with code.
    pub(crate) code: Vec<(u64, u64)>,
    pub(crate) symbols: SymbolTable,
    sections: Vec<(String, u64, u64)>,
    /// References of the object to its own symbols stay inside of it (`-Bsymbolic`).
    pub(crate) symbolic: bool,
    /// Variables of shared libraries that the program holds (copy relocations), by their names.
    copies: HashMap<String, u64>,
    /// Where it is noted what indirect functions have chosen: by the addresses of these, sorted.
    choices: Vec<(u64, u64)>,
    /// Where the dynamic linker writes how far thread-local variables of this object are from the
    /// thread pointer; and how far these are from the beginning of the object's block.
    pub(crate) thread_offsets: Vec<(u64, u64)>,
}

impl ElfFile {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as the end of a sentence about it.
    pub(crate) fn read(file: File) -> Result<Self, &'static str> {
        let cache = ReadCache::new(At { file, pos: 0 });
        Self::parse(&cache).map_err(|_| NOT_ELF)
    }

    /// Reads of a file only what tells it from others, and digests of its code: of all of it, or
    /// of what is at these addresses.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub(crate) fn digests(
        file: File,
        of: &[Option<Range<u64>>],
    ) -> Result<(Self, Vec<Option<Sha256Digest>>), &'static str> {
        let read = file.try_clone().map_err(|_| NOT_READ)?;
        let cache = ReadCache::new(At { file: read, pos: 0 });
        let mut code = Vec::new();
        elf::code::sections(&cache, |section| code.push(section)).map_err(|_| NOT_ELF)?;
        let outline = Self::outline(&cache).map_err(|_| NOT_ELF)?;
        let digests = of.iter().map(|part| digest(&file, &code, part.as_ref()));
        let digests: std::io::Result<_> = digests.collect();
        Ok((outline, digests.map_err(|_| NOT_READ)?))
    }

    /// Its segments and its build-id.
    fn outline<'a, R: ReadRef<'a>>(data: R) -> object::Result<Self> {
        let header = FileHeader64::<LittleEndian>::parse(data)?;
        let mut file = Self::default();
        for segment in header.program_headers(LE, data)? {
            match segment.p_type(LE) {
                PT_LOAD if segment.p_flags(LE).contains(PF_X) => {
                    file.code.push((segment.p_vaddr(LE), segment.p_memsz(LE)));
                }
                PT_NOTE if file.build_id.is_none() => {
                    let notes = segment.data(LE, data).unwrap_or_default();
                    file.build_id = build_id(notes).map(|(_, id)| id.to_vec());
                }
                _ => {}
            }
        }
        Ok(file)
    }

    fn parse<'a, R: ReadRef<'a>>(data: R) -> object::Result<Self> {
        let mut file = Self::outline(data)?;
        let header = FileHeader64::<LittleEndian>::parse(data)?;
        let sections = header.sections(LE, data)?;
        for section in sections.iter() {
            let name = String::from_utf8_lossy(sections.section_name(LE, section)?).into_owned();
            file.sections
                .push((name, section.sh_addr(LE), section.sh_size(LE)));
            if let Some((entries, _)) = section.dynamic(LE, data)? {
                file.symbolic |= entries.iter().any(|entry| {
                    let flags = entry.d_val.get(LE);
                    match entry.d_tag.get(LE) {
                        DT_SYMBOLIC => true,
                        DT_FLAGS => flags & DF_SYMBOLIC.0 != 0,
                        _ => false,
                    }
                });
            }
        }
        let dynamic = SymbolTable::read(&sections, SHT_DYNSYM, data)?.unwrap_or_default();
        file.copies = copies(&sections, &dynamic, data)?;
        file.choices = choices(&sections, data)?;
        file.thread_offsets = thread_offsets(&sections, data)?;
        file.symbols = SymbolTable::read(&sections, SHT_SYMTAB, data)?.unwrap_or(dynamic);
        Ok(file)
    }

    /// The address and length of the section `name`.
    pub(crate) fn section(&self, name: &str) -> Option<TextRange> {
        let (_, addr, len) = self.sections.iter().find(|(each, ..)| each == name)?;
        TextRange::new(CodeAddr::new(*addr), *len)
    }

    /// Where this program holds a shared library's variable called `name`, if it does.
    pub(crate) fn copy_of(&self, name: &str) -> Option<u64> {
        self.copies.get(name).copied()
    }

    /// The places that hold what the indirect function at `addr` has chosen, once the object is
    /// relocated.
    pub(crate) fn choices_of(&self, addr: u64) -> impl Iterator<Item = u64> {
        let first = self.choices.partition_point(|&(each, _)| each < addr);
        let its = self.choices[first..].iter();
        its.take_while(move |(each, _)| *each == addr)
            .map(|&(_, place)| place)
    }
}

const NOT_ELF: &str = "is not an ELF file that can be read";
const NOT_READ: &str = "cannot be read to its end";

/// What SHA-256 makes of something.
pub(crate) type Sha256Digest = [u8; 32];

/// The digest of all code, or of what is at these addresses; `None` if that is not in one section.
fn digest(
    file: &File,
    code: &[CodeSection],
    part: Option<&Range<u64>>,
) -> std::io::Result<Option<Sha256Digest>> {
    let mut digest = Sha256::new();
    let Some(part) = part else {
        for section in code {
            update(&mut digest, file, section.offset, section.len)?;
        }
        return Ok(Some(digest.finalize().into()));
    };
    let place = code.iter().find_map(|section| {
        let start = part.start.checked_sub(section.addr)?;
        let len = part.end.checked_sub(part.start)?;
        (start.checked_add(len)? <= section.len).then_some((section.offset + start, len))
    });
    let Some((offset, len)) = place else {
        return Ok(None);
    };
    update(&mut digest, file, offset, len)?;
    Ok(Some(digest.finalize().into()))
}

/// Adds bytes of a file.
fn update(digest: &mut Sha256, file: &File, mut at: u64, mut len: u64) -> std::io::Result<()> {
    let mut part = vec![0; 1 << 16];
    while len > 0 {
        let next = part.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        file.read_exact_at(&mut part[..next], at)?;
        digest.update(&part[..next]);
        at += next as u64;
        len -= next as u64;
    }
    Ok(())
}

/// A file that is read at positions of our own: a signal handler may fork, and the child share the
/// file's.
struct At {
    file: File,
    pos: u64,
}

impl Read for At {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let len = self.file.read_at(into, self.pos)?;
        self.pos += len as u64;
        Ok(len)
    }
}

impl Seek for At {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(pos) => (pos, 0),
            SeekFrom::Current(by) => (self.pos, by),
            SeekFrom::End(by) => (self.file.metadata()?.len(), by),
        };
        self.pos = from
            .checked_add_signed(by)
            .ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.pos)
    }
}

/// The variables of shared libraries that a program holds, without versions: a program that holds
/// two versions of one is none that linkers make.
fn copies<'a, R: ReadRef<'a>>(
    sections: &SectionTable<'a, FileHeader64<LittleEndian>, R>,
    dynamic: &SymbolTable,
    data: R,
) -> object::Result<HashMap<String, u64>> {
    let mut places = Vec::new();
    for section in sections.iter() {
        let relas = section.rela(LE, data)?.map_or(&[][..], |(relas, _)| relas);
        let copied = relas.iter().filter(|rela| rela.r_type(LE, false) == COPY);
        places.extend(copied.map(|rela| rela.r_offset.get(LE)));
    }
    // A variable may have several names; all of them lead to the copy.
    let is_copy = |symbol: &&Symbol| places.contains(&symbol.addr);
    let named = |symbol: &Symbol| {
        let name = dynamic.name(symbol).split('@').next().unwrap_or_default();
        (name.to_owned(), symbol.addr)
    };
    Ok(dynamic.iter().filter(is_copy).map(named).collect())
}

/// What indirect functions have chosen is noted where a relocation with the function's address as
/// its addend says.
fn choices<'a, R: ReadRef<'a>>(
    sections: &SectionTable<'a, FileHeader64<LittleEndian>, R>,
    data: R,
) -> object::Result<Vec<(u64, u64)>> {
    let mut choices = Vec::new();
    for section in sections.iter() {
        let relas = section.rela(LE, data)?.map_or(&[][..], |(relas, _)| relas);
        let chosen = relas
            .iter()
            .filter(|rela| CHOSEN.contains(&rela.r_type(LE, false)));
        choices.extend(chosen.map(|rela| (rela.r_addend.get(LE) as u64, rela.r_offset.get(LE))));
    }
    choices.sort_unstable();
    Ok(choices)
}

/// A relocation without a symbol, or with one that the object defines, is for a variable of the
/// object itself; of the latter, another object may have one that is used instead.
fn thread_offsets<'a, R: ReadRef<'a>>(
    sections: &SectionTable<'a, FileHeader64<LittleEndian>, R>,
    data: R,
) -> object::Result<Vec<(u64, u64)>> {
    let dynamic = sections.symbols(LE, data, SHT_DYNSYM)?;
    let mut offsets = Vec::new();
    for section in sections.iter() {
        let relas = section.rela(LE, data)?.map_or(&[][..], |(relas, _)| relas);
        let of_threads = relas
            .iter()
            .filter(|rela| rela.r_type(LE, false) == THREAD_OFFSET);
        for rela in of_threads {
            let symbol = match rela.symbol(LE, false) {
                None => 0,
                Some(index) => {
                    let symbol = dynamic.symbol(index)?;
                    if symbol.st_shndx(LE) == SHN_UNDEF {
                        continue;
                    }
                    symbol.st_value(LE)
                }
            };
            let base = symbol.wrapping_add_signed(rela.r_addend.get(LE));
            offsets.push((rela.r_offset.get(LE), base));
        }
    }
    Ok(offsets)
}

/// The build-id in a sequence of ELF notes, and how far from their beginning it is.
pub(crate) fn build_id(all: &[u8]) -> Option<(usize, &[u8])> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let word =
        |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let align = |len: u32| usize::try_from(len).ok()?.checked_next_multiple_of(4);
    let mut notes = all;
    loop {
        let (name_len, len, kind) = (word(notes, 0)?, word(notes, 4)?, word(notes, 8)?);
        let begin = 12 + align(name_len)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16)? == b"GNU\0" {
            let id = notes.get(begin..begin + usize::try_from(len).ok()?)?;
            return Some((all.len() - notes.len() + begin, id));
        }
        notes = notes.get(begin.checked_add(align(len)?)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::symbol_table::Kind;

    fn read(path: &str) -> Result<ElfFile, &'static str> {
        ElfFile::read(File::open(path).expect("it is there"))
    }

    #[test]
    fn this_program_knows_its_own_functions() {
        let file = read("/proc/self/exe").expect("it is an ELF file");
        let symbols = &file.symbols;
        let main = symbols.named("main").next().expect("a program has a main");
        assert!(main.kind == Kind::Function && !main.local);
        let last = symbols.function_at(main.addr + main.len - 1);
        assert_eq!(symbols.name(last.expect("it has a length")), "main");
        assert!(symbols.named("no such function").next().is_none());
        assert!(
            file.section(".text")
                .expect("a program has code")
                .contains(CodeAddr::new(main.addr))
        );
        let inside = |&(start, len): &(u64, u64)| (start..start + len).contains(&main.addr);
        assert!(file.code.iter().any(inside));
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(read("/proc/self/cmdline").is_err());
        assert!(read("/dev/null").is_err());
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
        assert_eq!(build_id(&notes), Some((notes.len() - 4, &b"id!!"[..])));
        for len in 0..notes.len() {
            assert_eq!(build_id(&notes[..len]), None);
        }
    }
}
