//! Types that objects of the running program have, and whose layout the patched build has changed.
//!
//! What goes into the patch works on objects that are there already. So each type of the source
//! files that functions of the patch come from must lie in memory as it did, whoever uses it: a
//! function may get at an object by a cast, of which debug information says nothing. Two kinds of
//! types are not refused: those that only variables of functions of the patch are seen to have, as
//! no thread is in these functions when it gets the patch; and those that the author vouches for.

use crate::compare::Pair;
use crate::debug::Entries;
use crate::debug_sections::DebugSections;
use crate::debug_types::{Circle, Types};
use crate::error::{Refusal, Why};
use crate::layout::{Layout, LayoutChange};
use crate::matches::Match;
use crate::unit::Unit;
use crate::uses::{Build, Key, key, last_component};
use crate::warnings::Warning;
use gimli::constants as dw;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

/// Which build of a pair.
const ORIGINAL: usize = 0;
const PATCHED: usize = 1;

type Definitions = BTreeMap<Key, Vec<(usize, Layout)>>;

/// What comparing the types of two builds has shown.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) warnings: Vec<Warning>,
    /// How the original of each function that goes in was compiled, by pair and symbol, as the
    /// compiler noted it.
    pub(crate) producers: BTreeMap<(usize, usize), String>,
}

/// Compares the types that the functions `going_in` may use, which are given by pair and symbol of
/// the patched build, but for those that are `vouched` for.
pub(crate) fn compare(
    pairs: &[Pair],
    going_in: &BTreeSet<(usize, usize)>,
    vouched: &BTreeSet<String>,
) -> Compared {
    let mut comparison = Comparison {
        pairs,
        vouched,
        used: BTreeSet::new(),
        known: pairs.iter().map(|_| Default::default()).collect(),
        compared: Compared::default(),
    };
    let mut without = Vec::new();
    for (index, pair) in pairs.iter().enumerate() {
        let of_pair = going_in.range((index, 0)..(index + 1, 0));
        let functions: Vec<_> = of_pair.map(|(_, symbol)| *symbol).collect();
        if functions.is_empty() {
            continue;
        }
        match comparison.pair(index, &functions) {
            Ok(true) => {}
            Ok(false) => without.push(pair.file.clone()),
            Err(why) => {
                let refusal = pair.refuse(".debug_info", Why::DebugInfo { why });
                comparison.compared.refusals.push(refusal);
            }
        }
    }
    let Comparison {
        used, mut compared, ..
    } = comparison;
    compared.refusals = merged(compared.refusals);
    if !without.is_empty() {
        let files = without;
        compared.warnings.push(Warning::TypesNotCompared { files });
    }
    let unused = vouched.difference(&used).cloned();
    let unused = unused.map(|name| Warning::VouchedInVain { name });
    compared.warnings.extend(unused);
    compared
}

/// One refusal for each type, though many files have it.
fn merged(refusals: Vec<Refusal>) -> Vec<Refusal> {
    let mut merged: Vec<Refusal> = Vec::new();
    for refusal in refusals {
        let known = merged
            .iter_mut()
            .find_map(|known| match (&mut known.why, &refusal.why) {
                (
                    Why::ChangedLayout { change, users },
                    Why::ChangedLayout {
                        change: same,
                        users: more,
                    },
                ) if known.name == refusal.name && change == same => Some((users, more)),
                _ => None,
            });
        match known {
            Some((users, more)) => {
                let new = more.iter().filter(|user| !users.contains(user)).cloned();
                let new: Vec<_> = new.collect();
                users.extend(new);
            }
            None => merged.push(refusal),
        }
    }
    merged
}

struct Comparison<'a> {
    pairs: &'a [Pair],
    vouched: &'a BTreeSet<String>,
    /// Those that were of use.
    used: BTreeSet<String>,
    /// The types of all object files, of both builds, as far as they were asked for.
    known: Vec<[OnceCell<Result<Definitions, String>>; 2]>,
    compared: Compared,
}

