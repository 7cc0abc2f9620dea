//! Compiles the library with entry pads, and makes the patch that repairs it out of a source diff.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

const SOURCES: [&str; 2] = ["check.cpp", "meter.cpp"];

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("no OUT_DIR")?);
    let original = Path::new("c");
    compiler()
        .flags(["-fpatchable-function-entry=16", "-fno-function-sections"])
        .files(SOURCES.map(|name| original.join(name)))
        .try_compile("klp-demo-meter")?;

    let repaired = out.join("repaired");
    std::fs::create_dir_all(&repaired)?;
    for name in SOURCES.iter().chain(&["meter.h"]) {
        std::fs::copy(original.join(name), repaired.join(name))?;
    }
    klp_build::apply(&std::fs::read("c/overflow.diff")?, 1, &repaired)?;
    let mut patch = klp_build::PatchBuilder::new("meter_overflow");
    let objects = objects(original)?.into_iter().zip(objects(&repaired)?);
    for (name, (original, patched)) in SOURCES.iter().zip(objects) {
        let (original, patched) = (std::fs::read(original)?, std::fs::read(patched)?);
        patch.pair(Path::new(name), Some(&original), &patched)?;
    }
    let path = out.join("meter_overflow.ko");
    std::fs::write(&path, patch.build()?.bytes)?;
    println!("cargo:rustc-env=KLP_DEMO_METER_PATCH={}", path.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=c");
    Ok(())
}

/// Compiles the sources in `folder` to be compared.
fn objects(folder: &Path) -> Result<Vec<PathBuf>> {
    let objects = compiler()
        .flags(["-ffunction-sections", "-fdata-sections"])
        .files(SOURCES.map(|name| folder.join(name)))
        .try_compile_intermediates()?;
    ensure!(objects.len() == SOURCES.len(), "{objects:?}");
    Ok(objects)
}

fn compiler() -> cc::Build {
    let mut cc = cc::Build::new();
    cc.cpp(true)
        .std("c++17")
        .opt_level(2)
        .flag_if_supported("-fno-ipa-ra");
    cc
}
