//! Compiles the library with entry pads, and makes the patch that repairs it out of a source diff of
//! the crate that it uses: with the names that rustc gives to functions by default, and the older
//! ones.

use anyhow::{Context, Result, ensure};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIFF: &str = "rust/rustsec-2021-0003.diff";

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("no OUT_DIR")?);
    let smallvec = klp_demo_sources::folder_of("smallvec", "0.6.10")?.join("lib.rs");
    for names in ["legacy", "v0"] {
        // Both builds are made at the same place, and named so: names of functions depend on it.
        let source = out.join("lib.rs");
        std::fs::copy(&smallvec, &source)?;
        let (original, library) = build(&out, &source, names)?;
        klp_build::apply(&std::fs::read(DIFF)?, 1, &out)?;
        let (patched, _) = build(&out.join("repaired"), &source, names)?;

        let object = format!("libnumbers_{names}");
        let mut patch = klp_build::PatchBuilder::new(&format!("numbers_{names}"));
        patch.object(&object)?;
        patch.target(klp_build::Target::read(&std::fs::read(&library)?)?);
        patch.pair(Path::new("numbers.o"), Some(&original), &patched)?;
        let built = patch.build()?;
        let path = out.join(format!("numbers_{names}.ko"));
        std::fs::write(&path, built.bytes)?;
        let variable = format!("KLP_DEMO_NUMBERS_{}", names.to_uppercase());
        println!("cargo:rustc-env={variable}={}", library.display());
        println!("cargo:rustc-env={variable}_PATCH={}", path.display());
        let functions = built.functions.join(" ");
        println!("cargo:rustc-env={variable}_FUNCTIONS={functions}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=rust");
    Ok(())
}

/// Compiles smallvec, and the library with it, into `folder`. Returns the object file, and the
/// library's path.
fn build(folder: &Path, smallvec: &Path, names: &str) -> Result<(Vec<u8>, PathBuf)> {
    std::fs::create_dir_all(folder)?;
    let [crate_of_it, object, library] = [
        "libsmallvec.rlib".to_owned(),
        format!("numbers_{names}.o"),
        format!("libnumbers_{names}.so"),
    ]
    .map(|name| folder.join(name));
    let mut first = rustc(names)?;
    first
        .args([
            "--crate-name=smallvec",
            "--crate-type=rlib",
            "--edition=2015",
        ])
        .args(["--cap-lints=allow", "-o"])
        .args([&crate_of_it, smallvec]);
    run(&mut first)?;
    let mut uses = OsStr::new("smallvec=").to_owned();
    uses.push(&crate_of_it);
    let emit = |kind: &str, path: &Path| format!("--emit={kind}={}", path.display());
    let mut second = rustc(names)?;
    second
        .args([
            "--crate-name=numbers",
            "--crate-type=cdylib",
            "--edition=2024",
        ])
        .args([emit("obj", &object), emit("link", &library)])
        .arg("--extern")
        .arg(&uses)
        .arg("rust/numbers.rs");
    run(&mut second)?;
    Ok((std::fs::read(object)?, library))
}

/// The compiler, for a library that can be patched.
fn rustc(names: &str) -> Result<Command> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("no {name}"));
    // Room for a call; on x86-64, in bytes.
    let pad = match &*variable("CARGO_CFG_TARGET_ARCH")? {
        "x86_64" => 16,
        _ => 2,
    };
    let mut rustc = Command::new(variable("RUSTC")?);
    rustc
        .env("RUSTC_BOOTSTRAP", "1")
        .args([
            "-O",
            "-Cpanic=unwind",
            "-Ccodegen-units=1",
            "-Zunstable-options",
        ])
        .arg(format!("-Zpatchable-function-entry={pad}"))
        .arg(format!("-Csymbol-mangling-version={names}"))
        .arg(format!("--target={}", variable("TARGET")?));
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    Ok(rustc)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}