/// A type that lies otherwise than before.
struct Changed {
    change: LayoutChange,
    /// It may be the consequence of another one's change.
    may_follow: bool,
    contained: BTreeSet<String>,
    /// The definition, in both builds.
    entries: (usize, usize),
}

impl Comparison<'_> {
    /// Compares the types of a pair; says whether it has debug information.
    fn pair(&mut self, index: usize, functions: &[usize]) -> Result<bool, String> {
        let pair = &self.pairs[index];
        let sections = (
            sections(&pair.original, "original")?,
            sections(&pair.patched, "patched")?,
        );
        let (before, after) = match &sections {
            (Some(before), Some(after)) => (before, after),
            _ => return Ok(false),
        };
        let (original, patched) = (entries(before, "original")?, entries(after, "patched")?);
        if original.is_elsewhere || patched.is_elsewhere {
            return Ok(false);
        }
        let (mut of_original, mut of_patched) = (BTreeSet::new(), BTreeSet::new());
        for symbol in functions {
            if let Some(entry) = function(&patched, after, &pair.patched, *symbol) {
                of_patched.insert(entry);
            } else if pair.patched.whole(*symbol).is_none() {
                let function = pair.patched.symbols[*symbol].name.clone();
                let file = pair.file.clone();
                let warning = Warning::FunctionWithoutTypes { file, function };
                self.compared.warnings.push(warning);
            }
            let Match::Same(old) = pair.matches[*symbol] else {
                continue;
            };
            if let Some(entry) = function(&original, before, &pair.original, old) {
                of_original.insert(entry);
                let unit = &original.all[original.unit(entry)];
                if let Some(producer) = &unit.producer {
                    let producer = producer.clone().into_owned();
                    self.compared.producers.insert((index, *symbol), producer);
                }
            }
        }
        let before = Build {
            types: Types::new(&original),
            going_in: of_original,
        };
        let after = Build {
            types: Types::new(&patched),
            going_in: of_patched,
        };
        self.layouts(index, &before, &after)?;
        self.declared(index, &before, &after)?;
        self.prototypes(index, &before, &after, functions, &sections);
        Ok(true)
    }

    fn layouts(&mut self, index: usize, before: &Build, after: &Build) -> Result<(), String> {
        let original = definitions(&before.types, None).map_err(circle)?;
        let units: BTreeSet<_> = after
            .going_in
            .iter()
            .map(|entry| after.types.entries.unit(*entry))
            .collect();
        let patched = definitions(&after.types, Some(&units)).map_err(circle)?;
        let mut changed = BTreeMap::new();
        for (key, now) in &patched {
            let Some(old) = original.get(key) else {
                self.elsewhere(index, before, after, key, now)?;
                continue;
            };
            changed.extend(changed_of(old, now).map(|changed| (key.clone(), changed)));
        }
        if changed.is_empty() {
            return Ok(());
        }
        let names: BTreeSet<_> = changed.keys().map(|(_, name)| name.clone()).collect();
        let live = before.live();
        for (key, changed) in &changed {
            if changed.may_follow && !changed.contained.is_disjoint(&names) {
                continue;
            }
            let is_local = !live.contains(key)
                && self.is_of_this_file(index, &before.types, key, changed.entries.0)?;
            let users = after.users(key);
            self.report(index, &key.1, changed.change.clone(), users, is_local);
        }
        Ok(())
    }

    /// Compares a type that the pair's original does not define with those of the other originals.
    fn elsewhere(
        &mut self,
        index: usize,
        before: &Build,
        after: &Build,
        key: &Key,
        now: &[(usize, Layout)],
    ) -> Result<(), String> {
        let mut old = self.others(index, ORIGINAL, &key.1)?;
        old.retain(|(_, old)| now.iter().any(|(_, now)| now.file == old.file));
        if let Some(changed) = changed_of(&old, now) {
            let users = after.users(key);
            self.report(index, &key.1, changed.change, users, false);
            return Ok(());
        }
        let was_declared = || before.declared().any(|declared| declared == key.1);
        // What a header defines, others may have known before.
        let is_of_header = || {
            let (types, entry) = (&after.types, now.first().map(|(entry, _)| *entry));
            let is_shared = entry
                .is_some_and(|entry| !types.is_rust(entry) && !is_of_source(types.entries, entry));
            is_shared && !is_standard(&key.1)
        };
        if old.is_empty() && (was_declared() || is_of_header()) {
            self.warn_of_unknown(index, &key.1);
        }
        Ok(())
    }

    /// Compares the classes that an object file only declares, as others define them. Compilers
    /// define a class of C++ where its virtual functions are.
    fn declared(&mut self, index: usize, before: &Build, after: &Build) -> Result<(), String> {
        let were_declared: BTreeSet<_> = before.declared().collect();
        let declared: BTreeSet<_> = after.declared().collect();
        for name in declared {
            let old = self.others(index, ORIGINAL, &name)?;
            let new = self.others(index, PATCHED, &name)?;
            let is_unknown = old.is_empty() && were_declared.contains(&name) && !is_standard(&name);
            let key = (String::new(), name);
            if let Some(changed) = changed_of(&old, &new) {
                let users = after.users(&key);
                self.report(index, &key.1, changed.change, users, false);
            } else if is_unknown && !after.users(&key).is_empty() {
                self.warn_of_unknown(index, &key.1);
            }
        }
        Ok(())
    }

    fn warn_of_unknown(&mut self, pair: usize, name: &str) {
        let file = self.pairs[pair].file.clone();
        let name = name.to_owned();
        let warning = Warning::UnknownLayout { file, name };
        self.compared.warnings.push(warning);
    }

    /// What the object files of the other pairs define as `name`, in one build.
    fn others(
        &self,
        pair: usize,
        build: usize,
        name: &str,
    ) -> Result<Vec<(usize, Layout)>, String> {
        let mut found = Vec::new();
        for other in (0..self.pairs.len()).filter(|other| *other != pair) {
            for ((_, each), definitions) in self.known(other, build)? {
                if each == name {
                    found.extend(definitions.iter().cloned());
                }
            }
        }
        Ok(found)
    }

    /// The types of the object file of a pair, of one build.
    fn known(&self, pair: usize, build: usize) -> Result<&Definitions, String> {
        let each = &self.pairs[pair];
        let read = || {
            let (unit, name) = [(&each.original, "original"), (&each.patched, "patched")][build];
            let Some(sections) = sections(unit, name)? else {
                return Ok(Definitions::new());
            };
            let entries = entries(&sections, name)?;
            definitions(&Types::new(&entries), None).map_err(circle)
        };
        let known = self.known[pair][build].get_or_init(read).as_ref();
        known.map_err(|why| format!("{}: {why}", each.file.display()))
    }

    /// Whether no other object file has objects of a type: its source file defines it, and no
    /// header; or, in Rust, no other object file has it.
    fn is_of_this_file(
        &self,
        index: usize,
        types: &Types,
        key: &Key,
        entry: usize,
    ) -> Result<bool, String> {
        let entries = types.entries;
        if !types.is_rust(entry) {
            return Ok(is_of_source(entries, entry));
        }
        for other in (0..self.pairs.len()).filter(|other| *other != index) {
            if self.known(other, ORIGINAL)?.contains_key(key) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn report(
        &mut self,
        pair: usize,
        name: &str,
        change: LayoutChange,
        users: Vec<String>,
        is_local: bool,
    ) {
        let bare = name.split_once(' ').map_or(name, |(_, bare)| bare);
        let vouched = self
            .vouched
            .iter()
            .find(|vouched| [name, bare].contains(&vouched.as_str()));
        if let Some(vouched) = vouched {
            self.used.insert(vouched.clone());
        } else if is_local {
            self.compared.warnings.push(Warning::LayoutOfVariables {
                file: self.pairs[pair].file.clone(),
                name: name.to_owned(),
                change,
            });
        } else {
            let refusal = self.pairs[pair].refuse(name, Why::ChangedLayout { change, users });
            self.compared.refusals.push(refusal);
        }
    }

    /// Warns of functions that callers in other object files would call the old way.
    fn prototypes(
        &mut self,
        index: usize,
        before: &Build,
        after: &Build,
        functions: &[usize],
        (old_sections, new_sections): &(Option<DebugSections>, Option<DebugSections>),
    ) {
        let pair = &self.pairs[index];
        for symbol in functions {
            let find = |build: &Build, sections: &Option<DebugSections>, unit, symbol| {
                let entry = function(build.types.entries, sections.as_ref()?, unit, symbol)?;
                build.types.prototype(entry).ok()
            };
            let Match::Same(old) = pair.matches[*symbol] else {
                continue;
            };
            let new = &pair.patched.symbols[*symbol];
            let prototypes = (
                find(before, old_sections, &pair.original, old),
                find(after, new_sections, &pair.patched, *symbol),
            );
            let (Some((returned, taken)), Some((returns, takes))) = prototypes else {
                continue;
            };
            // Who calls a function that returns nothing ignores what it returns.
            let fits = taken == takes && (returned == returns || returned == "void");
            if !new.is_local() && !fits {
                self.compared.warnings.push(Warning::Prototype {
                    file: pair.file.clone(),
                    function: new.name.clone(),
                });
            }
        }
    }
}

fn circle(_: Circle) -> String {
    "a type contains itself".to_owned()
}

/// Whether the class comes with the compiler, and is the same in both builds.
fn is_standard(name: &str) -> bool {
    ["std::", "__"].iter().any(|start| name.starts_with(start))
}

/// The debug sections of one build.
fn sections(unit: &Unit, build: &str) -> Result<Option<DebugSections>, String> {
    DebugSections::read(unit).map_err(|why| format!("{why} (of the {build} build)"))
}

fn entries<'a>(sections: &'a DebugSections, build: &str) -> Result<Entries<'a>, String> {
    Entries::read(sections).map_err(|why| format!("{why} (in the {build} build)"))
}

