//! Which symbols of the patched build are which of the original one.
//!
//! Compilers number what would have the same name otherwise: static variables of functions
//! (`count.0`), and functions that they make (`scale.isra.0`). Such numbers change when anything is
//! added, so they say nothing; who uses a thing does.

use crate::statics::is_patchs_own;
use crate::unit::{Referent, Reloc, Unit};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a symbol of the patched build is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Match {
    /// The original has nothing like it, or it is not defined here.
    New,
    /// It is this one of the original.
    Same(usize),
    /// It may be one of these.
    Ambiguous(Vec<usize>),
}

/// A name without the compiler's numbers, and whether code has it.
type Key = (String, bool);

/// What has the same key in the original, and in the patched build.
type Group = (Vec<usize>, Vec<usize>);

/// Matches each symbol of `patched`.
pub(crate) fn matches(original: &Unit, patched: &Unit) -> Vec<Match> {
    let mut groups: BTreeMap<Key, Group> = BTreeMap::new();
    for symbol in things(original) {
        groups
            .entry(key(original, symbol))
            .or_default()
            .0
            .push(symbol);
    }
    for symbol in things(patched) {
        groups
            .entry(key(patched, symbol))
            .or_default()
            .1
            .push(symbol);
    }
    let mut matches = vec![Match::New; patched.symbols.len()];
    let mut open = Vec::new();
    for group in groups.into_values() {
        match group {
            (original, patched) if original.len() == 1 && patched.len() == 1 => {
                matches[patched[0]] = Match::Same(original[0]);
            }
            (original, patched) if original.is_empty() || patched.is_empty() => {}
            group => open.push(group),
        }
    }
    for (originals, symbols) in &mut open {
        match_by_sources(original, patched, originals, symbols, &mut matches);
        match_equal(original, patched, originals, symbols, &mut matches);
    }
    let users = (Users::of(original), Users::of(patched));
    // A function that is matched may tell which its variables are.
    let mut goes_on = true;
    while core::mem::take(&mut goes_on) {
        for (originals, symbols) in &mut open {
            while match_by_users(&users, originals, symbols, &mut matches) {
                goes_on = true;
            }
        }
    }
    match_by_places(original, patched, &mut open, &mut matches);
    for (originals, symbols) in open {
        for symbol in symbols.into_iter().filter(|_| !originals.is_empty()) {
            matches[symbol] = Match::Ambiguous(originals.clone());
        }
    }
    doubt_others(original, patched, &users, &mut matches);
    matches
}

/// A variable of a function is not that of another one, though there is only one of the name in each
/// build: a new one may have the name of one that is gone.
fn doubt_others(
    original: &Unit,
    patched: &Unit,
    (of_original, of_patched): &(Users, Users),
    matches: &mut [Match],
) {
    let is_numbered = |name: &str| stem(name) != name;
    for symbol in things(patched).filter(|symbol| !patched.is_function(*symbol)) {
        let Match::Same(other) = matches[symbol] else {
            continue;
        };
        let names = [&original.symbols[other].name, &patched.symbols[symbol].name];
        let (Some(before), after) = (of_original.0.get(&other), of_patched.known(symbol, matches))
        else {
            continue;
        };
        let is_another = !after.is_empty() && before.is_disjoint(&after);
        if is_another && names.iter().any(|name| is_numbered(name)) {
            matches[symbol] = Match::Ambiguous(vec![other]);
        }
    }
}

/// The symbols that are defined in the unit and name a function, or a variable of which there is
/// one.
fn things(unit: &Unit) -> impl Iterator<Item = usize> {
    let symbols = 0..unit.symbols.len();
    symbols.filter(|symbol| unit.is_thing(*symbol) && !is_patchs_own(unit, *symbol))
}

fn key(unit: &Unit, symbol: usize) -> Key {
    (stem(&unit.symbols[symbol].name), unit.is_function(symbol))
}

/// The name without the numbers that the compiler has put into it.
fn stem(name: &str) -> String {
    let name = without_hash(name);
    let mut parts = name.split('.');
    let first = parts.next().unwrap_or_default().to_owned();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    parts
        .filter(|part| !is_number(part))
        .fold(first, |stem, part| stem + "." + part)
}

