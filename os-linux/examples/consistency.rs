//! The soak: patches pairs of functions that only make sense together, again and again, while many threads call them, and
//! checks that nobody ever sees half a patch.
//!
//! ```sh
//! cargo run --release -p klp-os-linux --example consistency -- --threads 64 --seconds 60
//! ```
//!
//! Each thread calls an outer function that calls both functions of the pair, computes, sleeps, waits in system calls or takes a
//! signal in between, and returns which versions it saw. Seeing both is a mix. The patch replaces all of them together.

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use klp_core::{Func, Object, Patch, PatchId, Poll, addr::CodeAddr};
use klp_demo_pairs::{FUNCS, Outer, install_handler, outer_signal, outer_sleep, outer_spin, outer_syscall};
use klp_os_linux::process::{Livepatch, Options};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Soak: enables, reverses and disables a patch without end while threads run what it changes.
#[derive(Parser)]
struct Args {
    /// Threads that call the patched functions
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: u32,
    /// How long to run, after two seconds without transitions that show how long threads pause anyway
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Seed of the sequence of operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Break something on purpose, to see that the soak notices
    #[arg(long = "break")]
    broken: Option<Break>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Break {
    /// Switch tasks whatever is on their stacks
    StackCheck,
}

/// What all threads count together.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    calls: AtomicU64,
    mixes: AtomicU64,
    born: AtomicU64,
    died: AtomicU64,
    /// Longest time that a computing thread was away between two calls, in nanoseconds.
    pause: AtomicU64,
}

