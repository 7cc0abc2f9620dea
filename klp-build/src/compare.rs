//! What differs between two builds of one object file.

use crate::authors::{self, Ignored};
use crate::entries::{ByCode, Specials, by_code, entries_of, specials};
use crate::error::{Refusal, Why};
use crate::frames::{self, EXCEPTION_TABLE, Tables};
use crate::init;
use crate::lines;
use crate::matches::{Match, matches};
use crate::pieces::piece_at;
use crate::special;
use crate::statics;
use crate::unit::{Home, Referent, Reloc, Section, Unit};
use object::elf;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// Two builds of one object file.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The file of the patched build, for people.
    pub(crate) file: PathBuf,
    pub(crate) original: Unit,
    pub(crate) patched: Unit,
    /// What each symbol of the patched build is.
    pub(crate) matches: Vec<Match>,
    /// The functions of the patched build, and parts of them, that differ from the original's.
    pub(crate) changed: BTreeSet<usize>,
    /// What the special sections of the patched build have.
    pub(crate) special: Specials,
    /// The same of the original.
    special_before: Specials,
    ignored: Ignored,
    /// The tables of exceptions of both builds.
    exceptions: (Tables, Tables),
    /// Constants that were compared: whether they are equal.
    constants: RefCell<BTreeMap<(Place, Place), bool>>,
    /// How many of them are being compared, each because the one before refers to it.
    depth: Cell<usize>,
}

/// Constants that refer to one another are followed so far: what is behind counts as changed.
const DEEPEST: usize = 500;

