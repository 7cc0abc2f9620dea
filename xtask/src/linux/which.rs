//! Which kernel: whose livepatch code, and how it is configured.

use clap::{Parser, ValueEnum};
use std::fmt;

/// Which kernel.
#[derive(Parser, Clone, Copy)]
pub(crate) struct Kernel {
    /// The livepatch implementation in it
    #[arg(long)]
    pub(super) engine: Engine,
    /// With lockdep, RCU and sleep checks, KASAN, DEBUG_OBJECTS and KFENCE (built by clang; several
    /// times slower)
    #[arg(long)]
    pub(super) debug: bool,
    /// With much of what distributions switch on: KASLR, IBT, retpolines, PREEMPT_DYNAMIC, BPF,
    /// kprobes, hardening
    #[arg(long, conflicts_with = "debug")]
    pub(super) distro: bool,
}

impl Kernel {
    /// The smallest one that serves.
    pub(super) const fn plain(engine: Engine) -> Self {
        Self {
            engine,
            debug: false,
            distro: false,
        }
    }

    /// What the names of its files and of modules for it end with.
    pub(super) const fn suffix(self) -> &'static str {
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
