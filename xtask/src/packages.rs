//! Debian's packages that a bare machine lacks.

use crate::run::{quiet, run};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Installs those of `packages` that are missing; what apt-get says goes to `log`.
pub(crate) fn install(packages: &[&str], log: &Path) -> Result<()> {
    let status = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${Status}\n"])
        .args(packages)
        .output()?;
    let status = String::from_utf8_lossy(&status.stdout);
    let installed = |package: &&&str| {
        status
            .lines()
            .any(|line| line == format!("{package} install ok installed"))
    };
    let missing: Vec<_> = packages
        .iter()
        .filter(|package| !installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: install {missing:?}");
    let mut install = Command::new("apt-get");
    install
        .args(["install", "--yes", "-qq", "--no-install-recommends"])
        .args(&missing);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    if quiet(&mut install, log).is_err() {
        // The package lists may be missing or old.
        update();
        quiet(&mut install, log).context("packages can be installed by root only")?;
    }
    Ok(())
}

/// Brings the lists of packages up to date, as far as that works: a mirror may just be changing.
/// What is missing then is noticed by who asks for it.
pub(crate) fn update() {
    const TRIES: u32 = 3;
    for tried in 1..=TRIES {
        match run(Command::new("apt-get").args(["update", "-qq"])) {
            Ok(()) => return,
            Err(error) if tried < TRIES => {
                eprintln!("xtask: {error}; trying again");
                std::thread::sleep(Duration::from_secs(20));
            }
            Err(error) => eprintln!("xtask: {error}; going on with older lists"),
        }
    }
}

/// What `package`, of which the processor is said (`gcc:arm64`), depends on; with `all`, directly or
/// not, as far as it is for the same processor.
pub(crate) fn depends(package: &str, all: bool) -> Result<Vec<String>> {
    let mut depends = Command::new("apt-cache");
    depends.args(["depends", "--important"]);
    if all {
        depends.arg("--recurse");
    }
    let output = depends.arg(package).output()?;
    let (_, processor) = package.split_once(':').unwrap_or_default();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let named = output.lines().filter_map(|line| match all {
        true => line.strip_suffix(processor)?.ends_with(':').then_some(line),
        false => line.trim().strip_prefix("Depends: "),
    });
    let named = named.filter(|line| !line.starts_with([' ', '|']) && !line.contains('<'));
    Ok(named.map(str::to_owned).collect())
}

/// Downloads `packages` into `folder`.
pub(crate) fn download(packages: &[String], folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut download = Command::new("apt-get");
    download.args(["download", "-qq"]).args(packages);
    download.current_dir(folder);
    if run(&mut download).is_err() {
        // The package lists may be missing or old.
        update();
        run(&mut download)?;
    }
    Ok(())
}

/// Has Debian's packages for the processor that it calls `architecture` among those that can be
/// downloaded.
pub(crate) fn add_architecture(architecture: &str) -> Result<()> {
    let known = Command::new("dpkg")
        .arg("--print-foreign-architectures")
        .output()?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    if !known.lines().any(|line| line == architecture) {
        run(Command::new("dpkg").args(["--add-architecture", architecture]))?;
        update();
    }
    Ok(())
}
