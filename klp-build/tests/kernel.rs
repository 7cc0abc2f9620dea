//! Objects as the Linux kernel's build makes them, written in assembly: what its macros and tools
//! note beside code goes into a patch entry by entry.

mod common;

use common::{build, compile, compile_in, livepatch_symbols, refusal, refusals};
use klp_build::{BuildError, Built, PatchBuilder, Why};
use object::elf;
use object::read::{Object, ObjectSection, ObjectSymbol, RelocationTarget};
use std::fmt::Write as _;
use std::path::Path;

/// A function, in a section of its own.
fn function(name: &str, body: &str) -> String {
    function_in(&format!(".text.{name}"), name, body)
}

fn function_in(section: &str, name: &str, body: &str) -> String {
    format!(
        ".section {section}, \"ax\", %progbits\n.globl {name}\n.type {name}, %function\n{name}:\n\
         nop\n.L{name}: nop\n{body}\n.size {name}, . - {name}\n",
    )
}

/// Fields in a section that is no code.
fn entry(section: &str, fields: &str) -> String {
    format!(".section {section}, \"aw\", %progbits\n{fields}\n")
}

/// What the kernel's macros make of `function`: entries in many sections, each about the second
/// instruction; `key` switches a branch, `line` is where a warning is.
fn entries(function: &str, key: &str, line: u32) -> String {
    let at = format!(".L{function}");
    let jump = jump();
    [
        entry(
            "__bug_table",
            &format!(".long {at} - ., .Lfile - .\n.short {line}, 7"),
        ),
        format!(".section .fixup, \"ax\", %progbits\n.Lfix_{function}: nop\n{jump} {at}\n",),
        entry(
            "__ex_table",
            &format!(".long {at} - ., .Lfix_{function} - ., 3"),
        ),
        entry(
            "__jump_table",
            &format!(".long {at} - ., {function} + 8 - .\n.quad {key} - ."),
        ),
        entry(".smp_locks", &format!(".long {at} - .")),
        entry(
            ".altinstructions",
            &format!(
                ".long {at} - ., .Lnew_{function} - .\n.short 17\n.byte 4, 4\n\
                 .section .altinstr_replacement, \"ax\", %progbits\n.Lnew_{function}: nop",
            ),
        ),
        entry(".orc_unwind_ip", &format!(".long {function} - ., {at} - .")),
        entry(".orc_unwind", &format!(".short 1, 2, {line}, 1, 2, 3")),
    ]
    .concat()
}

/// Two functions with their entries, of which the first is `body`.
fn kernel(body: &str, key: &str, line: u32) -> String {
    let strings = ".section .rodata.str1.1, \"aMS\", %progbits, 1\n.Lfile: .string \"shop.c\"\n";
    let header = entry(".orc_header", ".long 11, 22");
    [
        strings.to_owned(),
        header,
        function("first", body),
        function("second", "nop\nnop"),
        entries("second", "key_of_second", line + 9),
        entries("first", key, line),
    ]
    .concat()
}

/// What the assembler calls a jump.
fn jump() -> &'static str {
    if compiler_is_for("x86_64") {
        "jmp"
    } else {
        "b"
    }
}

fn compiler_is_for(architecture: &str) -> bool {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = std::process::Command::new(compiler)
        .arg("-dumpmachine")
        .output();
    let machine = output.expect("a C compiler").stdout;
    String::from_utf8_lossy(&machine).starts_with(architecture)
}

fn assemble(source: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    compile_in(folder.path(), "shop.s", source, &[])
}

fn patch(original: &str, patched: &str) -> Result<Built, BuildError> {
    build(&assemble(original), &assemble(patched))
}

fn built(original: &str, patched: &str) -> Vec<u8> {
    let built = patch(original, patched);
    built.unwrap_or_else(|why| panic!("{why}")).bytes
}

/// The bytes of the patch's only section of that name.
fn section(patch: &[u8], name: &str) -> Option<Vec<u8>> {
    let file = object::File::parse(patch).expect("an object file");
    let mut sections = file.sections().filter(|section| section.name() == Ok(name));
    let first = sections
        .next()
        .map(|section| section.data().expect("read").to_vec());
    assert!(
        sections.next().is_none(),
        "one {name} is all that Linux reads"
    );
    first
}

