//! Two builds of real C code become a patch object, or are refused.

mod common;

use common::{FLAGS, build, compile, compile_in, livepatch_symbols, own, refusal, refusals, view};
use klp_build::{BuildError, Built, PatchBuilder, Target, Why};
use klp_core::elf::view::Home;
use std::path::Path;
use std::process::Command;

/// Code that each test changes in its own way.
const SHOP: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#define KEPT __attribute__((noinline))
int total = 5;
static int calls;
static const int steps[] = { 10, 20, 30 };
static const char *const names[] = { "zero", "one", "two" };
KEPT static int untouched(int n) { static int count; count += n; return count; }
KEPT int price(int n) { static int count; count++; calls++; total += n; return untouched(n) + steps[n & 1]; }
KEPT int label(int n) { return puts(names[n]); }
KEPT int rare(int n) { if (__builtin_expect(n > 2, 0)) { fprintf(stderr, "too many: %d\n", n); abort(); } return n + 1; }
KEPT double choose(int n, double x) {
	switch (n) {
	case 0: return x * 1.5;
	case 1: return x + 7;
	case 2: return 99;
	case 3: return x * 2.5;
	case 4: return rand();
	case 5: return price(2);
	}
	return 0;
}
int (*chosen(int n))(int) { return n ? price : rare; }
int both(int n) { return price(n) + rare(n); }
"#;

/// Builds a patch of [`SHOP`] with each `from` made a `to`.
fn change(changes: &[(&str, &str)]) -> Result<Built, BuildError> {
    build(&compile(SHOP, &FLAGS), &compile(&changed(changes), &FLAGS))
}

fn changed(changes: &[(&str, &str)]) -> String {
    let mut source = SHOP.to_owned();
    for (from, to) in changes {
        assert!(source.contains(from), "{from}");
        source = source.replace(from, to);
    }
    source
}

fn this_test() -> std::path::PathBuf {
    std::env::current_exe().expect("it has a name")
}

#[test]
fn a_changed_function_goes_in_and_refers_to_the_rest() {
    let built = change(&[("total += n;", "total += 2 * n;")]).expect("a patch");
    assert_eq!(built.functions, ["price"]);
    assert_eq!(own(&built.bytes), ["price"]);
    let names = ["calls", "count", "steps", "total", "untouched"];
    let names = names.map(|name| format!("vmlinux:{name}:0"));
    assert_eq!(livepatch_symbols(&built.bytes), names);
}

#[test]
fn what_only_moved_is_the_same() {
    let moved = SHOP.replace("static int calls;", "\n\n/* moved */\n\nstatic int calls;");
    let same = build(&compile(SHOP, &FLAGS), &compile(&moved, &FLAGS));
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
    // Compilers number static variables of functions.
    let more = "KEPT int new_one(int n) { static int count; return count += n; }\nKEPT static int untouched";
    let same = change(&[("KEPT static int untouched", more)]);
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
}

#[test]
fn a_static_variable_is_known_by_its_function() {
    let more = "KEPT static int extra(int n) { static int count = 1; return count += n; }\nKEPT static int untouched";
    let built = change(&[
        ("KEPT static int untouched", more),
        ("count++; calls++;", "count += 2; calls += extra(n);"),
    ]);
    let built = built.expect("a patch");
    assert_eq!(built.functions, ["price"]);
    let live = livepatch_symbols(&built.bytes);
    // The function's own is the one that runs; the new function's is new.
    let counts = |names: &[String]| names.iter().filter(|name| name.contains("count")).count();
    assert_eq!(counts(&live), 1, "{live:?}");
    let own = own(&built.bytes);
    assert_eq!(counts(&own), 1, "{own:?}");
    assert!(own.iter().any(|name| name.starts_with("extra")), "{own:?}");
}

