//! The bytes of a patch object.

use crate::convert::{ConvertError, bytes, finish};
use crate::info::Info;
use crate::module;
use crate::select::Contents;
use crate::unit::{Home, Reloc, Section, Symbol, UnitHeader};
use klp_core::elf::manifest::{FUNCS_SECTION, OBJECTS_SECTION, func_ext, object_ext};
use klp_core::model::VMLINUX;
use object::build::elf::{Builder, Relocation, SectionData, SectionId, SymbolId};
use object::{Endian, elf};

/// Writes `contents` as a patch of the object `object`, of which `info` tells the rest.
pub(crate) fn write(
    header: UnitHeader,
    object: &str,
    info: Info,
    mut contents: Contents,
) -> Result<Vec<u8>, ConvertError> {
    add_manifest(header, object, &mut contents);
    add_info(info, &mut contents);
    finish(builder(header, &contents))
}

/// The same as an object file of a kernel module, which is linked with [`module::INIT`] and
/// converted then.
pub(crate) fn write_for_module(
    header: UnitHeader,
    object: &str,
    info: Info,
    mut contents: Contents,
) -> Result<Vec<u8>, ConvertError> {
    let objects = add_manifest(header, object, &mut contents);
    let end = contents.sections[objects].len;
    for (name, value) in [(module::OBJECTS, 0), (module::OBJECTS_END, end)] {
        contents.symbols.push(Symbol {
            name: name.to_owned(),
            home: Home::Section(objects),
            value,
            len: 0,
            info: elf::STB_GLOBAL | elf::STT_NOTYPE,
            other: elf::SymbolOther(0),
        });
    }
    add_info(info, &mut contents);
    bytes(builder(header, &contents))
}

fn add_info(info: Info, contents: &mut Contents) {
    let info = data(".modinfo", 1, info.into_bytes());
    contents.sections.push(info);
}

/// Says which functions are replaced. Returns the section with the array of objects.
fn add_manifest(header: UnitHeader, object: &str, contents: &mut Contents) -> usize {
    let mut names = Vec::new();
    let (mut funcs, mut objects) = (Vec::new(), Vec::new());
    let [names_symbol, funcs_symbol] = [0, 1].map(|place| {
        let section = contents.sections.len() + place;
        contents.symbols.push(Symbol::section(section));
        contents.symbols.len() - 1
    });
    let kind = pointer(header.machine);
    let to = |at: u64, symbol: usize, addend: usize| Reloc {
        at,
        kind,
        symbol,
        addend: addend as i64,
        bias: 0,
    };
    let mut add_name = |name: &str| {
        let at = names.len();
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        at
    };
    let mut entries = vec![0; contents.replaced.len() * func_ext::LEN as usize];
    let places = (0..).step_by(func_ext::LEN as usize);
    for (replaced, place) in contents.replaced.iter().zip(places) {
        let (at, name) = (place as u64, add_name(&replaced.old_name));
        funcs.push(to(at + func_ext::OLD_NAME, names_symbol, name));
        funcs.push(to(at + func_ext::NEW_FUNC, replaced.symbol, 0));
        let position = header.endian.write_u64(replaced.position.into());
        put(&mut entries, place + func_ext::SYMPOS as usize, &position);
    }
    let mut entry = vec![0; object_ext::LEN as usize];
    if object != VMLINUX {
        objects.push(to(object_ext::NAME, names_symbol, add_name(object)));
    }
    objects.push(to(object_ext::FUNCS, funcs_symbol, 0));
    for (place, callback) in &contents.callbacks {
        objects.push(to(*place, *callback, 0));
    }
    let count = u32::try_from(contents.replaced.len()).unwrap_or(u32::MAX);
    let count = header.endian.write_u32(count);
    put(&mut entry, object_ext::NR_FUNCS as usize, &count);

    let with = |section: Section, relocs| Section { relocs, ..section };
    contents.sections.extend([
        data(".rodata.klp_names", 1, names),
        with(data(FUNCS_SECTION, 8, entries), funcs),
        with(data(OBJECTS_SECTION, 8, entry), objects),
    ]);
    contents.sections.len() - 1
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

pub(crate) fn data(name: &str, align: u64, bytes: Vec<u8>) -> Section {
    Section {
        name: name.to_owned(),
        kind: elf::SHT_PROGBITS,
        flags: elf::SHF_ALLOC,
        align,
        item: 0,
        len: bytes.len() as u64,
        bytes,
        relocs: Vec::new(),
    }
}

/// The relocation of a pointer.
pub(crate) fn pointer(machine: elf::Machine) -> u32 {
    match machine {
        elf::EM_AARCH64 => elf::R_AARCH64_ABS64.0,
        elf::EM_PPC64 => elf::R_PPC64_ADDR64.0,
        _ => elf::R_X86_64_64.0,
    }
}

fn builder(header: UnitHeader, contents: &Contents) -> Builder<'static> {
    let mut out = Builder::new(header.endian, true);
    out.header.e_type = elf::ET_REL;
    out.header.e_machine = header.machine;
    out.header.e_flags = header.flags;
    let sections: Vec<_> = contents
        .sections
        .iter()
        .map(|section| add_section(&mut out, section))
        .collect();
    let symbols: Vec<_> = contents
        .symbols
        .iter()
        .skip(1)
        .map(|symbol| add_symbol(&mut out, symbol, &sections))
        .collect();
    let strings = add_table(&mut out, b".strtab", elf::SHT_STRTAB, SectionData::String);
    let symtab = add_table(&mut out, b".symtab", elf::SHT_SYMTAB, SectionData::Symbol);
    out.sections.get_mut(symtab).sh_link_section = Some(strings);
    if contents.sections.len() >= usize::from(elf::SHN_LORESERVE) {
        add_section_indices(&mut out, symtab);
    }
    for (section, id) in contents.sections.iter().zip(&sections) {
        let relocs: Vec<_> = section
            .relocs
            .iter()
            .map(|reloc| relocation(reloc, &symbols))
            .collect();
        if relocs.is_empty() {
            continue;
        }
        let rela = add_table(
            &mut out,
            b"",
            elf::SHT_RELA,
            SectionData::Relocation(relocs),
        );
        let rela = out.sections.get_mut(rela);
        rela.name = format!(".rela{}", section.name).into_bytes().into();
        rela.sh_flags = elf::SHF_INFO_LINK;
        rela.sh_link_section = Some(symtab);
        rela.sh_info_section = Some(*id);
        rela.sh_entsize = size_of::<elf::Rela64<object::Endianness>>() as u64;
    }
    out
}

