//! Tests for other processors on this machine: built by the oldest supported Rust, run by QEMU.

use crate::machine::{Loaded, Machine, Program};
use crate::packages;
use crate::run::{cargo, run};
use crate::toolchain;
use anyhow::{Result, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    rust: &'static str,
    compilers: [&'static str; 2],
    /// QEMU that runs single programs.
    qemu: &'static str,
    ours: &'static str,
    /// An older processor, without what the emulators have beyond it: our crate's tests run once
    /// more on that.
    older: Option<&'static str>,
    /// What the oldest supported Rust must be told of this processor.
    unstable: Option<&'static str>,
    machine: Machine,
}

impl Arch {
    const fn names(self) -> Names {
        match self {
            Self::Aarch64 => Names {
                rust: "aarch64-unknown-linux-gnu",
                compilers: ["gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu"],
                qemu: "qemu-aarch64",
                ours: "klp-arch-aarch64",
                // No SVE.
                older: Some("cortex-a57"),
                unstable: None,
                machine: Machine {
                    debian: "arm64",
                    gnu: "aarch64-linux-gnu",
                    kernel: "linux-image-cloud-arm64",
                    // All that the architecture has: BTI, pointer authentication, SVE. (Its own
                    // cipher would take QEMU most of the time.)
                    qemu: &[
                        "qemu-system-aarch64",
                        "-machine",
                        "virt",
                        "-cpu",
                        "max,pauth-impdef=on",
                    ],
                    package: "qemu-system-arm",
                    processors: 2,
                    console: "ttyAMA0",
                    kernel_args: "",
                    c_flags: "",
                },
            },
            Self::Ppc64le => Names {
                rust: "powerpc64le-unknown-linux-gnu",
                compilers: ["gcc-powerpc64le-linux-gnu", "g++-powerpc64le-linux-gnu"],
                qemu: "qemu-ppc64le -cpu power10",
                ours: "klp-arch-ppc64le",
                older: None,
                // Assembly is stable since 1.95.
                unstable: Some("-Zcrate-attr=feature(asm_experimental_arch)"),
                machine: Machine {
                    debian: "ppc64el",
                    gnu: "powerpc64le-linux-gnu",
                    kernel: "linux-image-powerpc64le",
                    qemu: &[
                        "qemu-system-ppc64",
                        "-machine",
                        "pseries",
                        "-cpu",
                        "power10",
                    ],
                    package: "qemu-system-ppc",
                    // The second of two that take turns may wait for many seconds.
                    processors: 1,
                    console: "hvc0",
                    // When a page of 64 KiB in a radix tree comes to lie elsewhere, QEMU (10.0, too)
                    // forgets the way to its translations for the first 4 KiB only, and goes on with
                    // old code in the rest.
                    kernel_args: "disable_radix",
                    // Debian's GCC 12 puts pads where local calls do not come by, unless a function
                    // has only one entry.
                    c_flags: "-mcpu=power10",
                },
            },
        }
    }
}

/// Their examples that are run there, with their arguments.
const EXAMPLES: [(&str, &str); 4] = [
    ("instructions", ""),
    ("lua_cve", ""),
    ("across", "--threads 8 --seconds 60 --patience 200"),
    (
        "consistency",
        "--threads 16 --seconds 60 --seed 1 --patience 200",
    ),
];

/// Our packages that are about the kernel, too.
const HOST: &str = "klp-os-linux";
const LIBRARY: &str = "libklp";

/// Builds and runs the tests of the crates that have something to test there; only those called
/// `only` if there are some.
pub(crate) fn test(arch: Arch, only: &[String]) -> Result<()> {
    load(arch, only)?.run()
}

/// All tests for all of them. Machines that are loaded run, while the next is being loaded: each
/// keeps one processor busy.
pub(crate) fn landing() -> Result<()> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for arch in [Arch::Aarch64, Arch::Ppc64le] {
            let machine = load(arch, &[])?;
            running.push(scope.spawn(move || machine.run()));
        }
        running.into_iter().try_for_each(|machine| {
            machine
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// Runs what needs no kernel of its own, and puts the rest into a machine.
fn load(arch: Arch, only: &[String]) -> Result<Loaded> {
    let names = arch.names();
    std::fs::create_dir_all("target")?;
    let [c, cpp] = names.compilers;
    let library = format!("libc6-dev-{}-cross", names.machine.debian);
    packages::install(
        &[c, cpp, &library, "qemu-user"],
        Path::new("target/arch-apt.log"),
    )?;
    let rust = toolchain::for_target(names.machine.debian, names.rust)?;
    if only.is_empty() {
        run(names
            .cargo_test(&rust, &["klp-core", "klp-unwind", "klp-build", names.ours])
            .args(["--lib", "--tests"]))?;
        if let Some(older) = names.older {
            run(names
                .cargo_test(&rust, &[names.ours])
                .arg("--lib")
                .env("QEMU_CPU", older))?;
        }
    }
    // In a machine of its own nothing is emulated that a kernel does (`membarrier`,
    // `process_vm_readv`, signals, `fork`).
    let (mut programs, files) = built(names.cargo_test(&rust, &[HOST, LIBRARY, names.ours]))?;
    let name = |program: &Program| program.name.rsplit('/').next().map(str::to_owned);
    if let Some(unknown) = only.iter().find(|only| {
        !programs
            .iter()
            .any(|program| name(program).as_ref() == Some(only))
    }) {
        let known: Vec<_> = programs.iter().filter_map(name).collect();
        bail!(
            "no program is called '{unknown}'; there are: {}",
            known.join(" ")
        );
    }
    programs.retain(|program| {
        only.is_empty() || name(program).is_some_and(|name| only.contains(&name))
    });
    names.machine.load(programs, &files)
}

impl Names {
    fn cargo_test(&self, rust: &toolchain::Debian, packages: &[&str]) -> Command {
        let (gnu, target) = (self.machine.gnu, self.rust);
        let mut test = cargo();
        test.args(["test", "--target", target, "--target-dir", "target/arch"]);
        for package in packages {
            test.args(["--package", package]);
        }
        let variable = target.to_uppercase().replace('-', "_");
        for language in ["CFLAGS", "CXXFLAGS"] {
            test.env(
                format!("{language}_{}", target.replace('-', "_")),
                self.machine.c_flags,
            );
        }
        test.env(
            format!("CARGO_TARGET_{variable}_LINKER"),
            format!("{gnu}-gcc"),
        )
        .env(
            format!("CARGO_TARGET_{variable}_RUNNER"),
            // Some tests compile C.
            format!("env CC={gnu}-gcc {} -L /usr/{gnu}", self.qemu),
        )
        // And some start programs of ours.
        .env("KLP_EMULATOR", format!("{} -L /usr/{gnu}", self.qemu))
        // Nobody debugs them here, and emulated they run long.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env("RUSTC", rust.rustc())
        .env("LD_LIBRARY_PATH", rust.libraries());
        if let Some(flags) = self.unstable {
            test.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags);
        }
        test
    }
}

/// What `cargo test` would run, and the programs and libraries of ours that it has built beside.
fn built(mut test: Command) -> Result<(Vec<Program>, BTreeSet<PathBuf>)> {
    test.args(["--no-run", "--message-format", "json-render-diagnostics"]);
    eprintln!("xtask: {test:?}");
    let output = test.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("{test:?} failed: {}", output.status);
    }
    let (mut programs, mut files) = (Vec::new(), BTreeSet::new());
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            continue;
        };
        if !message["package_id"]
            .as_str()
            .is_some_and(|id| id.starts_with("path+"))
        {
            continue;
        }
        if let Some(folder) = message["out_dir"].as_str() {
            add_objects(Path::new(folder), &mut files)?;
        }
        let Some(file) = message["executable"].as_str() else {
            let made = message["filenames"].as_array().into_iter().flatten();
            let libraries = made
                .filter_map(Value::as_str)
                .filter(|file| file.ends_with(".so") || file.ends_with(".a"));
            files.extend(libraries.map(PathBuf::from));
            continue;
        };
        let folder = message["manifest_path"]
            .as_str()
            .and_then(|path| Path::new(path).parent());
        let (Some(name), Some(folder)) = (message["target"]["name"].as_str(), folder) else {
            bail!("cargo says {message}");
        };
        let example = || EXAMPLES.iter().find(|example| example.0 == name);
        let args = match message["profile"]["test"].as_bool() {
            Some(true) => Some("--test-threads=2".to_owned()),
            _ => example().map(|(_, args)| (*args).to_owned()),
        };
        match args {
            Some(args) => programs.push(Program {
                name: format!(
                    "{}/{name}",
                    folder.file_name().unwrap_or_default().display()
                ),
                file: file.into(),
                args,
                folder: folder.into(),
            }),
            None => drop(files.insert(file.into())),
        }
    }
    Ok((programs, files))
}

/// Adds the ELF files in `folder`, which a build script has made.
fn add_objects(folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    for file in std::fs::read_dir(folder)? {
        let file = file?.path();
        if file.is_dir() {
            add_objects(&file, files)?;
        } else if std::fs::read(&file)?.starts_with(b"\x7fELF") {
            files.insert(file);
        }
    }
    Ok(())
}