static COUNTS: std::sync::LazyLock<Counts> = std::sync::LazyLock::new(Counts::default);

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if !install_handler() {
        bail!("SIGUSR1 cannot be handled");
    }
    let livepatch = Livepatch::init(Options::default()).context("livepatching cannot be set up")?;
    let workers = (0..args.threads).map(worker).collect::<Result<Vec<_>>>()?;

    std::thread::sleep(Duration::from_secs(2));
    let pause_before = Duration::from_nanos(COUNTS.pause.swap(0, Relaxed));
    let mut soak = Soak::new(livepatch, &args)?;
    let outcome = soak.run(Duration::from_secs(args.seconds));
    let pause = Duration::from_nanos(COUNTS.pause.load(Relaxed));
    let lost = stop(workers);
    outcome?;

    let mixes = COUNTS.mixes.load(Relaxed);
    println!("calls of outer functions   {}", COUNTS.calls.load(Relaxed));
    println!("threads born and died      {}", COUNTS.died.load(Relaxed));
    println!("transitions completed      {}, {} of them reversed at least once", soak.completed, soak.reversed);
    println!("kicks                      {}", soak.kicks);
    println!("longest transition         {:?}", soak.longest);
    println!("longest pause of a thread  {pause:?} (without transitions: {pause_before:?})");
    println!("lost threads               {lost}");
    println!("mixes                      {mixes}");
    if mixes > 0 {
        println!("failed: threads saw a mix of versions");
    }
    if lost > 0 {
        println!("failed: threads were lost");
    }
    Ok(if mixes == 0 && lost == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Drives the transitions.
struct Soak {
    livepatch: &'static Livepatch,
    patch: PatchId,
    rng: fastrand::Rng,
    broken: Option<Break>,
    completed: u64,
    reversed: u64,
    kicks: u64,
    longest: Duration,
}

impl Soak {
    fn new(livepatch: &'static Livepatch, args: &Args) -> Result<Self> {
        let mut object = Object::vmlinux()?;
        for (name, new) in FUNCS {
            object = object.func(Func::new(name, CodeAddr::new(new as usize as u64))?)?;
        }
        let patch = Patch::builder("pairs").object(Ok::<_, klp_core::Error>(object)).build()?;
        let patch = livepatch.engine().add(patch).map_err(|refused| refused.error)?;
        Ok(Self {
            livepatch,
            patch,
            rng: fastrand::Rng::with_seed(args.seed),
            broken: args.broken,
            completed: 0,
            reversed: 0,
            kicks: 0,
            longest: Duration::ZERO,
        })
    }

    fn run(&mut self, time: Duration) -> Result<()> {
        let progress = progress(time);
        let begin = Instant::now();
        let mut next_line = begin;
        while begin.elapsed() < time {
            self.transition()?;
            let now = Instant::now();
            if now >= next_line {
                let text = format!("{} transitions, {} mixes", self.completed, COUNTS.mixes.load(Relaxed));
                progress.set_position(begin.elapsed().as_secs());
                progress.set_message(text.clone());
                if progress.is_hidden() {
                    println!("{:>4} s: {text}", begin.elapsed().as_secs());
                }
                next_line = now + Duration::from_secs(if progress.is_hidden() { 10 } else { 1 });
            }
        }
        progress.finish_and_clear();
        Ok(())
    }

    /// One transition from its beginning to its end, whichever way it ends.
    fn transition(&mut self) -> Result<()> {
        let engine = self.livepatch.engine();
        let begin = Instant::now();
        let enabled = engine.status()?.iter().any(|status| status.id == self.patch && status.enabled);
        let mut poll = if enabled { engine.disable(self.patch)? } else { engine.enable(self.patch)? };
        let mut reversed = false;
        while let Poll::Waiting { .. } = poll {
            if self.broken == Some(Break::StackCheck) {
                poll = engine.force(self.patch)?;
                continue;
            }
            match self.rng.u32(..100) {
                0..5 => {
                    reversed = true;
                    poll = engine.reverse(self.patch)?;
                    continue;
                }
                5..10 => {
                    self.kicks += 1;
                    engine.kick(self.patch)?;
                }
                10..15 => drop(engine.blockers(self.patch)?),
                _ => std::thread::sleep(Duration::from_micros(self.rng.u64(..1000))),
            }
            poll = engine.poll();
        }
        self.completed += 1;
        self.reversed += u64::from(reversed);
        self.longest = self.longest.max(begin.elapsed());
        Ok(())
    }
}

/// Starts worker number `index`.
fn worker(index: u32) -> Result<JoinHandle<()>> {
    COUNTS.born.fetch_add(1, Relaxed);
    let (name, work): (&str, fn()) = match index % 8 {
        0 => ("spin", spin),
        1 | 2 => ("sleep", || repeat(outer_sleep, 1000)),
        3 | 4 => ("syscall", || repeat(outer_syscall, 2000)),
        5 | 6 => ("signal", || repeat_and_rest(outer_signal, 500)),
        _ => ("churn", churn),
    };
    let thread = std::thread::Builder::new().name(format!("{name}-{index}"));
    thread.spawn(work).with_context(|| format!("thread {index} cannot be had"))
}

/// One call, checked.
fn call(outer: Outer, work: u32) {
    // SAFETY: the functions take any number.
    let seen = unsafe { outer(work) };
    COUNTS.calls.fetch_add(1, Relaxed);
    if seen != 1 && seen != 2 {
        COUNTS.mixes.fetch_add(1, Relaxed);
    }
}

/// Is inside of `outer` nearly all the time.
fn repeat(outer: Outer, work: u32) {
    while !COUNTS.stop.load(Relaxed) {
        call(outer, work);
    }
}

/// Is inside of `outer` for moments.
fn repeat_and_rest(outer: Outer, work: u32) {
    while !COUNTS.stop.load(Relaxed) {
        call(outer, work);
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Computes in bursts, and watches the clock while it does.
fn spin() {
    while !COUNTS.stop.load(Relaxed) {
        let mut last = Instant::now();
        for _ in 0..20 {
            call(outer_spin, 100);
            let now = Instant::now();
            COUNTS.pause.fetch_max((now - last).as_nanos() as u64, Relaxed);
            last = now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Gives birth to threads that call a little and die.
fn churn() {
    while !COUNTS.stop.load(Relaxed) {
        let child = std::thread::Builder::new().name("child".into()).spawn(|| {
            for _ in 0..5 {
                call(outer_spin, 20);
                call(outer_sleep, 50);
            }
        });
        if let Ok(child) = child {
            COUNTS.born.fetch_add(1, Relaxed);
            if child.join().is_ok() {
                COUNTS.died.fetch_add(1, Relaxed);
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Stops the workers; says how many threads did not come back.
fn stop(workers: Vec<JoinHandle<()>>) -> u64 {
    COUNTS.stop.store(true, Relaxed);
    let deadline = Instant::now() + Duration::from_secs(10);
    for worker in workers {
        while !worker.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if worker.is_finished() && worker.join().is_ok() {
            COUNTS.died.fetch_add(1, Relaxed);
        }
    }
    COUNTS.born.load(Relaxed) - COUNTS.died.load(Relaxed)
}

fn progress(time: Duration) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} s  {msg}").expect("the template is valid");
    ProgressBar::new(time.as_secs()).with_style(style)
}
