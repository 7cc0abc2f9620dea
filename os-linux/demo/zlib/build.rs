//! Compiles zlib with an entry pad in each function, and makes the patch that repairs it out of a
//! source diff: of all its files, as the diff changes a header, too.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// What repairs it.
const DIFF: &str = "c/cve-2022-37434.diff";

/// The library, without what reads and writes files.
const ZLIB: [&str; 10] = [
    "adler32.c",
    "compress.c",
    "crc32.c",
    "deflate.c",
    "inffast.c",
    "inflate.c",
    "inftrees.c",
    "trees.c",
    "uncompr.c",
    "zutil.c",
];

/// Headers of its own.
const HEADERS: [&str; 10] = [
    "crc32.h",
    "deflate.h",
    "gzguts.h",
    "inffast.h",
    "inffixed.h",
    "inflate.h",
    "inftrees.h",
    "trees.h",
    "zconf.h",
    "zlib.h",
];

fn main() -> Result<()> {
    let zlib = klp_demo_sources::folder_of("libz-sys", "1.1.8")?.join("src/zlib");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("no OUT_DIR")?);
    // GCC 12 ties the pads of a file to the section of its first function, which the linker may
    // drop: so one section for all.
    compiler(&zlib)
        .flags(["-fpatchable-function-entry=16", "-fno-function-sections"])
        .files(ZLIB.map(|name| zlib.join(name)))
        .try_compile("klp-demo-zlib")?;

    let repaired = out.join("repaired");
    std::fs::create_dir_all(&repaired)?;
    for name in ZLIB.iter().chain(&HEADERS).chain(&["zutil.h"]) {
        std::fs::copy(zlib.join(name), repaired.join(name))?;
    }
    klp_build::apply(&std::fs::read(DIFF)?, 1, &repaired)?;
    let mut patch = klp_build::PatchBuilder::new("zlib_cve_2022_37434");
    let (original, patched) = (objects(&zlib)?, objects(&repaired)?);
    for ((name, original), patched) in ZLIB.iter().zip(original).zip(patched) {
        let (original, patched) = (std::fs::read(original)?, std::fs::read(patched)?);
        patch.pair(Path::new(name), Some(&original), &patched)?;
    }
    let path = out.join("zlib_cve_2022_37434.ko");
    let built = patch.build()?;
    std::fs::write(&path, built.bytes)?;
    println!("cargo:rustc-env=KLP_DEMO_ZLIB_PATCH={}", path.display());
    let functions = built.functions.join(" ");
    println!("cargo:rustc-env=KLP_DEMO_ZLIB_FUNCTIONS={functions}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={DIFF}");
    Ok(())
}

/// Compiles the sources in `folder` to be compared: each function and each variable in a section of
/// its own.
fn objects(folder: &Path) -> Result<Vec<PathBuf>> {
    let objects = compiler(folder)
        .flags(["-ffunction-sections", "-fdata-sections"])
        .files(ZLIB.map(|name| folder.join(name)))
        .try_compile_intermediates()?;
    ensure!(objects.len() == ZLIB.len(), "{objects:?}");
    Ok(objects)
}

/// Compiles zlib; with `BUILDFIXED`, it keeps tables in static variables of a function.
fn compiler(folder: &Path) -> cc::Build {
    let mut cc = cc::Build::new();
    cc.include(folder)
        .define("BUILDFIXED", None)
        .opt_level(2)
        .debug(true)
        .warnings(false)
        .flag("-fno-ipa-ra");
    cc
}
