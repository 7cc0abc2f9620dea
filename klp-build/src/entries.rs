//! The entries of special sections, by the code that they are about.

use crate::compare::{Place, place};
use crate::special::{self, Entry, Purpose};
use crate::unit::Unit;
use object::elf;
use std::collections::BTreeMap;

/// The special sections of one build: each with its entries, or `None` if it cannot be told where
/// these begin.
pub(crate) type Specials = Vec<(usize, Option<Vec<Entry>>)>;

/// The special sections of `unit`.
pub(crate) fn specials(unit: &Unit) -> Specials {
    let sections = unit.sections.iter().enumerate();
    let known = sections.filter_map(|(index, section)| {
        let kind = special::kind_of(&section.name)?;
        let entries = special::entries(unit, index, kind);
        section.has(elf::SHF_ALLOC).then_some((index, entries))
    });
    known.collect()
}

/// The entries of special sections, each by the section and the place of its code.
pub(crate) type ByCode = BTreeMap<(usize, u64), Vec<Place>>;

pub(crate) fn by_code(unit: &Unit, specials: &Specials) -> ByCode {
    let mut by_code = ByCode::new();
    for (section, entries) in specials {
        let kind = special::kind_of(&unit.sections[*section].name);
        if kind.is_some_and(|kind| kind.purpose == Purpose::Derived) {
            continue;
        }
        for entry in entries.iter().flatten() {
            let Entry { start, len, code } = *entry;
            let entries = by_code.entry(code).or_default();
            entries.push(Place {
                section: *section,
                start,
                len,
            });
        }
    }
    by_code
}

/// Those of the function.
pub(crate) fn entries_of(unit: &Unit, by_code: &ByCode, function: usize) -> Vec<Place> {
    let Some(Place {
        section,
        start,
        len,
    }) = place(unit, function)
    else {
        return Vec::new();
    };
    let code = (section, start)..(section, start.saturating_add(len.max(1)));
    by_code
        .range(code)
        .flat_map(|(_, entries)| entries.clone())
        .collect()
}
