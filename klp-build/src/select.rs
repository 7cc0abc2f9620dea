//! What goes into the patch: the functions that changed, what is new, and whatever of the rest has
//! no name in the running system. All other references become livepatch symbols.

use crate::calls;
use crate::compare::{Pair, is_constant};
use crate::error::{Refusal, Why};
use crate::frames::{self, EH_FRAME, EXCEPTION_TABLE};
use crate::matches::Match;
use crate::target::Target;
use crate::unit::{Home, Referent, Reloc, Section, Symbol, TOC_POINTER};
use klp_core::elf::names::{SymbolName, part_of};
use object::elf;
use std::collections::{BTreeMap, BTreeSet};

/// What each program, library, and patch has its own of.
const LINKERS: [&str; 2] = [".TOC.", "_GLOBAL_OFFSET_TABLE_"];

/// The contents of a patch object.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) sections: Vec<Section>,
    /// Relocations of the sections have their places here. Those outside of all sections are to be
    /// found by their names.
    pub(crate) symbols: Vec<Symbol>,
    /// The functions that are replaced.
    pub(crate) replaced: Vec<Replaced>,
    /// What the sections were, with the pairs that they are of, and where they are here.
    pub(crate) taken: BTreeMap<(usize, usize), usize>,
}

/// A function that is replaced.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// What the running system calls it.
    pub(crate) old_name: String,
    pub(crate) position: u32,
    /// The symbol of the new one.
    pub(crate) symbol: usize,
}

/// A symbol of one of the pairs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct At {
    pair: usize,
    symbol: usize,
}

/// What the patch has a symbol for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Key {
    /// Something of the patch's own.
    Own(At),
    /// The beginning of a section of the patch's.
    Section(usize),
    /// Something of the running system, by the name of its livepatch symbol.
    Livepatch(String),
    /// What another object exports.
    Outside(String),
    /// A number.
    Absolute(At),
}

/// Chooses from `pairs` what a patch of the object called `object` needs.
pub(crate) fn select(
    pairs: &[Pair],
    object: &str,
    target: Option<&Target>,
) -> Result<Contents, Vec<Refusal>> {
    let mut selection = Selection::new(pairs, object, target);
    for at in selection.changed.clone() {
        selection.replace(at);
    }
    for (pair, each) in pairs.iter().enumerate() {
        selection.refusals.extend(each.refusals());
        // Others may want to call it, now or later.
        for symbol in each.new_functions() {
            let at = At { pair, symbol };
            if selection.definition(at) == at {
                selection.own(at);
            }
        }
    }
    selection.follow();
    selection.add_frames();
    // Frames refer to tables of exceptions, and these to types.
    selection.follow();
    selection.check_special_sections();
    let Selection {
        mut refusals,
        mut contents,
        sections,
        ..
    } = selection;
    contents.taken = sections;
    if refusals.is_empty() {
        return Ok(contents);
    }
    refusals.sort_unstable();
    refusals.dedup();
    Err(refusals)
}

struct Selection<'a> {
    pairs: &'a [Pair],
    object: &'a str,
    target: Option<&'a Target>,
    /// The functions that changed, and parts of functions.
    changed: BTreeSet<At>,
    /// Where what is not local is defined: of several copies of one thing, the first.
    globals: BTreeMap<&'a str, At>,
    /// The pairs whose originals define what is not local.
    before: BTreeMap<&'a str, usize>,
    /// Sections of pairs that are in the patch, and where.
    sections: BTreeMap<(usize, usize), usize>,
    /// Sections of the patch whose references are not followed yet, each with its pair.
    open: Vec<(usize, usize)>,
    symbols: BTreeMap<Key, usize>,
    /// Pointers in tables of contents, each by its table in the patch and its place in the pair's.
    pointers: BTreeMap<(usize, i64), i64>,
    contents: Contents,
    refusals: Vec<Refusal>,
}

