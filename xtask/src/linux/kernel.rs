//! Building a kernel, and modules against it.

use super::seed::{Place, seed};
use super::which::{Engine, Kernel};
use super::work::{dir, step};
use super::{config, supply, tree};
use crate::run::quiet;
use crate::toolchain;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the kernel and returns the folder of its build.
pub(super) fn build(which: Kernel) -> Result<PathBuf> {
    supply::packages()?;
    let make = Make::new(which)?;
    let build = make.build.clone();
    if which.engine == Engine::Rust && !build.exists() {
        let c = Kernel {
            engine: Engine::C,
            ..which
        };
        let old = (tree::of(Engine::C)?, self::build(c)?);
        step(
            "begin with a copy of the kernel that was built from the unmodified tree",
            || {
                tree::touch_patched(&make.tree)?;
                seed(
                    Place {
                        source: &old.0,
                        build: &old.1,
                    },
                    Place {
                        source: &make.tree,
                        build: &build,
                    },
                )
            },
        )?;
    }
    step(
        &format!("build the kernel `{which}` (log: {})", make.log().display()),
        || {
            config::configure(which, &build, &|target| Ok(make.target(target)))?;
            quiet(&mut make.target("bzImage modules"), &make.log())
        },
    )?;
    Ok(build)
}

/// The folder of a build against whose headers modules can be built; the kernel itself need not be
/// there.
pub(super) fn headers(which: Kernel) -> Result<Make> {
    supply::packages()?;
    let make = Make::new(Kernel {
        engine: Engine::C,
        ..which
    })?;
    if !make.build.join("Module.symvers").exists() {
        step("prepare the headers of the unmodified tree", || {
            config::configure(which, &make.build, &|target| Ok(make.target(target)))?;
            quiet(&mut make.target("modules_prepare"), &make.log())
        })?;
    }
    Ok(make)
}

/// `make` in a kernel's tree, with the tools that it needs.
pub(super) struct Make {
    which: Kernel,
    tree: PathBuf,
    bindgen: PathBuf,
    rust: toolchain::Debian,
    /// Where the results go.
    pub(super) build: PathBuf,
}

impl Make {
    fn new(which: Kernel) -> Result<Self> {
        let (tree, bindgen, rust) = (
            tree::of(which.engine)?,
            supply::bindgen()?,
            toolchain::debian()?,
        );
        Ok(Self {
            which,
            tree,
            bindgen,
            rust,
            build: dir(&format!("build-{which}"))?,
        })
    }

    fn log(&self) -> PathBuf {
        self.build.with_extension("log")
    }

    /// `make` of one or more targets.
    pub(super) fn target(&self, targets: &str) -> Command {
        let mut make = Command::new("make");
        make.arg("-C")
            .arg(&self.tree)
            .arg(format!("O={}", self.build.display()));
        self.settings(&mut make);
        make.args(targets.split(' '));
        make
    }

    /// `make` of the external modules in `folder`.
    pub(super) fn modules(&self, folder: &Path) -> Command {
        self.objects(folder, "modules")
    }

    /// `make` of a file, or of all `modules`, in `folder`.
    pub(super) fn objects(&self, folder: &Path, target: &str) -> Command {
        let mut make = Command::new("make");
        make.arg("-C")
            .arg(&self.build)
            .arg(format!("M={}", folder.display()));
        self.settings(&mut make);
        // Without the kernel there is no list of its symbols to check against; insmod does.
        if !self.build.join("Module.symvers").exists() {
            make.arg("KBUILD_MODPOST_WARN=1");
        }
        make.arg(target);
        make
    }

    fn settings(&self, make: &mut Command) {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        make.arg(format!("-j{cpus}"));
        make.args(self.tools());
        make.env("LD_LIBRARY_PATH", self.rust.libraries());
        // bindgen formats with this one; cargo and make pass on settings of theirs, which are not
        // for the kernel.
        make.env_remove("RUSTFMT")
            .env_remove("MAKEFLAGS")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS");
    }

    /// Variables that say which tools are used.
    fn tools(&self) -> Vec<String> {
        let rustc = self.rust.rustc();
        let mut tools = vec![
            format!("RUSTC={}", rustc.display()),
            format!("HOSTRUSTC={}", rustc.display()),
            format!("BINDGEN={}", self.bindgen.display()),
            format!("RUST_LIB_SRC={}", self.rust.library_sources().display()),
        ];
        if self.which.debug {
            // KASAN in C and Rust together wants one kind of compiler.
            tools.push("LLVM=-14".into());
        }
        tools
    }

    /// Has any `make` that `command` runs use the same tools.
    pub(super) fn variables(&self, command: &mut Command) {
        command.env("MAKEFLAGS", format!(" -- {}", self.tools().join(" ")));
    }
}
