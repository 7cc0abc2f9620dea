//! The source trees: the unmodified one, and a copy in which klp-core takes the place of
//! `kernel/livepatch`.

use super::supply;
use super::which::Engine;
use super::work::{dir, step};
use crate::run::{cargo, quiet, run};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of this repository that becomes `kernel/livepatch`.
const OURS: &str = "os-linux/kernel";

/// The tree from which a kernel with `engine` is built.
pub(super) fn of(engine: Engine) -> Result<PathBuf> {
    let source = supply::source()?;
    match engine {
        Engine::C => Ok(source),
        Engine::Rust => overlay(&source),
    }
}

/// Hard links to the unmodified source, with our patches applied and our files in place of
/// `kernel/livepatch`.
///
/// It is made anew when a patch or the source has changed. Unpatched files keep their times, so
/// that little is recompiled.
fn overlay(source: &Path) -> Result<PathBuf> {
    let tree = dir("src-rust")?;
    let patches = patches()?;
    let mut made_from = format!("{}\n", source.display());
    for patch in &patches {
        made_from += &std::fs::read_to_string(patch)?;
    }
    let stamp = tree.join("klp-overlay");
    if !std::fs::read_to_string(&stamp).is_ok_and(|old| old == made_from) {
        step("copy the source and patch the copy", || {
            if tree.exists() {
                std::fs::remove_dir_all(&tree)?;
            }
            copy(source, &tree)?;
            for patch in &patches {
                let mut apply = Command::new("patch");
                apply
                    .args(["-p1", "--no-backup-if-mismatch", "--input"])
                    .arg(patch)
                    .current_dir(&tree);
                quiet(&mut apply, &dir("patch.log")?)?;
            }
            Ok(std::fs::write(&stamp, &made_from)?)
        })?;
    }
    link_ours(&tree.join("kernel/livepatch"))?;
    Ok(tree)
}

/// Our changes to other parts of the kernel, in the order of their names.
fn patches() -> Result<Vec<PathBuf>> {
    let mut patches = Vec::new();
    for file in std::fs::read_dir(OURS).with_context(|| format!("there is no {OURS} here"))? {
        let path = std::path::absolute(file?.path())?;
        if path.extension() == Some(OsStr::new("patch")) {
            patches.push(path);
        }
    }
    patches.sort();
    Ok(patches)
}

/// Makes the files of the overlay that our patches change newer than anything that was built until
/// now.
pub(super) fn touch_patched(tree: &Path) -> Result<()> {
    for patch in patches()? {
        let patch = std::fs::read_to_string(patch)?;
        for name in patch.lines().filter_map(|line| line.strip_prefix("+++ b/")) {
            let file = std::fs::File::options()
                .append(true)
                .open(tree.join(name))
                .with_context(|| name.to_owned())?;
            file.set_modified(std::time::SystemTime::now())?;
        }
    }
    Ok(())
}

fn copy(source: &Path, tree: &Path) -> Result<()> {
    let mut link = Command::new("cp");
    let log = dir("copy.log")?;
    if quiet(link.arg("-al").arg(source).arg(tree), &log).is_ok() {
        return Ok(());
    }
    // Another file system.
    let _ = std::fs::remove_dir_all(tree);
    quiet(
        Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .arg(source)
            .arg(tree),
        &log,
    )
}

/// Fills `kernel/livepatch` with links to our files; of the kernel's own, Kconfig stays.
fn link_ours(folder: &Path) -> Result<()> {
    for file in std::fs::read_dir(folder)? {
        let path = file?.path();
        if path.file_name() != Some(OsStr::new("Kconfig")) {
            if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir_all(path)?;
            } else {
                std::fs::remove_file(path)?;
            }
        }
    }
    for file in std::fs::read_dir(OURS)? {
        let path = std::path::absolute(file?.path())?;
        let name = path
            .file_name()
            .context("a folder lists files with names")?;
        symlink(&path, folder.join(name))?;
    }
    symlink(std::path::absolute("klp-core")?, folder.join("klp-core"))?;
    let vendor = folder.join("vendor");
    std::fs::create_dir(&vendor)?;
    for (name, source) in dependencies()? {
        symlink(source, vendor.join(name))?;
    }
    Ok(())
}

/// The crates that klp-core is built from, by name, and where cargo keeps their sources.
fn dependencies() -> Result<Vec<(String, PathBuf)>> {
    run(cargo().args(["fetch", "--locked", "--quiet"]))?;
    let listed = output(cargo().args([
        "tree",
        "--package",
        "klp-core",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]))?;
    let metadata = output(cargo().args(["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&metadata).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let mut found = Vec::new();
    for line in listed.lines() {
        let mut words = line.split(' ');
        let (Some(name), Some(version)) = (
            words.next(),
            words.next().and_then(|word| word.strip_prefix('v')),
        ) else {
            bail!("cargo tree wrote {line:?}");
        };
        let is_it =
            |package: &&serde_json::Value| package["name"] == name && package["version"] == version;
        let package = packages
            .iter()
            .find(is_it)
            .with_context(|| format!("cargo metadata lacks {line}"))?;
        let manifest = package["manifest_path"]
            .as_str()
            .context("a package without a manifest")?;
        let folder = Path::new(manifest)
            .parent()
            .context("a manifest without a folder")?;
        if name != "klp-core" && !found.iter().any(|(known, _)| known == name) {
            found.push((name.to_owned(), folder.to_owned()));
        }
    }
    Ok(found)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}
