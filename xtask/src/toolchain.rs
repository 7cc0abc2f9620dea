//! The oldest supported Rust, from Debian's packages, unpacked into target/.
//!
//! Debian 12 has Rust 1.85.0 with its sources, so `core` and `alloc` can be built for targets
//! without std, and with the flags of a kernel.

use crate::run::run;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = "1.85.0+dfsg3-1~deb12u3";
const ROOT: &str = "target/rust-1.85";
const PACKAGES: [&str; 4] = [
    "rustc-web",
    "libstd-rust-web-dev",
    "libstd-rust-web-1.85",
    "rust-web-src",
];

/// Debian's Rust 1.85.
pub(crate) struct Debian {
    usr: PathBuf,
}

impl Debian {
    pub(crate) fn rustc(&self) -> PathBuf {
        self.usr.join("bin/rustc")
    }

    /// The compiler's `LD_LIBRARY_PATH`.
    pub(crate) fn libraries(&self) -> String {
        format!(
            "{0}/lib/x86_64-linux-gnu:{0}/lib/llvm-19/lib",
            self.usr.display()
        )
    }

    /// The folder that holds `core/` and `alloc/`.
    pub(crate) fn library_sources(&self) -> PathBuf {
        self.usr.join("lib/rustlib/src/rust/library")
    }
}

/// The unpacked tool chain; fetched on first use.
pub(crate) fn debian() -> Result<Debian> {
    let root = std::path::absolute(ROOT)?;
    let debian = Debian {
        usr: root.join("usr"),
    };
    let done = root.join("complete");
    if done.exists() {
        return Ok(debian);
    }
    let packages = root.join("packages");
    std::fs::create_dir_all(&packages)?;
    let mut download = Command::new("apt-get");
    download
        .args(["download", "-qq", "libllvm19"])
        .current_dir(&packages);
    download.args(PACKAGES.map(|package| format!("{package}={VERSION}")));
    if run(&mut download).is_err() {
        // The package lists may be missing or old.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(&mut download)?;
    }
    unpack(&packages, &root)?;
    check(&root)?;
    std::fs::write(&done, VERSION)?;
    Ok(debian)
}

/// The same with the standard library for `target`, whose packages Debian calls `arch`.
pub(crate) fn for_target(arch: &str, target: &str) -> Result<Debian> {
    let debian = debian()?;
    if debian.usr.join("lib/rustlib").join(target).exists() {
        return Ok(debian);
    }
    let root = std::path::absolute(ROOT)?;
    let packages = root.join("packages");
    std::fs::create_dir_all(&packages)?;
    run(Command::new("dpkg").args(["--add-architecture", arch]))?;
    let mut download = Command::new("apt-get");
    download
        .args(["download", "-qq"])
        .arg(format!("libstd-rust-web-dev:{arch}={VERSION}"))
        .current_dir(&packages);
    if run(&mut download).is_err() {
        // The package lists may be missing or old. Of those of an architecture one may be broken
        // that is not needed: the download tells.
        let _ = run(Command::new("apt-get").args(["update", "-qq"]));
        run(&mut download)?;
    }
    unpack(&packages, &root)?;
    Ok(debian)
}

/// Unpacks all of `packages` into `root`, and removes them.
fn unpack(packages: &Path, root: &Path) -> Result<()> {
    for file in std::fs::read_dir(packages)? {
        run(Command::new("dpkg").arg("-x").arg(file?.path()).arg(root))?;
    }
    std::fs::remove_dir_all(packages).context("cannot remove the downloaded packages")
}

fn check(root: &Path) -> Result<()> {
    let rustc = root.join("usr/bin/rustc");
    let sources = root.join("usr/lib/rustlib/src/rust/library/core");
    for path in [&rustc, &sources] {
        if !path.exists() {
            bail!("{} is not in the unpacked packages", path.display());
        }
    }
    Ok(())
}
