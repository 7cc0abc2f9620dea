//! Entry sites, as the compiler recorded them.

use super::error::Error;
use super::objects::{Object, Objects};
use klp_core::addr::{CodeAddr, TextRange};

/// The sections in which GCC and LLVM (`-fpatchable-function-entry`) and GCC (`-mrecord-mcount`) record the addresses of entry
/// pads, eight bytes each. They are loaded, so their values in memory are relocated.
const TABLES: [&str; 2] = ["__patchable_function_entries", "__mcount_loc"];

/// Bytes that may stand between the start of a function and its pad: an `endbr64`, and room for what compilers may add.
const BEFORE_PAD: u64 = 20;

/// The address of the entry pad recorded for the function in `func`.
pub(crate) fn recorded(objects: &Objects, func: TextRange) -> Option<CodeAddr> {
    let object = objects.at(func.start())?;
    let sites = sites_of(&object).ok()?;
    let index = sites.partition_point(|site| *site < func.start());
    let site = *sites.get(index)?;
    (func.contains(site) && func.start().distance_to(site).unsigned_abs() <= BEFORE_PAD).then_some(site)
}

/// All sites of `object`, sorted. Read at the first call.
fn sites_of(object: &Object) -> Result<&[CodeAddr], Error> {
    if let Some(known) = object.sites.get() {
        return Ok(known);
    }
    let file = object.file()?;
    let mut sites = Vec::new();
    for table in TABLES {
        let Some(section) = file.section(table) else { continue };
        let place = TextRange::new(section.start().wrapping_add(object.bias), section.len());
        let Some(bytes) = place.and_then(|place| object.bytes(place)) else { continue };
        let words = bytes.chunks_exact(8).filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
        // The linker leaves a zero where it dropped the function.
        sites.extend(words.filter(|&word| word != 0).map(CodeAddr::new));
    }
    sites.sort_unstable();
    sites.dedup();
    Ok(object.sites.get_or_init(|| sites))
}