/// A range of bytes in a section of one build.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Place {
    pub(crate) section: usize,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl Pair {
    /// Compares both builds.
    pub(crate) fn new(file: PathBuf, original: Unit, patched: Unit) -> Self {
        let matches = matches(&original, &patched);
        let exceptions = (frames::tables(&original), frames::tables(&patched));
        let mut pair = Self {
            file,
            special: specials(&patched),
            special_before: specials(&original),
            ignored: Ignored::of(&patched),
            exceptions,
            original,
            patched,
            matches,
            changed: BTreeSet::new(),
            constants: RefCell::default(),
            depth: Cell::default(),
        };
        let functions = pair.patched.functions();
        let entries = (
            by_code(&pair.original, &pair.special_before),
            by_code(&pair.patched, &pair.special),
        );
        let differs = |function: &usize| match pair.matches[*function] {
            Match::Same(original) => {
                !pair.same(original, *function)
                    && !lines::are_all_that_differs(&pair, original, *function)
                    || !pair.same_exceptions(original, *function)
                    || !pair.same_entries(&entries, original, *function)
            }
            Match::New | Match::Ambiguous(_) => false,
        };
        let is_meant = |function: &usize| !pair.ignored.has(&pair.patched, *function);
        pair.changed = functions.filter(is_meant).filter(differs).collect();
        pair.add_whole_functions();
        pair
    }

    /// Whether special sections say the same of the function.
    fn same_entries(
        &self,
        (before, after): &(ByCode, ByCode),
        original: usize,
        patched: usize,
    ) -> bool {
        let (before, after) = (
            entries_of(&self.original, before, original),
            entries_of(&self.patched, after, patched),
        );
        before.len() == after.len()
            && before.iter().zip(&after).all(|(before, after)| {
                let name = |unit: &Unit, place: &Place| unit.sections[place.section].name.clone();
                name(&self.original, before) == name(&self.patched, after)
                    && self.same_place(*before, *after)
            })
    }

    /// Whether exceptions that pass through the function are treated the same way.
    fn same_exceptions(&self, original: usize, patched: usize) -> bool {
        let table = |unit: &Unit, tables: &Tables, function| {
            unit.section_of(function)
                .and_then(|code| tables.get(&code).copied())
        };
        let (before, after) = &self.exceptions;
        match (
            table(&self.original, before, original),
            table(&self.patched, after, patched),
        ) {
            (Some(before), Some(after)) => self.same_nameless(before, after),
            (before, after) => before.is_none() && after.is_none(),
        }
    }

    /// A part has no callers of its own: if one differs, so does the function that it is of.
    fn add_whole_functions(&mut self) {
        let is_new = |part: &usize| self.matches[*part] == Match::New;
        let parts = self
            .patched
            .functions()
            .filter(|function| self.changed.contains(function) || is_new(function));
        let wholes: Vec<_> = parts.filter_map(|part| self.patched.whole(part)).collect();
        let known = wholes
            .into_iter()
            .filter(|whole| matches!(self.matches[*whole], Match::Same(_)));
        let known: Vec<_> = known.collect();
        self.changed.extend(known);
    }

    /// The functions that other object files can call, and that the original does not have.
    pub(crate) fn new_functions(&self) -> impl Iterator<Item = usize> {
        self.patched.functions().filter(|function| {
            self.matches[*function] == Match::New && !self.patched.symbols[*function].is_local()
        })
    }

    /// The functions and variables that refer to what other object files define and `is_meant` is.
    pub(crate) fn users_of(&self, is_meant: impl Fn(&str) -> bool) -> Vec<usize> {
        let unit = &self.patched;
        let uses = |user: &usize| {
            let Some(section) = unit.section_of(*user).filter(|_| unit.is_thing(*user)) else {
                return false;
            };
            let symbol = &unit.symbols[*user];
            let relocs = unit.sections[section].relocs_in(symbol.value, symbol.len);
            relocs.iter().any(|reloc| match unit.final_referent(reloc) {
                Referent::Named { symbol, .. } => {
                    let symbol = &unit.symbols[symbol];
                    symbol.home == Home::Outside && is_meant(&symbol.name)
                }
                Referent::Nameless { .. } | Referent::Nothing => false,
            })
        };
        (0..unit.symbols.len()).filter(uses).collect()
    }

    /// Says what of the change cannot be patched, whatever uses it.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for (symbol, matched) in self.matches.iter().enumerate() {
            let Match::Same(original) = *matched else {
                continue;
            };
            let (old, new) = (
                &self.original.symbols[original],
                &self.patched.symbols[symbol],
            );
            let in_place = match new.home {
                Home::Section(section) => {
                    let section = &self.patched.sections[section];
                    !section.is_code() && !section.is_constant() && section.has(elf::SHF_ALLOC)
                }
                Home::Common => true,
                Home::Outside | Home::Absolute => false,
            };
            if !in_place || self.ignored.has(&self.patched, symbol) {
                continue;
            }
            if old.len != new.len {
                let (original, patched) = (old.len, new.len);
                refusals.push(self.refuse(&new.name, Why::ChangedSize { original, patched }));
            } else if !self.same(original, symbol) {
                refusals.push(self.refuse(&new.name, Why::ChangedData));
            }
        }
        refusals.extend(init::changes(self).map(|name| self.refuse(&name, Why::ChangedInit)));
        refusals.extend(self.assembly_refusals());
        let offers = self.matches.iter().enumerate();
        let offers = offers.filter(|(symbol, matched)| {
            let section = self.patched.section_of(*symbol);
            **matched == Match::New
                && self.patched.is_thing(*symbol)
                && section.is_some_and(|of| special::is_offer(&self.patched.sections[of].name))
        });
        refusals.extend(
            offers
                .map(|(symbol, _)| self.refuse(&self.patched.symbols[symbol].name, Why::NewOffer)),
        );
        let odd = self
            .patched
            .sections
            .iter()
            .filter(|section| !section.is_aligned());
        refusals.extend(odd.map(|section| self.refuse(&section.name, Why::Alignment)));
        let for_kpatch = self.patched.sections.iter();
        let for_kpatch = for_kpatch.filter(|section| authors::is_not_known(&section.name));
        refusals.extend(for_kpatch.map(|section| self.refuse(&section.name, Why::ForKpatch)));
        for (unit, specials) in [
            (&self.original, &self.special_before),
            (&self.patched, &self.special),
        ] {
            let unreadable = specials.iter().filter(|(_, entries)| entries.is_none());
            refusals.extend(unreadable.map(|(section, _)| {
                let name = &unit.sections[*section].name;
                self.refuse(name, Why::Entries)
            }));
        }
        refusals
    }

    /// Refuses changes of code that belongs to no function, as hand-written code may.
    fn assembly_refusals(&self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        let mut before = BTreeMap::new();
        for section in code_without_functions(&self.original) {
            let name = &self.original.sections[section].name;
            before.entry(name).or_insert(section);
        }
        for section in code_without_functions(&self.patched) {
            let name = &self.patched.sections[section].name;
            let same = |before: &usize| {
                let original = whole(&self.original, *before);
                self.same_place(original, whole(&self.patched, section))
            };
            if !before.get(name).is_some_and(same) {
                refusals.push(self.refuse(name, Why::Assembly));
            }
        }
        refusals
    }

    pub(crate) fn refuse(&self, name: &str, why: Why) -> Refusal {
        Refusal {
            file: self.file.clone(),
            name: name.to_owned(),
            why,
        }
    }

    /// Whether symbol `patched` is what `original` was: the same bytes, and the same things
    /// referred to.
    fn same(&self, original: usize, patched: usize) -> bool {
        match (
            place(&self.original, original),
            place(&self.patched, patched),
        ) {
            (Some(original), Some(patched)) => self.same_place(original, patched),
            (None, None) => true,
            _ => false,
        }
    }

    fn same_place(&self, original: Place, patched: Place) -> bool {
        let (old, new) = (
            &self.original.sections[original.section],
            &self.patched.sections[patched.section],
        );
        if original.len != patched.len
            || old.flags != new.flags
            || !same_bytes(
                &without_line(&self.original, original),
                &without_line(&self.patched, patched),
            )
        {
            return false;
        }
        self.same_relocs(original, patched)
    }

    /// Whether both places refer to the same things.
    pub(crate) fn same_relocs(&self, original: Place, patched: Place) -> bool {
        let (old, new) = (
            &self.original.sections[original.section],
            &self.patched.sections[patched.section],
        );
        let (before, after) = (
            old.relocs_in(original.start, original.len),
            new.relocs_in(patched.start, patched.len),
        );
        before.len() == after.len()
            && before.iter().zip(after).all(|(before, after)| {
                before.at - original.start == after.at - patched.start
                    && self.same_reloc(before, after)
            })
    }

    fn same_reloc(&self, before: &Reloc, after: &Reloc) -> bool {
        let (old, new) = (self.original.referent(before), self.patched.referent(after));
        before.kind == after.kind
            && match (old, new) {
                (Referent::Nothing, Referent::Nothing) => before.addend == after.addend,
                (
                    Referent::Named {
                        symbol: old,
                        offset: before,
                    },
                    Referent::Named {
                        symbol: new,
                        offset: after,
                    },
                ) => before == after && self.same_name(old, new),
                (
                    Referent::Nameless {
                        section: old,
                        offset: before,
                    },
                    Referent::Nameless {
                        section: new,
                        offset: after,
                    },
                ) => self.same_nameless((old, before), (new, after)),
                _ => false,
            }
    }

    /// Whether both symbols mean the same thing, and what is constant has the same contents.
    fn same_name(&self, original: usize, patched: usize) -> bool {
        let (old, new) = (
            &self.original.symbols[original],
            &self.patched.symbols[patched],
        );
        match (old.home, new.home) {
            (Home::Outside | Home::Absolute, Home::Outside | Home::Absolute) => {
                old.name == new.name
            }
            _ => match self.matches[patched] {
                Match::Same(same) => same == original && !self.is_new_constant(patched),
                // Of a constant, only the contents matter.
                Match::New | Match::Ambiguous(_) => self.same_constants(original, patched),
            },
        }
    }

    /// Whether symbol `patched` is a constant whose contents differ from the original's.
    pub(crate) fn is_new_constant(&self, patched: usize) -> bool {
        match self.matches[patched] {
            Match::Same(original) => {
                is_constant(&self.original, original)
                    && is_constant(&self.patched, patched)
                    && !self.same_constants(original, patched)
            }
            _ => false,
        }
    }

    /// Whether both are constants with the same contents, or variables that a patch has its own
    /// copies of and that begin alike.
    fn same_constants(&self, original: usize, patched: usize) -> bool {
        let constant = is_constant(&self.original, original) && is_constant(&self.patched, patched);
        let own = || {
            statics::is_patchs_own(&self.original, original)
                && statics::is_patchs_own(&self.patched, patched)
                && statics::are_alike(
                    &self.original.symbols[original],
                    &self.patched.symbols[patched],
                )
        };
        if !constant && !own() {
            return false;
        }
        match (
            place(&self.original, original),
            place(&self.patched, patched),
        ) {
            (Some(original), Some(patched)) => self.same_constant(original, patched),
            _ => false,
        }
    }

    /// The same, for places, each pair of which is compared once.
    fn same_constant(&self, original: Place, patched: Place) -> bool {
        let key = (original, patched);
        if let Some(known) = self.constants.borrow().get(&key) {
            return *known;
        }
        let depth = self.depth.get();
        if depth == DEEPEST {
            return false;
        }
        // What refers to itself is no different for that.
        self.constants.borrow_mut().insert(key, true);
        self.depth.set(depth + 1);
        let same = self.same_place(original, patched);
        self.depth.set(depth);
        self.constants.borrow_mut().insert(key, same);
        same
    }

    /// Whether what has no name is the same at both places: a string, a number, or the whole
    /// section.
    fn same_nameless(&self, (old, before): (usize, i64), (new, after): (usize, i64)) -> bool {
        let (before_in, after_in) = (&self.original.sections[old], &self.patched.sections[new]);
        if before_in.flags != after_in.flags || before_in.item != after_in.item {
            return false;
        }
        let (Ok(before), Ok(after)) = (u64::try_from(before), u64::try_from(after)) else {
            return false;
        };
        if before_in.has(elf::SHF_MERGE) {
            let same_place =
                before_in.item <= 1 || before % before_in.item == after % before_in.item;
            return same_place && item(before_in, before) == item(after_in, after);
        }
        let (before_piece, after_piece) = (
            piece(&self.original, old, before),
            piece(&self.patched, new, after),
        );
        if let (Some(old), Some(new)) = (before_piece, after_piece) {
            return before - old.start == after - new.start && self.same_constant(old, new);
        }
        before == after && self.same_constant(whole(&self.original, old), whole(&self.patched, new))
    }

    /// Sections in which a tool has noted something of code, beside that code, which are not known:
    /// they are no code, name nothing, and nobody refers to them.
    pub(crate) fn unknown_sections(&self) -> impl Iterator<Item = &Section> {
        let unit = &self.patched;
        let referred: BTreeSet<usize> = unit
            .sections
            .iter()
            .filter(|section| section.has(elf::SHF_ALLOC))
            .flat_map(|section| &section.relocs)
            .filter_map(|reloc| match unit.referent(reloc) {
                Referent::Nameless { section, .. } => Some(section),
                _ => None,
            })
            .collect();
        let sections = unit.sections.iter().enumerate();
        let special = sections.filter(move |(index, section)| {
            section.has(elf::SHF_ALLOC)
                && !section.is_code()
                && !section.relocs.is_empty()
                && unit.names_in(*index).is_empty()
                && !referred.contains(index)
                && !init::is_table(section)
                && !section.name.starts_with(EXCEPTION_TABLE)
                && !special::is_not_needed(&section.name)
                && special::kind_of(&section.name).is_none()
        });
        special.map(|(_, section)| section)
    }
}

