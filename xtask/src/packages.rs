//! Debian's packages that a bare machine lacks.

use crate::run::{quiet, run};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

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
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        quiet(&mut install, log).context("packages can be installed by root only")?;
    }
    Ok(())
}
