//! The sites at the entries of functions: pads that compilers leave, and calls of a profiler.

use crate::select::Contents;
use crate::unit::{Home, Reloc, Section, Symbol, Unit, UnitHeader};
use crate::write::{data, pointer};
use object::elf;
use std::collections::BTreeSet;

/// Where compilers and tools note the sites.
const TABLES: [&str; 2] = ["__patchable_function_entries", CALLS];

/// Where the calls of a profiler are noted.
const CALLS: &str = "__mcount_loc";

/// What compilers have functions call at their entries (`-pg`).
const PROFILERS: [&str; 3] = ["__fentry__", "_mcount", "mcount"];

/// Whether `name` is that of a profiler's function. Linux exports it, and knows it by this name
/// when it loads a patch.
pub(crate) fn is_profilers(name: &str) -> bool {
    PROFILERS.contains(&name)
}

/// Whether there is a site at the entry of `function`; `true` also if this build does not record
/// any.
pub(crate) fn has_site(unit: &Unit, function: usize) -> bool {
    let tables = unit.sections.iter();
    let tables = tables.filter(|section| TABLES.contains(&&*section.name));
    let mut sites = tables.flat_map(|table| &table.relocs).peekable();
    let Some(section) = unit.section_of(function) else {
        return true;
    };
    let Symbol { value, len, .. } = unit.symbols[function];
    // The pad may begin in front of the function, behind what is there.
    let names = unit.names_in(section).iter();
    let before = names.map(|name| &unit.symbols[*name]);
    let before = before.filter(|before| before.value < value);
    let free = before.map(|before| before.value.saturating_add(before.len));
    let free = free.max().unwrap_or(0).min(value);
    let is_inside = |site: &Reloc| {
        let at = place_in(&unit.symbols, section, site);
        let at = at.and_then(|at| at.checked_sub(free));
        at.is_some_and(|at| at < len.saturating_add(value - free))
    };
    // A table of the calls of a profiler may be made later.
    let calls = unit.sections[section].relocs_in(value, len);
    let is_profiled = calls.iter().any(|call| is_profiler(&unit.symbols, call));
    sites.peek().is_none() || is_profiled || sites.any(is_inside)
}

/// Notes the calls of a profiler that are not noted yet. For the originals the kernel's build does
/// so when these are linked; nobody would for a patch, and Linux does not trace what is not noted.
pub(crate) fn note_calls(header: UnitHeader, contents: &mut Contents) {
    let Contents {
        sections, symbols, ..
    } = contents;
    let mut found = Vec::new();
    for (index, section) in sections.iter().enumerate() {
        let tables = sections.iter().filter(|table| table.name == CALLS);
        let noted = tables.flat_map(|table| &table.relocs);
        let noted: BTreeSet<u64> = noted
            .filter_map(|site| place_in(symbols, index, site))
            .collect();
        let calls = section.relocs.iter().filter(|call| {
            section.is_code() && !is_gone(header.machine, call) && is_profiler(symbols, call)
        });
        for call in calls {
            // On x86_64, the relocated field is behind the first byte.
            let ahead = u64::from(header.machine == elf::EM_X86_64);
            let place = call.at.saturating_sub(ahead);
            if !noted.contains(&place) {
                found.push((index, place));
            }
        }
    }
    for (section, place) in found {
        let of = symbols.iter().position(|symbol| {
            symbol.home == Home::Section(section) && symbol.kind() == elf::STT_FUNC
        });
        let symbol = of.unwrap_or_else(|| {
            symbols.push(Symbol::section(section));
            symbols.len() - 1
        });
        let table = sections.iter().position(|table| table.name == CALLS);
        let table = table.unwrap_or_else(|| {
            sections.push(data(CALLS, POINTER, Vec::new()));
            sections.len() - 1
        });
        let Section {
            bytes, len, relocs, ..
        } = &mut sections[table];
        let addend = place.wrapping_sub(symbols[symbol].value);
        relocs.push(Reloc {
            at: *len,
            kind: pointer(header.machine),
            symbol,
            addend: addend as i64,
            bias: 0,
        });
        bytes.extend_from_slice(&[0; POINTER as usize]);
        *len += POINTER;
    }
}

/// Bytes of a pointer.
const POINTER: u64 = 8;

/// Where `site` is in `section`, if it is there.
fn place_in(symbols: &[Symbol], section: usize, site: &Reloc) -> Option<u64> {
    let symbol = symbols.get(site.symbol)?;
    let at = site.addend.wrapping_add_unsigned(symbol.value);
    let at = u64::try_from(at).ok()?;
    (symbol.home == Home::Section(section)).then_some(at)
}

fn is_profiler(symbols: &[Symbol], call: &Reloc) -> bool {
    let symbol = symbols.get(call.symbol);
    symbol.is_some_and(|symbol| is_profilers(&symbol.name))
}

/// Whether a tool has made the call an instruction that does nothing.
fn is_gone(machine: elf::Machine, call: &Reloc) -> bool {
    machine == elf::EM_X86_64 && call.kind == elf::R_X86_64_NONE.0
}
