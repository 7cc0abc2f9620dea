//! Compiles both builds, and looks at the patch objects that are made of them.
#![allow(dead_code, reason = "not every program needs everything")]

use klp_build::{BuildError, Built, PatchBuilder, Why};
use klp_core::elf::names::SymbolName;
use klp_core::elf::view::{Home, View};
use object::elf;
use std::path::Path;
use std::process::Command;

/// What a program must be compiled with to be compared.
pub(crate) const FLAGS: [&str; 4] = ["-O2", "-fPIC", "-ffunction-sections", "-fdata-sections"];

pub(crate) fn compile(source: &str, flags: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    compile_in(folder.path(), "shop.c", source, flags)
}

pub(crate) fn compile_in(folder: &Path, name: &str, source: &str, flags: &[&str]) -> Vec<u8> {
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

pub(crate) fn build(original: &[u8], patched: &[u8]) -> Result<Built, BuildError> {
    let mut patch = PatchBuilder::new("fix");
    patch.pair(Path::new("shop.o"), Some(original), patched)?;
    patch.build()
}

/// Why the change of one thing is refused, and its name.
pub(crate) fn refusal(result: Result<Built, BuildError>) -> (String, Why) {
    let mut refusals = refusals(result);
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    refusals.swap_remove(0)
}

/// The same for all that is at fault.
pub(crate) fn refusals(result: Result<Built, BuildError>) -> Vec<(String, Why)> {
    match result {
        Err(BuildError::Refused(refusals)) => {
            let pair = |refusal: klp_build::Refusal| (refusal.name, refusal.why);
            refusals.into_iter().map(pair).collect()
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn view(bytes: &[u8]) -> View<'_> {
    View::parse(bytes, machine(bytes), false).expect("a patch object")
}

pub(crate) fn machine(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[18], bytes[19]])
}

/// What of the running system the patch refers to.
pub(crate) fn livepatch_symbols(bytes: &[u8]) -> Vec<String> {
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

/// The functions and variables of the patch's own.
pub(crate) fn own(bytes: &[u8]) -> Vec<String> {
    let view = view(bytes);
    let symbols = view.symbols().iter();
    let own = symbols.filter(|symbol| {
        matches!(symbol.home, Home::Section(_))
            && [elf::STT_FUNC.0, elf::STT_OBJECT.0].contains(&symbol.kind)
    });
    let mut names: Vec<_> = own.map(|symbol| symbol.name.to_owned()).collect();
    names.sort_unstable();
    names
}

/// The program `klp-build`; where programs of its processor are emulated one by one, by the emulator
/// that the environment names.
pub(crate) fn klp_build() -> Command {
    let program = env!("CARGO_BIN_EXE_klp-build");
    let Ok(emulator) = std::env::var("KLP_EMULATOR") else {
        return Command::new(program);
    };
    let mut words = emulator.split_whitespace();
    let mut command = Command::new(words.next().expect("the emulator has a name"));
    command.args(words).arg(program);
    command
}
