//! `cargo xtask linux VERB`: the Linux kernel with its own livepatch code or with klp-core in its
//! place, built and run in QEMU.
//!
//! Everything that is needed is fetched once and kept under `target/linux` (or `KLP_LINUX_DIR`).
//! Files, in the order of the work: [`which`] says which kernel, [`supply`] fetches, [`tree`] lays
//! out sources, [`config`], [`seed`] and [`kernel`] build, [`modules`] builds test modules and [`built`] patches,
//! [`initramfs`] packs a guest, [`guest`] boots it and [`log`] judges what the kernel said.

mod bench;
mod built;
mod config;
mod guest;
mod initramfs;
mod kernel;
mod log;
mod modules;
mod relocs;
mod seed;
mod selftest;
mod stress;
mod supply;
mod tree;
mod which;
mod work;

use anyhow::Result;
use clap::Subcommand;
use which::{Engine, Kernel};

/// What to do with a kernel.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Build the kernel; incremental
    Build(Kernel),
    /// Boot the kernel and leave a shell on the terminal (end it with `exit`)
    Boot(Kernel),
    /// Run the kernel's own livepatch selftests, unmodified: 25 tests in seven scripts
    Selftest(Kernel),
    /// Load the livepatch sample of the kernel's tree, a patch with livepatch relocations before and
    /// after its target, and patches that klp-build makes
    Relocs(Kernel),
    /// Measure both kernels with the same modules and print one table: C, Rust, ratio
    Bench {
        /// Only this one, without a table
        #[arg(long)]
        engine: Option<Engine>,
    },
    /// Enable, disable, replace and reverse patches under load; watch for stalls, mixes of versions
    /// and leaks
    Stress {
        #[command(flatten)]
        kernel: Kernel,
        /// How many cycles, of four to ten transitions each
        #[arg(long, default_value_t = 500)]
        cycles: u32,
    },
}

pub(crate) fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Build(which) => kernel::build(which).map(|_| ()),
        Verb::Boot(which) => guest::shell(which, &kernel::build(which)?, modules::relocs(which)?),
        Verb::Selftest(which) => selftest::run(which),
        Verb::Relocs(which) => relocs::run(which),
        Verb::Bench { engine } => bench::run(engine),
        Verb::Stress { kernel, cycles } => stress::run(kernel, cycles),
    }
}

/// What every landing must pass with klp-core in the kernel: the kernel's selftests, livepatch
/// relocations, and a short stress.
pub(crate) fn landing() -> Result<()> {
    let which = Kernel::plain(Engine::Rust);
    selftest::run(which)?;
    relocs::run(which)?;
    stress::run(which, 20)
}
