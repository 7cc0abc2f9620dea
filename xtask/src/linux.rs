//! `cargo xtask linux VERB`: the Linux kernel with its own livepatch code or with klp-core in its place, built and run in QEMU.
//!
//! Everything that is needed is fetched once and kept under `target/linux` (or `KLP_LINUX_DIR`). Files, in the order of the
//! work: [`supply`] fetches, [`tree`] lays out sources, [`config`], [`seed`] and [`kernel`] build, [`modules`] builds test modules,
//! [`initramfs`] packs a guest, [`guest`] boots it and [`log`] judges what the kernel said.

mod bench;
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

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

/// What to do with a kernel.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Build the kernel; incremental
    Build(Kernel),
    /// Boot the kernel and leave a shell on the terminal (end it with `exit`)
    Boot(Kernel),
    /// Run the kernel's own livepatch selftests, unmodified: 25 tests in seven scripts
    Selftest(Kernel),
    /// Load the livepatch sample of the kernel's tree, and a patch with livepatch relocations before and after its target
    Relocs(Kernel),
    /// Measure both kernels with the same modules and print one table: C, Rust, ratio
    Bench {
        /// Only this one, without a table
        #[arg(long)]
        engine: Option<Engine>,
    },
    /// Enable, disable, replace and reverse patches under load; watch for stalls, mixes of versions and leaks
    Stress {
        #[command(flatten)]
        kernel: Kernel,
        /// How many cycles, of four to ten transitions each
        #[arg(long, default_value_t = 500)]
        cycles: u32,
    },
}

/// Which kernel.
#[derive(Parser, Clone, Copy)]
pub(crate) struct Kernel {
    /// The livepatch implementation in it
    #[arg(long)]
    engine: Engine,
    /// With lockdep, RCU and sleep checks, KASAN, DEBUG_OBJECTS and KFENCE (built by clang; several times slower)
    #[arg(long)]
    debug: bool,
    /// With much of what distributions switch on: KASLR, IBT, retpolines, PREEMPT_DYNAMIC, BPF, kprobes, hardening
    #[arg(long, conflicts_with = "debug")]
    distro: bool,
}

impl Kernel {
    /// The smallest one that serves.
    const fn plain(engine: Engine) -> Self {
        Self { engine, debug: false, distro: false }
    }

    /// What the names of its files and of modules for it end with.
    const fn suffix(self) -> &'static str {
        match (self.debug, self.distro) {
            (true, _) => "-debug",
            (false, true) => "-distro",
            (false, false) => "",
        }
    }
}

/// Whose livepatch implementation a kernel has.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Linux's own, from the unmodified tree
    C,
    /// klp-core, in place of kernel/livepatch
    Rust,
}

impl fmt::Display for Kernel {
    /// The name of the kernel's files: `c`, `rust`, `c-debug`, `rust-distro` and so on.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = match self.engine {
            Engine::C => "c",
            Engine::Rust => "rust",
        };
        write!(f, "{engine}{}", self.suffix())
    }
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

/// What every landing must pass with klp-core in the kernel: the kernel's selftests, livepatch relocations, and a short stress.
pub(crate) fn landing() -> Result<()> {
    let which = Kernel::plain(Engine::Rust);
    selftest::run(which)?;
    relocs::run(which)?;
    stress::run(which, 20)
}

/// A path below the folder that holds everything that is fetched and built.
fn dir(name: &str) -> Result<PathBuf> {
    let root = std::env::var_os("KLP_LINUX_DIR").unwrap_or_else(|| "target/linux".into());
    let root = std::path::absolute(root)?;
    std::fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    Ok(root.join(name))
}

/// Says what is being done, does it, and says how long it took.
fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("linux: {what}");
    let begin = Instant::now();
    let done = work().with_context(|| format!("linux: {what}"))?;
    eprintln!("linux: {what}: {:.0} s", begin.elapsed().as_secs_f32());
    Ok(done)
}
