//! Static variables of the kernel's own macros, of which a patch has its own copies.
//!
//! Macros that a function uses make static variables in it, all of one name: `__warned.12`. Which
//! is which cannot be told, and does not matter, as long as what a variable begins with is right
//! for code that runs for the first time: a message that is printed once may be printed once more.
//!
//! The macros that remember what must not be done twice are not among them (`___done` of `DO_ONCE`
//! guards secrets that are drawn once): for such a variable, there is the original's.

use crate::unit::{Symbol, Unit};
use object::elf;

/// Variables, and the macros that make them.
const NAMES: [(&str, &str); 5] = [
    ("__key", "lockdep's classes: spin_lock_init and others"),
    ("__warned", "WARN_ONCE, RCU_LOCKDEP_WARN"),
    (
        "__already_done",
        "WARN_ONCE, printk_once (linux/once_lite.h)",
    ),
    ("__print_once", "printk_once"),
    ("_rs", "printk_ratelimited"),
];

/// Constants that macros and compilers make. Of those it does not matter where they are, and not
/// every kernel has their names (`CONFIG_KALLSYMS_ALL`).
const CONSTANTS: [(&str, &str); 5] = [
    ("__func__", "the function's name (C11 6.4.2.2)"),
    ("__FUNCTION__", "the same, as GCC calls it"),
    ("__msg", "NL_SET_ERR_MSG: a message for netlink"),
    ("_entry", "printk_index: what a message looks like"),
    ("CSWTCH", "GCC's table in place of a switch"),
];

/// Sections of such variables, whatever these are called.
const SECTIONS: [(&str, &str); 2] = [
    (
        "__dyndbg",
        "pr_debug: descriptors that the module loader reads",
    ),
    ("__verbose", "the same, before Linux 5.10"),
];

/// Whether `symbol` of `unit` is such a variable.
pub(crate) fn is_patchs_own(unit: &Unit, symbol: usize) -> bool {
    let Some(section) = unit.section_of(symbol) else {
        return false;
    };
    let section = &unit.sections[section];
    let symbol = &unit.symbols[symbol];
    let is_variable = symbol.kind() == elf::STT_OBJECT && symbol.is_local();
    let in_section = SECTIONS.iter().any(|(name, _)| *name == section.name);
    let is_known = || macros_name(symbol, &NAMES).is_some();
    let is_constant = || section.is_constant() && macros_name(symbol, &CONSTANTS).is_some();
    is_variable && (in_section || is_known() || is_constant())
}

/// Whether both are variables of the same macro.
pub(crate) fn are_alike(original: &Symbol, patched: &Symbol) -> bool {
    let name = |symbol| {
        let names = macros_name(symbol, &NAMES);
        names.or_else(|| macros_name(symbol, &CONSTANTS))
    };
    name(original) == name(patched)
}

/// What the macro calls the variable. GCC adds a number (`_rs.12`), clang the function's name in
/// front of it (`probe._rs.3`).
fn macros_name<'a>(symbol: &Symbol, names: &[(&'a str, &str)]) -> Option<&'a str> {
    let is_number = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<_> = symbol.name.split('.').collect();
    let name = match &*parts {
        [name, number] if is_number(number) => name,
        [_, name] => name,
        [_, name, number] if is_number(number) => name,
        _ => return None,
    };
    let known = names.iter().find(|(known, _)| known == name);
    known.map(|(known, _)| *known)
}
