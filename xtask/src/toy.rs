//! `cargo xtask toy`: the toy kernel, built, booted in QEMU, and judged by what it says.

use crate::packages;
use crate::run::{cargo, run};
use crate::toolchain;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const FOLDER: &str = "toy-kernel";
/// What it says when it patches itself, without the places in functions.
const PATCHED: &str = include_str!("toy/patched.txt");
/// What isa-debug-exit makes of the kernel's `machine::exit`.
const SUCCESS: i32 = 33;
const PANIC: i32 = 3;
/// Seconds that one run may take on a busy machine; it takes one or two.
const LIMIT: &str = "60";

/// Boots it with one and with two processors: to patch itself; for klp-core's suites; and with
/// mistakes that the suites must find.
pub(crate) fn check() -> Result<()> {
    let kernel = timed("build the kernel", build)?;
    for processors in ["1", "2"] {
        let boot = |command: &str| {
            let what = match command {
                "" => format!("patch itself, processors: {processors}"),
                command => format!("{command}, processors: {processors}"),
            };
            timed(&what, || boot(&kernel, processors, command))
        };
        let Said { status, text } = boot("")?;
        let expected = PATCHED.replace("PROCESSORS", processors);
        ensure!(
            status == SUCCESS && without_places(&text) == expected,
            "the kernel ended with {status} and said:\n{text}instead of:\n{expected}"
        );
        let Said { status, text } = boot("conformance")?;
        ensure!(
            status == SUCCESS && text.ends_with("conformance: unwinder\ntoy: done\n"),
            "the suites ended with {status} and said:\n{text}"
        );
        for (mistake, suite, sign) in [
            ("a task is missed", "task_set", "after `init`"),
            ("walks end early", "unwinder", "deep: number of frames"),
        ] {
            let Said { status, text } = boot(mistake)?;
            let found = text.contains(&format!("conformance: {suite}\npanicked at "));
            ensure!(
                status == PANIC && found && text.contains(sign),
                "'{mistake}' is not found as '{sign}': it ended with {status} and said:\n{text}"
            );
        }
    }
    Ok(())
}

/// Says how long it took.
fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    let done = work().with_context(|| format!("toy: {what}"))?;
    eprintln!("toy: {what}: {:.1} s", begin.elapsed().as_secs_f32());
    Ok(done)
}

/// `.cargo/config.toml` in the kernel's folder says how.
fn build() -> Result<PathBuf> {
    run(cargo().args(["fmt", "--check"]).current_dir(FOLDER))?;
    let rust = toolchain::debian()?;
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--target-dir", "target"]);
    build
        .current_dir(FOLDER)
        .env("RUSTC", rust.rustc())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("LD_LIBRARY_PATH", rust.libraries())
        .env_remove("RUSTFLAGS");
    run(&mut build)?;
    let target = Path::new(FOLDER).join("target");
    packages::install(&["qemu-system-x86"], &target.join("apt.log"))?;
    Ok(target.join("x86_64-unknown-none/release/toy-kernel"))
}

/// How a run ended, and the lines on its console.
struct Said {
    status: i32,
    text: String,
}

fn boot(kernel: &Path, processors: &str, command: &str) -> Result<Said> {
    // Whatever happens to us, the guest ends.
    let mut qemu = Command::new("timeout");
    qemu.args([
        LIMIT,
        "setpriv",
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
    ]);
    qemu.args([
        "-accel", "tcg", "-cpu", "max", "-m", "256M", "-smp", processors,
    ]);
    qemu.args([
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    // It finds its symbols in its own file.
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(kernel);
    qemu.args(["-append", command]);
    let output = qemu
        .output()
        .with_context(|| format!("cannot run {qemu:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let status = output.status.code();
    let status =
        status.with_context(|| format!("QEMU was killed; the kernel had said:\n{text}"))?;
    Ok(Said { status, text })
}

/// Frames of stacks by their functions alone: where in them differs from build to build.
fn without_places(text: &str) -> String {
    let line = |line: &str| line.split("+0x").next().unwrap_or_default().to_owned() + "\n";
    text.lines().map(line).collect()
}