/// The bytes of `place`, without the line of the source that they may tell.
fn without_line(unit: &Unit, place: Place) -> Cow<'_, [u8]> {
    let Place {
        section,
        start,
        len,
    } = place;
    let bytes = Cow::from(unit.sections[section].bytes_in(start, len));
    let Some((at, bits)) = special::line_in(unit, section, start, len) else {
        return bytes;
    };
    let mut bytes = bytes.into_owned();
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    for (byte, bits) in bytes.iter_mut().skip(at).zip(bits.to_le_bytes()) {
        *byte &= !bits;
    }
    Cow::from(bytes)
}

/// The piece that `place` is in, if the section is one of pieces.
fn piece(unit: &Unit, section: usize, place: u64) -> Option<Place> {
    let (start, len) = piece_at(unit, section, i64::try_from(place).ok()?)?;
    Some(Place {
        section,
        start,
        len,
    })
}

/// All of a section.
fn whole(unit: &Unit, section: usize) -> Place {
    Place {
        section,
        start: 0,
        len: unit.sections[section].len,
    }
}

/// The sections with code in which no function is.
fn code_without_functions(unit: &Unit) -> impl Iterator<Item = usize> {
    (0..unit.sections.len()).filter(|section| {
        let code = &unit.sections[*section];
        let has_code = code.is_code() && code.len > 0 && !special::has_snippets(&code.name);
        let mut names = unit.names_in(*section).iter();
        has_code && !names.any(|name| unit.is_function(*name))
    })
}

