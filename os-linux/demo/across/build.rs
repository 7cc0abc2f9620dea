//! Compiles a shared library with functions to be patched, a third object that they call, and the
//! patch object that replaces them.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=c");
    println!(
        "cargo::rerun-if-changed={}",
        klp_build::include_dir().display()
    );
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    // On ppc64le, what this is about is code that finds its data from register 2. There, GCC 12 puts
    // pads where local calls do not come by, so the entries are those of a profiler.
    let (entries, code): (&[&str], &[&str]) = match arch.as_str() {
        "powerpc64" => (&["-pg", "-mprofile-kernel"], &["-mcpu=power8"]),
        _ => (&["-fpatchable-function-entry=16"], &[]),
    };
    let third = out.join("libacross_third.so");
    compile(&third, "third.c", &["-shared"], code);
    let flags = [entries, &["-shared", "-fno-ipa-ra", "-Wl,-rpath,$ORIGIN"]].concat();
    let target = out.join("libacross.so");
    compile(
        &target,
        "target.c",
        &[&flags[..], &[&third.to_string_lossy()]].concat(),
        code,
    );
    let object = out.join("fix.o");
    let include = klp_build::include_dir();
    let flags = [
        "-c",
        "-ffunction-sections",
        "-I",
        &include.to_string_lossy(),
    ];
    compile(&object, "fix.c", &flags, code);
    let patch = klp_build::convert(&std::fs::read(object).expect("just written"));
    let path = out.join("across_fix.ko");
    std::fs::write(&path, patch.expect("it converts")).expect("OUT_DIR can be written");
    for (name, file) in [("TARGET", target), ("THIRD", third), ("FIX", path)] {
        println!("cargo::rustc-env=KLP_ACROSS_{name}={}", file.display());
    }
}

fn compile(to: &Path, source: &str, flags: &[&str], code: &[&str]) {
    let mut compiler: Command = cc::Build::new().get_compiler().to_command();
    compiler
        .args(["-O2", "-fPIC", "-Wall", "-Werror"])
        .args(code);
    compiler
        .arg("-o")
        .arg(to)
        .arg(Path::new("c").join(source))
        .args(flags);
    let status = compiler.status();
    assert!(status.is_ok_and(|status| status.success()), "{source}");
}