/// What the section refers to, by place: symbols or sections, and how far behind their beginning.
fn references(patch: &[u8], name: &str) -> Vec<(u64, String, i64)> {
    let file = object::File::parse(patch).expect("an object file");
    let section = file.section_by_name(name).expect(name);
    let mut references: Vec<_> = section
        .relocations()
        .map(|(at, reloc)| {
            let RelocationTarget::Symbol(symbol) = reloc.target() else {
                panic!("{reloc:?}");
            };
            let symbol = file.symbol_by_index(symbol).expect("there");
            let name = match symbol.name().expect("valid") {
                "" => {
                    let section = symbol.section_index().expect("of a section");
                    let section = file.section_by_index(section).expect("there");
                    section.name().expect("valid").to_owned()
                }
                name => name.to_owned(),
            };
            (at, name, reloc.addend() + symbol.address() as i64)
        })
        .collect();
    references.sort_unstable();
    references
}

/// The same without places.
fn referents(patch: &[u8], name: &str) -> Vec<String> {
    let references = references(patch, name).into_iter();
    references.map(|(_, name, _)| name).collect()
}

#[test]
fn entries_of_what_goes_in_are_kept_and_no_others() {
    let patch = built(&kernel("nop", "key", 5), &kernel("nop\nnop", "key", 5));
    for (name, len, expected) in [
        ("__bug_table", 12, vec!["first", ".rodata.str1.1"]),
        ("__ex_table", 12, vec!["first", ".fixup"]),
        ("__jump_table", 16, vec!["first", "first", "key"]),
        (".smp_locks", 4, vec!["first"]),
        (
            ".altinstructions",
            12,
            vec!["first", ".altinstr_replacement"],
        ),
        (".orc_unwind_ip", 8, vec!["first", "first"]),
    ] {
        let bytes = section(&patch, name).expect(name);
        assert_eq!(bytes.len(), len, "{name}");
        assert_eq!(referents(&patch, name), expected, "{name}");
    }
    // The pieces of code that they refer to, and nothing of the other function's.
    assert_eq!(referents(&patch, ".fixup"), ["first"]);
    let len = |name: &str| section(&patch, name).expect(name).len();
    let nop = if compiler_is_for("x86_64") { 1 } else { 4 };
    assert_eq!(len(".altinstr_replacement"), nop);
    assert_eq!(len(".fixup"), nop + if nop == 1 { 5 } else { 4 });
    // Those of the other function's came first.
    let orc = section(&patch, ".orc_unwind").expect("kept");
    assert_eq!(orc, [1, 0, 2, 0, 5, 0, 1, 0, 2, 0, 3, 0]);
    assert_eq!(
        section(&patch, ".orc_header"),
        Some(vec![11, 0, 0, 0, 22, 0, 0, 0])
    );
    assert_eq!(livepatch_symbols(&patch), Vec::<String>::new());
}

#[test]
fn the_places_are_those_of_the_code() {
    let patch = built(&kernel("nop", "key", 5), &kernel("nop\nnop", "key", 5));
    let nop = if compiler_is_for("x86_64") { 1 } else { 4 };
    assert_eq!(
        references(&patch, "__ex_table")[0],
        (0, "first".into(), nop)
    );
    assert_eq!(references(&patch, "__ex_table")[1], (4, ".fixup".into(), 0));
    assert_eq!(references(&patch, ".smp_locks"), [(0, "first".into(), nop)]);
    // The first of its places is that of the patch's function, not of the original.
    assert_eq!(
        references(&patch, ".orc_unwind_ip")[0],
        (0, "first".into(), 0)
    );
}

#[test]
fn a_line_that_moved_is_no_change() {
    let same = patch(&kernel("nop", "key", 5), &kernel("nop", "key", 50));
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
}

