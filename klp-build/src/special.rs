//! What the kernel's build notes beside code, in sections of their own: where an instruction may
//! fault, which one can be replaced by a better one, where a branch is that is switched off.
//!
//! Each such section is an array. A patch needs the entries that are about its own code, and no
//! others: the kernel's module loader applies all that it finds. What the entries look like depends
//! on the kernel's version and configuration, so their size is found out: the first field of each
//! is the place of the code.
//!
//! | section | what the kernel does with an entry (its header) |
//! |---|---|
//! | `__ex_table` | goes on elsewhere after a fault (asm/extable.h) |
//! | `__bug_table` | tells `WARN` and `BUG` from other traps (linux/bug.h) |
//! | `__jump_table` | switches a branch (linux/jump_label.h) |
//! | `.static_call_sites` | changes whom an instruction calls (linux/static_call.h) |
//! | `.altinstructions` | replaces instructions, as the processor is (asm/alternative.h) |
//! | `__ftr_fixup` and others | the same on ppc64 (asm/feature-fixups.h) |
//! | `.smp_locks` | drops lock prefixes on one processor (asm/alternative.h) |
//! | `.parainstructions` | replaces calls of a hypervisor (asm/paravirt.h) |
//! | `.retpoline_sites`, `.return_sites`, `.call_sites`, `.ibt_endbr_seal`, `.cfi_sites` | replaces what objtool has found |
//! | `.kcfi_traps` | tells traps of control flow integrity (linux/cfi.h) |
//! | `__mcount_loc`, `__patchable_function_entries` | traces functions (linux/ftrace.h) |
//! | `_kprobe_blacklist` | puts no probe there (asm/kprobes.h) |
//! | `.orc_unwind_ip`, `.orc_unwind`, `.orc_header` | unwinds stacks (asm/orc_types.h) |
//! | `.printk_index` | lists all messages (linux/printk.h) |

use crate::ignored;
use crate::texts::{is_file_name, text_at};
use crate::unit::{Home, Referent, Reloc, Section, Unit};
use object::{Endianness, elf};

/// A kind of special section.
#[derive(Debug)]
pub(crate) struct Kind {
    name: &'static str,
    layout: Layout,
    pub(crate) purpose: Purpose,
}

/// What the entries of a section are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// The module loader changes code as they say, before it is known where things of other modules
    /// are.
    Applied,
    /// The kernel looks them up later.
    LookedUp,
    /// They follow from code and source, so they tell no change.
    Derived,
}