#[test]
fn constants_go_in_with_the_functions_that_use_them() {
    let built = change(&[("10, 20, 30", "10, 25, 30")]).expect("a patch");
    assert_eq!(built.functions, ["price"]);
    assert_eq!(own(&built.bytes), ["price", "steps"]);
    let built = change(&[("\"two\"", "\"three\"")]).expect("a patch");
    assert_eq!(built.functions, ["label"]);
    // Clang has a table of its own made of the constant.
    let own = own(&built.bytes);
    assert!(
        own == ["label", "names"] || own == ["label", "reltable.label"],
        "{own:?}"
    );
    let built = change(&[("x * 2.5", "x * 3.5")]).expect("a patch");
    assert_eq!(built.functions, ["choose"]);
}

#[test]
fn a_part_goes_in_with_its_function() {
    let built = change(&[("too many", "far too many")]).expect("a patch");
    assert_eq!(built.functions, ["rare"]);
    let own = own(&built.bytes);
    assert!(own.iter().all(|name| name.starts_with("rare")), "{own:?}");
}

#[test]
fn calls_go_to_the_new_function_and_addresses_stay() {
    let built = change(&[
        ("total += n;", "total += 2 * n;"),
        ("return n ? price : rare;", "return n > 1 ? price : rare;"),
        ("return price(n) + rare(n);", "return price(n) - rare(n);"),
    ]);
    let built = built.expect("a patch");
    assert_eq!(built.functions, ["price", "chosen", "both"]);
    // `both` calls the new `price`; `chosen` answers the address that the program knows.
    let live = livepatch_symbols(&built.bytes);
    assert!(live.contains(&"vmlinux:price:0".to_owned()), "{live:?}");
    let view = view(&built.bytes);
    let (both, _) = view.section(".text.both").expect("it changed");
    let symbols = view.symbols();
    let called = view.sections().iter().flat_map(|section| {
        let of_both = section.relas().filter(move |_| section.target() == both);
        of_both.map(|rela| (symbols[rela.symbol].name, symbols[rela.symbol].home))
    });
    let called: Vec<_> = called.collect();
    assert!(
        called
            .iter()
            .any(|(name, home)| *name == "price" && matches!(home, Home::Section(_)))
    );
    assert!(
        called.iter().any(|(name, _)| name.contains(".rare,")),
        "{called:?}"
    );
}

#[test]
fn data_that_runs_is_not_changed() {
    let (name, why) = refusal(change(&[("int total = 5", "int total = 6")]));
    assert_eq!((&*name, why), ("total", Why::ChangedData));
    let (name, why) = refusal(change(&[("static int calls;", "static long calls;")]));
    let (original, patched) = (4, 8);
    assert_eq!(
        (&*name, why),
        ("calls", Why::ChangedSize { original, patched })
    );
}

#[test]
fn what_ran_at_the_beginning_is_not_changed() {
    let starts = |body: &str| {
        let start = "__attribute__((constructor)) static void start(void)";
        compile(&format!("{SHOP}{start} {{ {body} }}"), &FLAGS)
    };
    let (name, why) = refusal(build(
        &starts("total = rand();"),
        &starts("total = rand() + 1;"),
    ));
    assert_eq!((&*name, why), ("start", Why::ChangedInit));
    let (_, why) = refusal(build(&compile(SHOP, &FLAGS), &starts("total = rand();")));
    assert_eq!(why, Why::ChangedInit);
}

#[test]
fn what_cannot_be_told_apart_is_refused() {
    let flags = ["-O2", "-fPIC"];
    let original = compile(SHOP, &flags);
    let patched = compile(&changed(&[("total += n;", "total += 2 * n;")]), &flags);
    let Err(BuildError::Refused(refusals)) = build(&original, &patched) else {
        panic!("functions share a section");
    };
    let shared = |why: &Why| matches!(why, Why::SharedSection { section } if section == ".text");
    assert!(
        refusals.iter().any(|refusal| shared(&refusal.why)),
        "{refusals:?}"
    );
}