/// A Rust name without the hash at its end (`…17h0123456789abcdefE`).
fn without_hash(name: &str) -> &str {
    const HASH: usize = 16;
    let hash = || {
        let (front, hash) = name.strip_suffix('E')?.rsplit_once("17h")?;
        let is_hash = hash.len() == HASH && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        (name.starts_with("_ZN") && is_hash).then_some(front)
    };
    hash().unwrap_or(name)
}

/// Matches those of the same name of which a source file has one: linkers put several files into one.
fn match_by_sources(
    original: &Unit,
    patched: &Unit,
    originals: &mut Vec<usize>,
    symbols: &mut Vec<usize>,
    matches: &mut [Match],
) {
    let before = by_source(original, originals);
    let mut matched = BTreeSet::new();
    for (source, after) in by_source(patched, symbols) {
        if let (Some(&[old]), &[new]) = (before.get(source).map(Vec::as_slice), &*after) {
            matches[new] = Match::Same(old);
            matched.insert(old);
        }
    }
    originals.retain(|other| !matched.contains(other));
    symbols.retain(|symbol| matches[*symbol] == Match::New);
}

fn by_source<'a>(unit: &'a Unit, symbols: &[usize]) -> BTreeMap<&'a str, Vec<usize>> {
    let mut by_source = BTreeMap::<_, Vec<_>>::new();
    for symbol in symbols {
        if let Some(source) = unit.source(*symbol) {
            by_source.entry(source).or_default().push(*symbol);
        }
    }
    by_source
}

/// Matches those of the same name and the same contents. Variables are told by their users alone:
/// most begin with zeroes.
fn match_equal(
    original: &Unit,
    patched: &Unit,
    originals: &mut Vec<usize>,
    symbols: &mut Vec<usize>,
    matches: &mut [Match],
) {
    let mut by_contents = BTreeMap::<_, VecDeque<_>>::new();
    for &other in originals
        .iter()
        .filter(|other| original.is_function(**other))
    {
        let contents = (&original.symbols[other].name, code(original, other).bytes);
        by_contents.entry(contents).or_default().push_back(other);
    }
    let mut matched = BTreeSet::new();
    symbols.retain(|&symbol| {
        let bytes = code(patched, symbol).bytes;
        let is_code = patched.is_function(symbol) && !bytes.is_empty();
        let contents = (&patched.symbols[symbol].name, bytes);
        let equal = by_contents.get_mut(&contents).filter(|_| is_code);
        let Some(equal) = equal.and_then(VecDeque::pop_front) else {
            return true;
        };
        matches[symbol] = Match::Same(equal);
        matched.insert(equal);
        false
    });
    originals.retain(|other| !matched.contains(other));
}

/// Matches those that the same functions use, and no others of the name. Says whether it did.
fn match_by_users(
    (of_original, of_patched): &(Users, Users),
    originals: &mut Vec<usize>,
    symbols: &mut Vec<usize>,
    matches: &mut [Match],
) -> bool {
    // By functions of the original: what they use, in both builds.
    let (mut before, mut after) = (Uses::new(), Uses::new());
    for original in &*originals {
        for user in of_original.0.get(original).into_iter().flatten() {
            before.entry(*user).or_default().push(*original);
        }
    }
    let known = symbols.iter();
    let known = known.map(|symbol| (*symbol, of_patched.known(*symbol, matches)));
    let known: Vec<_> = known.collect();
    for (symbol, users) in &known {
        for user in users {
            after.entry(*user).or_default().push(*symbol);
        }
    }
    let mut matched = BTreeSet::new();
    for (symbol, users) in &known {
        let original = only(users, &before);
        let users = original.and_then(|original| of_original.0.get(&original));
        if let (Some(original), Some(users)) = (original, users) {
            if only(users, &after) == Some(*symbol) {
                matches[*symbol] = Match::Same(original);
                matched.insert(original);
            }
        }
    }
    originals.retain(|original| !matched.contains(original));
    symbols.retain(|symbol| matches[*symbol] == Match::New);
    !matched.is_empty()
}

/// What functions use.
type Uses = BTreeMap<usize, Vec<usize>>;

