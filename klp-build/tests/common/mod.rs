//! What tests of klp-build share: compilers, and what patches say.

#![allow(dead_code, unreachable_pub)] // Each test has its own copy, and uses a part.

use klp_build::{BuildError, Built, PatchBuilder, Why};
use klp_core::elf::names::SymbolName;
use klp_core::elf::view::{Home, View};
use std::path::Path;
use std::process::Command;

pub fn compile(source: &str, flags: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    compile_in(folder.path(), "shop.c", source, flags)
}

pub fn compile_in(folder: &Path, name: &str, source: &str, flags: &[&str]) -> Vec<u8> {
    let c = folder.join(name);
    let object = c.with_extension("o");
    std::fs::write(&c, source).expect("written");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .current_dir(folder)
        .args(flags)
        .args(["-c", name, "-o"])
        .arg(&object)
        .status()
        .expect("a C compiler");
    assert!(status.success());
    std::fs::read(object).expect("an object file")
}

pub fn build(original: &[u8], patched: &[u8]) -> Result<Built, BuildError> {
    let mut patch = PatchBuilder::new("fix");
    patch.pair(Path::new("shop.o"), Some(original), patched)?;
    patch.build()
}

/// Why the change of one thing is refused, and its name.
pub fn refusal(result: Result<Built, BuildError>) -> (String, Why) {
    let mut refusals = refusals(result);
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    refusals.swap_remove(0)
}

/// The same for all that is at fault.
pub fn refusals(result: Result<Built, BuildError>) -> Vec<(String, Why)> {
    match result {
        Err(BuildError::Refused(refusals)) => {
            let pair = |refusal: klp_build::Refusal| (refusal.name, refusal.why);
            refusals.into_iter().map(pair).collect()
        }
        other => panic!("{other:?}"),
    }
}

pub fn view(bytes: &[u8]) -> View<'_> {
    View::parse(bytes, machine(bytes), false).expect("a patch object")
}

pub fn machine(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[18], bytes[19]])
}

/// What of the running system the patch refers to.
pub fn livepatch_symbols(bytes: &[u8]) -> Vec<String> {
    let view = view(bytes);
    let symbols = view.symbols().iter();
    let live = symbols.filter(|symbol| symbol.home == Home::Livepatch);
    let parse = |name: &str| {
        let SymbolName { object, name, pos } = SymbolName::parse(name).expect("valid");
        // GCC calls a static variable of a function `NAME.NUMBER`, clang `FUNCTION.NAME`.
        let mut parts = name.split('.').rev();
        let is_name = |part: &&str| !part.bytes().all(|byte| byte.is_ascii_digit());
        format!("{object}:{}:{pos}", parts.find(is_name).unwrap_or(name))
    };
    let mut names: Vec<_> = live.map(|symbol| parse(symbol.name)).collect();
    names.sort_unstable();
    names
}