/// Of the running program's, there is one for each thread; they are counted by themselves.
#[test]
#[cfg(target_arch = "x86_64")]
fn thread_local_variables_of_the_program_are_used() {
    let shop = |n: &str| {
        let variables = "static __thread int calls; __thread int shared = 5; \
                         extern __thread int other __attribute__((visibility(\"hidden\")));";
        SHOP.replace("static int calls;", variables)
            .replace("count++;", &format!("count += {n}; shared++; other++;"))
    };
    for model in [
        "global-dynamic",
        "local-dynamic",
        "initial-exec",
        "local-exec",
    ] {
        let model_flag = format!("-ftls-model={model}");
        let flags = [&FLAGS[..], &[&model_flag]].concat();
        let built = build(&compile(&shop("1"), &flags), &compile(&shop("2"), &flags));
        let built = built.expect("a patch");
        let view = view(&built.bytes);
        let live = view.symbols().iter();
        let live = live.filter(|symbol| symbol.home == Home::Livepatch && symbol.kind == 6);
        let mut names: Vec<_> = live.map(|symbol| symbol.name).collect();
        names.sort_unstable();
        let expected =
            ["calls", "other", "shared"].map(|name| format!(".klp.sym.vmlinux.{name},0"));
        assert_eq!(names, expected, "{model}");
    }
}

/// A variable that other threads have already has its value there.
#[test]
#[cfg(target_arch = "x86_64")]
fn what_thread_local_variables_begin_with_stays() {
    let shop = |n: &str| {
        SHOP.replace(
            "static int calls;",
            &format!("static __thread int calls = {n};"),
        )
    };
    let (name, why) = refusal(build(
        &compile(&shop("1"), &FLAGS),
        &compile(&shop("2"), &FLAGS),
    ));
    assert_eq!((&*name, why), ("calls", Why::ChangedData));
}

/// Those of a library that the program is linked to.
#[test]
fn thread_local_variables_of_others_are_refused() {
    let shop = |n: &str| {
        SHOP.replace("static int calls;", "extern __thread int calls;")
            .replace("count++;", n)
    };
    let (name, why) = refusal(build(
        &compile(&shop("count++;"), &FLAGS),
        &compile(&shop("count--;"), &FLAGS),
    ));
    assert_eq!((&*name, why), ("calls", Why::ThreadLocal));
}

#[test]
fn new_thread_local_variables_are_refused() {
    let changes = [
        (
            "static int calls;",
            "static int calls; static __thread int mine;",
        ),
        ("count++;", "count++; mine++;"),
    ];
    let (name, why) = refusal(change(&changes));
    assert_eq!((&*name, why), ("mine", Why::ThreadLocal));
}

#[test]
fn functions_without_an_entry_pad_are_refused() {
    let source = |n: &str| {
        let no_pad = "__attribute__((patchable_function_entry(0, 0)))";
        SHOP.replace("KEPT int price", &format!("{no_pad} KEPT int price"))
            .replace("calls++;", n)
    };
    let flags: Vec<_> = FLAGS
        .into_iter()
        .chain(["-fpatchable-function-entry=14"])
        .collect();
    let (original, patched) = (
        compile(&source("calls++;"), &flags),
        compile(&source("calls--;"), &flags),
    );
    let (name, why) = refusal(build(&original, &patched));
    assert_eq!((&*name, why), ("price", Why::NoEntrySite));
    let patched = compile(&changed(&[("n + 1", "n + 2")]), &flags);
    let built = build(&compile(SHOP, &flags), &patched).expect("others have one");
    assert_eq!(built.functions, ["rare"]);
}