#[test]
fn a_change_in_an_entry_alone_changes_its_function() {
    let before = kernel("nop", "key", 5);
    let jump = jump();
    for (from, to) in [
        (".quad key - .", ".quad other_key - ."),
        (".short 5, 7", ".short 5, 8"),
        (".short 17", ".short 18"),
        (".Lnew_first: nop", ".Lnew_first: nop\nnop"),
        (
            &format!(".Lfix_first: nop\n{jump} .Lfirst"),
            &format!(".Lfix_first: nop\nnop\n{jump} .Lfirst"),
        ),
    ] {
        assert_eq!(
            before.matches(from).count(),
            1 + usize::from(from == ".short 17"),
            "{from}"
        );
        let at = before.rfind(from).expect("found");
        let after = format!("{}{to}{}", &before[..at], &before[at + from.len()..]);
        let patch = patch(&before, &after).unwrap_or_else(|why| panic!("{from}: {why}"));
        assert_eq!(patch.functions, ["first"], "{from}");
    }
}

#[test]
fn several_objects_share_one_section_of_a_name() {
    let other = |body: &str| {
        kernel(body, "key", 5)
            .replace("first", "third")
            .replace("second", "fourth")
    };
    let mut patch = PatchBuilder::new("fix");
    for (file, before, after) in [
        (
            "shop.o",
            kernel("nop", "key", 5),
            kernel("nop\nnop", "key", 5),
        ),
        ("bank.o", other("nop"), other("nop\nnop")),
    ] {
        let (before, after) = (assemble(&before), assemble(&after));
        patch
            .pair(Path::new(file), Some(&before), &after)
            .expect("read");
    }
    let patch = patch.build().unwrap_or_else(|why| panic!("{why}")).bytes;
    assert_eq!(referents(&patch, ".smp_locks"), ["first", "third"]);
    assert_eq!(
        section(&patch, ".fixup").map(|fixup| fixup.len() % 2),
        Some(0)
    );
    assert_eq!(
        section(&patch, ".orc_header").map(|header| header.len()),
        Some(8)
    );
}

#[test]
fn what_is_applied_before_a_module_is_there_is_refused() {
    let build = |body: &str| {
        let mut source = String::from(".section .data.key, \"aw\", %progbits\n");
        source += ".type key, %object\nkey: .quad 0\n.size key, 8\n";
        assemble(&(source + &kernel(body, "key", 5)))
    };
    let (before, after) = (build("nop"), build("nop\nnop"));
    let mut patch = PatchBuilder::new("fix");
    patch.object("shop").expect("a name");
    patch
        .pair(Path::new("shop.o"), Some(&before), &after)
        .expect("read");
    let (name, why) = refusal(patch.build());
    assert_eq!(name, "key");
    let section = "__jump_table".to_owned();
    assert_eq!(why, Why::AppliedEarly { section });
    // The kernel's own keys are there when the patch is loaded.
    let mut patch = PatchBuilder::new("fix");
    patch
        .pair(Path::new("shop.o"), Some(&before), &after)
        .expect("read");
    let patch = patch.build().expect("made").bytes;
    assert_eq!(livepatch_symbols(&patch), ["vmlinux:key:0"]);
    let name = ".klp.rela.vmlinux.__jump_table";
    assert!(section_names(&patch).contains(&name.to_owned()));
}

fn section_names(patch: &[u8]) -> Vec<String> {
    let file = object::File::parse(patch).expect("an object file");
    let names = file
        .sections()
        .map(|section| section.name().expect("valid").to_owned());
    names.collect()
}

