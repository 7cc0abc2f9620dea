//! `klp-build` as a person uses it.

use crate::args::Args;
use clap::Parser;
use klp_core::elf::view::View;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles a function that returns `number` to `object`.
fn compile(object: &Path, number: u32) {
    let c = object.with_extension("c");
    std::fs::create_dir_all(c.parent().expect("it has a folder")).expect("there is room");
    let source = format!("int answer(int n) {{ return n + {number}; }}");
    std::fs::write(&c, source).expect("there is room");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .args(["-O2", "-ffunction-sections", "-c", "-o"])
        .args([object, &c])
        .status();
    assert!(status.expect("a C compiler").success());
}

#[test]
fn folders_and_files_are_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    compile(&path("before/src/answer.o"), 41);
    compile(&path("after/src/answer.o"), 42);
    let run = |original: &str, patched: &str, output: &str| {
        let output = path(output);
        let args = [path(original), path(patched), "-o".into(), output.clone()];
        let args = Args::try_parse_from([PathBuf::from("klp-build")].iter().chain(&args));
        let said = super::run(&args.expect("complete")).map_err(|error| format!("{error:#}"));
        (said, output)
    };
    for (original, patched, output) in [
        ("before", "after", "answer_fix.ko"),
        ("before/src/answer.o", "after/src/answer.o", "again.ko"),
    ] {
        let (said, output) = run(original, patched, output);
        let name = output.file_stem().and_then(|name| name.to_str());
        let name = name.expect("it has one");
        let path = output.display();
        assert_eq!(
            said,
            Ok(format!("{path}: the patch {name} replaces\n  answer\n"))
        );
        let bytes = std::fs::read(&output).expect("written");
        let machine = u16::from_le_bytes([bytes[18], bytes[19]]);
        let view = View::parse(&bytes, machine, false).expect("a patch object");
        assert_eq!(view.modinfo("name"), Some(name));
    }
    for (original, patched, why) in [
        ("before", "before", "nothing to patch"),
        ("before", "after/src/answer.o", "both be folders"),
        ("nowhere.o", "after/src/answer.o", "nowhere.o: No such file"),
    ] {
        let (said, output) = run(original, patched, "none.ko");
        let said = said.expect_err("refused");
        assert!(said.contains(why) && !output.exists(), "{said}");
    }
}

/// What `klp-build` says to `arguments`, as a person sees it.
pub(crate) fn run(arguments: &[&str]) -> Result<String, String> {
    let args = Args::try_parse_from([&["klp-build"], arguments].concat());
    super::run(&args.map_err(|error| error.to_string())?).map_err(|error| format!("{error:#}"))
}

#[test]
fn what_a_patch_is_for_travels_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    let [before, after, fix] = ["before.o", "after.o", "fix.ko"].map(path);
    compile(Path::new(&before), 41);
    compile(Path::new(&after), 42);
    let make = |options: &[&str]| run(&[&[&before, &after, "-o", &fix], options].concat());
    let said = [
        "--label",
        "CVE-2024-1",
        "--label",
        "CVE-2024-2",
        "--author",
        "A",
        "--depends",
        "base_fix",
    ];
    make(&[&said[..], &["--description", "Counts on"]].concat()).expect("a patch");
    let said = run(&["inspect", &fix]).expect("a patch object");
    for line in [
        "    label: CVE-2024-1\n    label: CVE-2024-2\n",
        "    description: Counts on\n",
        "    author: A\n",
        "    depends on the patch 'base_fix'\n",
    ] {
        assert!(said.contains(line), "{said}");
    }
    assert!(said.contains("object 'vmlinux', any build\n"), "{said}");

    let target = path("libanswer.so");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let linked = Command::new(compiler)
        .args(["-shared", "-Wl,--build-id=none", "-o", &target, &before])
        .status();
    assert!(linked.expect("a C compiler").success());
    make(&["--target", &target]).expect("a patch");
    let said = run(&["inspect", &fix]).expect("a patch object");
    assert!(said.contains("object 'vmlinux', code sha256:"), "{said}");
    let function = said.lines().find(|line| line.starts_with("    answer, "));
    let function = function.expect("it is replaced");
    assert!(function.contains(" bytes, sha256:"), "{said}");
    assert!(function.contains(" becomes answer, "), "{said}");
    std::fs::remove_file(&fix).expect("just made");
    for (option, key) in [
        ("--label", "klp_label"),
        ("--description", "description"),
        ("--author", "author"),
        ("--depends", "klp_depends"),
        ("--name", "name"),
    ] {
        for text in ["", "two\nlines", "\0", "\u{1b}[2J", &"x".repeat(513)] {
            let said = make(&[option, text]).expect_err("refused");
            assert!(
                said.starts_with(&format!("{key}: {text:?} is not 1 to 512")),
                "{said}"
            );
            assert!(!Path::new(&fix).exists());
        }
    }
}

