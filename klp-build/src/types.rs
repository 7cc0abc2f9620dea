//! Types that objects of the running program have, and whose layout the patched build has changed.
//!
//! What goes into the patch works on objects that are there already. So each type of the source
//! files that functions of the patch come from must lie in memory as it did, whoever uses it: a
//! function may get at an object by a cast, of which debug information says nothing. Two kinds of
//! types are left out: those that only variables of functions of the patch have, as no thread is
//! in these functions when it gets the patch; and those that the author vouches for.

use crate::compare::Pair;
use crate::debug::Entries;
use crate::debug_sections::DebugSections;
use crate::debug_types::{Circle, Reach, Types};
use crate::error::{Refusal, Why};
use crate::layout::{Layout, LayoutChange};
use crate::matches::Match;
use crate::unit::Unit;
use crate::warnings::Warning;
use gimli::constants as dw;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

/// A type by its name; in C, with its source file.
type Key = (String, String);

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
        let of_pair = going_in.iter().filter(|(of, _)| *of == index);
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
    if !without.is_empty() {
        let files = without;
        compared.warnings.push(Warning::TypesNotCompared { files });
    }
    let unused = vouched.difference(&used).cloned();
    let unused = unused.map(|name| Warning::VouchedInVain { name });
    compared.warnings.extend(unused);
    compared
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