#[test]
fn tables_that_cannot_be_split_are_refused_by_name() {
    let text = || function("first", "nop") + &function("second", "nop\nnop");
    let good = ".long .Lfirst - ., .Lsecond - ., 3\n.long .Lsecond - ., .Lfirst - ., 3\n";
    let table = |name: &str, fields: &str| text() + &entry(name, fields);
    for (name, fields) in [
        // Cut off, in front of a relocation or behind it.
        (
            "__ex_table",
            format!("{good}.long .Lfirst - ., .Lsecond - .\n"),
        ),
        ("__ex_table", format!("{good}.long .Lfirst - .\n")),
        ("__ex_table", ".byte 1, 2, 3\n".to_owned()),
        // Of nobody: a number, a variable, something elsewhere.
        ("__ex_table", format!("{good}.long 1, 2, 3\n")),
        (
            "__bug_table",
            ".long .Lfirst - ., 1, 2, .Lvalue - ., 1, 2\n".to_owned(),
        ),
        (
            ".smp_locks",
            ".long .Lfirst - ., elsewhere - .\n".to_owned(),
        ),
        (".smp_locks", ".long 7\n".to_owned()),
        // Fields that overlap, or are of no size that there is.
        (
            ".smp_locks",
            ".long .Lfirst - ., .Lfirst - .\n.reloc .Ltable, KIND, second\n".to_owned(),
        ),
        (".smp_locks", ".long .Lfirst - .\n.short 1\n".to_owned()),
        // Beside nothing, or beside another number of entries.
        (".orc_unwind", ".long 1, 2\n".to_owned()),
        (
            ".orc_unwind",
            ".long 1\n.short 2\n.section .orc_unwind_ip, \"a\"\n\
             .long first - ., .Lfirst - ., second - ., .Lsecond - ."
                .to_owned(),
        ),
        ("__ftr_fixup", ".quad 1, 2, .Lfirst - ., 3, 4\n".to_owned()),
    ] {
        let kind = match () {
            () if compiler_is_for("x86_64") => "R_X86_64_PC32",
            () if compiler_is_for("aarch64") => "R_AARCH64_PREL32",
            () => "R_PPC64_REL32",
        };
        let fields = format!(".Ltable:\n{fields}\n.data\n.Lvalue: .long 1\n").replace("KIND", kind);
        let bad = assemble(&table(name, &fields));
        let built = build(&bad, &bad);
        assert!(
            matches!(built, Err(BuildError::Refused(_))),
            "{fields}: {built:?}"
        );
        let refusals = refusals(built);
        assert_eq!(refusals[0], (name.to_owned(), Why::Entries), "{fields}");
    }
    // What is right is not.
    let good = assemble(&table("__ex_table", good));
    let same = build(&good, &good);
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
}

#[test]
fn damaged_objects_are_errors_or_patches_but_never_panics() {
    let before = assemble(&kernel("nop", "key", 5));
    let after = assemble(&kernel("nop\nnop", "key", 5));
    let mut state = 0x2545_f491_u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    for _ in 0..3000 {
        let mut damaged = after.clone();
        for _ in 0..=random(4) {
            let at = random(damaged.len());
            damaged[at] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
        }
        if random(20) == 0 {
            damaged.truncate(random(damaged.len()));
        }
        let mut patch = PatchBuilder::new("fix");
        let swapped = random(2) == 0;
        let (one, other) = if swapped {
            (&damaged, &before)
        } else {
            (&before, &damaged)
        };
        if patch.pair(Path::new("shop.o"), Some(one), other).is_ok() {
            let _ = patch.build();
        }
    }
}

#[test]
fn a_prefix_goes_with_its_function() {
    let source = |body: &str| {
        let prefix = ".section .text.first, \"ax\", %progbits\n.type __pfx_first, %function\n\
                      __pfx_first: nop\nnop\n.size __pfx_first, . - __pfx_first\n";
        prefix.to_owned() + &function("first", body)
    };
    let patch = built(&source("nop"), &source("nop\nnop"));
    let file = object::File::parse(&*patch).expect("an object file");
    let place = |name: &str| {
        let mut symbols = file.symbols();
        symbols
            .find(|symbol| symbol.name() == Ok(name))
            .map(|symbol| symbol.address())
    };
    let nop = if compiler_is_for("x86_64") { 1 } else { 4 };
    assert_eq!(
        (place("__pfx_first"), place("first")),
        (Some(0), Some(2 * nop))
    );
    // It says of what type the function is, for those who call it.
    let typed = source("nop")
        .replace("__pfx_first: nop", "__pfx_first: .long 0x1234567")
        .replace("__pfx_", "__cfi_");
    let retyped = typed.replace("0x1234567", "0x7654321");
    assert_eq!(
        self::patch(&typed, &retyped).expect("made").functions,
        ["first"]
    );
}

