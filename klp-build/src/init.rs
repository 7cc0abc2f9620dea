//! What runs when an object is loaded or unloaded: it has run, or runs once more, so a patch of it
//! does nothing, or not what it says.

use crate::compare::Pair;
use crate::unit::{Referent, Section, Unit};
use object::elf;
use std::collections::BTreeSet;

/// Sections with the functions that run then, and that the kernel throws away.
const CODE: [&str; 2] = [".init.text", ".exit.text"];

/// Sections with pointers to functions that run then.
const POINTERS: [&str; 6] = [
    ".init_array",
    ".fini_array",
    ".ctors",
    ".dtors",
    ".initcall",
    ".exitcall",
];

/// What was changed of this: functions, or sections that say which functions run.
pub(crate) fn changes(pair: &Pair) -> impl Iterator<Item = String> {
    let (before, after) = (Init::of(&pair.original), Init::of(&pair.patched));
    let mut sections = after.sections.iter().chain(&before.sections);
    let section = sections.next().filter(|_| before.names != after.names);
    let section = section.map(|section| (*section).to_owned());
    let unit = &pair.patched;
    let runs = |function: &&usize| {
        let section = unit.section_of(**function);
        let section = section.map(|section| &*unit.sections[section].name);
        let in_code = |name: &str| CODE.iter().any(|code| name.starts_with(code));
        after.called.contains(function) || section.is_some_and(in_code)
    };
    let changed = pair.changed.iter().filter(runs);
    let changed: Vec<_> = changed
        .map(|function| unit.symbols[*function].name.clone())
        .collect();
    section.into_iter().chain(changed)
}

/// Whether `section` says which functions run.
pub(crate) fn is_table(section: &Section) -> bool {
    let kinds = [
        elf::SHT_INIT_ARRAY,
        elf::SHT_FINI_ARRAY,
        elf::SHT_PREINIT_ARRAY,
    ];
    kinds.contains(&section.kind) || POINTERS.iter().any(|name| section.name.starts_with(name))
}

/// What runs of one build.
#[derive(Default)]
struct Init<'a> {
    /// The sections that say so.
    sections: Vec<&'a str>,
    called: BTreeSet<usize>,
    /// Their names, in the order in which they are called.
    names: Vec<&'a str>,
}

impl<'a> Init<'a> {
    fn of(unit: &'a Unit) -> Self {
        let mut init = Self::default();
        for section in unit.sections.iter().filter(|section| is_table(section)) {
            init.sections.push(&section.name);
            for reloc in &section.relocs {
                if let Referent::Named { symbol, .. } = unit.referent(reloc) {
                    init.called.insert(symbol);
                    init.names.push(&unit.symbols[symbol].name);
                }
            }
        }
        init
    }
}
