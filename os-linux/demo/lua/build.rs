//! Compiles Lua with an entry pad in each function, and makes the patch that repairs it out of a
//! source diff.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// Room at the entry of each function in which a call can be redirected, and callers that do not
/// rely on what the old version of a function happens to leave alone. GCC 12 ties the pads of a
/// file to the section of its first function, which the linker may drop: so one section for all.
const PATCHABLE: [&str; 3] = [
    "-fpatchable-function-entry=16",
    "-fno-ipa-ra",
    "-fno-function-sections",
];

/// The file with the hole.
const HOLED: &str = "ldebug.c";

/// What repairs it.
const DIFF: &str = "c/cve-2020-24370.diff";

/// There, local functions stay functions, so that tests can call them.
const IN_HOLED: [&str; 2] = [
    "-fno-inline-functions-called-once",
    "-fno-inline-small-functions",
];

/// Lua's library, but for `ldebug`, in which the hole is.
const LUA: [&str; 31] = [
    "lapi", "lauxlib", "lbaselib", "lcode", "lcorolib", "lctype", "ldblib", "ldo", "ldump",
    "lfunc", "lgc", "linit", "liolib", "llex", "lmathlib", "lmem", "loadlib", "lobject",
    "lopcodes", "loslib", "lparser", "lstate", "lstring", "lstrlib", "ltable", "ltablib", "ltm",
    "lundump", "lutf8lib", "lvm", "lzio",
];

fn main() -> Result<()> {
    let lua = klp_demo_sources::folder_of("lua-src", "540.0.0")?.join("lua-5.4.0");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("no OUT_DIR")?);

    let holed = lua.join(HOLED);
    let holed_object = compiler(&lua)
        .flags(PATCHABLE)
        .flags(IN_HOLED)
        .file(&holed)
        .try_compile_intermediates()?;
    compiler(&lua)
        .flags(PATCHABLE)
        .files(LUA.map(|name| lua.join(name).with_extension("c")))
        .objects(holed_object)
        .try_compile("klp-demo-lua")?;
    println!("cargo:rustc-link-lib=m");
    println!("cargo:rustc-link-lib=dl");

    std::fs::copy(&holed, out.join(HOLED))?;
    klp_build::apply(&std::fs::read(DIFF)?, 1, &out)?;
    let repaired = out.join(HOLED);
    let mut patch = klp_build::PatchBuilder::new("lua_cve_2020_24370");
    let (original, patched) = (object(&lua, &holed)?, object(&lua, &repaired)?);
    patch.pair(Path::new(HOLED), Some(&original), &patched)?;
    let path = out.join("lua_cve_2020_24370.ko");
    std::fs::write(&path, patch.build()?.bytes)?;
    println!("cargo:rustc-env=KLP_DEMO_LUA_PATCH={}", path.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={DIFF}");
    Ok(())
}

/// Compiles the file with the hole, or without it, to be compared: each function and each variable
/// in a section of its own.
fn object(lua: &Path, source: &Path) -> Result<Vec<u8>> {
    let objects = compiler(lua)
        .flags(IN_HOLED)
        .flags(["-fno-ipa-ra", "-fdata-sections"])
        .file(source)
        .try_compile_intermediates()?;
    let [object] = &objects[..] else {
        bail!("one source, but {} object files", objects.len())
    };
    Ok(std::fs::read(object)?)
}

fn compiler(lua: &Path) -> cc::Build {
    let mut cc = cc::Build::new();
    cc.include(lua)
        .define("LUA_USE_LINUX", None)
        .opt_level(2)
        .debug(true)
        .warnings(false)
        .flag("-ffunction-sections");
    cc
}
