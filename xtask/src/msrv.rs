//! The published `no_std` crates with the oldest supported Rust.

use crate::run::{cargo, run};
use crate::toolchain;
use anyhow::Result;

const CRATES: [&str; 6] = [
    "klp-core",
    "klp-unwind",
    "klp-ed25519",
    "klp-arch-x86_64",
    "klp-arch-aarch64",
    "klp-arch-ppc64le",
];

/// Builds them for a target without std.
pub(crate) fn build() -> Result<()> {
    let rust = toolchain::debian()?;
    let mut build = cargo();
    build.args([
        "build",
        "--target",
        "x86_64-unknown-none",
        "-Zbuild-std=core,alloc",
        "--target-dir",
        "target/msrv",
    ]);
    for package in CRATES {
        build.args(["--package", package]);
    }
    build
        .env("RUSTC", rust.rustc())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("LD_LIBRARY_PATH", rust.libraries());
    build.env("RUSTFLAGS", "-D warnings");
    run(&mut build)
}
