//! An object file, read to be compared with another one.

use crate::bias;
use crate::names::Names;
use crate::pieces;
use klp_core::elf::names::part_of;
use object::elf;
use object::read::elf::{FileHeader, Rela as _, SectionHeader, Sym};
use object::{Endianness, SymbolIndex};
use std::collections::{BTreeMap, BTreeSet};

type Header = elf::FileHeader64<Endianness>;

/// Bytes of a pointer in a table of contents (64-Bit ELF V2 ABI, "TOC").
pub(crate) const TOC_POINTER: u64 = 8;

/// An object file that a compiler made.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) header: UnitHeader,
    /// Index 0 is the null section.
    pub(crate) sections: Vec<Section>,
    /// Index 0 is the null symbol.
    pub(crate) symbols: Vec<Symbol>,
    /// The symbols of each section that name something in it, by place.
    named: Vec<Names>,
    /// What stands in front of functions, and has a name of its own.
    prefixes: Prefixes,
    /// Where pieces begin in sections of such.
    pub(crate) pieces: pieces::Starts,
    /// The functions by their names: of several of one name, the first.
    by_name: BTreeMap<String, usize>,
    /// The names of source files, as compilers noted them, each with the symbol that has it: those
    /// behind it are of that file, if they are local (ELF gABI, "Symbol Table", `STT_FILE`). Linkers
    /// put several into one object file.
    sources: Vec<(usize, String)>,
}

/// What must be the same in all object files of a patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnitHeader {
    pub(crate) endian: Endianness,
    pub(crate) machine: elf::Machine,
    pub(crate) flags: elf::FileFlags,
}

/// A section.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) name: String,
    pub(crate) kind: elf::SectionType,
    pub(crate) flags: elf::SectionFlags,
    pub(crate) align: u64,
    /// Bytes of each item, if all are alike.
    pub(crate) item: u64,
    /// Bytes in memory.
    pub(crate) len: u64,
    /// None if it begins with zeroes (`SHT_NOBITS`).
    pub(crate) bytes: Vec<u8>,
    /// By place.
    pub(crate) relocs: Vec<Reloc>,
}

/// A relocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reloc {
    pub(crate) at: u64,
    pub(crate) kind: u32,
    pub(crate) symbol: usize,
    pub(crate) addend: i64,
    /// What the processor adds before it uses the sum: how far behind the relocated field the
    /// instruction ends to which the field is relative.
    pub(crate) bias: i64,
}

/// A symbol.
#[derive(Clone, Debug)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) home: Home,
    pub(crate) value: u64,
    pub(crate) len: u64,
    pub(crate) info: elf::SymbolInfo,
    pub(crate) other: elf::SymbolOther,
}

/// Where a symbol is defined.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Home {
    /// In another object.
    Outside,
    /// Nowhere: its value is what it is.
    Absolute,
    /// The linker makes room for it.
    Common,
    /// In the section with this index.
    Section(usize),
}

/// What a relocation refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Referent {
    /// Nothing: the relocation says something of its place.
    Nothing,
    /// What the symbol names, or so many bytes from there (with the bias, if there is one).
    Named { symbol: usize, offset: i64 },
    /// A place in a section that has no name, as strings have none. `offset` is without the bias.
    Nameless { section: usize, offset: i64 },
}

