//! What is no reason to refuse a patch is said.

mod common;

use common::{FLAGS, compile_in, klp_build};
use klp_build::{Built, PatchBuilder, Target, Warning};
use std::path::Path;
use std::process::Command;

const KEPT: &str = "#define KEPT __attribute__((noinline))\n";

/// A patch of one file, compiled with `-g` and `flags`.
fn patch(flags: &[&str], original: &str, patched: &str) -> Built {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = [&FLAGS[..], &["-g"], flags].concat();
    let compile =
        |source: &str| compile_in(folder.path(), "shop.c", &format!("{KEPT}{source}"), &flags);
    let mut patch = PatchBuilder::new("fix");
    let (original, patched) = (compile(original), compile(patched));
    patch
        .pair(Path::new("shop.o"), Some(&original), &patched)
        .expect("readable");
    patch.build().expect("a patch")
}

fn compiler() -> String {
    std::env::var("CC").unwrap_or_else(|_| "cc".to_owned())
}

fn machine() -> String {
    let machine = Command::new(compiler()).arg("-dumpmachine").output();
    String::from_utf8(machine.expect("a compiler").stdout).expect("a name")
}

fn is_clang() -> bool {
    compiler().contains("clang")
}

/// The sibling calls that are warned of: who, and where to.
fn sibling_calls(built: &Built) -> Vec<(&str, &str)> {
    let calls = built.warnings.iter().filter_map(|warning| match warning {
        Warning::SiblingCall { function, to, .. } => Some((&**function, &**to)),
        _ => None,
    });
    calls.collect()
}

const CALLS: &str = "\
KEPT int last(int n) { return n * 3; }
int *seen;
KEPT int jumps(int n) { *seen = n; return last(n + 2); }
KEPT int calls(int n) { return last(n + 2) + 1; }
KEPT int sometimes(int n) { if (n > 5) return last(n); *seen = n; return n; }
";

#[test]
fn sibling_calls_between_functions_of_the_patch_are_found() {
    // GCC for ppc64le does not jump where a table of contents must be restored.
    let flags = ["-fno-pic", "-fno-ipa-ra"];
    let flags = if is_clang() { &flags[..1] } else { &flags };
    let fixed = CALLS.replace("n + 2", "n + 4").replace("n > 5", "n > 7");
    // `last` stays: nobody waits for it. (A patch of ppc64le may not jump to what stays.)
    if !machine().starts_with("powerpc") {
        assert_eq!(sibling_calls(&patch(flags, CALLS, &fixed)), []);
    }
    let fixed = fixed.replace("n * 3", "n * 5");
    let built = patch(flags, CALLS, &fixed);
    assert_eq!(built.functions, ["last", "jumps", "calls", "sometimes"]);
    assert_eq!(
        sibling_calls(&built),
        [("jumps", "last"), ("sometimes", "last")]
    );
    let said = built.warnings[0].to_string();
    assert!(said.contains("jumps ends in a jump to last"), "{said}");
    // Old code jumps, too, while a transition is under way.
    let calls = fixed.replace("return last(n + 4); }", "return last(n + 4) + 1; }");
    let built = patch(flags, CALLS, &calls);
    assert!(
        sibling_calls(&built).contains(&("jumps", "last")),
        "{:?}",
        built.warnings
    );
    let flags = [flags, &["-fno-optimize-sibling-calls"]].concat();
    assert_eq!(sibling_calls(&patch(&flags, CALLS, &fixed)), []);
}

#[test]
fn a_function_does_not_jump_to_its_own_part() {
    let source = |n: u32| {
        format!(
            "#include <stdlib.h>\n#include <stdio.h>\n\
             KEPT int rare(int n) {{ if (__builtin_expect(n > 2, 0)) {{ fprintf(stderr, \"%d\", n); abort(); }} \
             return n + {n}; }}"
        )
    };
    assert_eq!(sibling_calls(&patch(&[], &source(1), &source(2))), []);
}

#[test]
fn new_functions_that_nothing_uses_are_named() {
    let original = "KEPT int price(int n) { return n * 3; }\n";
    let fixed = "KEPT int tax(int n) { return n / 5; }\nKEPT int price(int n) { return n * 3 + tax(n); }\n\
                 int spare(int n);\nint more(int n) { return n ? spare(n - 1) + 1 : 2; }\n\
                 int spare(int n) { return n ? more(n - 2) * 3 : 3; }\n";
    let built = patch(&[], original, fixed);
    let unused = built.warnings.iter().filter_map(|warning| match warning {
        Warning::Unused { function, .. } => Some(&**function),
        _ => None,
    });
    let mut unused: Vec<_> = unused.collect();
    unused.sort_unstable();
    assert_eq!(unused, ["more", "spare"], "{:?}", built.warnings);
}

