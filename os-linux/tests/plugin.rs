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

/// Builds the program, with `args` for the compiler; and runs it.
fn build_and_run(name: &str, args: &[&str], given: &[&Path]) -> Output {
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
    let output = Command::new(&program)
        .args(given)
        .arg(host::FIX)
        .output()
        .expect("it runs");
    std::fs::remove_file(&program).expect("it is ours");
    output
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
    assert_good(&build_and_run(
        "dlopen",
        &["-ldl"],
        &[&plugin("libplugin.so")],
    ));
}
