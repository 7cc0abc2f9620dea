//! The symbol table of an object's file: by name, by address, and what belongs together.

use core::hash::BuildHasher;
use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use klp_core::elf::names::part_of;
use object::LittleEndian;
use object::elf::{
    FileHeader64, SHN_UNDEF, STB_LOCAL, STT_COMMON, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE,
    STT_OBJECT, STT_TLS, STV_DEFAULT, SectionType, Sym64,
};
use object::read::elf::{SectionHeader, SectionTable, Sym, VersionTable};
use object::{ReadRef, SymbolIndex};
use std::sync::OnceLock;

const LE: LittleEndian = LittleEndian;

/// The symbols that are defined, in their order. Addresses are the file's own.
#[derive(Debug, Default)]
pub(crate) struct SymbolTable {
    symbols: Vec<Symbol>,
    names: Vec<u8>,
    by_name: NameIndex,
    /// Functions, by where they start.
    functions: OnceLock<ByAddress>,
    /// Symbols called `NAME.cold` or `NAME.cold.N`, by where what is called `NAME` starts.
    parts: OnceLock<ByAddress>,
    /// The same for [clones](clone_of).
    clones: OnceLock<ByAddress>,
}

/// Places of symbols in the table, each with an address; sorted.
#[derive(Debug)]
struct ByAddress(Vec<(u64, usize)>);

/// A symbol that is defined.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    name: u32,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) local: bool,
    /// The dynamic linker may bind references to it, in its own object too, to another symbol of
    /// its name.
    pub(crate) preemptible: bool,
    pub(crate) kind: Kind,
    /// `st_other`.
    pub(crate) other: u8,
}

/// What a symbol names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Function,
    /// An indirect function (`STT_GNU_IFUNC`): what is at its address says which function is meant.
    Indirect,
    /// A variable, or something that the table does not tell more of.
    Data,
    /// A thread-local variable: its address is an offset in the block that each thread has for the
    /// object.
    ThreadLocal,
}

/// Symbols by their names without a default version; those with the same name are chained in the
/// table's order.
#[derive(Debug, Default)]
struct NameIndex {
    hasher: DefaultHashBuilder,
    /// The first one of each name.
    first: HashTable<u32>,
    /// The next one with the same name; [`LAST`] behind the last one.
    next: Vec<u32>,
}

const LAST: u32 = u32::MAX;

impl SymbolTable {
    /// Reads the table of type `kind`; `None` if there is none.
    pub(crate) fn read<'a, R: ReadRef<'a>>(
        sections: &SectionTable<'a, FileHeader64<LittleEndian>, R>,
        kind: SectionType,
        data: R,
    ) -> object::Result<Option<Self>> {
        let Some((section, symbols)) = sections.iter().find_map(|section| {
            let symbols: &[Sym64<LittleEndian>] = section.data_as_array(LE, data).ok()?;
            (section.sh_type(LE) == kind).then_some((section, symbols))
        }) else {
            return Ok(None);
        };
        let names = sections.section(object::SectionIndex(section.sh_link(LE) as usize))?;
        let mut table = Self {
            names: names.data(LE, data)?.to_vec(),
            ..Self::default()
        };
        // In a table for the static linker, versions are parts of names.
        let versions = match kind {
            object::elf::SHT_DYNSYM => sections.versions(LE, data)?,
            _ => None,
        };
        for (index, symbol) in symbols.iter().enumerate() {
            let kind = match symbol.st_type() {
                STT_FUNC => Kind::Function,
                STT_GNU_IFUNC => Kind::Indirect,
                STT_OBJECT | STT_COMMON | STT_NOTYPE => Kind::Data,
                STT_TLS => Kind::ThreadLocal,
                _ => continue,
            };
            if symbol.st_shndx(LE) == SHN_UNDEF {
                continue;
            }
            let mut symbol = Symbol {
                name: symbol.st_name(LE),
                addr: symbol.st_value(LE),
                len: symbol.st_size(LE),
                local: symbol.st_bind() == STB_LOCAL,
                preemptible: symbol.st_bind() != STB_LOCAL && symbol.st_visibility() == STV_DEFAULT,
                kind,
                other: symbol.st_other().0,
            };
            if let Some(versions) = &versions {
                table.add_version(&mut symbol, SymbolIndex(index), versions)?;
            }
            table.symbols.push(symbol);
        }
        table.by_name = NameIndex::new(&table);
        Ok(Some(table))
    }

