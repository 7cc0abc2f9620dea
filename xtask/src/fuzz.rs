//! The fuzz targets of `fuzz/`: built as cargo-fuzz builds them, but without it, and run.

use crate::packages;
use crate::run::{cargo, quiet, run};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which to run, and how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these; otherwise all
    targets: Vec<String>,
    /// Seconds that each runs
    #[arg(long, default_value_t = 20, conflicts_with = "executions")]
    seconds: u32,
    /// How often each runs, instead
    #[arg(long)]
    executions: Option<u64>,
    /// What random changes begin with; otherwise each run makes others
    #[arg(long)]
    seed: Option<u32>,
}

impl Args {
    /// Each for a short time, with the same changes each time: a landing fails for what it changes,
    /// and not by chance.
    pub(crate) fn landing() -> Self {
        Self {
            targets: Vec::new(),
            seconds: 20,
            executions: None,
            seed: Some(1),
        }
    }
}

const FOLDER: &str = "fuzz";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What compiles the seeds.
const COMPILERS: [&str; 2] = ["gcc-aarch64-linux-gnu", "gcc-powerpc64le-linux-gnu"];

/// What cargo-fuzz has code compiled with: counters that tell libFuzzer where it has been, and what
/// was compared there. Without AddressSanitizer, it goes twice as often through code that is
/// nearly all safe; `asan` has the tests of the rest.
const FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";

/// What each input may take: seconds, and MiB, at once and altogether. The targets themselves say
/// how much memory an input may take by its length.
const LIMITS: [&str; 4] = [
    "-timeout=10",
    "-malloc_limit_mb=256",
    "-rss_limit_mb=3072",
    "-max_len=32768",
];

/// Builds the targets and runs them, as many at a time as there are processors. What is found is an
/// error.
pub(crate) fn fuzz(args: &Args) -> Result<()> {
    let known = targets()?;
    let chosen = if args.targets.is_empty() {
        &known
    } else {
        &args.targets
    };
    for target in chosen {
        ensure!(
            known.contains(target),
            "no target {target}; there are {known:?}"
        );
    }
    let log = Path::new(FOLDER).join("target");
    fs::create_dir_all(&log)?;
    packages::install(&COMPILERS, &log.join("apt.log"))?;
    let mut build = cargo();
    build.current_dir(FOLDER);
    build.args([
        "build",
        "--release",
        "--bins",
        "--examples",
        "--target",
        TARGET,
        "--target-dir",
        "target",
    ]);
    build.env("RUSTFLAGS", FLAGS);
    run(&mut build)?;
    run(Command::new(program("examples/seeds")).arg(Path::new(FOLDER).join("corpus")))?;
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    for some in chosen.chunks(at_once) {
        let found = std::thread::scope(|scope| {
            let runs: Vec<_> = some
                .iter()
                .map(|target| scope.spawn(|| run_target(target, args)))
                .collect();
            runs.into_iter()
                .map(|run| run.join().unwrap_or_else(|_| bail!("xtask panicked")))
                .collect::<Vec<_>>()
        });
        found.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let mut targets = Vec::new();
    for file in fs::read_dir(Path::new(FOLDER).join("fuzz_targets"))? {
        let file = file?.path();
        if let Some(name) = file.file_stem().and_then(|name| name.to_str()) {
            targets.push(name.to_owned());
        }
    }
    targets.sort_unstable();
    Ok(targets)
}

/// A program that was built.
fn program(name: &str) -> PathBuf {
    Path::new(FOLDER)
        .join("target")
        .join(TARGET)
        .join("release")
        .join(name)
}

fn run_target(target: &str, args: &Args) -> Result<()> {
    let folder = |name: &str| Path::new(FOLDER).join(name).join(target);
    let (corpus, found) = (folder("corpus"), folder("artifacts"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&found)?;
    let mut fuzzer = Command::new(program(target));
    fuzzer.arg(&corpus).args(LIMITS).arg("-print_final_stats=1");
    fuzzer.arg(format!("-artifact_prefix={}/", found.display()));
    if let Some(seed) = args.seed {
        fuzzer.arg(format!("-seed={seed}"));
    }
    match args.executions {
        Some(executions) => fuzzer.arg(format!("-runs={executions}")),
        None => fuzzer.arg(format!("-max_total_time={}", args.seconds)),
    };
    let log = Path::new(FOLDER)
        .join("target")
        .join(format!("{target}.log"));
    quiet(&mut fuzzer, &log).with_context(|| {
        let (program, found) = (program(target), found.display());
        format!(
            "{target} has found something; again: {} {found}/…",
            program.display()
        )
    })?;
    let said = fs::read_to_string(&log)?;
    let number = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    let executions = number("stat::number_of_executed_units:").unwrap_or(0);
    ensure!(
        executions > 0,
        "{target} did not run: see {}",
        log.display()
    );
    eprintln!("xtask: {target}: {executions} executions, nothing found");
    Ok(())
}