#[test]
fn callers_that_may_rely_on_registers_are_named() {
    let original = "\
KEPT static int tax(int n) { return n / 5; }
int price(int n, int m) { return tax(n) + m; }
int other(int n, int m) { return tax(n) * m; }
";
    let fixed = original
        .replace("n / 5", "n / 7")
        .replace("* m;", "* m + 1;");
    let relied = |flags: &[&str]| {
        let built = patch(flags, original, &fixed);
        let mut warnings = built.warnings.into_iter();
        warnings.find(|warning| matches!(warning, Warning::InterproceduralRegisters { .. }))
    };
    let file = Path::new("shop.o").to_path_buf();
    let expected = Warning::InterproceduralRegisters {
        file,
        function: "tax".to_owned(),
        callers: vec!["price".to_owned()],
    };
    if is_clang() || machine().starts_with("powerpc") {
        // They have nothing of the kind.
        assert_eq!(relied(&[]), None);
    } else {
        assert_eq!(relied(&[]), Some(expected.clone()));
        assert_eq!(relied(&["-fno-ipa-ra"]), None);
        assert_eq!(relied(&["-fno-ipa-ra", "-fipa-ra"]), Some(expected));
        assert_eq!(relied(&["-pg"]), None);
        assert_eq!(relied(&["-O1"]), None);
    }
}

#[test]
fn functions_that_the_linker_has_made_one_are_named() {
    // The linkers of other machines that are at hand do not fold.
    if !machine().starts_with("x86_64") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let source = |n: u32| {
        format!(
            "{KEPT}KEPT int one(int n) {{ return n * 3 + {n}; }}\nKEPT int two(int n) {{ return n * 3 + 1; }}\n\
             extern int named(int) __attribute__((alias(\"one\")));\n\
             int main(void) {{ return one(1) + two(2) + named(3); }}\n"
        )
    };
    let compile = |n| compile_in(folder.path(), "shop.c", &source(n), &FLAGS);
    let fixed = compile(2);
    let original = compile(1);
    for (icf, expected) in [("--icf=all", &["two"][..]), ("--icf=none", &[])] {
        let linked = Command::new(compiler())
            .current_dir(folder.path())
            .args([
                "-fuse-ld=gold",
                &format!("-Wl,{icf}"),
                "shop.o",
                "-o",
                "shop",
            ])
            .status();
        assert!(linked.expect("a linker").success());
        let target = std::fs::read(folder.path().join("shop")).expect("linked");
        let mut patch = PatchBuilder::new("fix");
        patch.target(Target::read(&target).expect("a program"));
        patch
            .pair(Path::new("shop.o"), Some(&original), &fixed)
            .expect("readable");
        let built = patch.build().expect("a patch");
        let folded = built.warnings.iter().find_map(|warning| match warning {
            Warning::Folded { others, .. } => Some(&others[..]),
            _ => None,
        });
        assert_eq!(
            folded.unwrap_or_default(),
            expected,
            "{icf}: {:?}",
            built.warnings
        );
    }
}

#[test]
fn the_program_says_its_warnings_and_takes_an_authors_word() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = |members: &str, n: u32| {
        format!(
            "struct visit {{ int guests; {members} }};\nstruct visit visits[3];\n\
             int guests(struct visit *visit) {{ return visit->guests + {n}; }}\n"
        )
    };
    let compile = |name: &str, source: &str, flags: &[&str]| {
        let flags = [&FLAGS[..], flags].concat();
        let object = compile_in(folder.path(), "visit.c", source, &flags);
        std::fs::write(folder.path().join(name), object).expect("written");
    };
    let run = |options: &[&str]| {
        let out = klp_build()
            .current_dir(folder.path())
            .args(["before.o", "after.o", "-o", "fix.ko"])
            .args(options)
            .output()
            .expect("it is built");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (out.status.success(), text(out.stdout), text(out.stderr))
    };
    compile("before.o", &source("", 1), &[]);
    compile("after.o", &source("", 2), &[]);
    let (done, said, warned) = run(&[]);
    assert!(done && said.contains("guests"), "{said}{warned}");
    assert!(
        warned.starts_with("warning: types were not compared") && warned.lines().count() == 1,
        "{warned}"
    );
    compile("before.o", &source("char mood;", 1), &["-g"]);
    compile("after.o", &source("char mood, vip;", 2), &["-g"]);
    let (done, _, refused) = run(&[]);
    assert!(!done, "the program has visits");
    for part in [
        "struct visit",
        "the member 'vip' is new",
        "guests",
        "shadow",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    let (done, said, warned) = run(&["--vouch-layout", "struct visit"]);
    assert!(
        done && said.contains("guests") && warned.is_empty(),
        "{said}{warned}"
    );
}