impl Unit {
    /// Reads an ELF file of 64 bits.
    ///
    /// # Errors
    ///
    /// It is not a whole object file.
    pub(crate) fn read(file: &[u8]) -> Result<Self, object::read::Error> {
        let header = Header::parse(file)?;
        let endian = header.endian()?;
        let table = header.sections(endian, file)?;
        let symbols = table.symbols(endian, file, elf::SHT_SYMTAB)?;
        let mut sections = Vec::new();
        for section in table.iter() {
            let name = table.section_name(endian, section)?;
            sections.push(Section {
                name: text(name),
                kind: section.sh_type(endian),
                flags: section.sh_flags(endian),
                align: section.sh_addralign(endian).max(1),
                item: section.sh_entsize(endian),
                len: section.sh_size(endian),
                bytes: section.data(endian, file)?.to_vec(),
                relocs: Vec::new(),
            });
        }
        let home = |index, symbol: &elf::Sym64<Endianness>| {
            Ok(match symbol.st_shndx(endian) {
                elf::SHN_UNDEF => Home::Outside,
                elf::SHN_ABS => Home::Absolute,
                elf::SHN_COMMON => Home::Common,
                _ => match symbols.symbol_section(endian, symbol, index)? {
                    Some(section) if section.0 < sections.len() => Home::Section(section.0),
                    _ => Home::Outside,
                },
            })
        };
        let read_symbol = |(index, symbol): (SymbolIndex, &elf::Sym64<Endianness>)| {
            Ok::<_, object::read::Error>(Symbol {
                name: text(symbol.name(endian, symbols.strings())?),
                home: home(index, symbol)?,
                value: symbol.st_value(endian),
                len: symbol.st_size(endian),
                info: symbol.st_info(),
                other: symbol.st_other(),
            })
        };
        let symbols = symbols.enumerate().map(read_symbol);
        let symbols: Vec<_> = symbols.collect::<Result<_, _>>()?;
        let machine = header.e_machine(endian);
        for section in table.iter() {
            let Some((relas, _)) = section.rela(endian, file)? else {
                continue;
            };
            let target = section.sh_info(endian) as usize;
            let Some(target) = sections.get_mut(target) else {
                continue;
            };
            target.relocs.extend(relas.iter().map(|rela| Reloc {
                at: rela.r_offset(endian),
                kind: rela.r_type(endian, false).0,
                symbol: rela.r_sym(endian, false) as usize,
                addend: rela.r_addend(endian),
                bias: 0,
            }));
            target.relocs.sort_by_key(|reloc| reloc.at);
            bias::find(machine, target);
        }
        let prefixes = Prefixes::find(&symbols);
        let mut named = vec![Vec::new(); sections.len()];
        for (index, symbol) in symbols.iter().enumerate() {
            let is_a_name = symbol.is_a_name() && !prefixes.all.contains(&index);
            if let (Home::Section(section), true) = (symbol.home, is_a_name) {
                if let Some(list) = named.get_mut(section) {
                    list.push(index);
                }
            }
        }
        let named = named.into_iter().map(|names| Names::new(names, &symbols));
        let named = named.collect();
        let files = symbols.iter().enumerate();
        let files = files.filter(|(_, symbol)| symbol.kind() == elf::STT_FILE);
        let sources = files.map(|(index, file)| (index, file.name.clone()));
        let sources = sources.collect();
        let mut unit = Self {
            header: UnitHeader {
                endian,
                machine,
                flags: header.e_flags(endian),
            },
            sections,
            symbols,
            named,
            prefixes,
            pieces: pieces::Starts::default(),
            by_name: BTreeMap::new(),
            sources,
        };
        unit.pieces = pieces::starts(&unit);
        let mut by_name = BTreeMap::new();
        for function in unit.functions() {
            let name = unit.symbols[function].name.clone();
            by_name.entry(name).or_insert(function);
        }
        unit.by_name = by_name;
        Ok(unit)
    }

    /// One with nothing in it.
    pub(crate) fn empty(header: UnitHeader) -> Self {
        Self {
            header,
            sections: Vec::new(),
            symbols: Vec::new(),
            named: Vec::new(),
            prefixes: Prefixes::default(),
            pieces: pieces::Starts::default(),
            by_name: BTreeMap::new(),
            sources: Vec::new(),
        }
    }

    /// Whether the file is for linkers, and not a program or a library.
    pub(crate) fn is_relocatable(file: &[u8]) -> bool {
        let kind = |header: &Header| Some(header.e_type(header.endian().ok()?));
        Header::parse(file).ok().and_then(kind) == Some(elf::ET_REL)
    }

    /// The symbols that name something in section `section`, by place.
    pub(crate) fn names_in(&self, section: usize) -> &[usize] {
        self.named.get(section).map_or(&[], |names| &names.all)
    }

    /// How far what begins before `place` in section `section` reaches.
    pub(crate) fn reach_before(&self, section: usize, place: u64) -> u64 {
        let names = self.named.get(section);
        names.map_or(0, |names| names.reach_before(&self.symbols, place))
    }

    /// The functions and parts of functions, in the order of the symbol table.
    pub(crate) fn functions(&self) -> impl Iterator<Item = usize> {
        (0..self.symbols.len()).filter(|symbol| self.is_function(*symbol))
    }

    /// The function that `part` is a part of.
    pub(crate) fn whole(&self, part: usize) -> Option<usize> {
        self.function_called(part_of(&self.symbols[part].name)?)
    }