/// What `users` use, if it is one thing.
fn only(users: &BTreeSet<usize>, uses: &Uses) -> Option<usize> {
    let mut all = users.iter().filter_map(|user| uses.get(user)).flatten();
    let first = all.next()?;
    all.all(|other| other == first).then_some(*first)
}

/// Matches what functions refer to at the same places whose code is the same but for the names of
/// what it refers to.
fn match_by_places(original: &Unit, patched: &Unit, open: &mut [Group], matches: &mut [Match]) {
    let groups = open.iter().enumerate();
    let groups =
        groups.flat_map(|(at, (originals, _))| originals.iter().map(move |old| (*old, at)));
    let groups: BTreeMap<usize, usize> = groups.collect();
    for function in patched.functions() {
        let Match::Same(other) = matches[function] else {
            continue;
        };
        let (before, after) = (code(original, other), code(patched, function));
        let place = |reloc: &Reloc, (symbol, unit): (usize, &Unit)| {
            (reloc.at - unit.symbols[symbol].value, reloc.kind)
        };
        let alike =
            before.bytes == after.bytes
                && before.relocs.len() == after.relocs.len()
                && before.relocs.iter().zip(after.relocs).all(|(old, new)| {
                    place(old, (other, original)) == place(new, (function, patched))
                });
        for (old, new) in before.relocs.iter().zip(after.relocs).filter(|_| alike) {
            let referents = (original.final_referent(old), patched.final_referent(new));
            let (Referent::Named { symbol: old, .. }, Referent::Named { symbol: new, .. }) =
                referents
            else {
                continue;
            };
            let group = groups.get(&old).and_then(|group| open.get_mut(*group));
            let group = group
                .filter(|(originals, symbols)| originals.contains(&old) && symbols.contains(&new));
            if let Some((originals, symbols)) = group {
                originals.retain(|each| *each != old);
                symbols.retain(|each| *each != new);
                matches[new] = Match::Same(old);
            }
        }
    }
}

/// The code of a function.
struct Code<'a> {
    bytes: &'a [u8],
    relocs: &'a [Reloc],
}

fn code(unit: &Unit, function: usize) -> Code<'_> {
    let section = unit
        .section_of(function)
        .map(|section| &unit.sections[section]);
    let symbol = &unit.symbols[function];
    Code {
        bytes: section.map_or(&[], |section| section.bytes_in(symbol.value, symbol.len)),
        relocs: section.map_or(&[], |section| section.relocs_in(symbol.value, symbol.len)),
    }
}

/// The functions that refer to each symbol; a part counts as its function.
struct Users(BTreeMap<usize, BTreeSet<usize>>);

impl Users {
    fn of(unit: &Unit) -> Self {
        let mut users = BTreeMap::<_, BTreeSet<_>>::new();
        for function in unit.functions() {
            let symbol = &unit.symbols[function];
            let user = unit.whole(function).unwrap_or(function);
            let Some(section) = unit.section_of(function) else {
                continue;
            };
            for reloc in unit.sections[section].relocs_in(symbol.value, symbol.len) {
                if let Referent::Named { symbol, .. } = unit.final_referent(reloc) {
                    users.entry(symbol).or_default().insert(user);
                }
            }
        }
        Self(users)
    }

    /// Those of `symbol`, of the patched build, by what they are in the original.
    fn known(&self, symbol: usize, matches: &[Match]) -> BTreeSet<usize> {
        let users = self.0.get(&symbol).into_iter().flatten();
        let known = users.filter_map(|user| match matches[*user] {
            Match::Same(original) => Some(original),
            Match::New | Match::Ambiguous(_) => None,
        });
        known.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_compiler_do_not_count() {
        for (name, expected) in [
            ("count", "count"),
            ("count.0", "count"),
            ("scale.isra.0", "scale.isra"),
            ("scale.constprop.12.cold", "scale.constprop.cold"),
            ("scale.llvm.8271", "scale.llvm"),
            ("v2", "v2"),
            (
                "_ZN4core3fmt5write17h0123456789abcdefE",
                "_ZN4core3fmt5write",
            ),
            ("_ZN4core3fmt5write17hE", "_ZN4core3fmt5write17hE"),
            ("17h0123456789abcdefE", "17h0123456789abcdefE"),
        ] {
            assert_eq!(stem(name), expected, "{name}");
        }
    }
}
