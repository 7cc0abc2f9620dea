//! What goes into the patch: the functions that changed, what is new, and whatever of the rest has
//! no name in the running system. All other references become livepatch symbols.

use crate::calls;
use crate::compare::{Pair, Place, is_constant};
use crate::error::{Refusal, Why};
use crate::frames::{self, EH_FRAME, EXCEPTION_TABLE};
use crate::matches::Match;
use crate::pieces::piece_at;
use crate::special;
use crate::statics;
use crate::target::Target;
use crate::unit::{Home, Referent, Reloc, Section, Symbol, Unit};
use klp_core::elf::names::{SymbolName, part_of};
use klp_core::model::VMLINUX;
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
    /// What else the patch's `.modinfo` must say.
    pub(crate) info: BTreeSet<String>,
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
    // Frames refer to tables of exceptions, and these to types; entries of special sections to code
    // of which there are entries, too.
    selection.follow();
    while selection.add_entries() {
        selection.follow();
    }
    selection.check_special_sections();
    let units = pairs.iter().map(|pair| &pair.patched);
    selection.contents.info = units.flat_map(imported_namespaces).collect();
    let Selection {
        mut refusals,
        contents,
        ..
    } = selection;
    if refusals.is_empty() {
        return Ok(contents);
    }
    refusals.sort_unstable();
    refusals.dedup();
    Err(refusals)
}

/// Relocations of a section of the patch, which still mean symbols of a pair.
struct Open {
    pair: usize,
    section: usize,
    relocs: Vec<Reloc>,
}

/// The namespaces that a part of the kernel takes symbols from. Linux lets no module have them that
/// does not say so (core-api/symbol-namespaces). What is built in has its name in front.
fn imported_namespaces(unit: &Unit) -> Vec<String> {
    let sections = unit.sections.iter();
    let info = sections.filter(|section| section.name == MODULE_INFO);
    let lines = info.flat_map(|section| section.bytes.split(|byte| *byte == 0));
    let lines = lines.map(String::from_utf8_lossy);
    let namespaces = lines.filter_map(|line| {
        let (front, namespace) = line.split_once(IMPORT)?;
        (front.is_empty() || front.ends_with('.')).then(|| format!("{IMPORT}{namespace}"))
    });
    namespaces.collect()
}

