//! A compiler's object file becomes a patch object (what Linux's build does in
//! `objtool klp post-link`).
//!
//! The compiler writes references to symbols of the running system as undefined symbols called
//! `.klp.sym.OBJECT.NAME$POSITION`, and their relocations among all others. Here the symbols get
//! their real name and section index, and their relocations a section of their own for each object
//! that they wait for.

use alloc::borrow::Cow;
use alloc::collections::{BTreeMap, BTreeSet};
use core::fmt;
use core::mem::offset_of;
use klp_core::elf::names::{BadName, RelaName, SYMBOL_PREFIX, SymbolName};
use klp_core::elf::{SHF_RELA_LIVEPATCH, SHN_LIVEPATCH};
use object::build::Id;
use object::build::elf::{Builder, Relocation, SectionData, SectionId};
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endian, Endianness, elf};

/// Why an object file cannot be converted.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConvertError {
    /// It is not an ELF file of a kind that can be rewritten.
    Elf(object::build::Error),
    /// It is not a relocatable file.
    NotRelocatable,
    /// It has livepatch relocations already.
    Converted,
    /// Its code wants stacks that are executable, which threads have not.
    ExecutableStack,
    /// A section wants to be aligned as no memory of a patch is.
    Alignment {
        /// The section.
        section: String,
        /// To a multiple of so many bytes.
        align: u64,
    },
    /// The name of a livepatch symbol does not follow the grammar.
    BadSymbol {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: BadName,
    },
}

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elf(error) => write!(f, "cannot rewrite the ELF file: {error}"),
            Self::NotRelocatable => f.write_str("not a relocatable file"),
            Self::Converted => f.write_str("the file is a patch object already"),
            Self::ExecutableStack => f.write_str(
                "it asks for an executable stack (.note.GNU-stack): \
                 take no address of a nested function, or mark hand-written assembly",
            ),
            Self::Alignment { section, align } => write!(
                f,
                "section {section} is to be aligned to {align} bytes: that must be a power of two, \
                 and not more than {MAX_ALIGN}"
            ),
            Self::BadSymbol { name, why } => {
                write!(f, "symbol {name} has an incorrectly formatted name: {why}")
            }
        }
    }
}

impl core::error::Error for ConvertError {}

impl From<object::build::Error> for ConvertError {
    fn from(error: object::build::Error) -> Self {
        Self::Elf(error)
    }
}

/// Turns the bytes of a compiler's object file into those of a patch object.
///
/// # Errors
///
/// [`ConvertError`].
pub fn convert(object: &[u8]) -> Result<Vec<u8>, ConvertError> {
    if is_converted(object) {
        return Err(ConvertError::Converted);
    }
    let (object, for_linkers) = disarm(object);
    let mut elf = Builder::read(&*object)?;
    if elf.header.e_type != elf::ET_REL {
        return Err(ConvertError::NotRelocatable);
    }
    if wants_executable_stack(&elf) {
        return Err(ConvertError::ExecutableStack);
    }
    drop_sections(&mut elf, &for_linkers);
    finish(elf)
}

/// Writes `elf` as a patch object. What is undefined and called as livepatch symbols are becomes
/// one.
pub(crate) fn finish(mut elf: Builder<'_>) -> Result<Vec<u8>, ConvertError> {
    let objects = mark_symbols(&mut elf)?;
    move_relocations(&mut elf, &objects);
    mark_file(&mut elf);
    bytes(elf)
}

/// Writes `elf` as it is.
pub(crate) fn bytes(mut elf: Builder<'_>) -> Result<Vec<u8>, ConvertError> {
    check_alignment(&mut elf)?;
    split_names(&mut elf);
    let mut bytes = Vec::new();
    elf.write(&mut bytes)?;
    Ok(bytes)
}

/// The largest alignment of a section. The memory of patches is aligned to that, and a file has
/// room for it before the section.
const MAX_ALIGN: u64 = 4096;