/// What the entries of a section look like.
#[derive(Clone, Copy, Debug)]
enum Layout {
    /// Each is one field: the code.
    Places,
    /// Each begins with so many fields that are relocated; the first one is the code.
    Records(usize),
    /// Each begins with the code, and is padded, which the last one may not be: assemblers align
    /// what follows.
    Padded,
    /// Each has this many bytes, and the code is at a place in it.
    Fixed { len: u64, code: u64 },
    /// They belong to those of another section with the same number.
    Beside(&'static str),
    /// Each is a pointer to a record with a pointer to the function's name at a place.
    ByName(u64),
}

const fn kind(name: &'static str, layout: Layout, purpose: Purpose) -> Kind {
    Kind {
        name,
        layout,
        purpose,
    }
}

const KINDS: &[Kind] = &[
    kind("__ex_table", Layout::Records(2), Purpose::LookedUp),
    kind("__bug_table", Layout::Records(1), Purpose::LookedUp),
    kind("__jump_table", Layout::Records(3), Purpose::Applied),
    kind(".static_call_sites", Layout::Records(2), Purpose::Applied),
    kind(".altinstructions", Layout::Records(2), Purpose::Applied),
    kind(".parainstructions", Layout::Padded, Purpose::Applied),
    kind("__ftr_fixup", FEATURE, Purpose::Applied),
    kind("__fw_ftr_fixup", FEATURE, Purpose::Applied),
    kind("__mmu_ftr_fixup", FEATURE, Purpose::Applied),
    kind("__lwsync_fixup", Layout::Places, Purpose::Applied),
    kind("__barrier_nospec_fixup", Layout::Places, Purpose::Applied),
    kind("__rfi_flush_fixup", Layout::Places, Purpose::Applied),
    kind("__entry_flush_fixup", Layout::Places, Purpose::Applied),
    kind("__uaccess_flush_fixup", Layout::Places, Purpose::Applied),
    kind("__scv_entry_flush_fixup", Layout::Places, Purpose::Applied),
    kind(
        "__stf_entry_barrier_fixup",
        Layout::Places,
        Purpose::Applied,
    ),
    kind("__stf_exit_barrier_fixup", Layout::Places, Purpose::Applied),
    kind(".smp_locks", Layout::Places, Purpose::Applied),
    kind(".retpoline_sites", Layout::Places, Purpose::Applied),
    kind(".return_sites", Layout::Places, Purpose::Applied),
    kind(".call_sites", Layout::Places, Purpose::Applied),
    kind(".ibt_endbr_seal", Layout::Places, Purpose::Applied),
    kind(".cfi_sites", Layout::Places, Purpose::Applied),
    kind(".kcfi_traps", Layout::Places, Purpose::LookedUp),
    kind("__mcount_loc", Layout::Places, Purpose::Derived),
    kind(
        "__patchable_function_entries",
        Layout::Places,
        Purpose::Derived,
    ),
    kind("_kprobe_blacklist", Layout::Places, Purpose::LookedUp),
    kind(".orc_unwind_ip", Layout::Places, Purpose::Derived),
    kind(".printk_index", MESSAGE, Purpose::Derived),
    kind(
        ".orc_unwind",
        Layout::Beside(".orc_unwind_ip"),
        Purpose::Derived,
    ),
];

/// Sections that say something of the whole of another section, once.
const HEADERS: [(&str, &str); 1] = [(".orc_header", ".orc_unwind")];

/// `struct pi_entry`: the message's format, and the function's name.
const MESSAGE: Layout = Layout::ByName(8);

/// `struct fixup_entry` of ppc64: a mask, a value, and four distances from its beginning.
const FEATURE: Layout = Layout::Fixed { len: 48, code: 16 };

/// Sections that refer to code, but of which a patch needs nothing.
const NOT_NEEDED: &[(&str, &str)] = &[
    (".discard.", "the linker throws them away"),
    (".note.", "of the file, or of how it was built"),
    (".eh_frame", "is written anew"),
    (
        ".initcall",
        "runs when the system starts: compared by itself",
    ),
    (
        ".exitcall",
        "runs when a module is unloaded: compared by itself",
    ),
    (
        ".init.setup",
        "reads the system's command line when it starts",
    ),
    ("___ksymtab", "a symbol that is exported stays where it is"),
    ("__ksymtab", "the same, after modpost"),
    (".export_symbol", "the same, before modpost"),
    (
        "_error_injection_whitelist",
        "errors are injected into the original",
    ),
    ("__param", "parameters of a module are set in the original"),
    ("_ftrace_events", "events are defined in the original"),
    ("__tracepoints_ptrs", "the same"),
    ("__bpf_raw_tp_map", "the same"),
    ("__syscalls_metadata", "the same"),
    (ignored::AUTHORS, "read by itself"),
];

/// Sections with pieces of code that hold no functions: each piece is a part of whatever refers to
/// it.
const SNIPPETS: &[&str] = &[
    ".fixup",
    ".text.fixup",
    ".text..refcount",
    ".altinstr_aux",
    ".altinstr_replacement",
    "__ftr_alt_",
];

/// Sections of pieces that the kernel copies over other code, so nothing runs there.
const COPIED: [&str; 2] = [".altinstr_replacement", "__ftr_alt_"];

/// An entry of a special section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// The code that it is about: the section, and the place there.
    pub(crate) code: (usize, u64),
}