/// Where a module says what it is, and the field for a namespace.
const MODULE_INFO: &str = ".modinfo";
const IMPORT: &str = "import_ns=";

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
    /// Relocations that are not followed yet.
    open: Vec<Open>,
    symbols: BTreeMap<Key, usize>,
    /// Sections of the patch that are put together of pieces, by their names and flags.
    tables: BTreeMap<(&'a str, u64), usize>,
    /// The pieces in them: where they are in a pair, and there.
    pieces: BTreeMap<(usize, Place), (usize, u64)>,
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
            tables: BTreeMap::new(),
            pieces: BTreeMap::new(),
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
        let shares = names.iter().any(shares);
        if shares && statics::is_patchs_own(&pair.patched, at.symbol) {
            let piece = Place {
                section,
                start: symbol.value,
                len: symbol.len,
            };
            let (table, value) = self.piece(at.pair, piece, self.alignment(at.pair, piece));
            return self.add(key, local(symbol, table, value));
        }
        // Of constants, others may come along.
        if shares && !is_constant(&pair.patched, at.symbol) {
            let section = pair.patched.sections[section].name.clone();
            self.refuse(at, Why::SharedSection { section });
        }
        let place = self.section(at.pair, section);
        for prefix in pair.patched.prefixes_of(at.symbol) {
            let prefix = &pair.patched.symbols[*prefix];
            self.contents
                .symbols
                .push(local(prefix, place, prefix.value));
        }
        self.add(key, local(symbol, place, symbol.value))
    }

    /// What a piece of a pair's section is aligned to.
    fn alignment(&self, pair: usize, piece: Place) -> u64 {
        let section = &self.pairs[pair].patched.sections[piece.section];
        let place = 1_u64.checked_shl(piece.start.trailing_zeros());
        place.map_or(section.align, |place| section.align.min(place))
    }

    /// The patch's copy of a piece of a pair's section: the section that it is in, and its place
    /// there.
    fn piece(&mut self, pair: usize, piece: Place, align: u64) -> (usize, u64) {
        if let Some(known) = self.pieces.get(&(pair, piece)) {
            return *known;
        }
        let from = &self.pairs[pair].patched.sections[piece.section];
        // Order is for linkers.
        let flags = elf::SectionFlags(from.flags.0 & !elf::SHF_LINK_ORDER.0);
        let sections = &mut self.contents.sections;
        let table = *self.tables.entry((&from.name, flags.0)).or_insert_with(|| {
            sections.push(Section {
                flags,
                len: 0,
                bytes: Vec::new(),
                relocs: Vec::new(),
                ..from.clone()
            });
            sections.len() - 1
        });
        let out = &mut sections[table];
        out.align = out.align.max(from.align);
        let place = out.len.next_multiple_of(align.max(1));
        out.len = place.saturating_add(piece.len);
        if out.kind != elf::SHT_NOBITS {
            out.bytes.resize(usize::try_from(place).unwrap_or(0), 0);
            let bytes = from.bytes_in(piece.start, piece.len);
            out.bytes.extend_from_slice(bytes);
        }
        self.pieces.insert((pair, piece), (table, place));
        let relocs = from.relocs_in(piece.start, piece.len).iter();
        let relocs = relocs.map(|reloc| Reloc {
            at: reloc.at - piece.start + place,
            ..*reloc
        });
        self.open.push(Open {
            pair,
            section: table,
            relocs: relocs.collect(),
        });
        (table, place)
    }

    /// The patch's copy of section `section` of a pair.
    fn section(&mut self, pair: usize, section: usize) -> usize {
        if let Some(known) = self.sections.get(&(pair, section)) {
            return *known;
        }
        let mut copy = self.pairs[pair].patched.sections[section].clone();
        let relocs = core::mem::take(&mut copy.relocs);
        let place = self.add_section(pair, copy, relocs);
        self.sections.insert((pair, section), place);
        place
    }

    /// Adds a section with these relocations of a pair.
    fn add_section(&mut self, pair: usize, section: Section, relocs: Vec<Reloc>) -> usize {
        let place = self.contents.sections.len();
        self.contents.sections.push(section);
        self.open.push(Open {
            pair,
            section: place,
            relocs,
        });
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
        while let Some(Open {
            pair,
            section,
            relocs,
        }) = self.open.pop()
        {
            for reloc in &relocs {
                let resolved = self.resolve(pair, section, reloc);
                self.contents.sections[section].relocs.push(resolved);
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
            let (table, place) = self.piece(pair, piece, self.alignment(pair, piece));
            let symbol = self.known_or_add(Key::Section(table), Symbol::section(table));
            let moved = offset.wrapping_sub_unsigned(start);
            return (symbol, moved.wrapping_add_unsigned(place));
        }
        let from = &unit.sections[section];
        let user = &self.contents.sections[user].name;
        // Clang has pointers to types stand there that nobody writes to.
        let for_unwinder = user == EH_FRAME || user.starts_with(EXCEPTION_TABLE);
        let is_unnamed = unit.names_in(section).is_empty();
        let is_own = from.is_constant() && !from.is_code()
            || is_unnamed && (for_unwinder || from.is_compilers_own())
            // Entries of special sections are about places in code, not functions.
            || from.is_code() && self.sections.contains_key(&(pair, section));
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
        let place = self.section(pair, section);
        let symbol = self.known_or_add(Key::Section(place), Symbol::section(place));
        (symbol, offset)
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
                    Some(mut frames) => {
                        let relocs = core::mem::take(&mut frames.relocs);
                        self.add_section(pair, frames, relocs);
                    }
                    None => self.refusals.push(each.refuse(&table.name, Why::Frames)),
                }
            }
        }
    }

    /// Adds the entries of special sections that are about code that was taken. Says whether there
    /// were any.
    fn add_entries(&mut self) -> bool {
        let known = self.pieces.len();
        for (pair, each) in self.pairs.iter().enumerate() {
            for (section, entries) in &each.special {
                for entry in entries.iter().flatten() {
                    let (code, place) = entry.code;
                    let piece = Place {
                        section: *section,
                        start: entry.start,
                        len: entry.len,
                    };
                    if self.has_code(pair, code, place) {
                        self.piece(pair, piece, 1);
                    }
                }
            }
        }
        self.pieces.len() > known
    }

    /// Whether the patch has the code at `place` of a pair's section.
    fn has_code(&self, pair: usize, section: usize, place: u64) -> bool {
        let has_piece = || {
            let place = i64::try_from(place).ok()?;
            let (start, len) = piece_at(&self.pairs[pair].patched, section, place)?;
            let piece = Place {
                section,
                start,
                len,
            };
            self.pieces.get(&(pair, piece))
        };
        self.sections.contains_key(&(pair, section)) || has_piece().is_some()
    }

    /// Refuses code that a section says something of which is not understood, and what the kernel
    /// would need before it is there.
    fn check_special_sections(&mut self) {
        for (pair, each) in self.pairs.iter().enumerate() {
            for special in each.unknown_sections() {
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
        self.check_order();
        self.check_sibling_calls();
    }

    /// What the patch jumps to without being there itself would have to restore a register.
    fn check_sibling_calls(&mut self) {
        let Some(pair) = self.pairs.first() else {
            return;
        };
        let machine = pair.patched.header.machine;
        for (index, section) in self.contents.sections.iter().enumerate() {
            for reloc in section.relocs.iter().filter(|_| section.is_code()) {
                let callee = &self.contents.symbols[reloc.symbol];
                if callee.home != Home::Outside || !calls::is_sibling_call(machine, section, reloc)
                {
                    continue;
                }
                let callee =
                    SymbolName::parse(&callee.name).map_or(&*callee.name, |name| name.name);
                let mut symbols = self.contents.symbols.iter();
                let caller = symbols.find(|symbol| symbol.home == Home::Section(index));
                let caller = caller.map_or(&section.name, |symbol| &symbol.name);
                let callee = callee.to_owned();
                self.refusals
                    .push(pair.refuse(caller, Why::SiblingCall { callee }));
            }
        }
    }

    /// The kernel applies special sections when the patch is loaded. What the patch needs of a
    /// module it gets when that is there, which may be later (Linux, livepatch/module-elf-format);
    /// what it needs of the kernel itself is there already.
    fn check_order(&mut self) {
        if self.object == VMLINUX {
            return;
        }
        let is_early = |section: &&Section| {
            special::is_copied(&section.name)
                || special::kind_of(&section.name).is_some_and(|kind| kind.is_applied)
        };
        for section in self.contents.sections.iter().filter(is_early) {
            for reloc in &section.relocs {
                let name = &self.contents.symbols[reloc.symbol].name;
                if let (Ok(needed), Some(pair)) = (SymbolName::parse(name), self.pairs.first()) {
                    let section = section.name.clone();
                    let refusal = pair.refuse(needed.name, Why::AppliedEarly { section });
                    self.refusals.push(refusal);
                }
            }
        }
    }
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
