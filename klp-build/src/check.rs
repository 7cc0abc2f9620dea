//! What the contents of a patch must not ask of whoever loads it.

use crate::calls;
use crate::compare::Pair;
use crate::error::{Refusal, Why};
use crate::select::Contents;
use crate::special::{self, Purpose};
use crate::unit::Home;
use klp_core::elf::names::SymbolName;
use klp_core::model::VMLINUX;
use object::elf;
use std::collections::{BTreeMap, BTreeSet};

/// Says what is wrong with the `contents` of a patch of the object called `object`. `pair` is one
/// of those that it is made of.
pub(crate) fn check(pair: &Pair, object: &str, contents: &Contents) -> Vec<Refusal> {
    let mut refusals = sibling_calls(pair, contents);
    let odd = contents.sections.iter();
    let odd = odd.filter(|section| !section.is_contents());
    refusals.extend(odd.map(|section| pair.refuse(&section.name, Why::NotContents)));
    if object != VMLINUX {
        refusals.extend(applied_early(pair, contents));
    }
    refusals
}

/// What in `contents` has a name of more than `limit` bytes, and must be found by it.
pub(crate) fn long_names(pair: &Pair, contents: &Contents, limit: usize) -> Vec<Refusal> {
    let replaced = contents.replaced.iter().map(|replaced| &*replaced.old_name);
    let symbols = contents.symbols.iter();
    let needed = symbols.filter_map(|symbol| Some(SymbolName::parse(&symbol.name).ok()?.name));
    let names: BTreeSet<_> = replaced.chain(needed).collect();
    let long = names.into_iter().filter(|name| name.len() > limit);
    long.map(|name| pair.refuse(name, Why::LongName { limit }))
        .collect()
}

/// What a function of ppc64le jumps to without being there itself would have to restore a register.
fn sibling_calls(pair: &Pair, contents: &Contents) -> Vec<Refusal> {
    let machine = pair.patched.header.machine;
    // Of several symbols of a section, the first.
    let symbols = contents.symbols.iter().rev();
    let callers: BTreeMap<_, _> = symbols.map(|symbol| (symbol.home, &symbol.name)).collect();
    let mut refusals = Vec::new();
    for (index, section) in contents.sections.iter().enumerate() {
        for reloc in section.relocs.iter().filter(|_| section.is_code()) {
            let callee = &contents.symbols[reloc.symbol];
            let is_plain = machine == elf::EM_PPC64 && reloc.kind == elf::R_PPC64_REL24.0;
            if callee.home != Home::Outside
                || !(is_plain && calls::is_jump(machine, section, reloc))
            {
                continue;
            }
            let callee = SymbolName::parse(&callee.name).map_or(&*callee.name, |name| name.name);
            let caller = callers.get(&Home::Section(index));
            let caller = caller.copied().unwrap_or(&section.name);
            let callee = callee.to_owned();
            refusals.push(pair.refuse(caller, Why::SiblingCall { callee }));
        }
    }
    refusals
}

/// The kernel applies special sections when it loads the patch. What the patch needs of a module it
/// gets when that is there, which may be later (Linux, livepatch/module-elf-format); what it needs
/// of the kernel itself is there already.
fn applied_early(pair: &Pair, contents: &Contents) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for section in &contents.sections {
        let kind = special::kind_of(&section.name);
        let is_applied = kind.is_some_and(|kind| kind.purpose == Purpose::Applied);
        if !is_applied && !special::is_copied(&section.name) {
            continue;
        }
        for reloc in &section.relocs {
            if let Ok(needed) = SymbolName::parse(&contents.symbols[reloc.symbol].name) {
                let section = section.name.clone();
                refusals.push(pair.refuse(needed.name, Why::AppliedEarly { section }));
            }
        }
    }
    refusals
}