/// Refuses what no memory of a patch is aligned to. The builder divides by alignments, of which 0
/// and 1 mean the same (ELF gABI, "Section Header").
fn check_alignment(elf: &mut Builder<'_>) -> Result<(), ConvertError> {
    for section in &mut elf.sections {
        let align = section.sh_addralign.max(1);
        if !align.is_power_of_two() || align > MAX_ALIGN {
            let section = String::from_utf8_lossy(section.name.as_slice()).into_owned();
            return Err(ConvertError::Alignment { section, align });
        }
        section.sh_addralign = align;
    }
    Ok(())
}

/// Marks livepatch symbols, and returns the object of each.
fn mark_symbols(elf: &mut Builder<'_>) -> Result<BTreeMap<usize, String>, ConvertError> {
    let mut objects = BTreeMap::new();
    for symbol in &mut elf.symbols {
        let name = unquoted(symbol.name.as_slice());
        if symbol.section.is_some()
            || symbol.st_shndx != elf::SHN_UNDEF
            || !name.starts_with(SYMBOL_PREFIX.as_bytes())
        {
            continue;
        }
        let mut name = String::from_utf8_lossy(name).into_owned();
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if let Some((front, position)) = name.rsplit_once('$').filter(|(_, it)| is_number(it)) {
            name = format!("{front},{position}");
        }
        let object = match SymbolName::parse(&name) {
            Ok(parsed) => parsed.object.to_owned(),
            Err(why) => return Err(ConvertError::BadSymbol { name, why }),
        };
        symbol.name = name.into_bytes().into();
        symbol.st_shndx = elf::SymbolSection(SHN_LIVEPATCH);
        objects.insert(symbol.id().index(), object);
    }
    Ok(objects)
}

/// Names are quoted for assemblers, which would calculate with those of some libraries
/// (`libstdc++`). Clang, which is its own assembler, takes the quotes for a part of the name.
fn unquoted(name: &[u8]) -> &[u8] {
    let quoted = name.strip_prefix(b"\"");
    quoted
        .and_then(|name| name.strip_suffix(b"\""))
        .unwrap_or(name)
}

/// Moves relocations against livepatch symbols into livepatch relocation sections.
fn move_relocations(elf: &mut Builder<'_>, objects: &BTreeMap<usize, String>) {
    let mut moved: BTreeMap<(usize, &str), Moved> = BTreeMap::new();
    for section in &mut elf.sections {
        let SectionData::Relocation(relas) = &mut section.data else {
            continue;
        };
        let (Some(symtab), Some(target)) = (section.sh_link_section, section.sh_info_section)
        else {
            continue;
        };
        relas.retain(|rela| {
            let Some(object) = rela.symbol.and_then(|symbol| objects.get(&symbol.index())) else {
                return true;
            };
            let moved = moved.entry((target.index(), object));
            moved
                .or_insert_with(|| Moved {
                    symtab,
                    target,
                    relas: Vec::new(),
                })
                .relas
                .push(*rela);
            false
        });
    }
    for (
        (_, object),
        Moved {
            symtab,
            target,
            relas,
        },
    ) in moved
    {
        let target_name =
            String::from_utf8_lossy(elf.sections.get(target).name.as_slice()).into_owned();
        let section = elf.sections.add();
        section.name = RelaName {
            object,
            section: &target_name,
        }
        .to_string()
        .into_bytes()
        .into();
        section.sh_type = elf::SHT_RELA;
        section.sh_flags =
            elf::SHF_ALLOC | elf::SHF_INFO_LINK | elf::SectionFlags(SHF_RELA_LIVEPATCH);
        section.sh_link_section = Some(symtab);
        section.sh_info_section = Some(target);
        section.sh_addralign = 8;
        section.sh_entsize = 24;
        section.data = SectionData::Relocation(relas);
    }
}

/// The contents of one livepatch relocation section.
struct Moved {
    symtab: SectionId,
    target: SectionId,
    relas: Vec<Relocation>,
}

