//! Object files that are large, or unusual otherwise, are read, compared, and written.

mod common;

use common::{FLAGS, build, compile, compile_in, livepatch_symbols, machine, own, view};
use core::fmt::Write as _;
use core::mem::offset_of;
use klp_build::{BuildError, ConvertError, PatchBuilder, Target, Warning, Why, convert};
use klp_core::elf::names::RelaName;
use klp_core::elf::view::{Home, View};
use object::read::elf::{FileHeader, SectionHeader};
use object::{Endian, Endianness, elf};
use std::path::Path;
use std::process::Command;

/// More sections than fit into the field for their number, of which the highest ones are reserved.
const MANY: usize = elf::SHN_LORESERVE as usize + 2000;

/// Assembles `MANY` functions, each in a section of its own, with these contents. The last one
/// refers to `callee`, too.
fn many_functions(contents: impl Fn(usize) -> usize, callee: &str) -> Vec<u8> {
    let mut source = String::new();
    for number in 0..MANY {
        let value = contents(number);
        write!(
            source,
            ".section .text.f{number},\"ax\",%progbits\n.globl f{number}\n\
             .type f{number},%function\nf{number}: .4byte {value}, 0\n"
        )
        .expect("room");
        if number + 1 == MANY {
            writeln!(source, ".8byte {callee}").expect("room");
        }
        writeln!(source, ".size f{number}, . - f{number}").expect("room");
    }
    source += ".section .note.GNU-stack,\"\",%progbits\n";
    let folder = tempfile::tempdir().expect("a folder");
    compile_in(folder.path(), "many.s", &source, &[])
}

