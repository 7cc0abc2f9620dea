//! Namespaces of the kernel's symbols.

use crate::unit::Unit;

/// The namespaces that a part of the kernel takes symbols from. Linux lets no module have them that
/// does not say so (core-api/symbol-namespaces). What is built in has its name in front.
pub(crate) fn imported(unit: &Unit) -> Vec<String> {
    let sections = unit.sections.iter();
    let info = sections.filter(|section| section.name == MODULE_INFO);
    let lines = info.flat_map(|section| section.bytes.split(|byte| *byte == 0));
    let lines = lines.map(String::from_utf8_lossy);
    let namespaces = lines.filter_map(|line| {
        let (front, namespace) = line.split_once(IMPORT)?;
        (front.is_empty() || front.ends_with('.')).then(|| namespace.to_owned())
    });
    namespaces.collect()
}

/// Where a module says what it is, and the field for a namespace.
const MODULE_INFO: &str = ".modinfo";
const IMPORT: &str = "import_ns=";
