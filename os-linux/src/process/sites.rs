//! Entry sites, as the compiler recorded them.

use super::elf_file::ElfFile;
use super::objects::{Object, Objects};
use alloc::sync::Arc;
use klp_core::addr::{CodeAddr, TextRange};
use std::sync::OnceLock;

/// The sections in which GCC and LLVM (`-fpatchable-function-entry`) and GCC (`-mrecord-mcount`)
/// record the addresses of entry pads, eight bytes each. They are loaded, so their values in memory
/// are relocated.
const TABLES: [&str; 2] = ["__patchable_function_entries", "__mcount_loc"];

/// Bytes that may stand between the start of a function and its pad: an `endbr64`, and room for
/// what compilers may add.
const BEFORE_PAD: u64 = 20;

/// The address of the entry pad recorded for the function in `func`.
pub(crate) fn recorded(objects: &Objects, func: TextRange) -> Option<CodeAddr> {
    let first = |object: &Arc<Object>| {
        let sites = read_once(object, &object.sites, |file| words(object, file, &TABLES))?;
        let index = sites.partition_point(|site| *site < func.start());
        sites.get(index).copied()
    };
    objects.look_at(func.start(), first)?.filter(|&site| {
        func.contains(site) && func.start().distance_to(site).unsigned_abs() <= BEFORE_PAD
    })
}

/// The addresses that `read` finds in the file of `object`, sorted, which `once` keeps; `None` if
/// the file cannot be read, or if the object is not alive: before, its tables are not relocated.
pub(crate) fn read_once<'a>(
    object: &Object,
    once: &'a OnceLock<Vec<CodeAddr>>,
    read: impl FnOnce(&ElfFile) -> Vec<CodeAddr>,
) -> Option<&'a [CodeAddr]> {
    if !object.is_alive() {
        return None;
    }
    if let Some(known) = once.get() {
        return Some(known);
    }
    let mut addresses = read(object.file().ok()?);
    addresses.sort_unstable();
    addresses.dedup();
    Some(once.get_or_init(|| addresses))
}

/// The addresses in the sections `names` of `object`, whose file is `file`.
pub(crate) fn words(object: &Object, file: &ElfFile, names: &[&str]) -> Vec<CodeAddr> {
    let bytes = |name: &&str| {
        let section = file.section(name)?;
        let start = section.start().wrapping_add(object.bias);
        object.bytes(TextRange::new(start, section.len())?)
    };
    let words = names
        .iter()
        .filter_map(bytes)
        .flat_map(|bytes| bytes.chunks_exact(8));
    let words = words.filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)));
    // The linker leaves a zero where it dropped the function.
    words.filter(|&word| word != 0).map(CodeAddr::new).collect()
}