#[test]
fn a_pad_in_front_of_the_function_is_an_entry_site() {
    let source = |body: &str| {
        let mut source = String::new();
        for (name, body) in [("first", body), ("second", "nop")] {
            write!(
                source,
                ".section .text.{name}, \"ax\", %progbits\n.Lpad_{name}: nop\nnop\n{}\
                 .section __patchable_function_entries, \"awo\", %progbits, .text.{name}\n\
                 .balign 8\n.quad .Lpad_{name}\n",
                function(name, body)
            )
            .expect("written");
        }
        source
    };
    let patch = built(&source("nop"), &source("nop\nnop"));
    let table = "__patchable_function_entries";
    assert_eq!(references(&patch, table), [(0, "first".into(), 0)]);
    let file = object::File::parse(&*patch).expect("an object file");
    let section = file.section_by_name(table).expect("kept");
    let object::SectionFlags::Elf { sh_flags, .. } = section.flags() else {
        panic!("{:?}", section.flags());
    };
    assert_eq!(
        sh_flags & elf::SHF_LINK_ORDER,
        elf::SectionFlags(0),
        "linkers are done"
    );
    // Another function's site is none of this one's.
    let without = |body: &str| source(body).replace(".quad .Lpad_first", ".quad .Lpad_second");
    let (name, why) = refusal(self::patch(&without("nop"), &without("nop\nnop")));
    assert_eq!((&*name, why), ("first", Why::NoEntrySite));
}

#[test]
fn calls_of_the_profiler_are_noted() {
    let call = match () {
        () if compiler_is_for("x86_64") => "call __fentry__",
        () => "bl _mcount",
    };
    let source = |body: &str| function("first", &format!("{call}\n{body}"));
    let patch = built(&source("nop"), &source("nop\nnop"));
    let nop = if compiler_is_for("x86_64") { 1 } else { 4 };
    assert_eq!(
        references(&patch, "__mcount_loc"),
        [(0, "first".into(), 2 * nop)]
    );
    assert_eq!(section(&patch, "__mcount_loc"), Some(vec![0; 8]));
    // One that is noted is not noted twice.
    let noted = |body: &str| {
        let label = source(body).replace(call, &format!(".Lcall: {call}"));
        label + &entry("__mcount_loc", ".quad .Lcall")
    };
    let patch = built(&noted("nop"), &noted("nop\nnop"));
    assert_eq!(references(&patch, "__mcount_loc").len(), 1);
}

#[test]
fn code_of_the_start_and_the_end_is_refused() {
    for section in [".init.text", ".exit.text"] {
        let source = |body: &str| function_in(section, "first", body);
        let (name, why) = refusal(patch(&source("nop"), &source("nop\nnop")));
        assert_eq!((&*name, why), ("first", Why::ChangedInit));
    }
}

/// Code with static variables of macros.
const ONCE: &str = r#"
#define ONCE(name) ({ static _Bool __attribute__((section(".data.once"))) name; _Bool old = name; name = 1; old; })
int puts(const char *);
struct _ddebug { const char *module, *function, *file, *format; unsigned line : 18, flags : 8; } __attribute__((aligned(8)));
#define DEBUG(line) ({ static struct _ddebug __attribute__((section("__dyndbg"), used)) \
	descriptor = { "shop", "first", "shop.c", "text", line, 0 }; descriptor.flags; })
int first(int n) { if (!ONCE(__already_done)) n += puts("first"); if (!ONCE(__already_done)) n += puts("second"); return n + DEBUG(10); }
int second(int n) { if (!ONCE(___done)) n += puts("third"); return n + DEBUG(20); }
"#;

/// What the kernel is compiled with.
const FLAGS: [&str; 5] = [
    "-O2",
    "-fno-pic",
    "-fno-pie",
    "-ffunction-sections",
    "-fdata-sections",
];

