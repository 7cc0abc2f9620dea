//! The sites at the entries of functions: pads that compilers leave, and calls of a profiler.

use crate::select::Contents;
use crate::unit::{Home, Reloc, Symbol, Unit, UnitHeader};
use crate::write::{data, pointer};
use object::elf;
use std::collections::{BTreeMap, BTreeSet};

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

/// The sites that a build records.
pub(crate) struct Sites<'a> {
    unit: &'a Unit,
    /// Whether it records any.
    is_recorded: bool,
    /// The section of each, and the place there.
    places: BTreeSet<(usize, u64)>,
}

impl<'a> Sites<'a> {
    pub(crate) fn of(unit: &'a Unit) -> Self {
        let tables = unit.sections.iter();
        let tables = tables.filter(|section| TABLES.contains(&&*section.name));
        let mut sites = tables.flat_map(|table| &table.relocs).peekable();
        Self {
            unit,
            is_recorded: sites.peek().is_some(),
            places: sites
                .filter_map(|site| place_of(&unit.symbols, site))
                .collect(),
        }
    }

    /// Whether there is a site at the entry of `function`; `true` also if none is recorded.
    pub(crate) fn has(&self, function: usize) -> bool {
        let unit = self.unit;
        let Some(section) = unit.section_of(function) else {
            return true;
        };
        let Symbol { value, len, .. } = unit.symbols[function];
        // The pad may begin in front of the function, behind what is there.
        let free = unit.reach_before(section, value).min(value);
        let end = value.saturating_add(len);
        let mut inside = self.places.range((section, free)..(section, end));
        // A table of the calls of a profiler may be made later.
        let calls = unit.sections[section].relocs_in(value, len);
        let is_profiled = calls.iter().any(|call| is_profiler(&unit.symbols, call));
        !self.is_recorded || is_profiled || inside.next().is_some()
    }
}

/// Notes the calls of a profiler that are not noted yet. For the originals the kernel's build does
/// so when these are linked; nobody would for a patch, and Linux does not trace what is not noted.
pub(crate) fn note_calls(header: UnitHeader, contents: &mut Contents) {
    let Contents {
        sections, symbols, ..
    } = contents;
    let tables = sections.iter().filter(|table| table.name == CALLS);
    let mut noted: BTreeSet<_> = tables
        .flat_map(|table| &table.relocs)
        .filter_map(|site| place_of(symbols, site))
        .collect();
    let functions = symbols.iter().enumerate();
    let functions = functions.filter(|(_, symbol)| symbol.kind() == elf::STT_FUNC);
    let functions: BTreeMap<_, _> = functions
        .map(|(index, symbol)| (symbol.home, index))
        .collect();
    // On x86_64, the relocated field is behind the first byte.
    let ahead = u64::from(header.machine == elf::EM_X86_64);
    let (mut bytes, mut relocs) = (Vec::new(), Vec::new());
    for (index, section) in sections.iter().enumerate() {
        let function = functions.get(&Home::Section(index));
        let calls = section.relocs.iter().filter(|call| {
            section.is_code() && !is_gone(header.machine, call) && is_profiler(symbols, call)
        });
        for (call, function) in calls.zip(function.into_iter().cycle()) {
            let place = call.at.saturating_sub(ahead);
            if noted.insert((index, place)) {
                relocs.push(Reloc {
                    at: bytes.len() as u64,
                    kind: pointer(header.machine),
                    symbol: *function,
                    addend: place.wrapping_sub(symbols[*function].value) as i64,
                    bias: 0,
                });
                bytes.extend_from_slice(&[0; POINTER]);
            }
        }
    }
    if relocs.is_empty() {
        return;
    }
    let table = sections.iter_mut().find(|table| table.name == CALLS);
    let table = match table {
        Some(table) => table,
        None => {
            sections.push(data(CALLS, POINTER as u64, Vec::new()));
            let Some(table) = sections.last_mut() else {
                return;
            };
            table
        }
    };
    let start = table.len;
    table.relocs.extend(relocs.iter().map(|reloc| Reloc {
        at: reloc.at + start,
        ..*reloc
    }));
    table.bytes.extend(bytes);
    table.len = table.bytes.len() as u64;
}

/// Bytes of a pointer.
const POINTER: usize = 8;

/// The section that `site` is in, and the place there.
fn place_of(symbols: &[Symbol], site: &Reloc) -> Option<(usize, u64)> {
    let symbol = symbols.get(site.symbol)?;
    let Home::Section(section) = symbol.home else {
        return None;
    };
    let at = site.addend.wrapping_add_unsigned(symbol.value);
    Some((section, u64::try_from(at).ok()?))
}

fn is_profiler(symbols: &[Symbol], call: &Reloc) -> bool {
    let symbol = symbols.get(call.symbol);
    symbol.is_some_and(|symbol| is_profilers(&symbol.name))
}

/// Whether a tool has made the call an instruction that does nothing.
fn is_gone(machine: elf::Machine, call: &Reloc) -> bool {
    machine == elf::EM_X86_64 && call.kind == elf::R_X86_64_NONE.0
}
