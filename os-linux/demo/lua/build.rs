//! Compiles Lua with an entry pad in each function, and the patch object that repairs it.

use anyhow::{Context, Result, ensure};
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

    // Where the hole is, local functions stay functions, so that the patch can call them.
    let holed = compiler(&lua)
        .flags(PATCHABLE)
        .flag("-fno-inline-functions-called-once")
        .flag("-fno-inline-small-functions")
        .file(lua.join("ldebug.c"))
        .try_compile_intermediates()?;
    compiler(&lua)
        .flags(PATCHABLE)
        .files(LUA.map(|name| lua.join(name).with_extension("c")))
        .objects(holed)
        .try_compile("klp-demo-lua")?;
    println!("cargo:rustc-link-lib=m");
    println!("cargo:rustc-link-lib=dl");

    let objects = compiler(&lua)
        .file("c/fix.c")
        .include(klp_build::include_dir())
        .pic(true)
        .try_compile_intermediates()?;
    let [object] = &objects[..] else {
        anyhow::bail!("one source, but {} object files", objects.len())
    };
    let patch = klp_build::convert(&std::fs::read(object)?)?;
    let path = out.join("lua_cve_2020_24370.ko");
    std::fs::write(&path, patch)?;
    println!("cargo:rustc-env=KLP_DEMO_LUA_PATCH={}", path.display());
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=c/fix.c");
    println!(
        "cargo:rerun-if-changed={}",
        klp_build::include_dir().display()
    );
    Ok(())
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