/// The kind of the section that is called `name`.
pub(crate) fn kind_of(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

/// The section that says something of the whole of the section that is called `name`.
pub(crate) fn header_of(name: &str) -> Option<&'static str> {
    let header = HEADERS.iter().find(|(_, of)| *of == name);
    header.map(|(header, _)| *header)
}

/// Whether a patch needs nothing of a section that is called `name`, whatever refers to it.
pub(crate) fn is_not_needed(name: &str) -> bool {
    let mut names = NOT_NEEDED.iter();
    names.any(|(start, _)| name.starts_with(start))
}

/// Whether a section that is called `name` has pieces of code.
pub(crate) fn has_snippets(name: &str) -> bool {
    SNIPPETS.iter().any(|start| name.starts_with(start))
}

/// Whether the kernel copies what is in a section that is called `name` over other code.
pub(crate) fn is_copied(name: &str) -> bool {
    COPIED.iter().any(|start| name.starts_with(start))
}

/// The entries of the special section `section`. `None`: it cannot be told where they begin.
pub(crate) fn entries(unit: &Unit, section: usize, kind: &Kind) -> Option<Vec<Entry>> {
    let table = &unit.sections[section];
    if table.len == 0 {
        return Some(Vec::new());
    }
    match kind.layout {
        Layout::Places => {
            let count = u64::try_from(table.relocs.len()).ok()?;
            let len = table.len.checked_div(count)?;
            let is_field = [4, 8].contains(&len);
            split(unit, table, len, 0).filter(|_| is_field)
        }
        Layout::Fixed { len, code } => split(unit, table, len, code),
        Layout::Records(fields) => records(unit, table, fields),
        Layout::Padded => {
            let second = table.relocs.get(1).map_or(table.len, |second| second.at);
            split_padded(unit, table, second, 0, true)
        }
        Layout::ByName(name) => {
            let entry = |pointer: &Reloc| by_name(unit, pointer, name);
            Some(table.relocs.iter().filter_map(entry).collect())
        }
        Layout::Beside(name) => {
            let mut sections = 0..unit.sections.len();
            let others = sections.find(|other| unit.sections[*other].name == name)?;
            let others = entries(unit, others, kind_of(name)?)?;
            let len = table.len / u64::try_from(others.len()).ok()?.max(1);
            if len == 0 || len * others.len() as u64 != table.len || !table.relocs.is_empty() {
                return None;
            }
            let places = (0..).step_by(usize::try_from(len).ok()?);
            let beside = others.iter().zip(places).map(|(other, start)| Entry {
                start,
                len,
                ..*other
            });
            Some(beside.collect())
        }
    }
}

/// The entry that is `pointer`, if its function is one of the object's: that of an inlined one is
/// nobody's.
fn by_name(unit: &Unit, pointer: &Reloc, name: u64) -> Option<Entry> {
    let Referent::Named { symbol, offset: 0 } = unit.referent(pointer) else {
        return None;
    };
    let record = unit.section_of(symbol)?;
    let at = unit.symbols[symbol].value.checked_add(name)?;
    let name = unit.sections[record].relocs_in(at, 1).first()?;
    let name = text_at(unit, name)?;
    let function = unit.function_called(core::str::from_utf8(name).ok()?)?;
    Some(Entry {
        start: pointer.at,
        len: POINTER,
        code: (unit.section_of(function)?, unit.symbols[function].value),
    })
}

/// Finds the size of entries that begin with `fields` relocated fields: where the second one
/// begins, the first field refers to code again, and so on to the end.
fn records(unit: &Unit, table: &Section, fields: usize) -> Option<Vec<Entry>> {
    // Assemblers are told the size by newer kernels.
    if table.item > 1 {
        return split(unit, table, table.item, 0);
    }
    let [first, rest @ ..] = &*table.relocs else {
        return None;
    };
    let field = rest.first().map_or(0, |second| second.at - first.at);
    let shortest = match fields {
        0 | 1 => 1,
        _ => field.checked_mul(fields as u64)?,
    };
    let ends = rest.iter().map(|reloc| reloc.at).chain([table.len]);
    let mut ends = ends.filter(|end| *end >= shortest);
    ends.find_map(|len| split(unit, table, len, 0))
}

