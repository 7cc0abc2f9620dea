//! The oldest supported Rust, from Debian's packages, unpacked into target/.
//!
//! Debian 12 has Rust 1.85.0 with its sources, so `core` and `alloc` can be built for targets without std.

use crate::run::{cargo, run};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = "1.85.0+dfsg3-1~deb12u3";
const PACKAGES: [&str; 4] = ["rustc-web", "libstd-rust-web-dev", "libstd-rust-web-1.85", "rust-web-src"];
const CRATES: [&str; 2] = ["klp-core", "klp-arch-x86_64"];

/// Builds the published `no_std` crates with it.
pub(crate) fn build() -> Result<()> {
    let usr = tool_chain()?.join("usr");
    let libraries = format!("{0}/lib/x86_64-linux-gnu:{0}/lib/llvm-19/lib", usr.display());
    let mut build = cargo();
    build.args(["build", "--target", "x86_64-unknown-none", "-Zbuild-std=core,alloc", "--target-dir", "target/msrv"]);
    for package in CRATES {
        build.args(["--package", package]);
    }
    build.env("RUSTC", usr.join("bin/rustc")).env("RUSTC_BOOTSTRAP", "1").env("LD_LIBRARY_PATH", libraries);
    build.env("RUSTFLAGS", "-D warnings");
    run(&mut build)
}

/// The folder that holds the unpacked packages; fetched on first use.
fn tool_chain() -> Result<PathBuf> {
    let root = std::path::absolute("target/rust-1.85")?;
    let done = root.join("complete");
    if done.exists() {
        return Ok(root);
    }
    let packages = root.join("packages");
    std::fs::create_dir_all(&packages)?;
    let mut download = Command::new("apt-get");
    download.args(["download", "-qq", "libllvm19"]).current_dir(&packages);
    download.args(PACKAGES.map(|package| format!("{package}={VERSION}")));
    if run(&mut download).is_err() {
        // The package lists may be missing or old.
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(&mut download)?;
    }
    for file in std::fs::read_dir(&packages)? {
        run(Command::new("dpkg").arg("-x").arg(file?.path()).arg(&root))?;
    }
    check(&root)?;
    std::fs::write(&done, VERSION)?;
    Ok(root)
}

fn check(root: &Path) -> Result<()> {
    let rustc = root.join("usr/bin/rustc");
    let sources = root.join("usr/lib/rustlib/src/rust/library/core");
    for path in [&rustc, &sources] {
        if !path.exists() {
            bail!("{} is not in the unpacked packages", path.display());
        }
    }
    std::fs::remove_dir_all(root.join("packages")).context("cannot remove the downloaded packages")
}