fn add_section(out: &mut Builder<'static>, section: &Section) -> SectionId {
    let added = out.sections.add();
    added.name = section.name.clone().into_bytes().into();
    added.sh_type = section.kind;
    // Groups are linkers' business.
    added.sh_flags = elf::SectionFlags(section.flags.0 & !elf::SHF_GROUP.0);
    added.sh_addralign = section.align;
    added.sh_entsize = section.item;
    added.data = if section.kind == elf::SHT_NOBITS {
        SectionData::UninitializedData(section.len)
    } else {
        SectionData::Data(section.bytes.clone().into())
    };
    added.id()
}

fn add_symbol(out: &mut Builder<'static>, symbol: &Symbol, sections: &[SectionId]) -> SymbolId {
    let added = out.symbols.add();
    added.name = symbol.name.clone().into_bytes().into();
    added.st_info = symbol.info;
    added.st_other = symbol.other;
    added.st_value = symbol.value;
    added.st_size = symbol.len;
    match symbol.home {
        Home::Section(section) => added.section = sections.get(section).copied(),
        Home::Absolute => added.st_shndx = elf::SHN_ABS,
        Home::Outside | Home::Common => added.st_shndx = elf::SHN_UNDEF,
    }
    added.id()
}

fn add_table(
    out: &mut Builder<'static>,
    name: &'static [u8],
    kind: elf::SectionType,
    data: SectionData<'static>,
) -> SectionId {
    let added = out.sections.add();
    added.name = name.into();
    added.sh_type = kind;
    added.sh_addralign = 8;
    added.data = data;
    added.id()
}

/// Adds the table of the indices of sections that do not fit into symbols (ELF gABI, "Special
/// Sections", `SHT_SYMTAB_SHNDX`).
fn add_section_indices(out: &mut Builder<'static>, symtab: SectionId) {
    let indices = add_table(
        out,
        b".symtab_shndx",
        elf::SHT_SYMTAB_SHNDX,
        SectionData::SymbolSectionIndex,
    );
    let indices = out.sections.get_mut(indices);
    indices.sh_link_section = Some(symtab);
    indices.sh_addralign = size_of::<u32>() as u64;
    indices.sh_entsize = size_of::<u32>() as u64;
}

fn relocation(reloc: &Reloc, symbols: &[SymbolId]) -> Relocation {
    Relocation {
        r_offset: reloc.at,
        symbol: reloc
            .symbol
            .checked_sub(1)
            .and_then(|index| symbols.get(index))
            .copied(),
        r_type: elf::RelocationType(reloc.kind),
        r_addend: reloc.addend,
    }
}