#[test]
fn several_files_make_one_patch() {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |name: &str, source: &str| compile_in(folder.path(), name, source, &FLAGS);
    let first = |body: &str| {
        let declared = "int limit(int); extern int hidden(int) __attribute__((visibility(\"hidden\"))); int added(int);";
        compile(
            "first.c",
            &format!("{declared} int first(int n) {{ {body} }}"),
        )
    };
    let second = |more: &str| {
        let source = format!(
            "static int lowest = 3; void lower(void) {{ lowest--; }} int limit(int n) {{ return n < lowest ? lowest : n; }} {more}"
        );
        compile("second.c", &source)
    };
    let mut patch = PatchBuilder::new("fix");
    patch.object("libshop").expect("a name");
    let pair = [
        first("return limit(n);"),
        first("return limit(n) + hidden(n) + added(n);"),
    ];
    patch
        .pair(Path::new("first.o"), Some(&pair[0]), &pair[1])
        .expect("readable");
    let pair = [
        second(""),
        second("int spare; int added(int n) { return lowest + spare++ + n; }"),
    ];
    patch
        .pair(Path::new("second.o"), Some(&pair[0]), &pair[1])
        .expect("readable");
    let built = patch.build().expect("a patch");
    assert_eq!(built.functions, ["first"]);
    assert_eq!(own(&built.bytes), ["added", "first", "spare"]);
    let live = ["libshop:hidden:0", "libshop:limit:0", "libshop:lowest:0"];
    assert_eq!(livepatch_symbols(&built.bytes), live);
}

#[test]
fn the_program_tells_which_function_of_a_name_is_meant() {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |name: &str, source: &str| compile_in(folder.path(), name, source, &FLAGS);
    let kept = "__attribute__((noinline)) static int helper(int n)";
    let source = |outer: &str, body: &str| {
        format!("{kept} {{ {body} }} int {outer}(int n) {{ return helper(n) + 1; }}")
    };
    let one = compile("one.c", &source("one", "return n * 3;"));
    let two = compile("two.c", &source("two", "return n * 5;"));
    let fixed = compile("two.c", &source("two", "return n * 7;"));
    std::fs::write(folder.path().join("one.o"), one).expect("written");
    std::fs::write(folder.path().join("two.o"), &two).expect("written");
    let main = "int one(int); int two(int); int main(void) { return one(1) + two(2); }";
    std::fs::write(folder.path().join("main.c"), main).expect("written");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let linked = Command::new(compiler)
        .current_dir(folder.path())
        .args([
            "main.c",
            "one.o",
            "two.o",
            "-o",
            "program",
            "-Wl,--build-id=sha1",
        ])
        .status()
        .expect("a C compiler");
    assert!(linked.success());
    let program = std::fs::read(folder.path().join("program")).expect("linked");
    let mut patch = PatchBuilder::new("fix");
    patch.target(Target::read(&program).expect("a program"));
    patch
        .pair(Path::new("two.o"), Some(&two), &fixed)
        .expect("readable");
    let built = patch.build().expect("a patch");
    assert_eq!(built.functions, ["helper"]);
    // The second one, in the order of the link.
    let view = view(&built.bytes);
    let (_, funcs) = view.section(".init.klp_funcs").expect("a manifest");
    assert_eq!(funcs.bytes[16..24], 2_u64.to_le_bytes());
    let build = view.modinfo("klp_build");
    let id = build.and_then(|build| build.strip_prefix("vmlinux:"));
    assert_eq!(id.map(str::len), Some(40), "{build:?}: an SHA-1");
    let other = Target::read(&std::fs::read(this_test()).expect("readable")).expect("ELF");
    let mut patch = PatchBuilder::new("fix");
    patch.target(other);
    patch
        .pair(Path::new("two.o"), Some(&two), &fixed)
        .expect("readable");
    let (name, why) = refusal(patch.build());
    assert_eq!((&*name, why), ("helper", Why::NotInTarget));
}

#[test]
fn bad_files_get_an_error() {
    let object = compile(SHOP, &FLAGS);
    let other = compile(&changed(&[("n + 1", "n + 2")]), &FLAGS);
    for len in (0..object.len()).step_by(7) {
        if let Ok(built) = build(&object[..len], &other) {
            panic!("{len} bytes make a patch: {:?}", built.functions);
        }
        if let Ok(built) = build(&object, &other[..len]) {
            panic!("{len} bytes make a patch: {:?}", built.functions);
        }
    }
    // Whatever a byte says, nothing panics.
    for at in (0..other.len()).step_by(5) {
        let mut broken = other.clone();
        broken[at] ^= 0x41;
        let _ = build(&object, &broken);
    }
    let program = std::fs::read(this_test()).expect("readable");
    assert!(matches!(
        build(&program, &program),
        Err(BuildError::NotRelocatable { .. })
    ));
    let mut foreign = other.clone();
    foreign[18] ^= 0x7f;
    assert!(matches!(
        build(&object, &foreign),
        Err(BuildError::Mismatch { .. })
    ));
    let mut patch = PatchBuilder::new("fix");
    assert!(matches!(
        patch.object("lib.so"),
        Err(BuildError::BadObject { .. })
    ));
}