const DIFF: &str = "\
--- a/src/price.c
+++ b/src/price.c
@@ -1,4 +1,4 @@
 #include \"shop.h\"
 int price(int n) {
-\treturn n * RATE;
+\treturn n * RATE + tax(n);
 }
--- a/shop.h
+++ b/shop.h
@@ -1,2 +1,3 @@
 #define RATE 3
 int price(int);
+int tax(int);
--- /dev/null
+++ b/src/tax.c
@@ -0,0 +1,2 @@
+#include \"../shop.h\"
+int tax(int n) { return n / 5; }
";

#[test]
fn a_project_is_built_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    std::fs::create_dir_all(path("shop/src")).expect("there is room");
    let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("there is room");
    write("shop/shop.h", "#define RATE 3\nint price(int);\n");
    let price = "#include \"shop.h\"\nint price(int n) {\n\treturn n * RATE;\n}\n";
    write("shop/src/price.c", price);
    write("shop/src/other.c", "int other(int n) { return n; }\n");
    write("shop/stale.o", "made by hand");
    // What is no source is not even looked at.
    std::fs::create_dir_all(path("shop/target")).expect("there is room");
    write("shop/target/CACHEDIR.TAG", "");
    write("fix.diff", DIFF);
    let build = "test ! -e target || exit; for file in src/*.c; do cc -O2 -I. -c $file -o ${file%.c}.o || exit; done";
    let (shop, diff, output) = (path("shop"), path("fix.diff"), path("price_fix.ko"));
    let all = |diff: &str, build: &str| {
        let options = ["--source", &shop, "--diff", diff, "-o", &output];
        run(&[&options[..], &["--", "sh", "-c", build]].concat())
    };
    let said = all(&diff, build);
    assert_eq!(
        said,
        Ok(format!("{output}: the patch price_fix replaces\n  price\n"))
    );
    // Nothing of the project's was touched.
    assert_eq!(
        std::fs::read_to_string(path("shop/src/price.c")).ok(),
        Some(price.into())
    );
    assert!(!folder.path().join("shop/src/price.o").exists());

    let refused = |diff: &str, build: &str, why: &str| {
        let _ = std::fs::remove_file(&output);
        let said = all(diff, build).expect_err("refused");
        assert!(said.contains(why), "{said}");
        assert!(!Path::new(&output).exists());
    };
    refused(
        &diff,
        "echo the compiler is ill; exit 3",
        "the compiler is ill",
    );
    refused(&diff, "true", "made no object files");
    refused(&path("nowhere.diff"), build, "nowhere.diff");
    write(
        "misfit.diff",
        &DIFF.replace("return n * RATE;", "return n * RATIO;"),
    );
    refused(&path("misfit.diff"), build, "does not fit src/price.c");
    write(
        "elsewhere.diff",
        &DIFF.replace("b/src/price.c", "b/../price.c"),
    );
    refused(&path("elsewhere.diff"), build, "outside of the sources");
    write("empty.diff", "");
    refused(&path("empty.diff"), build, "empty.diff: it is no diff");
    for bad in [&["before"][..], &["before", "after", "--diff", "x"]] {
        let error = run(&[bad, &["-o", "none.ko"]].concat()).expect_err("incomplete");
        assert!(error.contains("klp-build"), "{error}");
    }
}

