//! A real compiler's object file becomes a patch object.

use klp_build::{ConvertError, convert, include_dir};
use klp_core::elf::names::SymbolName;
use klp_core::elf::view::{Home, SectionFlags, View};
use object::elf;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

const SOURCE: &str = r#"
#include <klp/patch.h>
KLP_PATCH("fix-answer");
extern int question(int) KLP_SYMBOL(vmlinux, question, 2);
extern int counter KLP_SYMBOL(libfoo, counter, 0);
extern int puts(const char *);
static int fixed(int n) { puts("called"); counter += n; return question(n) + 1; }
int also_fixed(int n) { return question(-n); }
int (*const table[])(int) = { question, also_fixed };
KLP_REPLACE(base, KLP_VMLINUX, KLP_FUNC(answer, fixed), KLP_FUNC_AT(twin, 3, also_fixed));
static int ready(struct klp_object *object) { return object->name == KLP_VMLINUX; }
static void done(struct klp_object *object) { also_fixed(!object->name); }
KLP_REPLACE_WITH(foo, "libfoo", KLP_CALLBACKS(.pre_patch = ready, .post_unpatch = done), KLP_FUNC(other, also_fixed));
KLP_REPLACE_WITH(bar, "libbar", KLP_CALLBACKS(.post_patch = done));
#define LEVEL 0x10
KLP_STATE(LEVEL, 2);
KLP_STATE(17, 3);
KLP_REPLACE_SET(5);
"#;

/// Compiles `source` for this machine.
fn compile(source: &str, flags: &[&str]) -> Vec<u8> {
    compile_with(
        &std::env::var_os("CC").unwrap_or_else(|| "cc".into()),
        source,
        flags,
    )
}

/// The same by every compiler that is here.
fn compile_by_each(source: &str, flags: &[&str]) -> Vec<Vec<u8>> {
    let clang = clang().map(|clang| compile_with(&clang, source, flags));
    [compile(source, flags)].into_iter().chain(clang).collect()
}

/// A clang, if one is installed.
fn clang() -> Option<OsString> {
    let names = ["clang".to_owned()]
        .into_iter()
        .chain((11..30).rev().map(|version| format!("clang-{version}")));
    let runs = |name: &String| {
        Command::new(name)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let found = { names }.find(runs);
    if found.is_none() {
        eprintln!("clang is not installed: what it compiles was not tested");
    }
    found.map(OsString::from)
}

fn compile_with(compiler: &OsStr, source: &str, flags: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a folder for the object file");
    let (c, object) = (dir.path().join("patch.c"), dir.path().join("patch.o"));
    std::fs::write(&c, source).expect("written");
    let status = Command::new(compiler)
        .args(["-O2", "-Wall", "-Werror", "-ffunction-sections", "-c", "-I"])
        .arg(include_dir())
        .args(flags)
        .args([Path::new("-o"), &object, &c])
        .status()
        .expect("a C compiler");
    assert!(status.success());
    std::fs::read(object).expect("an object file")
}

/// The `e_machine` of an ELF file.
fn machine(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[18], bytes[19]])
}

#[test]
fn libraries_may_be_called_what_assemblers_calculate_with() {
    let source = r#"
#include <klp/patch.h>
extern int question(int) KLP_SYMBOL(libstdc++, question, 0);
extern int counter KLP_SYMBOL(lib-a+b, counter, 1);
int fixed(int n) { counter += n; return question(n); }
"#;
    for flags in [&["-fPIC"][..], &["-fno-pic"], &["-fPIC", "-fno-plt"]] {
        for object in compile_by_each(source, flags) {
            let patch = convert(&object).expect("converts");
            let view = View::parse(&patch, machine(&patch), false).expect("a patch object");
            let symbols = view.symbols().iter();
            let mut names: Vec<_> = symbols
                .filter(|symbol| symbol.home == Home::Livepatch)
                .map(|symbol| symbol.name)
                .collect();
            names.sort_unstable();
            let expected = [
                ".klp.sym.lib-a+b.counter,1",
                ".klp.sym.libstdc++.question,0",
            ];
            assert_eq!(names, expected);
        }
    }
}

#[test]
fn symbols_get_their_names_and_index() {
    let ways = [
        &["-fPIC"][..],
        &["-fno-pic"],
        &["-fPIC", "-fno-plt"],
        &["-fPIC", "-g"],
    ];
    for object in ways
        .into_iter()
        .flat_map(|flags| compile_by_each(SOURCE, flags))
    {
        let patch = convert(&object).expect("converts");
        let view = View::parse(&patch, machine(&patch), false).expect("a patch object");
        let mut names: Vec<_> = view
            .symbols()
            .iter()
            .filter(|symbol| symbol.home == Home::Livepatch)
            .map(|symbol| symbol.name)
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [".klp.sym.libfoo.counter,0", ".klp.sym.vmlinux.question,2"]
        );
        assert!(names.iter().all(|name| SymbolName::parse(name).is_ok()));
        assert_eq!(view.modinfo("name"), Some("fix-answer"));
        assert_eq!(view.modinfo("livepatch"), Some("Y"));
        assert_eq!(
            view.modinfo_all("klp_replace").collect::<Vec<_>>(),
            ["set:5"]
        );
        let mut states: Vec<_> = view.modinfo_all("klp_state").collect();
        states.sort_unstable();
        assert_eq!(states, ["0x10:2", "17:3"]);
    }
}