/// The section that function `name` is in.
fn home(view: &View<'_>, name: &str) -> usize {
    let mut symbols = view.symbols().iter();
    let symbol = symbols.find(|symbol| symbol.name == name);
    match symbol.map(|symbol| symbol.home) {
        Some(Home::Section(section)) => section,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn more_sections_than_symbols_can_tell_apart_are_compared_and_written() {
    let original = many_functions(|number| number, "f0");
    let last = format!("f{}", MANY - 1);
    // All of them: the patch has as many sections.
    let all = build(&original, &many_functions(|number| number + 1, "f0")).expect("a patch");
    assert_eq!(all.functions.len(), MANY);
    let view = view(&all.bytes);
    let section = home(&view, &last);
    assert!(section >= usize::from(elf::SHN_LORESERVE), "{section}");
    let section = view.sections()[section];
    assert_eq!(section.name, format!(".text.{last}"));
    let value = u32::try_from(MANY).expect("it fits").to_le_bytes();
    assert_eq!(section.bytes[..4], value);
    assert_eq!(livepatch_symbols(&all.bytes), ["vmlinux:f0:0"]);
    let relas = RelaName {
        object: "vmlinux",
        section: section.name,
    };
    let relas = relas.to_string();
    let (_, relas) = view.section(&relas).expect("it is there");
    assert_eq!(view.sections()[relas.target()].name, section.name);

    // One of them, behind those that symbols can tell apart.
    let one = many_functions(|number| number + usize::from(number + 1 == MANY), "f0");
    let one = build(&original, &one).expect("a patch");
    assert_eq!(one.functions, [&*last]);
    assert_eq!(own(&one.bytes), [last]);
}

#[test]
fn more_sections_than_symbols_can_tell_apart_are_converted() {
    let object = many_functions(|number| number, "\".klp.sym.vmlinux.price$2\"");
    let converted = convert(&object).expect("a patch object");
    let view = view(&converted);
    let last = format!("f{}", MANY - 1);
    let section = view.sections()[home(&view, &last)];
    assert_eq!(section.name, format!(".text.{last}"));
    assert_eq!(livepatch_symbols(&converted), ["vmlinux:price:2"]);

    // Indices that lead nowhere, in what is read by whom.
    let (place, len) = section_indices(&object);
    for index in [0, u32::MAX, 0x8000_0000] {
        let mut damaged = object.clone();
        for field in damaged[place..place + len].chunks_exact_mut(4) {
            field.copy_from_slice(&index.to_ne_bytes());
        }
        assert!(View::parse(&damaged, machine(&damaged), false).is_err());
        let mut patch = PatchBuilder::new("fix");
        let _ = patch.pair(Path::new("many.o"), Some(&object), &damaged);
        assert!(patch.build().is_err());
        // What is not in a section is not defined.
        assert!(index == 0 || convert(&damaged).is_err());
    }
}

/// Where the table of indices of sections is in the file, and how long it is.
fn section_indices(object: &[u8]) -> (usize, usize) {
    let header = elf::FileHeader64::<Endianness>::parse(object).expect("an ELF file");
    let endian = header.endian().expect("known");
    let sections = header.sections(endian, object).expect("sections");
    let mut sections = sections.iter();
    let table = sections.find(|section| section.sh_type(endian) == elf::SHT_SYMTAB_SHNDX);
    let (start, len) = table
        .and_then(|table| table.file_range(endian))
        .expect("it is there");
    let fits = |number| usize::try_from(number).expect("it fits");
    (fits(start), fits(len))
}

const SHOP: &str = "\
struct line { int count, price; };
extern int rate(int);
static int calls;
#define LIMIT 7
int total(struct line *line) { calls++; return line->count * line->price + rate(LIMIT); }
int spare(struct line *line) { return line->count - calls; }
";

const OTHER: &str = "\
static int calls = 5, kept;
int *at = &calls, *also = &kept;
int other(int n) { return n - calls; }
";

/// What a linker makes of the object files of both sources.
fn linked(shop: &str, other: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    compile_in(folder.path(), "shop.c", shop, &FLAGS);
    compile_in(folder.path(), "other.c", other, &FLAGS);
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .current_dir(folder.path())
        .args(["-r", "-nostdlib", "shop.o", "other.o", "-o", "all.o"])
        .status();
    assert!(status.expect("a linker").success());
    std::fs::read(folder.path().join("all.o")).expect("an object file")
}

#[test]
fn what_a_linker_has_put_together_is_compared() {
    let original = linked(SHOP, OTHER);
    let (shop, other) = (
        SHOP.replace("->count *", "->count +"),
        OTHER.replace("n - ", "n + "),
    );
    for (patched, function, position) in [
        (linked(&shop, OTHER), "total", 1),
        (linked(SHOP, &other), "other", 2),
    ] {
        let mut patch = PatchBuilder::new("fix");
        patch.target(Target::read(&original).expect("an object file"));
        patch
            .pair(Path::new("all.o"), Some(&original), &patched)
            .expect("readable");
        let built = patch.build().expect("a patch");
        assert_eq!(built.functions, [function]);
        assert_eq!(own(&built.bytes), [function]);
        // The names of their source files tell which of the variables of that name is which.
        let needed = livepatch_symbols(&built.bytes);
        assert_eq!(needed, [format!("vmlinux:calls:{position}")]);
    }
}

#[test]
fn macros_in_debug_information_do_not_matter() {
    let flags = [&FLAGS[..], &["-g3"]].concat();
    let original = compile(SHOP, &flags);
    // One line more, and another macro: no function changes for that.
    let moved = SHOP.replace("#define", "#define UNUSED 1\n#define");
    let same = build(&original, &compile(&moved, &flags));
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
    let fixed = build(
        &original,
        &compile(&moved.replace("LIMIT 7", "LIMIT 9"), &flags),
    );
    let fixed = fixed.expect("a patch");
    assert_eq!(fixed.functions, ["total"]);
    let compared = !fixed
        .warnings
        .iter()
        .any(|warning| matches!(warning, Warning::TypesNotCompared { .. }));
    assert!(compared, "{:?}", fixed.warnings);
}

#[test]
fn names_may_be_longer_than_any_of_linux_but_not_for_it() {
    let long = "f".repeat(5000);
    let callee = "g".repeat(600);
    let source = |number: u32| {
        format!("extern int {callee}(int); int {long}(int n) {{ return {callee}(n) + {number}; }}")
    };
    let [original, fixed] = [1, 2].map(|number| {
        let callee = format!(" int __attribute__((noipa)) {callee}(int n) {{ return n * 3; }}");
        compile(&(source(number) + &callee), &FLAGS)
    });
    let built = build(&original, &fixed).expect("a patch");
    assert_eq!(built.functions, [&*long]);
    assert_eq!(
        livepatch_symbols(&built.bytes),
        [format!("vmlinux:{callee}:0")]
    );
    let mut patch = PatchBuilder::new("fix");
    patch
        .pair(Path::new("shop.o"), Some(&original), &fixed)
        .expect("readable");
    let refused = common::refusals(patch.build_for_module());
    let why = || Why::LongName { limit: 511 };
    assert_eq!(refused, [(long, why()), (callee, why())]);
}

/// Calls by way of functions that the compiler writes where they are needed, and linkers keep one
/// of.
#[cfg(target_arch = "x86_64")]
#[test]
fn retpolines_are_the_running_programs_or_the_patchs_own() {
    let clang = std::env::var("CC").is_ok_and(|name| name.contains("clang"));
    let flag = if clang {
        "-mretpoline"
    } else {
        "-mindirect-branch=thunk"
    };
    let flags = [&FLAGS[..], &[flag]].concat();
    let source = |calls: &str, number: u32| {
        format!(
            "typedef int (*Rate)(int);\n\
             int total(Rate rate, int n) {{ {calls} return n + {number}; }}\n\
             int other(Rate rate, int n) {{ return rate(n) - 1; }}\n"
        )
    };
    let call = "n = rate(n) * 2;";
    let thunk = |names: Vec<String>| {
        let is_thunk = |name: &String| name.contains("thunk") || name.contains("retpoline");
        names.iter().any(is_thunk)
    };
    let original = compile(&source(call, 3), &flags);
    let built = build(&original, &compile(&source(call, 4), &flags)).expect("a patch");
    assert_eq!(built.functions, ["total"]);
    assert!(thunk(livepatch_symbols(&built.bytes)) && !thunk(own(&built.bytes)));

    // One that the original does not have comes along.
    let plain = "int total(int (*rate)(int), int n) { return n + 3; }";
    let with = "int total(int (*rate)(int), int n) { return rate(n) + 3; }";
    let with = with.replace("rate(n) + 3", "rate(n) * 2 + 3");
    let built = build(&compile(plain, &flags), &compile(&with, &flags)).expect("a patch");
    assert_eq!(built.functions, ["total"]);
    assert!(!thunk(livepatch_symbols(&built.bytes)) && thunk(own(&built.bytes)));
}

/// `object` with section `.data.rate` aligned to `align` bytes.
fn aligned(mut object: Vec<u8>, align: u64) -> Vec<u8> {
    const ALIGN: usize = offset_of!(elf::SectionHeader64<Endianness>, sh_addralign);
    let (at, endian) = section_header(&object, ".data.rate");
    object[at + ALIGN..][..8].copy_from_slice(&endian.write_u64(align));
    object
}

/// `object` with section `.text.total` of kind `kind`.
fn of_kind(mut object: Vec<u8>, kind: elf::SectionType) -> Vec<u8> {
    const KIND: usize = offset_of!(elf::SectionHeader64<Endianness>, sh_type);
    let (at, endian) = section_header(&object, ".text.total");
    object[at + KIND..][..4].copy_from_slice(&endian.write_u32(kind.0));
    object
}

/// Where the header of a section is in `object`, and which byte comes first there.
fn section_header(object: &[u8], name: &str) -> (usize, Endianness) {
    let header = elf::FileHeader64::<Endianness>::parse(object).expect("an ELF file");
    let endian = header.endian().expect("known");
    let sections = header.sections(endian, object).expect("sections");
    let found = sections.section_by_name(endian, name.as_bytes());
    let (index, _) = found.expect("it is there");
    let start = usize::try_from(header.e_shoff(endian)).expect("it fits");
    let at = start + index.0 * size_of::<elf::SectionHeader64<Endianness>>();
    (at, endian)
}

#[test]
fn functions_in_what_only_linkers_read_are_refused() {
    let original = compile("int total(int n) { return n + 1; }", &FLAGS);
    let patched = compile("int total(int n) { return n + 2; }", &FLAGS);
    for kind in [elf::SHT_STRTAB, elf::SHT_GROUP, elf::SHT_HASH] {
        let refused = common::refusal(build(&original, &of_kind(patched.clone(), kind)));
        assert_eq!(refused, (".text.total".to_owned(), Why::NotContents));
    }
    build(&original, &of_kind(patched, elf::SHT_PROGBITS)).expect("a patch");
}

#[test]
fn what_no_memory_of_a_patch_is_aligned_to_is_refused() {
    let source = "int rate = 7; int total(int n) { return n * rate; }";
    let object = compile(source, &FLAGS);
    for align in [3, 48, 8192, 1 << 63, u64::MAX] {
        match convert(&aligned(object.clone(), align)) {
            Err(ConvertError::Alignment {
                section,
                align: found,
            }) => assert_eq!((&*section, found), (".data.rate", align)),
            other => panic!("{align}: {other:?}"),
        }
    }
    // What a compiler is told.
    let source = "_Alignas(8192) int rate = 7; int total(int n) { return n * rate; }";
    let converted = convert(&compile(source, &FLAGS));
    let said = converted.expect_err("refused").to_string();
    assert!(
        said.contains(".data.rate") && said.contains("8192"),
        "{said}"
    );
    // None, and one byte, are the same; 4096 is the most.
    for (align, becomes) in [(0, 1), (1, 1), (16, 16), (4096, 4096)] {
        let converted = convert(&aligned(object.clone(), align)).expect("a patch object");
        let view = View::parse(&converted, machine(&converted), false).expect("a patch object");
        let (_, section) = view.section(".data.rate").expect("it is there");
        assert_eq!(section.align, becomes, "{align}");
    }
    // Compared, what is in the patch and what is not.
    let fixed = compile(&source.replace("n *", "n +").replace("8192", "4"), &FLAGS);
    let refused = common::refusal(build(&fixed, &aligned(fixed.clone(), 24)));
    assert_eq!(refused, (".data.rate".to_owned(), Why::Alignment));
}