/// Splits a section into entries of `len` bytes with the code at `code`. `None`: that is not what
/// it is.
fn split(unit: &Unit, table: &Section, len: u64, code: u64) -> Option<Vec<Entry>> {
    split_padded(unit, table, len, code, false)
}

/// The same; with `is_padded`, the last one may be shorter.
fn split_padded(
    unit: &Unit,
    table: &Section,
    len: u64,
    code: u64,
    is_padded: bool,
) -> Option<Vec<Entry>> {
    let (mut entries, mut start) = (Vec::new(), 0_u64);
    while start < table.len {
        let here = len.min(table.len - start);
        let at = start.checked_add(code)?;
        let mut places = table.relocs_in(start, here).iter();
        let mut places = places.by_ref().filter(|reloc| reloc.at == at);
        let (Some(place), None) = (places.next(), places.next()) else {
            return None;
        };
        if here < len && !is_padded {
            return None;
        }
        entries.push(Entry {
            start,
            len: here,
            code: code_of(unit, place)?,
        });
        start = start.checked_add(len).filter(|next| *next > start)?;
    }
    Some(entries)
}

/// The code that `reloc` refers to.
fn code_of(unit: &Unit, reloc: &Reloc) -> Option<(usize, u64)> {
    let symbol = unit.symbols.get(reloc.symbol)?;
    let Home::Section(section) = symbol.home else {
        return None;
    };
    let place = reloc.addend.checked_add_unsigned(symbol.value)?;
    let place = u64::try_from(place.checked_add(reloc.bias)?).ok()?;
    unit.sections[section].is_code().then_some((section, place))
}

/// What the kernel adds to a field of a special section that is called `name`: distances of
/// ppc64's are from the beginning of their entry.
pub(crate) fn bias(machine: elf::Machine, name: &str, at: u64) -> i64 {
    match kind_of(name).map(|kind| kind.layout) {
        Some(Layout::Fixed { len, .. }) if machine == elf::EM_PPC64 => {
            i64::try_from(at % len).unwrap_or(0).wrapping_neg()
        }
        _ => 0,
    }
}

/// The bytes in which the entry or variable at `start` of `section` says in which line of the
/// source it is: their place, from `start`, and the bits that are the line's.
pub(crate) fn line_in(unit: &Unit, section: usize, start: u64, len: u64) -> Option<(u64, u64)> {
    if unit.header.endian != Endianness::Little {
        return None;
    }
    let table = &unit.sections[section];
    let relocs = table.relocs_in(start, len);
    let at = |index: usize| relocs.get(index).map(|reloc| reloc.at - start);
    match &*table.name {
        // The code, the file's name, perhaps a format; then the line, and flags.
        "__bug_table" => {
            let field = at(1)?.checked_sub(at(0)?)?;
            Some((at(relocs.len() - 1)?.checked_add(field)?, 0xffff))
        }
        // `struct _ddebug`: names of module, function, and file, and a format; then the line.
        "__dyndbg" | "__verbose" => {
            let has_names = (0..4).all(|index| at(index) == Some(index as u64 * POINTER));
            has_names.then_some((4 * POINTER, 0x3_ffff))
        }
        // `struct source_location`: the file's name, the line, and the column.
        _ if table.is_compilers_own() => {
            let file = relocs.first().filter(|file| file.at == start)?;
            is_file_name(unit, file).then_some((POINTER, u64::MAX))
        }
        _ => None,
    }
}

/// Bytes of a pointer.
const POINTER: u64 = 8;