    /// The function that is called `name`.
    pub(crate) fn function_called(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The symbols of what stands in front of `function` and belongs to it, from its beginning on.
    pub(crate) fn prefixes_of(&self, function: usize) -> &[usize] {
        let prefixes = self.prefixes.by_function.get(&function);
        prefixes.map_or(&[], Vec::as_slice)
    }

    /// Whether the symbol is defined here and names a function or a variable.
    pub(crate) fn is_thing(&self, symbol: usize) -> bool {
        match self.symbols[symbol].home {
            Home::Section(_) if self.prefixes.all.contains(&symbol) => false,
            Home::Section(_) => self.symbols[symbol].is_a_name(),
            Home::Common => true,
            Home::Outside | Home::Absolute => false,
        }
    }

    /// Whether the symbol names code of its own.
    pub(crate) fn is_function(&self, index: usize) -> bool {
        let symbol = &self.symbols[index];
        symbol.kind() == elf::STT_FUNC
            && matches!(symbol.home, Home::Section(_))
            && !self.prefixes.all.contains(&index)
    }

    /// The section that the symbol is in.
    pub(crate) fn section_of(&self, symbol: usize) -> Option<usize> {
        match self.symbols.get(symbol)?.home {
            Home::Section(section) => Some(section),
            Home::Outside | Home::Absolute | Home::Common => None,
        }
    }

    /// What `reloc` refers to.
    pub(crate) fn referent(&self, reloc: &Reloc) -> Referent {
        let Some(symbol) = self.symbols.get(reloc.symbol).filter(|_| reloc.symbol != 0) else {
            return Referent::Nothing;
        };
        let Home::Section(section) = symbol.home else {
            return Referent::Named {
                symbol: reloc.symbol,
                offset: reloc.addend,
            };
        };
        if symbol.is_a_name() {
            return Referent::Named {
                symbol: reloc.symbol,
                offset: reloc.addend,
            };
        }
        let from_start = reloc.addend.wrapping_add_unsigned(symbol.value);
        let place = from_start.wrapping_add(reloc.bias);
        match self.name_at(section, place) {
            Some(name) => Referent::Named {
                symbol: name,
                offset: from_start.wrapping_sub_unsigned(self.symbols[name].value),
            },
            None => Referent::Nameless {
                section,
                offset: place,
            },
        }
    }

    /// The same, by way of a table of contents, if the pointer to it stands there.
    pub(crate) fn final_referent(&self, reloc: &Reloc) -> Referent {
        let direct = self.referent(reloc);
        let Referent::Nameless { section, offset } = direct else {
            return direct;
        };
        let pointer = u64::try_from(offset).ok().and_then(|offset| {
            let table = self.sections.get(section)?;
            let pointers = table.relocs_in(offset, TOC_POINTER);
            pointers.first().filter(|_| table.is_toc())
        });
        pointer.map_or(direct, |pointer| self.referent(pointer))
    }

    /// The symbol that names what lies at `place` in the section.
    fn name_at(&self, section: usize, place: i64) -> Option<usize> {
        self.named.get(section)?.at(&self.symbols, place)
    }

    /// Symbols by their names.
    pub(crate) fn globals(&self) -> BTreeMap<&str, usize> {
        let symbols = self.symbols.iter().enumerate();
        let globals = symbols.filter(|(_, symbol)| {
            !symbol.is_local() && matches!(symbol.home, Home::Section(_) | Home::Common)
        });
        globals
            .map(|(index, symbol)| (&*symbol.name, index))
            .collect()
    }

    /// The name of the source file that the symbol is of, if it is local.
    pub(crate) fn source(&self, symbol: usize) -> Option<&str> {
        let is_local = self.symbols[symbol].is_local();
        let before = self.sources.partition_point(|(file, _)| *file < symbol);
        let (_, name) = self.sources.get(before.checked_sub(1)?)?;
        Some(&**name).filter(|name| is_local && !name.is_empty())
    }
}

impl Section {
    pub(crate) fn has(&self, flag: elf::SectionFlags) -> bool {
        self.flags.contains(flag)
    }

    /// Whether its alignment is one that there is.
    pub(crate) fn is_aligned(&self) -> bool {
        // The largest pages of the architectures have 16 GiB, but nothing is linked to such.
        const LARGEST: u64 = 1 << 21;
        self.align.is_power_of_two() && self.align <= LARGEST
    }

    /// Whether it holds what is there when a program runs, and not what only linkers read (ELF gABI,
    /// "Section Header"; x86-64 psABI, `SHT_X86_64_UNWIND`).
    pub(crate) fn is_contents(&self) -> bool {
        let kinds = [
            elf::SHT_PROGBITS,
            elf::SHT_NOBITS,
            elf::SHT_NOTE,
            elf::SHT_INIT_ARRAY,
            elf::SHT_FINI_ARRAY,
            elf::SHT_PREINIT_ARRAY,
            elf::SHT_X86_64_UNWIND,
        ];
        kinds.contains(&self.kind)
    }

    /// Whether it is code.
    pub(crate) fn is_code(&self) -> bool {
        self.has(elf::SHF_EXECINSTR)
    }

