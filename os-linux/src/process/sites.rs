//! Entry sites, as the compiler recorded them.

use super::error::Error;
use super::objects::{Object, Objects};
use klp_core::addr::{CodeAddr, TextRange};

/// The sections in which GCC and LLVM (`-fpatchable-function-entry`) and GCC (`-mrecord-mcount`)
/// record the addresses of entry pads, eight bytes each. They are loaded, so their values in memory
/// are relocated.
const TABLES: [&str; 2] = ["__patchable_function_entries", "__mcount_loc"];

/// Bytes that may stand between the start of a function and its pad: an `endbr64`, and room for
/// what compilers may add.
const BEFORE_PAD: u64 = 20;

/// The address of the entry pad recorded for the function in `func`, if its object is alive:
/// before, the table is not relocated.
pub(crate) fn recorded(objects: &Objects, func: TextRange) -> Option<CodeAddr> {
    let object = objects
        .at(func.start())
        .filter(|object| object.is_alive())?;
    let sites = sites_of(&object).ok()?;
    let index = sites.partition_point(|site| *site < func.start());
    let site = *sites.get(index)?;
    (func.contains(site) && func.start().distance_to(site).unsigned_abs() <= BEFORE_PAD)
        .then_some(site)
}

/// All sites of `object`, sorted. Read at the first call.
fn sites_of(object: &Object) -> Result<&[CodeAddr], Error> {
    if let Some(known) = object.sites.get() {
        return Ok(known);
    }
    let mut sites = Vec::new();
    for table in TABLES {
        sites.extend(addresses(object, table)?);
    }
    sites.sort_unstable();
    sites.dedup();
    Ok(object.sites.get_or_init(|| sites))
}

/// The addresses in the section `name` of `object`; none if it does not have that.
pub(crate) fn addresses<'a>(
    object: &'a Object,
    name: &str,
) -> Result<impl Iterator<Item = CodeAddr> + use<'a>, Error> {
    let bytes = object.file()?.section(name).and_then(|section| {
        object.bytes(TextRange::new(
            section.start().wrapping_add(object.bias),
            section.len(),
        )?)
    });
    let words = bytes.unwrap_or_default().chunks_exact(8);
    let words = words.filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
    // The linker leaves a zero where it dropped the function.
    Ok(words.filter(|&word| word != 0).map(CodeAddr::new))
}