impl<'a> Selection<'a> {
    fn new(pairs: &'a [Pair], object: &'a str, target: Option<&'a Target>) -> Self {
        let (mut globals, mut before) = (BTreeMap::new(), BTreeMap::new());
        for (pair, each) in pairs.iter().enumerate() {
            before.extend(each.original.globals().into_keys().map(|name| (name, pair)));
            for (name, symbol) in each.patched.globals() {
                let at = At { pair, symbol };
                let known: &mut At = globals.entry(name).or_insert(at);
                // Linkers take a weak one if there is no other.
                if each.patched.symbols[symbol].info.st_bind() != elf::STB_WEAK
                    && pairs[known.pair].patched.symbols[known.symbol]
                        .info
                        .st_bind()
                        == elf::STB_WEAK
                {
                    *known = at;
                }
            }
        }
        // A constant that changed changes who uses it, in other object files, too.
        let is_new_constant = |name: &str| {
            let at: Option<&At> = globals.get(name);
            at.is_some_and(|at| pairs[at.pair].is_new_constant(at.symbol))
        };
        let (mut changed, mut refusals) = (BTreeSet::new(), Vec::new());
        for (pair, each) in pairs.iter().enumerate() {
            let users = each.users_of(is_new_constant).into_iter();
            let (functions, data): (Vec<_>, Vec<_>) =
                users.partition(|user| each.patched.is_function(*user));
            let functions = functions.into_iter();
            let functions = functions.map(|user| each.patched.whole(user).unwrap_or(user));
            let symbols = each.changed.iter().copied().chain(functions);
            changed.extend(symbols.map(|symbol| At { pair, symbol }));
            let data = data.iter().map(|data| &each.patched.symbols[*data].name);
            refusals.extend(data.map(|name| each.refuse(name, Why::ChangedData)));
        }
        Self {
            pairs,
            object,
            target,
            changed,
            globals,
            before,
            sections: BTreeMap::new(),
            open: Vec::new(),
            symbols: BTreeMap::new(),
            pointers: BTreeMap::new(),
            contents: Contents {
                symbols: vec![Symbol::null()],
                ..Contents::default()
            },
            refusals,
        }
    }

