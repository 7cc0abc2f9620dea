//! What the author of a patch says to kpatch, by the macros of its `kpatch-macros.h`.

use crate::texts::text_at;
use crate::unit::{Referent, Unit};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// What the sections begin with that say so.
pub(crate) const AUTHORS: &str = ".kpatch.";

/// Of this: the names of sections that shall not be looked at (`KPATCH_IGNORE_SECTION`).
const IGNORED_SECTIONS: &str = ".kpatch.ignore.sections";

/// And functions that shall stay as they are (`KPATCH_IGNORE_FUNCTION`).
const IGNORED_FUNCTIONS: &str = ".kpatch.ignore.functions";

/// What the author of a patch does not want to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    sections: BTreeSet<String>,
    functions: BTreeSet<usize>,
}

impl Ignored {
    /// What the patched build says.
    pub(crate) fn of(unit: &Unit) -> Self {
        let mut ignored = Self::default();
        for table in &unit.sections {
            for reloc in &table.relocs {
                if table.name == IGNORED_SECTIONS {
                    let name = text_at(unit, reloc).map(String::from_utf8_lossy);
                    ignored.sections.extend(name.map(Cow::into_owned));
                }
                if table.name == IGNORED_FUNCTIONS {
                    if let Referent::Named { symbol, .. } = unit.referent(reloc) {
                        ignored.functions.insert(symbol);
                    }
                }
            }
        }
        ignored
    }

    /// Whether `symbol` of that is meant.
    pub(crate) fn has(&self, unit: &Unit, symbol: usize) -> bool {
        let section = unit.section_of(symbol);
        let in_section = |section: usize| self.sections.contains(&unit.sections[section].name);
        self.functions.contains(&symbol) || section.is_some_and(in_section)
    }
}

/// Whether the section says something to kpatch that this tool does not do.
pub(crate) fn is_for_kpatch(name: &str) -> bool {
    name.starts_with(AUTHORS) && ![IGNORED_SECTIONS, IGNORED_FUNCTIONS].contains(&name)
}
