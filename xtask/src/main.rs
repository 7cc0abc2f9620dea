//! The developer's own commands: `cargo xtask VERB`.

mod arch;
mod fuzz;
mod install;
mod linux;
mod machine;
mod msrv;
mod packages;
mod run;
mod toolchain;
mod toy;

use anyhow::Result;
use clap::{Parser, Subcommand};
use run::{cargo, expect_failure, run};
use std::path::PathBuf;

/// The developer's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Format, clippy and rustdoc, with warnings as errors
    Lint,
    /// Build the no_std crates without std, for x86_64-unknown-none, with the oldest supported Rust
    /// (1.85)
    Msrv,
    /// Model-check the handler's orderings with loom, and show that weakened ones are found
    Loom,
    /// Run the tests of klp-core, klp-unwind and klp-arch-x86_64 under AddressSanitizer
    Asan,
    /// Run the main job and the consistency soak, and show that the soak notices a broken stack
    /// check
    Soak {
        /// Seconds that the consistency soak runs
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Print the tables of all benches
    Bench,
    /// Build commands, libraries and headers, and put them below a folder, with a file for
    /// pkg-config, manual pages and completions
    Install {
        /// The folder, for instance /usr/local; without it, into target/install, to see that it
        /// works
        prefix: Option<PathBuf>,
    },
    /// The Linux kernel with its own livepatch code or with klp-core in its place, in QEMU
    Linux {
        #[command(subcommand)]
        verb: linux::Verb,
    },
    /// Build the tests of the crates that know a processor for it, and run them in QEMU: in user
    /// mode, and on a kernel for it
    Arch {
        /// Which
        arch: arch::Arch,
        /// Only these programs, and only on the kernel: tests of the host by their files' names, and
        /// its examples
        programs: Vec<String>,
    },
    /// The toy kernel, which patches itself and runs klp-core's conformance suites, in QEMU with one
    /// and with two processors
    Toy,
    /// Build the fuzz targets and run them; anything found is an error
    Fuzz(fuzz::Args),
    /// Everything that a landing must pass, except `cargo test --workspace`
    Ci,
}

fn main() -> Result<()> {
    match Args::parse().verb {
        Verb::Lint => lint(),
        Verb::Msrv => msrv::build(),
        Verb::Loom => loom(),
        Verb::Asan => asan(),
        Verb::Soak { seconds } => soak(seconds),
        Verb::Bench => bench(),
        Verb::Install { prefix: None } => install::check(),
        Verb::Install {
            prefix: Some(prefix),
        } => install::install(&prefix),
        Verb::Linux { verb } => linux::run(verb),
        Verb::Arch { arch, programs } => arch::test(arch, &programs),
        Verb::Toy => toy::check(),
        Verb::Fuzz(args) => fuzz::fuzz(&args),
        Verb::Ci => {
            lint()?;
            msrv::build()?;
            loom()?;
            asan()?;
            fuzz::fuzz(&fuzz::Args::landing())?;
            soak(60)?;
            bench()?;
            install::check()?;
            toy::check()?;
            linux::landing()?;
            arch::landing()
        }
    }
}

fn lint() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--",
        "-D",
        "warnings",
    ]))?;
    run(cargo()
        .args(["doc", "--workspace", "--no-deps", "--all-features"])
        .env("RUSTDOCFLAGS", "-D warnings"))
}

fn loom() -> Result<()> {
    let model = |test: &str, weaken: Option<&str>| {
        let mut flags = String::from("--cfg loom");
        if let Some(what) = weaken {
            flags += &format!(" --cfg klp_weaken=\"{what}\"");
        }
        let mut command = cargo();
        command.args(["test", "--package", "klp-core", "--test", test, "--release"]);
        command
            .args(["--target-dir", "target/loom"])
            .env("RUSTFLAGS", flags);
        command
    };
    for (test, orderings) in [
        ("loom", &["stack", "transition", "loan"][..]),
        ("shadow_loom", &["shadow", "shadow-reuse"]),
    ] {
        run(&mut model(test, None))?;
        for what in orderings {
            let unnoticed = format!("loom does not notice a weakened `{what}` ordering");
            expect_failure(
                &mut model(test, Some(what)),
                "test result: FAILED",
                &unnoticed,
            )?;
        }
    }
    Ok(())
}

/// The stable tool chain carries the sanitizer's runtime; its flag is still an unstable one. What
/// is leaked on purpose (an `Ops` lives for ever) is no finding.
fn asan() -> Result<()> {
    let mut command = cargo();
    command.args([
        "test",
        "--package",
        "klp-core",
        "--package",
        "klp-unwind",
        "--package",
        "klp-arch-x86_64",
        "--lib",
        "--tests",
    ]);
    command.args([
        "--target",
        "x86_64-unknown-linux-gnu",
        "--target-dir",
        "target/asan",
    ]);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address")
        .env("ASAN_OPTIONS", "detect_leaks=0");
    run(&mut command)
}

fn bench() -> Result<()> {
    run(cargo().args(["bench", "--package", "klp-benches"]))
}

fn soak(seconds: u32) -> Result<()> {
    let seconds = seconds.to_string();
    let consistency = |extra: &[&str]| {
        let mut command = cargo();
        command.args([
            "run",
            "--release",
            "--package",
            "klp-os-linux",
            "--example",
            "consistency",
            "--",
        ]);
        command.args(["--threads", "64"]).args(extra);
        command
    };
    run(cargo().args([
        "run",
        "--release",
        "--package",
        "klp-os-linux",
        "--example",
        "lua_cve",
    ]))?;
    run(&mut consistency(&["--seconds", &seconds]))?;
    for (broken, unnoticed) in [
        (
            "stack-check",
            "the soak does not notice that stacks are not checked",
        ),
        (
            "contexts",
            "the soak does not notice that coroutines are not seen",
        ),
    ] {
        let mut soak = consistency(&["--seconds", "10", "--break", broken]);
        expect_failure(&mut soak, "failed: threads saw a mix", unnoticed)?;
    }
    Ok(())
}