/// The entry of a function.
fn function(
    entries: &Entries,
    sections: &DebugSections,
    unit: &Unit,
    symbol: usize,
) -> Option<usize> {
    let address = sections.address(unit, symbol)?;
    entries.functions.get(&address).copied()
}

/// Whether the source file of its unit defines a type, and no header.
fn is_of_source(entries: &Entries, entry: usize) -> bool {
    let unit = entries.all[entries.unit(entry)].name.as_deref();
    let source = unit.map(last_component);
    source.is_some() && source == entries.all[entry].file.as_deref()
}

/// The types with names, of these units (and of units that only define types), or of all.
fn definitions(types: &Types, units: Option<&BTreeSet<usize>>) -> Result<Definitions, Circle> {
    let mut definitions = Definitions::new();
    for entry in 0..types.entries.all.len() {
        let unit = types.entries.unit(entry);
        let is_meant = units.is_none_or(|units| {
            units.contains(&unit) || types.entries.all[unit].tag == dw::DW_TAG_type_unit
        });
        if is_meant && types.is_definition(entry) {
            let layout = types.layout(entry)?;
            let known = definitions.entry(key(types, entry)).or_default();
            if known.iter().all(|(_, known)| *known != layout) {
                known.push((entry, layout));
            }
        }
    }
    Ok(definitions)
}

/// The change of a type that has one definition or more, as each function may have its own.
fn changed_of(old: &[(usize, Layout)], now: &[(usize, Layout)]) -> Option<Changed> {
    let same = |(_, old): &&(usize, Layout), (_, now): &(usize, Layout)| old.change(now).is_none();
    let new = now
        .iter()
        .find(|now| !old.iter().any(|old| same(&old, now)))?;
    // If all that were there are still there, this is one more.
    let gone = old.iter().find(|old| !now.iter().any(|now| same(old, now)));
    let ((before, old), (after, new)) = (gone?, new);
    Some(Changed {
        change: old.change(new)?,
        may_follow: old.has_parts_of(new),
        contained: new.contained().map(str::to_owned).collect(),
        entries: (*before, *after),
    })
}