#[test]
fn variables_of_one_name_in_one_function_are_told_apart_where_it_is_the_same() {
    let twice = "KEPT int twice(int n) { \
                 if (n) { static int seen; return seen += n; } \
                 static int seen; return seen += 2; }\nint both";
    let source = |n: &str| SHOP.replace("int both", twice).replace("n + 1", n);
    let build = |from: &str, to: &str| build(&compile(from, &FLAGS), &compile(to, &FLAGS));
    let built = build(&source("n + 1"), &source("n + 2")).expect("it did not change");
    assert_eq!(built.functions, ["rare"]);
    let changed = source("n + 1").replace("seen += 2", "seen += 3");
    let (name, why) = refusals(build(&source("n + 1"), &changed)).swap_remove(0);
    assert!(
        name.contains("seen") && matches!(why, Why::Ambiguous { .. }),
        "{name}: {why}"
    );
}

#[test]
fn a_constant_changes_its_users_in_other_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |name: &str, source: &str| compile_in(folder.path(), name, source, &FLAGS);
    let table =
        |numbers: &str| compile("table.c", &format!("const int table[] = {{ {numbers} }};"));
    let user = "extern const int table[]; int pick(int n) { return table[n]; } int other(void) { return 1; }";
    let user = compile("user.c", user);
    let mut patch = PatchBuilder::new("fix");
    let (before, after) = (table("1, 2, 3"), table("1, 2, 4"));
    patch
        .pair(Path::new("table.o"), Some(&before), &after)
        .expect("readable");
    patch
        .pair(Path::new("user.o"), Some(&user), &user)
        .expect("readable");
    let built = patch.build().expect("a patch");
    assert_eq!(built.functions, ["pick"]);
    assert_eq!(own(&built.bytes), ["pick", "table"]);
    // A variable of another file points to the old one.
    let holder = compile(
        "holder.c",
        "extern const int table[]; const int *now = table;",
    );
    patch
        .pair(Path::new("holder.o"), Some(&holder), &holder)
        .expect("readable");
    let (name, why) = refusal(patch.build());
    assert_eq!((&*name, why), ("now", Why::ChangedData));
}

#[test]
fn code_that_is_no_function_is_not_changed() {
    let source = |n: u32| {
        format!("{SHOP}\n__asm__(\".pushsection .text.raw,\\\"ax\\\"\\n.long {n}\\n.popsection\");")
    };
    let (before, after) = (compile(&source(1), &FLAGS), compile(&source(2), &FLAGS));
    let (name, why) = refusal(build(&before, &after));
    assert_eq!((&*name, why), (".text.raw", Why::Assembly));
    let same = build(&before, &before);
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
}

#[test]
fn another_exception_that_is_caught_is_a_change() {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |name: &str| {
        let source = format!(
            "void work(int); int tried(int n) {{ try {{ work(n); }} catch ({name}) {{ return 1; }} \
             return 0; }} int other(int n) {{ return n; }}"
        );
        let flags: Vec<_> = FLAGS.into_iter().chain(["-x", "c++"]).collect();
        compile_in(folder.path(), "tried.cc", &source, &flags)
    };
    let built = build(&compile("int"), &compile("long")).expect("a patch");
    assert_eq!(built.functions, ["_Z5triedi"]);
    let view = view(&built.bytes);
    assert!(
        view.sections()
            .iter()
            .any(|section| section.name.starts_with(".gcc_except_table"))
    );
    let same = build(&compile("int"), &compile("int"));
    assert!(matches!(same, Err(BuildError::NothingChanged)), "{same:?}");
}