    fn symbol(&self, at: At) -> &'a Symbol {
        &self.pairs[at.pair].patched.symbols[at.symbol]
    }

    fn refuse(&mut self, at: At, why: Why) {
        let refusal = self.pairs[at.pair].refuse(&self.symbol(at).name, why);
        self.refusals.push(refusal);
    }

    /// The definition that is meant by a symbol: another object file may have it.
    fn definition(&self, at: At) -> At {
        let symbol = self.symbol(at);
        let global = self
            .globals
            .get(&*symbol.name)
            .filter(|_| !symbol.is_local());
        global.copied().unwrap_or(at)
    }

    /// Takes a function that changed into the patch.
    fn replace(&mut self, at: At) {
        // Of a function that several object files have a copy of, one is in the running system.
        if self.definition(at) != at {
            return;
        }
        let (pair, symbol) = (&self.pairs[at.pair], self.symbol(at));
        let Match::Same(original) = pair.matches[at.symbol] else {
            return;
        };
        let new = self.own(at);
        if pair.patched.whole(at.symbol).is_some() {
            return;
        }
        let old = &pair.original.symbols[original];
        if !pair.has_entry_site(original) {
            self.refuse(at, Why::NoEntrySite);
        }
        let is_alias = |other: &Replaced| {
            let other = &self.contents.symbols[other.symbol];
            let new = &self.contents.symbols[new];
            other.home == new.home && other.value == symbol.value
        };
        if self.contents.replaced.iter().any(is_alias) {
            return;
        }
        match self.position(at, old) {
            Ok(position) => self.contents.replaced.push(Replaced {
                old_name: old.name.clone(),
                position,
                symbol: new,
            }),
            Err(why) => self.refuse(at, why),
        }
    }

    /// Which of the running system's symbols `old` is, the original of `at`.
    fn position(&self, at: At, old: &Symbol) -> Result<u32, Why> {
        let source = self.pairs[at.pair].original.source();
        let source = source.filter(|_| old.is_local());
        let Some(target) = self.target else {
            return Ok(0);
        };
        target.position(&old.name, source)
    }

    /// The patch's symbol for its own copy of `at`.
    fn own(&mut self, at: At) -> usize {
        let key = Key::Own(at);
        if let Some(known) = self.symbols.get(&key) {
            return *known;
        }
        let pair = &self.pairs[at.pair];
        let Some(section) = pair.patched.section_of(at.symbol) else {
            return 0;
        };
        let names = pair.patched.names_in(section);
        let symbol = self.symbol(at);
        if pair.matches[at.symbol] == Match::New && !symbol.is_local() {
            if let Some(from) = self.before.get(&*symbol.name) {
                let from = self.pairs[*from].file.clone();
                self.refuse(at, Why::Moved { from });
            }
        }
        let shares = |name: &usize| pair.patched.symbols[*name].value != symbol.value;
        // Of constants, others may come along.
        if !is_constant(&pair.patched, at.symbol) && names.iter().any(shares) {
            let section = pair.patched.sections[section].name.clone();
            self.refuse(at, Why::SharedSection { section });
        }
        let place = self.section(at.pair, section);
        // Linkers see no others of a patch.
        let info = elf::STB_LOCAL | symbol.kind();
        let own = Symbol {
            name: symbol.name.clone(),
            home: Home::Section(place),
            info,
            ..*symbol
        };
        self.add(key, own)
    }

    /// The patch's copy of section `section` of a pair.
    fn section(&mut self, pair: usize, section: usize) -> usize {
        if let Some(known) = self.sections.get(&(pair, section)) {
            return *known;
        }
        let place = self.contents.sections.len();
        let copy = self.pairs[pair].patched.sections[section].clone();
        self.contents.sections.push(copy);
        self.sections.insert((pair, section), place);
        self.open.push((pair, place));
        place
    }

    fn add(&mut self, key: Key, symbol: Symbol) -> usize {
        let index = self.contents.symbols.len();
        self.contents.symbols.push(symbol);
        self.symbols.insert(key, index);
        index
    }

    /// Follows all references.
    fn follow(&mut self) {
        while let Some((pair, section)) = self.open.pop() {
            let relocs = core::mem::take(&mut self.contents.sections[section].relocs);
            let resolved = relocs
                .iter()
                .map(|reloc| self.resolve(pair, section, reloc));
            let resolved = resolved.collect();
            self.contents.sections[section].relocs = resolved;
        }
    }

    /// What a relocation of a pair is in the patch, in section `section` of that.
    fn resolve(&mut self, pair: usize, section: usize, reloc: &Reloc) -> Reloc {
        let (symbol, addend) = match self.pairs[pair].patched.referent(reloc) {
            Referent::Nothing => (0, reloc.addend),
            Referent::Nameless { section, offset }
                if self.pairs[pair].patched.sections[section].is_toc() =>
            {
                self.pointer(pair, section, offset)
            }
            Referent::Nameless {
                section: of,
                offset,
            } => {
                let symbol = self.nameless(pair, of, section);
                (symbol, offset.wrapping_sub(reloc.bias))
            }
            Referent::Named { symbol, offset } => {
                let at = At { pair, symbol };
                (self.named(at, offset, section, reloc), offset)
            }
        };
        Reloc {
            symbol,
            addend,
            ..*reloc
        }
    }

    /// The patch's symbol for a section with things that have no name, which section `user` of the
    /// patch refers to.
    fn nameless(&mut self, pair: usize, section: usize, user: usize) -> usize {
        let unit = &self.pairs[pair].patched;
        let from = &unit.sections[section];
        let user = &self.contents.sections[user].name;
        // Clang has pointers to types stand there that nobody writes to.
        let for_unwinder = user == EH_FRAME || user.starts_with(EXCEPTION_TABLE);
        let is_constant = from.is_constant() || for_unwinder && unit.names_in(section).is_empty();
        // Of what can be written to, there is one.
        if !is_constant || from.is_code() {
            let name = from.name.clone();
            let refusal = self.pairs[pair].refuse(
                &name,
                Why::Nameless {
                    section: name.clone(),
                },
            );
            self.refusals.push(refusal);
            return 0;
        }
        let place = self.section(pair, section);
        self.known_or_add(Key::Section(place), Symbol::section(place))
    }

    /// The patch's copy of the pointer at `offset` of a table of contents: its symbol, and where it
    /// is from there. Of the others, the patch needs none.
    fn pointer(&mut self, pair: usize, section: usize, offset: i64) -> (usize, i64) {
        let from = &self.pairs[pair].patched.sections[section];
        let table = match self.sections.get(&(pair, section)) {
            Some(known) => *known,
            None => {
                let empty = Section {
                    len: 0,
                    bytes: Vec::new(),
                    relocs: Vec::new(),
                    ..from.clone()
                };
                let table = self.contents.sections.len();
                self.contents.sections.push(empty);
                self.sections.insert((pair, section), table);
                table
            }
        };
        let symbol = self.known_or_add(Key::Section(table), Symbol::section(table));
        let key = (table, offset);
        if let Some(known) = self.pointers.get(&key) {
            return (symbol, *known);
        }
        let start = offset.unsigned_abs();
        let bytes = from.bytes_in(start, TOC_POINTER);
        let out = &mut self.contents.sections[table];
        let place = out.len;
        out.bytes.extend_from_slice(bytes);
        out.len += bytes.len() as u64;
        let at = i64::try_from(place).unwrap_or(0);
        self.pointers.insert(key, at);
        for reloc in from.relocs_in(start, TOC_POINTER) {
            let moved = Reloc {
                at: reloc.at - start + place,
                ..self.resolve(pair, table, reloc)
            };
            self.contents.sections[table].relocs.push(moved);
        }
        (symbol, at)
    }

    /// The patch's symbol for what is `offset` bytes from `at`, as `reloc` has it.
    fn named(&mut self, at: At, offset: i64, section: usize, reloc: &Reloc) -> usize {
        let at = self.definition(at);
        let (pair, symbol) = (&self.pairs[at.pair], self.symbol(at));
        match symbol.home {
            Home::Outside => return self.outside(at),
            Home::Absolute => {
                let absolute = symbol.clone();
                return self.known_or_add(Key::Absolute(at), absolute);
            }
            Home::Common | Home::Section(_) => {}
        }
        if symbol.kind() == elf::STT_TLS {
            self.refuse(at, Why::ThreadLocal);
            return 0;
        }
        let is_function = pair.patched.is_function(at.symbol);
        match &pair.matches[at.symbol] {
            Match::New if symbol.home == Home::Common => {
                self.refuse(at, Why::Common);
                0
            }
            Match::New => self.own(at),
            Match::Ambiguous(_) if is_constant(&pair.patched, at.symbol) => self.own(at),
            Match::Ambiguous(originals) => {
                let name = |original: &usize| pair.original.symbols[*original].name.clone();
                let original = originals.iter().map(name).collect();
                self.refuse(at, Why::Ambiguous { original });
                0
            }
            Match::Same(_) if is_function => {
                let is_part = part_of(&symbol.name).is_some();
                let changed = self.changed.contains(&at);
                let inside = offset.wrapping_add(reloc.bias) != 0;
                let machine = pair.patched.header.machine;
                let from = &self.contents.sections[section];
                // Unwind information is of the code that the patch has.
                let is_here =
                    inside || from.name == EH_FRAME || calls::is_call(machine, from, reloc);
                if is_part || changed && is_here {
                    self.own(at)
                } else {
                    self.livepatch(at)
                }
            }
            // The unwinder's pointer to a function of the language's; every object has its own.
            Match::Same(_) if symbol.name.starts_with("DW.ref.") => self.own(at),
            Match::Same(_) if pair.is_new_constant(at.symbol) => self.own(at),
            Match::Same(_) => self.livepatch(at),
        }
    }

    /// The livepatch symbol of what `at` was in the original.
    fn livepatch(&mut self, at: At) -> usize {
        let pair = &self.pairs[at.pair];
        let Match::Same(original) = pair.matches[at.symbol] else {
            return 0;
        };
        let old = &pair.original.symbols[original];
        match self.position(at, old) {
            Ok(position) => self.livepatch_symbol(&old.name, position),
            Err(why) => {
                self.refuse(at, why);
                0
            }
        }
    }

    /// The livepatch symbol of the running system's `name`.
    fn livepatch_symbol(&mut self, name: &str, position: u32) -> usize {
        let name = SymbolName {
            object: self.object,
            name,
            pos: position,
        };
        let name = name.to_string();
        let symbol = Symbol::undefined(name.clone(), elf::STB_GLOBAL | elf::STT_NOTYPE);
        self.known_or_add(Key::Livepatch(name), symbol)
    }

    /// The symbol of what no object file here defines.
    fn outside(&mut self, at: At) -> usize {
        let symbol = self.symbol(at);
        // It was linked to the same program or library (ELF gABI, "Symbol Visibility").
        let visibility = symbol.other.visibility();
        let hidden = [elf::STV_HIDDEN, elf::STV_INTERNAL].contains(&visibility);
        let defined = |target: &Target| target.defines(&symbol.name);
        let linkers = LINKERS.contains(&&*symbol.name);
        if linkers || !hidden && !self.target.is_some_and(defined) {
            return self.known_or_add(Key::Outside(symbol.name.clone()), symbol.clone());
        }
        let position = self
            .target
            .map(|target| target.position(&symbol.name, None));
        match position.unwrap_or(Ok(0)) {
            Ok(position) => self.livepatch_symbol(&symbol.name, position),
            Err(why) => {
                self.refuse(at, why);
                0
            }
        }
    }

    fn known_or_add(&mut self, key: Key, symbol: Symbol) -> usize {
        match self.symbols.get(&key) {
            Some(known) => *known,
            None => self.add(key, symbol),
        }
    }

    /// Adds the unwind information of the code that was taken.
    fn add_frames(&mut self) {
        for (pair, each) in self.pairs.iter().enumerate() {
            let unit = &each.patched;
            let taken = self
                .sections
                .keys()
                .filter(|(of, section)| *of == pair && unit.sections[*section].is_code());
            let code: BTreeSet<_> = taken.map(|(_, section)| *section).collect();
            let tables = unit
                .sections
                .iter()
                .filter(|section| section.name == EH_FRAME);
            for table in tables.filter(|_| !code.is_empty()) {
                match frames::of(unit, table, &code) {
                    Some(frames) => {
                        self.open.push((pair, self.contents.sections.len()));
                        self.contents.sections.push(frames);
                    }
                    None => self.refusals.push(each.refuse(&table.name, Why::Frames)),
                }
            }
        }
    }

    /// Refuses code that a section says something of which is not understood.
    fn check_special_sections(&mut self) {
        for (pair, each) in self.pairs.iter().enumerate() {
            for special in each.special_sections() {
                for reloc in &special.relocs {
                    let Referent::Named { symbol, .. } = each.patched.referent(reloc) else {
                        continue;
                    };
                    let code = each.patched.section_of(symbol);
                    if code.is_some_and(|code| self.sections.contains_key(&(pair, code))) {
                        let section = special.name.clone();
                        let name = &each.patched.symbols[symbol].name;
                        self.refusals
                            .push(each.refuse(name, Why::SpecialSection { section }));
                    }
                }
            }
        }
    }
}
