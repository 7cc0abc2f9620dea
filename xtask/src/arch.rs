//! Tests for other processors on this machine: built by the oldest supported Rust, run by QEMU.

use crate::packages;
use crate::run::{cargo, run};
use crate::toolchain;
use anyhow::Result;
use std::path::Path;

/// A processor, and what Debian calls things for it.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Arch {
    /// AArch64
    Aarch64,
    /// ppc64le, little-endian OpenPOWER
    Ppc64le,
}

/// What is called how for it.
struct Names {
    debian: &'static str,
    gnu: &'static str,
    rust: &'static str,
    compiler: &'static str,
    qemu: &'static str,
    ours: &'static str,
    /// What the oldest supported Rust must be told of this processor.
    unstable: Option<&'static str>,
}

impl Arch {
    const fn names(self) -> Names {
        match self {
            Self::Aarch64 => Names {
                debian: "arm64",
                gnu: "aarch64-linux-gnu",
                rust: "aarch64-unknown-linux-gnu",
                compiler: "gcc-aarch64-linux-gnu",
                qemu: "qemu-aarch64",
                ours: "klp-arch-aarch64",
                unstable: None,
            },
            Self::Ppc64le => Names {
                debian: "ppc64el",
                gnu: "powerpc64le-linux-gnu",
                rust: "powerpc64le-unknown-linux-gnu",
                compiler: "gcc-powerpc64le-linux-gnu",
                qemu: "qemu-ppc64le -cpu power10",
                ours: "klp-arch-ppc64le",
                // Assembly is stable since 1.95.
                unstable: Some("-Zcrate-attr=feature(asm_experimental_arch)"),
            },
        }
    }
}

/// Builds and runs the tests of the crates that have something to test there.
pub(crate) fn test(arch: Arch) -> Result<()> {
    let names = arch.names();
    let (gnu, target) = (names.gnu, names.rust);
    std::fs::create_dir_all("target")?;
    let library = format!("libc6-dev-{}-cross", names.debian);
    packages::install(
        &[names.compiler, &library, "qemu-user"],
        Path::new("target/arch-apt.log"),
    )?;
    let rust = toolchain::for_target(names.debian, target)?;
    let mut test = cargo();
    test.args(["test", "--target", target, "--target-dir", "target/arch"]);
    test.args(["--lib", "--tests"]);
    for package in ["klp-core", "klp-unwind", names.ours] {
        test.args(["--package", package]);
    }
    let variable = target.to_uppercase().replace('-', "_");
    test.env(
        format!("CARGO_TARGET_{variable}_LINKER"),
        format!("{gnu}-gcc"),
    )
    .env(
        format!("CARGO_TARGET_{variable}_RUNNER"),
        format!("{} -L /usr/{gnu}", names.qemu),
    )
    .env("RUSTC", rust.rustc())
    .env("LD_LIBRARY_PATH", rust.libraries());
    if let Some(flags) = names.unstable {
        test.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags);
    }
    run(&mut test)
}
