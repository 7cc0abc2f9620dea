//! Compiles Lua with an entry pad in each function, and makes the patch that repairs it out of a
//! source diff.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let lua = lua_sources()?;
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

    let repaired = out.join(HOLED);
    let (source, diff) = (
        std::fs::read_to_string(&holed)?,
        std::fs::read_to_string(DIFF)?,
    );
    std::fs::write(
        &repaired,
        diffy::apply(&source, &diffy::Patch::from_str(&diff)?)?,
    )?;
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

/// The folder of Lua's sources in the crate lua-src.
fn lua_sources() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").context("no CARGO")?;
    let host = std::env::var("HOST")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--filter-platform", &host])
        .output()?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "lua-src" && package["version"] == "540.0.0")
        .and_then(|package| package["manifest_path"].as_str())
        .context("lua-src 540.0.0 is not among the dependencies")?;
    Ok(Path::new(manifest).with_file_name("lua-5.4.0"))
}