#[test]
fn clangs_table_of_symbols_is_left_out() {
    const ADDRSIG: &str = ".llvm_addrsig";
    let Some(clang) = clang() else { return };
    let object = compile_with(&clang, SOURCE, &["-fPIC"]);
    let patch = convert(&object).expect("converts");
    let [before, after] = [&object, &patch].map(|file| {
        View::parse(file, machine(file), false)
            .expect("an object file")
            .section(ADDRSIG)
            .is_some()
    });
    assert!(before, "clang writes one");
    assert!(!after, "it counts symbols by their old places");
}

#[test]
fn relocations_are_sorted_by_object_and_none_is_lost() {
    compile_by_each(SOURCE, &["-fPIC"])
        .iter()
        .for_each(|object| check_relocations(object));
}

fn check_relocations(object: &[u8]) {
    let patch = convert(object).expect("converts");
    let view = View::parse(&patch, machine(&patch), false).expect("a patch object");
    let mut livepatch = 0;
    for section in view.sections() {
        let is_livepatch = section.flags.contains(SectionFlags::RELA_LIVEPATCH);
        for rela in section.relas() {
            let symbol = &view.symbols()[rela.symbol];
            assert_eq!(
                symbol.home == Home::Livepatch,
                is_livepatch,
                "{} in {}",
                symbol.name,
                section.name
            );
            if is_livepatch {
                livepatch += 1;
                let object = SymbolName::parse(symbol.name).expect("valid").object;
                let target = view.sections()[section.target()].name;
                assert_eq!(section.name, format!(".klp.rela.{object}{target}"));
            }
        }
    }
    assert!(
        livepatch >= 4,
        "one load and store or more, two calls, one pointer: {livepatch}"
    );
    let before = View::parse(object, machine(object), false).expect("an object file");
    let count = |view: &View<'_>| {
        view.sections()
            .iter()
            .map(|section| section.relas().len())
            .sum::<usize>()
    };
    assert_eq!(count(&before), count(&view));
}

#[test]
fn nothing_else_changes() {
    compile_by_each(SOURCE, &["-fPIC"])
        .iter()
        .for_each(|object| check_sections(object));
}

fn check_sections(object: &[u8]) {
    let patch = convert(object).expect("converts");
    let before = View::parse(object, machine(object), false).expect("an object file");
    let after = View::parse(&patch, machine(&patch), false).expect("a patch object");
    for section in before
        .sections()
        .iter()
        .filter(|section| section.flags.contains(SectionFlags::ALLOC))
    {
        let (_, same) = after
            .section(section.name)
            .unwrap_or_else(|| panic!("{} is lost", section.name));
        assert_eq!(
            (same.bytes, same.flags, same.align),
            (section.bytes, section.flags, section.align),
            "{}",
            section.name
        );
    }
}

#[test]
fn the_mark_is_added_where_it_is_missing() {
    let patch = convert(&compile("int f(void) { return 1; }", &[])).expect("converts");
    let view = View::parse(&patch, machine(&patch), false).expect("a patch object");
    assert_eq!(view.modinfo("livepatch"), Some("Y"));
}

#[test]
fn groups_of_sections_are_taken_apart() {
    let in_group = |view: &View<'_>| {
        let flag = SectionFlags::from_bits_retain(elf::SHF_GROUP.0);
        view.sections()
            .iter()
            .filter(|section| section.flags.contains(flag))
            .count()
    };
    let groups = |view: &View<'_>| {
        view.sections()
            .iter()
            .filter(|section| section.kind == elf::SHT_GROUP.0)
            .count()
    };
    // Macros of debug information are in groups, as templates of C++ are.
    let object = compile(SOURCE, &["-fPIC", "-g3"]);
    let before = View::parse(&object, machine(&object), false).expect("an object file");
    assert!(groups(&before) > 0 && in_group(&before) > 0);
    let patch = convert(&object).expect("converts");
    let after = View::parse(&patch, machine(&patch), false).expect("a patch object");
    assert_eq!((groups(&after), in_group(&after)), (0, 0));
    let debug = |view: &View<'_>| {
        let macros = |name: &&str| name.starts_with(".debug_macro");
        view.sections()
            .iter()
            .map(|section| section.name)
            .filter(macros)
            .count()
    };
    assert_eq!(
        debug(&after),
        debug(&before),
        "only what groups them is gone"
    );
    check_relocations(&object);
    check_sections(&object);
}

#[test]
fn code_that_wants_an_executable_stack_is_refused() {
    let mark = r#"__asm__(".pushsection .note.GNU-stack,\"x\",@progbits\n.popsection");"#;
    let source = format!("{mark}\nint f(void) {{ return 1; }}");
    let error = convert(&compile(&source, &["-c"])).expect_err("a stack is not executable");
    assert!(matches!(error, ConvertError::ExecutableStack), "{error}");
    assert!(error.to_string().contains(".note.GNU-stack"), "{error}");
}

#[test]
fn bad_input_is_refused() {
    let object = compile(
        "extern int f(void) __asm__(\".klp.sym.vmlinux.f\"); int g(void) { return f(); }",
        &[],
    );
    let error = convert(&object).expect_err("no position");
    assert!(matches!(error, ConvertError::BadSymbol { .. }));
    assert!(
        error
            .to_string()
            .contains("symbol .klp.sym.vmlinux.f has an incorrectly formatted name"),
        "{error}"
    );

    let patch = convert(&compile(SOURCE, &["-fPIC"])).expect("converts");
    assert!(matches!(convert(&patch), Err(ConvertError::Converted)));
    assert!(matches!(convert(b"not ELF"), Err(ConvertError::Elf(_))));
    let mut executable = compile(SOURCE, &["-fPIC"]);
    executable[16] = 2;
    assert!(matches!(
        convert(&executable),
        Err(ConvertError::NotRelocatable)
    ));
}