#[test]
fn what_moves_to_another_file_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |name: &str, source: &str| compile_in(folder.path(), name, source, &FLAGS);
    let moving = |n: u32| format!("int moving(int n) {{ return n + {n}; }}");
    let (one, two) = ("int one(void) { return 1; }", "int two(void) { return 2; }");
    let mut patch = PatchBuilder::new("fix");
    let pair = [
        compile("one.c", &format!("{one} {}", moving(1))),
        compile("one.c", one),
    ];
    patch
        .pair(Path::new("one.o"), Some(&pair[0]), &pair[1])
        .expect("readable");
    let pair = [
        compile("two.c", two),
        compile("two.c", &format!("{two} {}", moving(2))),
    ];
    patch
        .pair(Path::new("two.o"), Some(&pair[0]), &pair[1])
        .expect("readable");
    let (name, why) = refusal(patch.build());
    assert!(
        name == "moving"
            && why
                == Why::Moved {
                    from: "one.o".into()
                },
        "{name}: {why}"
    );
}

#[test]
fn the_strong_definition_is_the_one_that_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let compile = |name: &str, source: &str| compile_in(folder.path(), name, source, &FLAGS);
    let weak = |n: u32| format!("__attribute__((weak)) int which(int n) {{ return n + {n}; }}");
    let strong = |n: u32| format!("int which(int n) {{ return n * {n}; }}");
    for (weak_after, strong_after, expected) in [(2, 3, None), (1, 5, Some("which"))] {
        let mut patch = PatchBuilder::new("fix");
        let pair = [
            compile("weak.c", &weak(1)),
            compile("weak.c", &weak(weak_after)),
        ];
        patch
            .pair(Path::new("weak.o"), Some(&pair[0]), &pair[1])
            .expect("readable");
        let pair = [
            compile("strong.c", &strong(3)),
            compile("strong.c", &strong(strong_after)),
        ];
        patch
            .pair(Path::new("strong.o"), Some(&pair[0]), &pair[1])
            .expect("readable");
        let built = patch.build();
        match expected {
            Some(name) => assert_eq!(built.expect("a patch").functions, [name]),
            None => assert!(
                matches!(built, Err(BuildError::NothingChanged)),
                "{built:?}"
            ),
        }
    }
}

#[test]
fn a_new_variable_is_not_one_of_another_function_that_is_gone() {
    let two = |first: &str, second: &str| {
        let kept = "__attribute__((noinline))";
        let first = format!("{kept} int first(int n) {{ {first} }}");
        compile(
            &format!("{first} {kept} int second(int n) {{ {second} }}"),
            &FLAGS,
        )
    };
    let counts = "static int seen; return seen += n;";
    let (before, after) = (two(counts, "return n;"), two("return n;", counts));
    match build(&before, &after) {
        // GCC numbers both alike.
        Err(BuildError::Refused(refusals)) => {
            assert_eq!(refusals.len(), 1, "{refusals:?}");
            assert!(refusals[0].name.starts_with("seen."), "{refusals:?}");
        }
        // Clang's names have the function in them: it is new.
        Ok(built) => assert_eq!(own(&built.bytes), ["first", "second", "second.seen"]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn constants_of_one_name_are_told_by_their_contents() {
    let source = |n: &str, m: u32| {
        format!(
            "__attribute__((noinline)) int pick(int n) {{ \
             if (n < 4) {{ static const int table[] = {{ 1, 7, 3, {m} }}; return table[n & 3]; }} \
             static const int table[] = {{ 5, 2, 9, 4 }}; return table[n & 3] + {n}; }} \
             int other(int n) {{ return n + {n}; }}"
        )
    };
    let built = build(
        &compile(&source("1", 8), &FLAGS),
        &compile(&source("2", 8), &FLAGS),
    );
    let built = built.expect("constants have no state");
    assert_eq!(built.functions, ["pick", "other"]);
    let built = build(
        &compile(&source("1", 8), &FLAGS),
        &compile(&source("1", 6), &FLAGS),
    );
    assert_eq!(built.expect("a patch").functions, ["pick"]);
}