    /// Gives `symbol` the name that the static linker's table would have: `NAME@@VERSION`, or
    /// `NAME@VERSION` if that is not the one which new programs get.
    fn add_version(
        &mut self,
        symbol: &mut Symbol,
        index: SymbolIndex,
        versions: &VersionTable<'_, FileHeader64<LittleEndian>>,
    ) -> object::Result<()> {
        let number = versions.version_index(LE, index);
        let Some(version) = versions.version(number.index())? else {
            return Ok(());
        };
        let name = self.full_name(symbol).to_vec();
        let Ok(at) = u32::try_from(self.names.len()) else {
            return Ok(());
        };
        symbol.name = at;
        self.names.extend_from_slice(&name);
        // A program's copy of a variable has the version of the original, which is none of its own.
        let default = !number.is_hidden() && version.file().is_none();
        self.names
            .extend_from_slice(if default { b"@@" } else { b"@" });
        self.names.extend_from_slice(version.name());
        self.names.push(0);
        Ok(())
    }

    /// The symbols called `name` that have an address, in the order of the table. A name without a
    /// version also means the one that new programs get; `NAME@@VERSION` and `NAME@VERSION` are
    /// names, too.
    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Symbol> {
        let all = self.all_named(name);
        all.filter(|symbol| symbol.kind != Kind::ThreadLocal)
    }

    /// The thread-local variables called `name`, in the order of the table.
    pub(crate) fn thread_locals<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Symbol> {
        let all = self.all_named(name);
        all.filter(|symbol| symbol.kind == Kind::ThreadLocal)
    }

    fn all_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Symbol> {
        let (name, plain) = (name.as_bytes(), without_default_version(name.as_bytes()));
        self.by_name
            .find(self, plain)
            .filter(move |symbol| plain.len() == name.len() || self.full_name(symbol) == name)
    }

