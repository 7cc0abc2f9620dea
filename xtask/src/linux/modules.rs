//! Modules for the guests, built against the headers of the unmodified tree, whichever kernel they
//! are loaded into.

use super::which::Kernel;
use super::work::{dir, step};
use super::{kernel, supply};
use crate::run::{cargo, quiet};
use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the kernel's livepatch selftests, with its modules and its program built.
pub(super) fn selftests(which: Kernel) -> Result<PathBuf> {
    let headers = kernel::headers(which)?;
    let folder = dir(&format!("selftests{}", which.suffix()))?;
    copy(
        &supply::source()?.join("tools/testing/selftests/livepatch"),
        &folder,
    )?;
    step("build the modules of the selftests", || {
        quiet(
            &mut headers.modules(&folder.join("test_modules")),
            &folder.with_extension("log"),
        )?;
        let mut compile = Command::new("gcc");
        compile
            .arg("-O2")
            .arg(folder.join("test_klp-call_getpid.c"))
            .arg("-o")
            .arg(folder.join("test_klp-call_getpid"));
        quiet(&mut compile, &folder.with_extension("gcc.log"))
    })?;
    Ok(folder)
}

/// Our own modules, as files for a guest's job.
pub(super) fn ours(which: Kernel) -> Result<Vec<(String, PathBuf)>> {
    let headers = kernel::headers(which)?;
    let folder = dir(&format!("modules{}", which.suffix()))?;
    copy(
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/linux/modules")),
        &folder,
    )?;
    step("build the modules for measurements and stress", || {
        quiet(&mut headers.modules(&folder), &folder.with_extension("log"))
    })?;
    let mut files = Vec::new();
    for module in with_ending(&folder, "ko")? {
        let name = module.file_name().context("a module without a name")?;
        files.push((format!("job/{}", name.to_string_lossy()), module.clone()));
    }
    Ok(files)
}

/// The livepatch sample of the kernel's tree, and our modules with livepatch relocations, as files
/// for a guest's job.
pub(super) fn relocs(which: Kernel) -> Result<Vec<(String, PathBuf)>> {
    let headers = kernel::headers(which)?;
    let folder = dir(&format!("relocs{}", which.suffix()))?;
    copy(Path::new("os-linux/kernel/tests"), &folder)?;
    let sample = supply::source()?.join("samples/livepatch/livepatch-sample.c");
    std::fs::copy(sample, folder.join("livepatch_sample.c"))?;
    std::fs::write(
        folder.join("Makefile"),
        "obj-m += livepatch_sample.o klp_rela_target.o klp_rela_patch.o\n",
    )?;
    step(
        "build the livepatch sample and the modules with livepatch relocations",
        || {
            let log = folder.with_extension("log");
            // modpost does not know livepatch symbols; klp-convert makes them what the module
            // loader knows.
            quiet(headers.modules(&folder).arg("KBUILD_MODPOST_WARN=1"), &log)?;
            let mut convert = cargo();
            convert.args([
                "run",
                "--quiet",
                "--package",
                "klp-build",
                "--bin",
                "klp-convert",
                "--",
            ]);
            convert
                .arg(folder.join("klp_rela_patch.ko"))
                .arg(folder.join("converted"));
            quiet(&mut convert, &folder.with_extension("convert.log"))
        },
    )?;
    Ok(vec![
        (
            "job/livepatch_sample.ko".into(),
            folder.join("livepatch_sample.ko"),
        ),
        (
            "job/klp_rela_target.ko".into(),
            folder.join("klp_rela_target.ko"),
        ),
        ("job/klp_rela_patch.ko".into(), folder.join("converted")),
    ])
}

/// Copies what is newer than the copy.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    let mut copy = Command::new("cp");
    quiet(
        copy.args(["-r", "--update", "--preserve=timestamps"])
            .arg(from.join("."))
            .arg(to),
        &to.with_extension("copy.log"),
    )
}

/// The files in `folder` with an ending, by name.
pub(super) fn with_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for file in
        std::fs::read_dir(folder).with_context(|| format!("there is no {}", folder.display()))?
    {
        let path = file?.path();
        if path.extension() == Some(OsStr::new(ending)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
