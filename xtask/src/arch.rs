//! Tests for other processors on this machine: built by the oldest supported Rust, run by QEMU.

mod boot;

use crate::packages;
use crate::run::{cargo, run};
use crate::toolchain;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// A processor, and what Debian calls things for it.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Arch {
    /// AArch64
    Aarch64,
}

/// Crates that have something to test there.
const CRATES: [&str; 3] = ["klp-core", "klp-unwind", "klp-arch-aarch64"];

/// Builds and runs their tests.
pub(crate) fn test(arch: Arch) -> Result<()> {
    let Arch::Aarch64 = arch;
    let (debian, gnu) = ("arm64", "aarch64-linux-gnu");
    let target = "aarch64-unknown-linux-gnu";
    std::fs::create_dir_all("target")?;
    packages::install(
        &[
            "gcc-aarch64-linux-gnu",
            "g++-aarch64-linux-gnu",
            "libc6-dev-arm64-cross",
            "qemu-user",
        ],
        Path::new("target/arch-apt.log"),
    )?;
    let rust = toolchain::for_target(debian, target)?;
    let variable = target.to_uppercase().replace('-', "_");
    // Some tests compile C.
    let runner = format!("env CC={gnu}-gcc qemu-aarch64 -L /usr/{gnu}");
    let cross = |verb: &str| -> Command {
        let mut command = cargo();
        command.args([verb, "--target", target, "--target-dir", "target/arch"]);
        command
            .env(
                format!("CARGO_TARGET_{variable}_LINKER"),
                format!("{gnu}-gcc"),
            )
            .env(format!("CARGO_TARGET_{variable}_RUNNER"), &runner)
            .env("RUSTC", rust.rustc())
            .env("LD_LIBRARY_PATH", rust.libraries());
        command
    };
    let mut all = cross("test");
    all.args(["--lib", "--tests"]);
    for package in CRATES {
        all.args(["--package", package]);
    }
    run(&mut all)?;
    // Those of the entry stub once more on a machine without SVE.
    run(cross("test")
        .args(["--lib", "--package", "klp-arch-aarch64", "stub"])
        .env("QEMU_CPU", "cortex-a57"))?;
    boot::test(&cross)
}