/// Says `livepatch=Y` in `.modinfo`, if the author has not.
fn mark_file(elf: &mut Builder<'_>) {
    const MARK: &[u8] = b"livepatch=Y\0";
    let modinfo = elf
        .sections
        .iter_mut()
        .find(|section| section.name.as_slice() == b".modinfo");
    let section = match modinfo {
        Some(section) => section,
        None => {
            let section = elf.sections.add();
            section.name = b".modinfo"[..].into();
            section.sh_type = elf::SHT_PROGBITS;
            section.sh_flags = elf::SHF_ALLOC;
            section.sh_addralign = 1;
            section
        }
    };
    if let SectionData::Data(data) = &mut section.data {
        if !contains(data.as_slice(), MARK) {
            data.to_mut().extend_from_slice(MARK);
        }
    }
}

/// Whether sections of this type are for link editors alone, and cannot be rewritten:
///
/// * groups of sections (ELF gABI, "Section Groups"), of which a link editor keeps one of several
///   with the same name; here nothing is left out, so every member is a section like others;
/// * LLVM's own: its tables of symbols whose addresses matter, of calls that are frequent, … They
///   count symbols by their places in the symbol table, which change here.
fn is_for_linkers(kind: elf::SectionType) -> bool {
    const LLVM: core::ops::Range<u32> = 0x6fff_4c00..0x6fff_4d00;
    kind == elf::SHT_GROUP || (LLVM.contains(&kind.0) && kind != elf::SHT_LLVM_DEPENDENT_LIBRARIES)
}

/// Makes sections for link editors plain ones, which the builder reads. Returns their indices, too.
fn disarm(object: &[u8]) -> (Cow<'_, [u8]>, BTreeSet<usize>) {
    const TYPE: usize = offset_of!(elf::SectionHeader64<Endianness>, sh_type);
    let (mut file, mut found) = (Cow::Borrowed(object), BTreeSet::new());
    let Some((endian, start, sections)) = section_headers(object) else {
        return (file, found);
    };
    for (index, section) in sections.iter().enumerate() {
        if is_for_linkers(section.sh_type(endian)) {
            let at = start + index * size_of::<elf::SectionHeader64<Endianness>>() + TYPE;
            file.to_mut()[at..at + 4].copy_from_slice(&endian.write_u32(elf::SHT_PROGBITS.0));
            found.insert(index);
        }
    }
    (file, found)
}

/// Takes out the sections with these indices; no section is in a group then.
fn drop_sections(elf: &mut Builder<'_>, indices: &BTreeSet<usize>) {
    for section in &mut elf.sections {
        // Of the null section, at index 0, the builder makes none.
        section.delete |= indices.contains(&(section.id().index() + 1));
        section.sh_flags = elf::SectionFlags(section.sh_flags.0 & !elf::SHF_GROUP.0);
    }
}

/// Whether the code wants to run on stacks that are executable: GCC's nested functions whose
/// addresses are taken do.
fn wants_executable_stack(elf: &Builder<'_>) -> bool {
    elf.sections.iter().any(|section| {
        section.name.as_slice() == b".note.GNU-stack"
            && section.sh_flags.contains(elf::SHF_EXECINSTR)
    })
}

/// Gives the names of sections a section of their own: clang keeps them among those of symbols, the
/// builder does not.
fn split_names(elf: &mut Builder<'_>) {
    if elf
        .sections
        .iter()
        .any(|section| matches!(section.data, SectionData::SectionString))
    {
        return;
    }
    let section = elf.sections.add();
    section.name = b".shstrtab"[..].into();
    section.sh_type = elf::SHT_STRTAB;
    section.sh_addralign = 1;
    section.data = SectionData::SectionString;
}

/// Whether there are livepatch relocations; whatever cannot be read has none.
fn is_converted(object: &[u8]) -> bool {
    section_headers(object).is_some_and(|(endian, _, sections)| {
        sections.iter().any(|section| {
            section
                .sh_flags(endian)
                .contains(elf::SectionFlags(SHF_RELA_LIVEPATCH))
        })
    })
}

/// The section headers, with their place in the file.
fn section_headers(
    object: &[u8],
) -> Option<(Endianness, usize, &[elf::SectionHeader64<Endianness>])> {
    let header = elf::FileHeader64::<Endianness>::parse(object).ok()?;
    let endian = header.endian().ok()?;
    let start = usize::try_from(header.e_shoff(endian)).ok()?;
    Some((endian, start, header.section_headers(endian, object).ok()?))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