/// The debug information of one build.
struct Build<'a> {
    types: Types<'a>,
    /// The functions that are replaced, or replace them.
    going_in: BTreeSet<usize>,
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
            // What only the patched build has, is new.
            (None, Some(_)) if pair.original.sections.is_empty() => return Ok(true),
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
        } else if old.is_empty() && before.declared().any(|declared| declared == key.1) {
            self.warn_of_unknown(index, &key.1);
        }
        Ok(())
    }

    /// Compares the classes that an object file only declares, as others define them. Compilers
    /// define a class of C++ where its virtual functions are.
    fn declared(&mut self, index: usize, before: &Build, after: &Build) -> Result<(), String> {
        let declared: BTreeSet<_> = after.declared().collect();
        for name in declared {
            let old = self.others(index, ORIGINAL, &name)?;
            let new = self.others(index, PATCHED, &name)?;
            let key = (String::new(), name);
            let users = after.users(&key);
            let is_old = before.declared().any(|declared| declared == key.1);
            if let Some(changed) = changed_of(&old, &new) {
                self.report(index, &key.1, changed.change, users, false);
            } else if old.is_empty() && is_old && !users.is_empty() && !is_standard(&key.1) {
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
            let unit = entries.all[entries.unit(entry)].name.as_deref();
            let source = unit.map(last_component);
            return Ok(source.is_some() && source == entries.all[entry].file.as_deref());
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

impl Build<'_> {
    /// The types of which there may be objects beside the variables of functions that are replaced.
    fn live(&self) -> BTreeSet<Key> {
        let staying = self.staying();
        let (types, entries) = (&self.types, self.types.entries);
        let defined: BTreeSet<_> = (0..entries.all.len())
            .filter(|entry| !entries.all[*entry].is_declaration)
            .flat_map(|entry| entries.origins(entry).skip(1))
            .collect();
        let mut live = BTreeSet::new();
        let mut parts = Vec::new();
        for (index, entry) in entries.all.iter().enumerate() {
            if let Some(container) = entry.container {
                live.insert(key(types, container));
            }
            let Some((of, reach)) = self.mentioned(index) else {
                continue;
            };
            let holder = entries.owner(index);
            let is_live = match holder.map(|holder| (holder, entries.all[holder].tag)) {
                Some((function, dw::DW_TAG_subprogram)) => {
                    let is_elsewhere = entries.all[function].is_declaration;
                    // A caller need not have a variable for what it hands over or gets.
                    let is_handed = entry.tag != dw::DW_TAG_variable && !types.is_rust(index);
                    entry.is_static
                        || is_elsewhere && !defined.contains(&function)
                        || staying.contains(&function)
                        || reach == Reach::Pointer
                        || is_handed
                }
                Some((holder, _)) => {
                    if reach == Reach::Itself {
                        parts.push((key(types, holder), key(types, of)));
                    }
                    reach == Reach::Pointer
                }
                None => true,
            };
            if is_live {
                live.insert(key(types, of));
            }
        }
        loop {
            let more = parts
                .iter()
                .filter(|(whole, part)| live.contains(whole) && !live.contains(part));
            let more: Vec<_> = more.map(|(_, part)| part.clone()).collect();
            if more.is_empty() {
                return live;
            }
            live.extend(more);
        }
    }

    /// The functions that have code which is not replaced, inlined code too.
    fn staying(&self) -> BTreeSet<usize> {
        let entries = self.types.entries;
        let functions = entries.functions.values();
        let mut staying: BTreeSet<_> = functions
            .filter(|function| !self.going_in.contains(function))
            .flat_map(|function| entries.origins(*function))
            .collect();
        let mut inlined = BTreeSet::new();
        for (index, entry) in entries.all.iter().enumerate() {
            if entry.tag == dw::DW_TAG_inlined_subroutine {
                let function = entries.owner(index);
                if function.is_none_or(|function| staying.contains(&function)) {
                    inlined.extend(entries.origins(index));
                }
            }
        }
        staying.extend(inlined);
        staying
    }

    /// The type that an entry which may have objects, or a part of one, is of.
    fn mentioned(&self, entry: usize) -> Option<(usize, Reach)> {
        let entries = self.types.entries;
        let each = &entries.all[entry];
        let has_type = [
            dw::DW_TAG_variable,
            dw::DW_TAG_formal_parameter,
            dw::DW_TAG_member,
            dw::DW_TAG_inheritance,
            dw::DW_TAG_template_type_parameter,
            dw::DW_TAG_subprogram,
        ];
        if !has_type.contains(&each.tag) {
            return None;
        }
        let origin = &entries.all[entries.origin(entry)];
        self.types.aggregate(each.of_type.or(origin.of_type))
    }

    /// The functions that go in and mention a type, or one that leads to it.
    fn users(&self, of: &Key) -> Vec<String> {
        let entries = self.types.entries;
        let mut mentions = Vec::new();
        for index in 0..entries.all.len() {
            if let (Some((to, _)), Some(from)) = (self.mentioned(index), entries.owner(index)) {
                mentions.push((from, to));
            }
        }
        let is_type = |entry: usize| self.types.is_aggregate(entry);
        let mut leading: BTreeSet<_> = (0..entries.all.len())
            .filter(|entry| is_type(*entry) && key(&self.types, *entry).1 == of.1)
            .collect();
        loop {
            let more = mentions
                .iter()
                .filter(|(from, to)| is_type(*from) && leading.contains(to));
            let more: Vec<_> = more.map(|(from, _)| *from).collect();
            let known = leading.len();
            leading.extend(more);
            if leading.len() == known {
                break;
            }
        }
        let users = mentions
            .iter()
            .filter(|(from, to)| self.going_in.contains(from) && leading.contains(to));
        let users = users.filter_map(|(function, _)| entries.name(*function));
        let users: BTreeSet<_> = users.map(str::to_owned).collect();
        users.into_iter().collect()
    }

    /// The types that are known to exist, and no more.
    fn declared(&self) -> impl Iterator<Item = String> + '_ {
        let types = &self.types;
        let declared = (0..types.entries.all.len()).filter(|entry| types.is_mere_name(*entry));
        declared.map(|entry| types.full_name(entry))
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

fn key(types: &Types, entry: usize) -> Key {
    let entries = types.entries;
    let unit = entries.all[entries.unit(entry)].name.as_deref();
    let source = unit
        .filter(|_| types.is_c(entry))
        .map_or("", last_component);
    (source.to_owned(), types.full_name(entry))
}

fn last_component(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
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
    let gone = old.iter().find(|old| !now.iter().any(|now| same(old, now)));
    let old = gone.or(old.first())?;
    let ((before, old), (after, new)) = (old, new);
    Some(Changed {
        change: old.change(new)?,
        may_follow: old.has_parts_of(new),
        contained: new.contained().map(str::to_owned).collect(),
        entries: (*before, *after),
    })
}
