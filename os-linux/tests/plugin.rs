//! The engine as a library in a program that is not Rust's: `examples/plugin.rs` in the program of
//! `fixtures/c/host.c`.

use klp_os_linux_fixtures::host;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Cargo builds the examples along with the tests.
fn plugin(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("there is a /proc");
    let target = test.ancestors().nth(2).expect("cargo's folders");
    let path = target.join("examples").join(name);
    assert!(path.exists(), "first: cargo build --example plugin");
    path
}

/// Builds the program, with `args` for the compiler.
fn build(name: &str, args: &[&str]) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("klp-plugin-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("there is room");
    let program = folder.join(name);
    let built = Command::new("cc")
        .args(host::FLAGS)
        .arg(host::SOURCE)
        .args(args)
        .arg("-o")
        .arg(&program)
        .output()
        .expect("a C compiler");
    let words = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{words}");
    program
}

/// Runs the program; it is gone then.
fn run(program: &Path, args: &[&Path]) -> Output {
    let output = Command::new(program)
        .args(args)
        .arg(host::FIX)
        .output()
        .expect("it runs");
    std::fs::remove_file(program).expect("it is ours");
    output
}

/// Builds it with the engine linked to it.
fn build_static(name: &str, args: &[&str]) -> PathBuf {
    let engine = plugin("libplugin.a");
    let engine = ["-DLINKED", engine.to_str().expect("UTF-8"), "-ldl", "-lm"];
    build(name, &[args, &engine].concat())
}

#[track_caller]
fn assert_good(output: &Output) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {words}", output.status);
}

/// Thread-local variables of such a library have no place yet in threads that are inside of
/// `malloc`.
#[test]
fn the_engine_comes_by_dlopen() {
    let program = build("dlopen", &["-ldl"]);
    assert_good(&run(&program, &[&plugin("libplugin.so")]));
}

#[test]
fn the_engine_is_linked_to_a_static_executable() {
    for (name, way) in [
        ("static", "-static"),
        ("static_pie", "-static-pie"),
        // GCC asks for it only where there is a dynamic linker.
        ("static_indexed", "-static -Wl,--eh-frame-hdr"),
    ] {
        if name == "static_pie" && !starts_anywhere() {
            println!("skipped: {way}: the C library has no rcrt1.o");
            continue;
        }
        let args: Vec<_> = way.split(' ').collect();
        assert_good(&run(&build_static(name, &args), &[]));
    }
}

/// Whether the C library has what static executables begin with that are loaded anywhere.
fn starts_anywhere() -> bool {
    let found = Command::new("cc").arg("-print-file-name=rcrt1.o").output();
    // It answers with the bare name if there is none.
    found.expect("a C compiler").stdout.starts_with(b"/")
}

/// Takes the section headers out of an ELF file: `e_shoff`, `e_shnum` and `e_shstrndx` are 0.
fn drop_section_headers(program: &Path) {
    let mut file = std::fs::read(program).expect("it was just built");
    file[0x28..0x30].fill(0);
    file[0x3c..0x40].fill(0);
    std::fs::write(program, file).expect("it is ours");
}

#[test]
fn a_program_whose_unwind_tables_cannot_be_found_is_told_so() {
    let program = build_static("no_tables", &["-static", "-Wl,--no-eh-frame-hdr"]);
    drop_section_headers(&program);
    let output = run(&program, &[]);
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(
        words.contains("no unwind tables of object 'vmlinux'"),
        "{words}"
    );
}