    /// Whether it is in memory, and cannot be written to there when the program runs.
    pub(crate) fn is_constant(&self) -> bool {
        let relocated_once = self.name.starts_with(".data.rel.ro");
        self.has(elf::SHF_ALLOC) && (!self.has(elf::SHF_WRITE) || relocated_once)
    }

    /// Whether a compiler has made it for itself: what is in it never has a name that others could
    /// see.
    pub(crate) fn is_compilers_own(&self) -> bool {
        let names = [".data..L", ".bss..L", ".data.rel.local..L"];
        names.iter().any(|name| self.name.starts_with(name))
    }

    /// Whether it is a part of a table of contents, as ppc64le has it.
    pub(crate) fn is_toc(&self) -> bool {
        self.name == ".toc"
    }

    /// The relocations in the `len` bytes from `start` on.
    pub(crate) fn relocs_in(&self, start: u64, len: u64) -> &[Reloc] {
        let from = self.relocs.partition_point(|reloc| reloc.at < start);
        let rest = &self.relocs[from..];
        let to = rest.partition_point(|reloc| reloc.at - start < len);
        &rest[..to]
    }

    /// The `len` bytes from `start` on.
    pub(crate) fn bytes_in(&self, start: u64, len: u64) -> &[u8] {
        let range = usize::try_from(start)
            .ok()
            .zip(usize::try_from(start.saturating_add(len)).ok());
        range
            .and_then(|(from, to)| self.bytes.get(from..to))
            .unwrap_or_default()
    }
}

impl Symbol {
    /// The first one of each table.
    pub(crate) fn null() -> Self {
        Self::undefined(String::new(), elf::SymbolInfo(0))
    }

    pub(crate) fn undefined(name: String, info: elf::SymbolInfo) -> Self {
        Self {
            name,
            home: Home::Outside,
            value: 0,
            len: 0,
            info,
            other: elf::SymbolOther(0),
        }
    }

    /// The symbol of section `section`.
    pub(crate) fn section(section: usize) -> Self {
        Self {
            home: Home::Section(section),
            ..Self::undefined(String::new(), elf::STB_LOCAL | elf::STT_SECTION)
        }
    }

    /// Whether it is a variable of which each thread has its own.
    pub(crate) fn is_thread_local(&self) -> bool {
        self.kind() == elf::STT_TLS
    }

    pub(crate) fn kind(&self) -> elf::SymbolType {
        self.info.st_type()
    }

    pub(crate) fn is_local(&self) -> bool {
        self.info.st_bind() == elf::STB_LOCAL
    }

    /// Whether it names a function, a variable, or another thing of the source, and is no mere
    /// label.
    pub(crate) fn is_a_name(&self) -> bool {
        let is_thing = match self.kind() {
            elf::STT_SECTION | elf::STT_FILE => false,
            // Mapping symbols of AArch64 tell code from data.
            elf::STT_NOTYPE => !self.name.starts_with('$'),
            _ => true,
        };
        // The last is how clang numbers tables of exceptions.
        let is_label = [".L", "GCC_except_table"]
            .iter()
            .any(|label| self.name.starts_with(label));
        is_thing && !self.name.is_empty() && !is_label
    }
}

/// What compilers put in front of functions: the kernel's `__pfx_NAME` is room for instructions,
/// `__cfi_NAME` has a number that tells the function's type.
#[derive(Debug, Default)]
struct Prefixes {
    all: BTreeSet<usize>,
    by_function: BTreeMap<usize, Vec<usize>>,
}

impl Prefixes {
    fn find(symbols: &[Symbol]) -> Self {
        const PREFIXES: [&str; 2] = ["__pfx_", "__cfi_"];
        let functions = symbols.iter().enumerate();
        let functions = functions.filter(|(_, symbol)| symbol.kind() == elf::STT_FUNC);
        let by_name: BTreeMap<(&str, Home), usize> = functions
            .map(|(index, symbol)| ((&*symbol.name, symbol.home), index))
            .collect();
        let mut found = Self::default();
        for (index, symbol) in symbols.iter().enumerate() {
            let mut names = PREFIXES.iter();
            let name = names.find_map(|prefix| symbol.name.strip_prefix(prefix));
            let function = name
                .and_then(|name| by_name.get(&(name, symbol.home)))
                .filter(|function| symbol.value < symbols[**function].value);
            if let Some(function) = function {
                found.all.insert(index);
                let prefixes = found.by_function.entry(*function).or_default();
                prefixes.push(index);
                prefixes.sort_by_key(|prefix| symbols[*prefix].value);
            }
        }
        found
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
