//! What the author of a patch says to kpatch, by the macros of its `kpatch-macros.h`.

use crate::texts::text_at;
use crate::unit::{Referent, Unit};
use klp_core::elf::manifest::object_ext;
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

/// The sections with callbacks (`KPATCH_PRE_PATCH_CALLBACK` and others), each with the place of its
/// pointer in the patch. Linux has the same callbacks, with the same arguments.
const CALLBACKS: [(&str, u64); 4] = [
    (".kpatch.callbacks.pre_patch", object_ext::CALLBACKS),
    (".kpatch.callbacks.post_patch", object_ext::CALLBACKS + 8),
    (".kpatch.callbacks.pre_unpatch", object_ext::CALLBACKS + 16),
    (".kpatch.callbacks.post_unpatch", object_ext::CALLBACKS + 24),
];

/// The callbacks in `unit`: their places in the patch, and the functions.
pub(crate) fn callbacks(unit: &Unit) -> impl Iterator<Item = (u64, usize)> {
    let sections = unit.sections.iter();
    let callbacks = sections.flat_map(|section| {
        let known = CALLBACKS.iter().find(|(name, _)| *name == section.name);
        section.relocs.iter().zip(known.into_iter().cycle())
    });
    callbacks.filter_map(|(pointer, (_, place))| match unit.referent(pointer) {
        Referent::Named { symbol, offset: 0 } => Some((*place, symbol)),
        _ => None,
    })
}

/// Whether the section says something to kpatch that this tool does not do.
pub(crate) fn is_not_known(name: &str) -> bool {
    let is_callback = CALLBACKS.iter().any(|(callback, _)| *callback == name);
    let is_ignored = [IGNORED_SECTIONS, IGNORED_FUNCTIONS].contains(&name);
    name.starts_with(AUTHORS) && !is_callback && !is_ignored
}
