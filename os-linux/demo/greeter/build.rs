//! Compiles the functions, with entry pads, and the patch object that corrects them.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("no OUT_DIR")?);
    cc::Build::new()
        .file("c/greeter.c")
        .opt_level(2)
        .flags([
            "-fpatchable-function-entry=16",
            "-fno-ipa-ra",
            "-fno-function-sections",
        ])
        .try_compile("klp-demo-greeter")?;

    let mut fix = cc::Build::new();
    fix.file("c/fix.c")
        .include(klp_build::include_dir())
        .opt_level(2)
        .pic(true)
        .flag("-ffunction-sections");
    let objects = fix.try_compile_intermediates()?;
    ensure!(
        objects.len() == 1,
        "one source, but {} object files",
        objects.len()
    );
    let path = out.join("greeter_fix.ko");
    std::fs::write(&path, klp_build::convert(&std::fs::read(&objects[0])?)?)?;
    println!("cargo:rustc-env=KLP_DEMO_GREETER_PATCH={}", path.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=c");
    println!(
        "cargo:rerun-if-changed={}",
        klp_build::include_dir().display()
    );
    Ok(())
}