/// Whether the symbol names data that does not change.
pub(crate) fn is_constant(unit: &Unit, symbol: usize) -> bool {
    let section = unit
        .section_of(symbol)
        .map(|section| &unit.sections[section]);
    section.is_some_and(|section| section.is_constant() && !section.is_code())
}

/// Whether the bytes are the same. What begins with zeroes has them in its file, or none at all.
fn same_bytes(original: &[u8], patched: &[u8]) -> bool {
    match (original, patched) {
        ([], rest) | (rest, []) => rest.iter().all(|byte| *byte == 0),
        _ => original == patched,
    }
}

/// The bytes of `symbol`, if it has some, with what stands in front of it and belongs to it.
pub(crate) fn place(unit: &Unit, symbol: usize) -> Option<Place> {
    let section = unit.section_of(symbol)?;
    let prefix = unit.prefixes_of(symbol).first();
    let symbol = &unit.symbols[symbol];
    let start = prefix.map_or(symbol.value, |prefix| unit.symbols[*prefix].value);
    Some(Place {
        section,
        start,
        len: symbol
            .len
            .saturating_add(symbol.value.saturating_sub(start)),
    })
}

/// The string or the number at `at` in a section of such: from there to its end.
fn item(section: &Section, at: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    let rest = section.bytes.get(at..)?;
    let item = usize::try_from(section.item.max(1)).ok()?;
    if section.has(elf::SHF_STRINGS) {
        let end = rest
            .chunks_exact(item)
            .position(|letter| letter.iter().all(|byte| *byte == 0));
        return rest.get(..end? * item);
    }
    rest.get(..item - at % item)
}
