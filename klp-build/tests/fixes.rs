//! What patches of real libraries have taught.

mod common;

use common::{FLAGS, compile_in, livepatch_symbols, refusal, view};
use klp_build::{PatchBuilder, Target, Why};
use klp_core::elf::view::Home;
use object::elf;
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{Endianness, SymbolIndex};
use std::path::Path;
use std::process::Command;

/// Gives the symbol of the source file that has no name, behind which GNU ld puts what it makes
/// local, the name of another one: LLD leaves each where it was.
fn as_lld_does(library: &mut [u8]) {
    let header = elf::FileHeader64::<Endianness>::parse(&*library).expect("ELF");
    let endian = header.endian().expect("known");
    let sections = header.sections(endian, &*library).expect("sections");
    let symbols = sections.symbols(endian, &*library, elf::SHT_SYMTAB);
    let symbols = symbols.expect("symbols");
    let table = sections.section(symbols.section()).expect("it is there");
    let place = |index: SymbolIndex| {
        let at = table.sh_offset(endian) as usize + index.0 * size_of::<elf::Sym64<Endianness>>();
        at..at + 4
    };
    let files = symbols
        .enumerate()
        .filter(|(_, symbol)| symbol.st_type() == elf::STT_FILE);
    let files: Vec<_> = files
        .map(|(index, symbol)| {
            let name = symbol.name(endian, symbols.strings()).expect("a name");
            (place(index), name.to_vec())
        })
        .collect();
    let known = files
        .iter()
        .find(|(_, name)| name == b"other.c")
        .expect("it has one");
    let nameless = files
        .iter()
        .rfind(|(_, name)| name.is_empty())
        .expect("GNU ld writes one");
    let name = library[known.0.clone()].to_vec();
    library[nameless.0.clone()].copy_from_slice(&name);
}

/// As a version script has it, and as rustc does for each library: of what the object files are
/// linked to, only a part can be seen from outside.
#[test]
fn what_a_library_hides_is_still_the_librarys() {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |name: &str, source: &str| compile_in(folder.path(), name, source, &FLAGS);
    let path = |name: &str| folder.path().join(name);
    let source = |body: &str| {
        format!(
            "#include <stdio.h>\nint inner(int); int secret(int);\n\
             int outer(int n) {{ puts(\"outer\"); return inner({body}); }}"
        )
    };
    let original = compile("shop.c", &source("n"));
    std::fs::write(path("original.o"), &original).expect("there is room");
    let other = "int inner(int n) { return n * 3; } int secret(int n) { return n * 5; }";
    compile("other.c", other);
    std::fs::write(path("map"), "{ global: outer; local: *; };").expect("there is room");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let linked = Command::new(compiler)
        .current_dir(folder.path())
        .args([
            "-shared",
            "original.o",
            "other.o",
            "-Wl,--version-script=map",
        ])
        .args(["-o", "library.so"])
        .status();
    assert!(linked.expect("a C compiler").success());
    let gnu = std::fs::read(path("library.so")).expect("linked");
    let mut lld = gnu.clone();
    as_lld_does(&mut lld);
    for (library, hides) in [(&gnu, false), (&lld, true)] {
        let build = |body: &str| {
            let patched = compile("shop.c", &source(body));
            let mut patch = PatchBuilder::new("fix");
            patch.target(Target::read(library).expect("a library"));
            let pair = patch.pair(Path::new("shop.o"), Some(&original), &patched);
            pair.expect("readable");
            patch.build()
        };
        let built = build("n + 1").expect("a patch");
        assert_eq!(livepatch_symbols(&built.bytes), ["vmlinux:inner:0"]);
        let view = view(&built.bytes);
        let mut outside = view.symbols().iter();
        let is_puts = |name: &str| name == "puts";
        assert!(outside.any(|symbol| symbol.home == Home::Undefined && is_puts(symbol.name)));
        // What was not linked to it may be anybody's.
        if hides {
            let (name, why) = refusal(build("secret(n)"));
            assert_eq!((&*name, why), ("secret", Why::MaybeLocal));
        } else {
            build("secret(n)").expect("GNU ld tells what it has hidden");
        }
    }
}
