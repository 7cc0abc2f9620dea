//! What goes into the patch: the functions that changed, what is new, and whatever of the rest has
//! no name in the running system. All other references become livepatch symbols.

use crate::authors;
use crate::calls;
use crate::check;
use crate::compare::{Pair, Place, is_constant};
use crate::copies::{Copies, Open};
use crate::error::{Refusal, Why};
use crate::frames::{EH_FRAME, EXCEPTION_TABLE};
use crate::matches::Match;
use crate::namespaces;
use crate::pieces::piece_at;
use crate::sites::{self, Sites};
use crate::special;
use crate::statics;
use crate::target::Target;
use crate::unit::{Home, Referent, Reloc, Section, Symbol, Unit};
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
    /// Callbacks: their places in `struct klp_object_ext`, and their symbols.
    pub(crate) callbacks: BTreeMap<u64, usize>,
    /// The namespaces that it takes symbols of the kernel from.
    pub(crate) namespaces: BTreeSet<String>,
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
    /// Something of the running system, by the name of its livepatch symbol, and whether it is a
    /// thread-local variable.
    Livepatch(String, bool),
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
        for (place, symbol) in authors::callbacks(&each.patched) {
            selection.call_back(At { pair, symbol }, place);
        }
        // Others may want to call it, now or later.
        for symbol in each.new_functions() {
            let at = At { pair, symbol };
            if selection.definition(at) == at {
                selection.own(at);
            }
        }
    }
    selection.follow();
    let unreadable = selection.copies.add_frames();
    selection.refusals.extend(unreadable);
    // Frames refer to tables of exceptions, and these to types; entries of special sections to code
    // of which there are entries, too.
    selection.follow();
    while selection.copies.add_entries() {
        selection.follow();
    }
    selection.check_unknown_sections();
    let Selection {
        mut refusals,
        copies,
        made: symbols,
        replaced,
        callbacks,
        ..
    } = selection;
    let units = pairs.iter().map(|pair| &pair.patched);
    let mut contents = Contents {
        sections: copies.sections,
        symbols,
        replaced,
        callbacks,
        taken: copies.whole,
        namespaces: units.flat_map(namespaces::imported).collect(),
    };
    if let Some(pair) = pairs.first() {
        sites::note_calls(pair.patched.header, &mut contents);
        refusals.extend(check::check(pair, object, &contents));
    }
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
    /// What the original of each pair takes from others.
    imports: Vec<BTreeSet<&'a str>>,
    /// The sites of the original of each pair.
    sites: Vec<Sites<'a>>,
    copies: Copies<'a>,
    symbols: BTreeMap<Key, usize>,
    /// The symbols of the patch.
    made: Vec<Symbol>,
    replaced: Vec<Replaced>,
    /// Where these are in the patch.
    replaced_at: BTreeSet<(Home, u64)>,
    callbacks: BTreeMap<u64, usize>,
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
            imports: pairs.iter().map(|pair| imports(&pair.original)).collect(),
            sites: pairs.iter().map(|pair| Sites::of(&pair.original)).collect(),
            copies: Copies::new(pairs),
            symbols: BTreeMap::new(),
            made: vec![Symbol::null()],
            replaced: Vec::new(),
            replaced_at: BTreeSet::new(),
            callbacks: BTreeMap::new(),
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
        if !self.sites[at.pair].has(original) {
            self.refuse(at, Why::NoEntrySite);
        }
        let place = (self.made[new].home, symbol.value);
        if self.replaced_at.contains(&place) {
            return;
        }
        match self.position(at.pair, original) {
            Ok(position) => {
                self.replaced_at.insert(place);
                self.replaced.push(Replaced {
                    old_name: old.name.clone(),
                    position,
                    symbol: new,
                });
            }
            Err(why) => self.refuse(at, why),
        }
    }

    /// Has the function called back, at its place in the patch; there is one such place for all of
    /// the object.
    fn call_back(&mut self, at: At, place: u64) {
        let new = self.own(at);
        if self.callbacks.insert(place, new).is_some() {
            self.refuse(at, Why::SecondCallback);
        }
    }

    /// Which of the running system's symbols `original` of a pair is.
    fn position(&self, pair: usize, original: usize) -> Result<u32, Why> {
        let unit = &self.pairs[pair].original;
        let Some(target) = self.target else {
            return Ok(0);
        };
        let (old, source) = (&unit.symbols[original], unit.source(original));
        match old.is_thread_local() {
            true => target.thread_local_position(&old.name, source),
            false => target.position(&old.name, source),
        }
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
        // They are in the order of their places.
        let mut ends = names.first().into_iter().chain(names.last());
        let shares = ends.any(|name| pair.patched.symbols[*name].value != symbol.value);
        if shares && statics::is_patchs_own(&pair.patched, at.symbol) {
            let piece = Place {
                section,
                start: symbol.value,
                len: symbol.len,
            };
            let (table, value) = self.copies.piece(at.pair, piece);
            return self.add(key, local(symbol, table, value));
        }
        // Of constants, others may come along.
        if shares && !is_constant(&pair.patched, at.symbol) {
            let section = pair.patched.sections[section].name.clone();
            self.refuse(at, Why::SharedSection { section });
        }
        let place = self.copies.whole(at.pair, section);
        for prefix in pair.patched.prefixes_of(at.symbol) {
            let prefix = &pair.patched.symbols[*prefix];
            self.made.push(local(prefix, place, prefix.value));
        }
        self.add(key, local(symbol, place, symbol.value))
    }

    fn add(&mut self, key: Key, symbol: Symbol) -> usize {
        let index = self.made.len();
        self.made.push(symbol);
        self.symbols.insert(key, index);
        index
    }

    /// Follows all references.
    fn follow(&mut self) {
        while let Some(Open {
            pair,
            section,
            relocs,
        }) = self.copies.open.pop()
        {
            for reloc in &relocs {
                let resolved = self.resolve(pair, section, reloc);
                self.copies.sections[section].relocs.push(resolved);
            }
        }
    }

    /// What a relocation of a pair is in the patch, in section `section` of that.
    fn resolve(&mut self, pair: usize, section: usize, reloc: &Reloc) -> Reloc {
        let (symbol, addend) = match self.pairs[pair].patched.referent(reloc) {
            Referent::Nothing => (0, reloc.addend),
            Referent::Nameless {
                section: of,
                offset,
            } => {
                let (symbol, offset) = self.nameless(pair, (of, offset), section);
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

    /// The patch's symbol for a section with things that have no name, one of which section `user`
    /// of the patch refers to, and the place of that in it.
    fn nameless(
        &mut self,
        pair: usize,
        (section, offset): (usize, i64),
        user: usize,
    ) -> (usize, i64) {
        let unit = &self.pairs[pair].patched;
        if let Some((start, len)) = piece_at(unit, section, offset) {
            let piece = Place {
                section,
                start,
                len,
            };
            let (table, place) = self.copies.piece(pair, piece);
            let symbol = self.known_or_add(Key::Section(table), Symbol::section(table));
            let moved = offset.wrapping_sub_unsigned(start);
            return (symbol, moved.wrapping_add_unsigned(place));
        }
        let from = &unit.sections[section];
        let user = &self.copies.sections[user].name;
        // Clang has pointers to types stand there that nobody writes to.
        let for_unwinder = user == EH_FRAME || user.starts_with(EXCEPTION_TABLE);
        let is_unnamed = unit.names_in(section).is_empty();
        let is_own = from.is_constant() && !from.is_code()
            || is_unnamed && (for_unwinder || from.is_compilers_own())
            // Entries of special sections are about places in code, not functions.
            || from.is_code() && self.copies.has_whole(pair, section);
        // Of what can be written to, there is one.
        if !is_own {
            let name = from.name.clone();
            let refusal = self.pairs[pair].refuse(
                &name,
                Why::Nameless {
                    section: name.clone(),
                },
            );
            self.refusals.push(refusal);
            return (0, 0);
        }
        let place = self.copies.whole(pair, section);
        let symbol = self.known_or_add(Key::Section(place), Symbol::section(place));
        (symbol, offset)
    }

    /// The patch's symbol for what is `offset` bytes from `at`, as `reloc` has it.
    fn named(&mut self, at: At, offset: i64, section: usize, reloc: &Reloc) -> usize {
        let at = self.definition(at);
        let (pair, symbol) = (&self.pairs[at.pair], self.symbol(at));
        // The relocators of other processors know no references to them.
        if symbol.is_thread_local() && pair.patched.header.machine != elf::EM_X86_64 {
            self.refuse(at, Why::ThreadLocal);
            return 0;
        }
        match symbol.home {
            Home::Outside => return self.outside(at),
            Home::Absolute => {
                let absolute = symbol.clone();
                return self.known_or_add(Key::Absolute(at), absolute);
            }
            Home::Common | Home::Section(_) => {}
        }
        let is_function = pair.patched.is_function(at.symbol);
        match &pair.matches[at.symbol] {
            Match::New if symbol.home == Home::Common => {
                self.refuse(at, Why::Common);
                0
            }
            Match::New if symbol.is_thread_local() => {
                self.refuse(at, Why::ThreadLocal);
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
                let from = &self.copies.sections[section];
                // Unwind information and special sections are about the code that the patch has.
                let is_beside = from.name == EH_FRAME || special::kind_of(&from.name).is_some();
                let is_here = inside || is_beside || calls::is_call(machine, from, reloc);
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
        match self.position(at.pair, original) {
            Ok(position) => self.livepatch_symbol(old, position),
            Err(why) => {
                self.refuse(at, why);
                0
            }
        }
    }

    /// The livepatch symbol of what is called like `symbol` in the running system.
    fn livepatch_symbol(&mut self, symbol: &Symbol, position: u32) -> usize {
        let name = SymbolName {
            object: self.object,
            name: &symbol.name,
            pos: position,
        };
        let name = name.to_string();
        let kind = match symbol.is_thread_local() {
            true => elf::STT_TLS,
            false => elf::STT_NOTYPE,
        };
        let key = Key::Livepatch(name.clone(), symbol.is_thread_local());
        self.known_or_add(key, Symbol::undefined(name, elf::STB_GLOBAL | kind))
    }

    /// The symbol of what no object file here defines.
    fn outside(&mut self, at: At) -> usize {
        let symbol = self.symbol(at);
        let name = &*symbol.name;
        // It was linked to the same program or library (ELF gABI, "Symbol Visibility").
        let visibility = symbol.other.visibility();
        let hidden = [elf::STV_HIDDEN, elf::STV_INTERNAL].contains(&visibility);
        if symbol.is_thread_local() {
            return self.outside_thread_local(at, hidden);
        }
        let defines = |target: &Target| target.defines(name);
        let mut is_there = hidden || self.target.is_some_and(defines);
        // A version script, and rustc for a library, makes local what object files are linked to.
        let is_local = |target: &Target| target.has(name) && !target.imports(name);
        if !is_there && self.target.is_some_and(is_local) {
            is_there = self.imports[at.pair].contains(name);
            if !is_there {
                self.refuse(at, Why::MaybeLocal);
                return 0;
            }
        }
        let everybodys = LINKERS.contains(&name) || sites::is_profilers(name);
        if everybodys || !is_there {
            return self.known_or_add(Key::Outside(symbol.name.clone()), symbol.clone());
        }
        let position = self
            .target
            .map(|target| target.position(&symbol.name, None));
        match position.unwrap_or(Ok(0)) {
            Ok(position) => self.livepatch_symbol(symbol, position),
            Err(why) => {
                self.refuse(at, why);
                0
            }
        }
    }

    /// The same of a thread-local variable: those of other objects cannot be used.
    fn outside_thread_local(&mut self, at: At, is_there: bool) -> usize {
        let symbol = self.symbol(at);
        let position = match self.target {
            Some(target) => target.thread_local_position(&symbol.name, None),
            None if is_there => Ok(0),
            None => Err(Why::NotInTarget),
        };
        match position {
            Ok(position) => return self.livepatch_symbol(symbol, position),
            Err(Why::NotInTarget) => self.refuse(at, Why::ThreadLocal),
            Err(why) => self.refuse(at, why),
        }
        0
    }

    fn known_or_add(&mut self, key: Key, symbol: Symbol) -> usize {
        match self.symbols.get(&key) {
            Some(known) => *known,
            None => self.add(key, symbol),
        }
    }

    /// Refuses code that a section says something of which is not known.
    fn check_unknown_sections(&mut self) {
        for (pair, each) in self.pairs.iter().enumerate() {
            for unknown in each.unknown_sections() {
                for reloc in &unknown.relocs {
                    let Referent::Named { symbol, .. } = each.patched.referent(reloc) else {
                        continue;
                    };
                    let code = each.patched.section_of(symbol);
                    if code.is_some_and(|code| self.copies.has_whole(pair, code)) {
                        let section = unknown.name.clone();
                        let name = &each.patched.symbols[symbol].name;
                        self.refusals
                            .push(each.refuse(name, Why::SpecialSection { section }));
                    }
                }
            }
        }
    }
}

/// What `unit` takes from others.
fn imports(unit: &Unit) -> BTreeSet<&str> {
    let symbols = unit.symbols.iter();
    let outside = symbols.filter(|symbol| symbol.home == Home::Outside);
    outside.map(|symbol| &*symbol.name).collect()
}

/// The patch's symbol for its own copy of what `symbol` is. Linkers see no others of a patch.
fn local(symbol: &Symbol, section: usize, value: u64) -> Symbol {
    Symbol {
        name: symbol.name.clone(),
        home: Home::Section(section),
        value,
        info: elf::STB_LOCAL | symbol.kind(),
        ..*symbol
    }
}