#[test]
fn files_are_compiled_as_a_list_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    std::fs::create_dir_all(path("shop/src")).expect("there is room");
    let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("there is room");
    write("shop/shop.h", "#define RATE 3\nint price(int);\n");
    write(
        "shop/src/price.c",
        "#include \"shop.h\"\nint price(int n) {\n\treturn n * RATE;\n}\n",
    );
    write("shop/src/other.c", "int other(int n) { return n; }\n");
    let shop = path("shop");
    let entry = |file: &str, more: &str| {
        let command = format!("cc -O2 {more} -I{shop} -MD -MF {file}.d -o {file}.o -c {file}");
        serde_json::json!({ "directory": shop, "file": file, "command": command })
    };
    let list = |entries: &[serde_json::Value]| {
        let text = serde_json::to_string(entries).expect("it is text");
        write("shop/compile_commands.json", &text);
    };
    let output = path("price_fix.ko");
    let make = |diff: &str| {
        write("fix.diff", diff);
        let _ = std::fs::remove_file(&output);
        let diff = path("fix.diff");
        run(&["--source", &shop, "--diff", &diff, "-o", &output])
    };
    let said = Ok(format!("{output}: the patch price_fix replaces\n  price\n"));

    assert!(
        make(DIFF)
            .expect_err("refused")
            .contains("no compile_commands.json")
    );
    let (price, other) = (entry("src/price.c", ""), entry("src/other.c", ""));
    list(&[price.clone(), other.clone()]);
    let error = make(DIFF).expect_err("refused");
    assert!(error.contains("does not say how it is compiled"), "{error}");
    // A header that changes, or is new, is an input; a text is none.
    for (from, to) in [("b/src/tax.c", "b/tax.h"), ("b/src/tax.c", "b/NEWS")] {
        assert_eq!(make(&DIFF.replace(from, to)), said, "{to}");
    }
    let rate = "--- a/shop.h\n+++ b/shop.h\n@@ -1 +1 @@\n-#define RATE 3\n+#define RATE 4\n";
    assert_eq!(make(rate), said);
    assert!(!std::path::Path::new(&path("shop/src/price.c.o")).exists());

    list(&[price.clone(), other.clone(), entry("src/price.c", "-DNEW")]);
    let error = make(rate).expect_err("refused");
    assert!(
        error.contains("src/price.c is compiled in several ways"),
        "{error}"
    );
    list(&[entry("src/price.c", "--no-such-flag"), other]);
    let error = make(rate).expect_err("refused");
    assert!(error.contains("no-such-flag"), "{error}");
    for (bad, why) in [("[]", "no entries"), ("[", "EOF"), ("[{}]", "entry 1")] {
        write("shop/compile_commands.json", bad);
        let error = make(rate).expect_err("refused");
        assert!(error.contains(why), "{error}");
    }
}

/// A library crate that a program uses, as cargo builds it.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_crate_is_built_by_cargo() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        let folder = path.parent().expect("it has one");
        std::fs::create_dir_all(folder).expect("there is room");
        std::fs::write(path, text).expect("there is room");
    };
    let package = |name: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n")
    };
    write(
        "till/Cargo.toml",
        &(package("till") + "[workspace]\n[dependencies]\nprices = { path = \"prices\" }\n"),
    );
    write(
        "till/src/main.rs",
        "fn main() { println!(\"{}\", prices::price(std::env::args().count())) }\n",
    );
    write("till/build.rs", "fn main() {}\n");
    write("till/prices/Cargo.toml", &package("prices"));
    let price = "#[inline(never)]\npub fn price(n: usize) -> usize {\n    4 * n\n}\n";
    write("till/prices/src/lib.rs", price);
    write(
        "fix.diff",
        "--- a/prices/src/lib.rs\n+++ b/prices/src/lib.rs\n@@ -3 +3 @@\n-    4 * n\n+    4 * n - n / 10\n",
    );
    let (till, diff, output) = (path("till"), path("fix.diff"), path("till_fix.ko"));
    let target = path("till/target/release/till");
    let built = Command::new("cargo")
        .args(["build", "--release", "--quiet", "--offline"])
        .current_dir(&till)
        .env_remove("CARGO_TARGET_DIR")
        .status();
    assert!(built.expect("cargo").success());
    let options = ["--source", &till, "--diff", &diff, "--target", &target];
    let said = run(&[&options[..], &["-o", &output]].concat()).expect("a patch");
    // Whatever rustc calls it.
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(
        lines[1].contains("prices") && lines[1].contains("price"),
        "{said}"
    );
    // The file in which the program was looks as it did.
    let now = std::fs::read_to_string(path("till/prices/src/lib.rs"));
    assert_eq!(now.ok().as_deref(), Some(price));
}

#[test]
fn help_fits_a_screen_and_manuals_are_written() {
    let help = run(&["--help"]).expect_err("help is what clap calls an error");
    let lines = help.lines();
    assert!(lines.clone().all(|line| line.len() <= 100), "{help}");
    assert!(lines.count() <= 70, "{help}");
    for heading in [
        "Of a diff:",
        "What is patched:",
        "What the patch says of itself:",
        "Examples:",
    ] {
        assert!(help.contains(heading), "{help}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    run(&["man", folder.path().to_str().expect("plain")]).expect("there is room");
    for page in ["klp-build.1", "klp-build-inspect.1", "klp-build-sign.1"] {
        let page = std::fs::read_to_string(folder.path().join(page)).expect("written");
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(
        run(&["man"])
            .expect("a page")
            .contains(r"\-\-vouch\-layout")
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).expect("known");
        assert!(script.contains("vouch-layout"), "{shell}");
    }
}