#[test]
fn static_variables_of_macros_are_the_patchs_own() {
    let change = |changes: &[(&str, &str)]| {
        let mut after = ONCE.to_owned();
        for (from, to) in changes {
            assert!(after.contains(from), "{from}");
            after = after.replace(from, to);
        }
        build(&compile(ONCE, &FLAGS), &compile(&after, &FLAGS))
    };
    let once = "int first(int n) { if (!ONCE(__already_done)) n += puts(\"new\");";
    let patch = change(&[("int first(int n) {", once)]).expect("made");
    assert_eq!(patch.functions, ["first"]);
    assert_eq!(livepatch_symbols(&patch.bytes), Vec::<String>::new());
    // Three flags, one descriptor, with nothing of the other function's.
    assert_eq!(section(&patch.bytes, ".data.once"), Some(vec![0; 3]));
    assert_eq!(
        section(&patch.bytes, "__dyndbg").map(|table| table.len()),
        Some(40)
    );

    // What must happen once has happened.
    let patch = change(&[("\"third\"", "\"another\"")]).expect("made");
    assert_eq!(livepatch_symbols(&patch.bytes), ["vmlinux:___done:0"]);

    // A line is no change; a message is.
    let same = change(&[("DEBUG(10)", "DEBUG(11)"), ("DEBUG(20)", "DEBUG(70000)")]);
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
    let patch = change(&[("\"text\"", "\"another text\"")]).expect("made");
    assert_eq!(patch.functions, ["first", "second"]);
}

#[test]
fn a_line_in_code_is_no_change_and_any_other_number_is() {
    let source = |line: u32, count: u32, lonely: u32| {
        format!(
            "void __might_sleep(const char *, int);\nvoid report(const char *, int, int);\n\
             void count(int);\n\
             int first(int n) {{ __might_sleep(__FILE__, {line}); return n; }}\n\
             int second(int n) {{ report(__FILE__, 3, {count}); return n; }}\n\
             int third(int n) {{ count({lonely}); __might_sleep(__FILE__, 4); return n; }}\n",
        )
    };
    let flags = ["-O2", "-fno-pic", "-fno-pie", "-ffunction-sections"];
    let change = |line, count, lonely| {
        let after = compile(&source(line, count, lonely), &flags);
        match build(&compile(&source(10, 7, 8), &flags), &after) {
            Ok(built) => built.functions,
            Err(BuildError::NothingChanged) => Vec::new(),
            Err(why) => panic!("{why}"),
        }
    };
    assert_eq!(change(12, 7, 8), Vec::<String>::new());
    assert_eq!(change(300, 7, 8), Vec::<String>::new());
    // Behind another argument, and in front of another call.
    assert_eq!(change(12, 9, 8), ["second"]);
    assert_eq!(change(10, 7, 9), ["third"]);
}

#[test]
fn namespaces_are_imported() {
    let source = |body: &str| {
        let info = ".section .modinfo, \"a\", %progbits\n.string \"shop.import_ns=DMA_BUF\"\n\
                    .string \"import_ns=CRYPTO\"\n.string \"license=GPL\"\n";
        function("first", body) + info
    };
    let patch = built(&source("nop"), &source("nop\nnop"));
    let info = section(&patch, ".modinfo").expect("there");
    let lines: Vec<_> = info
        .split(|byte| *byte == 0)
        .filter(|line| line.starts_with(b"import_ns="))
        .collect();
    assert_eq!(lines, [&b"import_ns=CRYPTO"[..], b"import_ns=DMA_BUF"]);
    assert!(!info.windows(7).any(|word| word == b"license"));
}

#[test]
fn messages_are_listed_for_their_functions() {
    let source = |body: &str| {
        let strings = ".section .rodata.str1.1, \"aMS\", %progbits, 1\n.Lfirst_name: .string \"first\"\n\
                       .Lsecond_name: .string \"second\"\n.Lgone: .string \"inlined\"\n";
        let mut source = function("first", body) + &function("second", "nop") + strings;
        for (number, name) in [(1, ".Lsecond_name"), (2, ".Lfirst_name"), (3, ".Lgone")] {
            write!(
                source,
                ".section .rodata._entry.{number}, \"a\", %progbits\n.type _entry.{number}, %object\n\
                 _entry.{number}: .quad {name}, {name}, {name}, 1\n.size _entry.{number}, 32\n{}",
                entry(".printk_index", &format!(".quad _entry.{number}"))
            )
            .expect("written");
        }
        source
    };
    let patch = built(&source("nop"), &source("nop\nnop"));
    assert_eq!(referents(&patch, ".printk_index"), ["_entry.2"]);
}