    /// All symbols that have an address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Symbol> {
        let all = self.symbols.iter();
        all.filter(|symbol| symbol.kind != Kind::ThreadLocal)
    }

    /// The function that `addr` lies in, and its symbol: of several at one address, the one that
    /// comes first in the table.
    pub(crate) fn function_at(&self, addr: u64) -> Option<&Symbol> {
        let functions = &self.functions().0;
        let behind = functions.partition_point(|&(start, _)| start <= addr);
        let before = functions.get(..behind)?;
        let start = before.last()?.0;
        let same = before.iter().rev().take_while(|(each, _)| *each == start);
        let symbol = self.symbols.get(same.last()?.1)?;
        (addr < symbol.addr.saturating_add(symbol.len)).then_some(symbol)
    }

    /// The parts that a compiler split off the function that starts at `start`, whatever it is
    /// called.
    pub(crate) fn parts_of(&self, start: u64) -> impl Iterator<Item = &Symbol> {
        let parts = self.parts.get_or_init(|| self.related(part_of));
        parts.at(start).filter_map(|index| self.symbols.get(index))
    }

    /// The functions that a compiler made of functions called `name`, and has their callers call.
    pub(crate) fn clones_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Symbol> {
        let clones = self.clones.get_or_init(|| self.related(clone_of));
        // Most programs have none: then nothing has to be looked up.
        let names = (!clones.0.is_empty()).then_some(name).into_iter();
        names
            .flat_map(|name| self.named(name))
            .flat_map(|symbol| clones.at(symbol.addr))
            .filter_map(|index| self.symbols.get(index))
            .filter(|symbol| symbol.kind == Kind::Function)
    }

    /// Symbols whose names are made of other symbols' names, by the addresses of those; `of` takes
    /// a name apart.
    fn related(&self, of: impl Fn(&str) -> Option<&str>) -> ByAddress {
        let relatives = |(index, symbol)| {
            let originals = of(self.name(symbol)).into_iter();
            let originals = originals.flat_map(|name| self.named(name));
            originals.map(move |original| (original.addr, index))
        };
        ByAddress::new(self.symbols.iter().enumerate().flat_map(relatives))
    }

    /// The symbol's name, without a version that new programs get.
    pub(crate) fn name(&self, symbol: &Symbol) -> &str {
        core::str::from_utf8(without_default_version(self.full_name(symbol))).unwrap_or("?")
    }

    /// The name of symbol number `number`, without a version that new programs get.
    fn plain_name(&self, number: u32) -> &[u8] {
        let symbol = self.symbols.get(number as usize);
        without_default_version(symbol.map_or(&[], |symbol| self.full_name(symbol)))
    }

    fn full_name(&self, symbol: &Symbol) -> &[u8] {
        let rest = self.names.get(symbol.name as usize..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    fn functions(&self) -> &ByAddress {
        self.functions.get_or_init(|| {
            let has_code =
                |(_, symbol): &(usize, &Symbol)| symbol.kind == Kind::Function && symbol.len > 0;
            let all = self.symbols.iter().enumerate().filter(has_code);
            ByAddress::new(all.map(|(index, symbol)| (symbol.addr, index)))
        })
    }
}

impl ByAddress {
    fn new(places: impl Iterator<Item = (u64, usize)>) -> Self {
        let mut places: Vec<_> = places.collect();
        places.sort_unstable();
        places.dedup();
        Self(places)
    }

    fn at(&self, addr: u64) -> impl Iterator<Item = usize> {
        let first = self.0.partition_point(|&(each, _)| each < addr);
        let same = self.0[first..]
            .iter()
            .take_while(move |(each, _)| *each == addr);
        same.map(|&(_, index)| index)
    }
}

/// `NAME` of `NAME@@VERSION`; anything else as it is.
fn without_default_version(name: &[u8]) -> &[u8] {
    let end = name.windows(2).position(|at| at == b"@@");
    &name[..end.unwrap_or(name.len())]
}

/// The function that a symbol called `symbol` is a clone of: `NAME` of `NAME.constprop.0`,
/// `NAME.isra.0`, `NAME.part.0`, … Not parts, which have no callers of their own, nor functions
/// that were renamed only, to keep local ones of several files apart.
fn clone_of(symbol: &str) -> Option<&str> {
    let (name, rest) = symbol.split_once('.')?;
    let how = rest.split('.').next()?;
    let renamed = ["llvm", "lto_priv", "localalias", "resolver"].contains(&how);
    let is_clone = !name.is_empty() && !renamed && !how.bytes().all(|byte| byte.is_ascii_digit());
    (is_clone && part_of(symbol).is_none()).then_some(name)
}

impl NameIndex {
    fn new(table: &SymbolTable) -> Self {
        let mut index = Self {
            first: HashTable::with_capacity(table.symbols.len()),
            next: vec![LAST; table.symbols.len()],
            ..Self::default()
        };
        let Self {
            hasher,
            first,
            next,
        } = &mut index;
        let hash = |&number: &u32| hasher.hash_one(table.plain_name(number));
        for (place, next) in next.iter_mut().enumerate().rev() {
            // Names have 32 bits, too.
            let Ok(number) = u32::try_from(place) else {
                continue;
            };
            let name = table.plain_name(number);
            let is_named = |other: &u32| table.plain_name(*other) == name;
            match first.entry(hash(&number), is_named, hash) {
                Entry::Occupied(mut first) => *next = core::mem::replace(first.get_mut(), number),
                Entry::Vacant(place) => drop(place.insert(number)),
            }
        }
        index
    }

    /// The symbols of `table` that are called `name`, which has no default version.
    fn find<'a>(&'a self, table: &'a SymbolTable, name: &[u8]) -> impl Iterator<Item = &'a Symbol> {
        let is_named = |&number: &u32| table.plain_name(number) == name;
        let first = self.first.find(self.hasher.hash_one(name), is_named);
        let next = |number: &u32| self.next.get(*number as usize).copied();
        core::iter::successors(first.copied(), next)
            .map_while(|number| table.symbols.get(number as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_have_the_name_of_their_function() {
        for clone in [
            "work.constprop.0",
            "work.isra.0",
            "work.part.1.constprop.0",
            "work.avx2",
        ] {
            assert_eq!(clone_of(clone), Some("work"), "{clone}");
        }
        for other in [
            "work",
            "work.cold",
            "work.constprop.0.cold.1",
            "work.llvm.123",
            "work.lto_priv.0",
            "count.0",
            ".hidden",
        ] {
            assert_eq!(clone_of(other), None, "{other}");
        }
    }

    /// A table of functions at addresses 0, 16, 32, … in the order given.
    fn table(names: &[&str]) -> SymbolTable {
        let mut table = SymbolTable::default();
        for (number, name) in (0..).zip(names) {
            let at = u32::try_from(table.names.len()).expect("it is short");
            table.symbols.push(Symbol {
                name: at,
                addr: number * 16,
                len: 16,
                local: false,
                preemptible: true,
                kind: Kind::Function,
                other: 0,
            });
            table.names.extend_from_slice(name.as_bytes());
            table.names.push(0);
        }
        table.by_name = NameIndex::new(&table);
        table
    }

    #[test]
    fn a_name_without_a_version_means_the_default_one() {
        let mut table = table(&["calc@VER_1", "calc@@VER_2", "other", "calc.cold", "other"]);
        table.symbols[4].kind = Kind::ThreadLocal;
        let found = |name| -> Vec<u64> { table.named(name).map(|symbol| symbol.addr).collect() };
        assert_eq!(found("calc"), [16]);
        assert_eq!(found("calc@@VER_2"), [16]);
        assert_eq!(found("calc@VER_1"), [0]);
        assert!(found("calc@@VER_1").is_empty());
        assert!(found("calc@VER_2").is_empty());
        assert!(found("other@@VER_2").is_empty());
        assert_eq!(found("other"), [32]);
        let thread_locals: Vec<u64> = table.thread_locals("other").map(|each| each.addr).collect();
        assert_eq!(thread_locals, [64]);
        let default = table.named("calc").next().expect("found above");
        assert_eq!(table.name(default), "calc");
        let parts: Vec<u64> = table.parts_of(16).map(|part| part.addr).collect();
        assert_eq!(parts, [48]);
    }

    #[test]
    fn all_names_of_a_function_are_known() {
        let names = [
            "first",
            "alias",
            "next",
            "alias.cold",
            "alias.isra.0",
            "next.cold",
            "next.cold.1",
            "gone.cold",
        ];
        let mut table = table(&names);
        table.symbols[1].addr = 0;
        table.symbols[1].len = 4;
        let at = |addr| table.function_at(addr).map(|symbol| table.name(symbol));
        assert_eq!(at(8), Some("first"));
        assert_eq!(at(20), None);
        assert_eq!(at(32), Some("next"));
        let parts = |start| -> Vec<&str> {
            let parts = table.parts_of(start);
            parts.map(|symbol| table.name(symbol)).collect()
        };
        assert_eq!(parts(0), ["alias.cold"]);
        assert_eq!(parts(32), ["next.cold", "next.cold.1"]);
        assert!(parts(4).is_empty() && parts(48).is_empty());
        for name in ["first", "alias"] {
            let clones = table.clones_of(name).map(|symbol| table.name(symbol));
            assert_eq!(clones.collect::<Vec<_>>(), ["alias.isra.0"]);
        }
        assert!(table.clones_of("next").next().is_none());
    }
}