#[test]
fn what_the_author_says_to_kpatch_is_done_or_refused() {
    let source = |body: &str, said: &str| {
        function("first", body) + &function("second", body) + &function("called", "nop") + said
    };
    let before = source("nop", "").replace("called", "unused");
    let callback = entry(".kpatch.callbacks.pre_patch", ".quad called, 0");
    // With a callback alone, a patch does something.
    let built = patch(&before, &source("nop", &callback)).expect("made");
    assert_eq!(built.functions, Vec::<String>::new());
    assert!(references(&built.bytes, ".init.klp_objects").contains(&(16, "called".into(), 0)));
    let twice = callback.clone() + ".quad second, 0\n";
    let (name, why) = refusal(patch(&before, &source("nop", &twice)));
    assert_eq!((&*name, why), ("second", Why::SecondCallback));

    let ignored = entry(".kpatch.ignore.functions", ".quad second");
    let built = patch(&before, &source("nop\nnop", &ignored)).expect("made");
    assert_eq!(built.functions, ["first"]);

    let force = entry(".kpatch.force", ".quad first");
    let (name, why) = refusal(patch(&before, &source("nop\nnop", &force)));
    assert_eq!((&*name, why), (".kpatch.force", Why::ForKpatch));
}

#[test]
fn what_the_kernel_does_not_look_for_in_a_patch_is_refused() {
    let event = |name: &str| {
        let label = format!(".type {name}, %object\n{name}: .quad first\n.size {name}, 8");
        entry("_ftrace_events", &label)
    };
    let source = |body: &str, events: &str| function("first", body) + events;
    let before = source("nop", &event("sale"));
    assert!(patch(&before, &source("nop\nnop", &event("sale"))).is_ok());
    let more = event("sale") + &event("refund");
    let (name, why) = refusal(patch(&before, &source("nop\nnop", &more)));
    assert_eq!((&*name, why), ("refund", Why::NewOffer));
}

#[test]
fn a_long_chain_of_constants_is_followed_as_far_as_there_is_room() {
    let source = |last: u32, count: usize| {
        let pointer = "lea link_0(%rip), %rax";
        let pointer = if compiler_is_for("x86_64") {
            pointer
        } else {
            ".quad link_0"
        };
        let mut source = function("first", pointer) + ".section .rodata, \"a\", %progbits\n";
        for link in 0..count {
            let next = if link + 1 < count {
                format!("link_{}", link + 1)
            } else {
                last.to_string()
            };
            writeln!(
                source,
                ".type link_{link}, %object\nlink_{link}: .quad {next}\n.size link_{link}, 8"
            )
            .expect("written");
        }
        source
    };
    let patch = patch(&source(1, 300), &source(2, 300)).expect("made");
    assert_eq!(patch.functions, ["first"]);
    let same = self::patch(&source(1, 300), &source(1, 300));
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
    // Not knowing is not the same.
    let patch = self::patch(&source(1, 3_000), &source(1, 3_000)).expect("made");
    assert_eq!(patch.functions, ["first"]);
}

#[test]
fn sibling_calls_of_ppc64le_are_refused() {
    if !compiler_is_for("powerpc64le") {
        // The others have no register that a caller would miss.
        let jump = jump();
        let source = |body: &str| function("first", &format!("{body}\n{jump} elsewhere"));
        assert!(patch(&source("nop"), &source("nop\nnop")).is_ok());
        return;
    }
    let source = |body: &str| function("first", &format!("{body}\nb elsewhere\nnop"));
    let (name, why) = refusal(patch(&source("nop"), &source("nop\nnop")));
    let callee = "elsewhere".to_owned();
    assert_eq!((&*name, why), ("first", Why::SiblingCall { callee }));
}
