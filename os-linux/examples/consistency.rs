//! The soak: patches pairs of functions that only make sense together, again and again, while many
//! threads call them and a shared library with some of them comes and goes, and checks that nobody
//! ever sees half a patch.
//!
//! ```sh
//! cargo run --release -p klp-os-linux --example consistency -- --threads 64 --seconds 60
//! ```
//!
//! Each thread calls an outer function that calls both functions of the pair, computes, sleeps,
//! waits in system calls or takes a signal in between, sleeps in a part that was split off, is
//! suspended as a coroutine, or ends in a jump to another patched function; it returns which
//! versions it saw. Seeing two is a mix. Version 1 is in two patches, each with half of the
//! functions, that are enabled and disabled as one. The patch with version 2 takes their place, and
//! they must not come on top of it, since they know an older version of the same state. Patch
//! objects take each other's place, too, and are unloaded as soon as they are replaced, while
//! threads sleep in what is none of their new functions.
//!
//! With `--hostile`, the process is no easy place either: threads block every signal for moments,
//! use up all descriptors, fork, and throw through patched functions, and a profiler's timer
//! interrupts a thousand times a second with a handler that calls the pair. The engine may refuse
//! there, and is asked again.

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use core::cell::Cell;
use indicatif::{ProgressBar, ProgressStyle};
use klp_core::error::{Error, PatchReason};
use klp_core::event::{Event, Level};
use klp_core::model::Replace;
use klp_core::state::State;
use klp_core::{Func, Object, Patch, PatchId, Poll, addr::CodeAddr};
use klp_demo_pairs::{
    FUNCS_1, FUNCS_2, LOADED, MODULE, MODULE_FUNCS_1, MODULE_FUNCS_2, Outer, Replaced,
    install_handler, outer_cold, outer_extra, outer_loaded, outer_sibling, outer_signal,
    outer_sleep, outer_spin, outer_syscall, outer_yield, set_module, set_yield,
};
use klp_os_linux::process::{Contexts, Livepatch, Options};
use klp_os_linux_fixtures::coroutines::{self, Coroutine};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Soak: enables, reverses and disables patches without end while threads run what it changes.
#[derive(Parser)]
struct Args {
    /// Threads that call the patched functions
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: u32,
    /// How long to run, after two seconds without transitions that show how long threads pause
    /// anyway
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Seed of the sequence of operations
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds that a transition may take: on a machine that is emulated, more
    #[arg(long, default_value_t = 20)]
    patience: u64,
    /// Break something on purpose, to see that the soak notices
    #[arg(long = "break")]
    broken: Option<Break>,
    /// Have threads block signals, use up descriptors, fork, throw, and be profiled
    #[arg(long)]
    hostile: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Break {
    /// Switch tasks whatever is on their stacks
    StackCheck,
    /// Say that all coroutines are registered, and register none
    Contexts,
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
    /// Times that the shared library came and went.
    libraries: AtomicU64,
    library_failed: AtomicBool,
    /// Only with `--hostile`.
    ticks: AtomicU64,
    thrown: AtomicU64,
    forks: AtomicU64,
    exhausted: AtomicU64,
}

static COUNTS: std::sync::LazyLock<Counts> = std::sync::LazyLock::new(Counts::default);

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if !install_handler() {
        bail!("SIGUSR1 cannot be handled");
    }
    let hostile = args.hostile;
    let events = Box::new(move |event: &Event<'_>| {
        // In a hostile place it is expected to warn.
        if event.level() == Level::Warning && *event != Event::Forcing && !hostile {
            eprintln!("livepatch: {event}");
        }
    });
    let contexts = Contexts::Registered;
    let livepatch = Livepatch::init(Options {
        events: Some(events),
        contexts,
        ..Options::default()
    })
    .context("livepatching cannot be set up")?;
    REGISTERS.store(args.broken != Some(Break::Contexts), Relaxed);
    // SAFETY: no thread is there yet that calls it.
    unsafe { set_yield(suspend) };
    let mut workers = (0..args.threads)
        .map(|index| worker(index, hostile))
        .collect::<Result<Vec<_>>>()?;
    if hostile {
        profile();
    }
    COUNTS.born.fetch_add(1, Relaxed);
    workers.push(
        std::thread::Builder::new()
            .name("library".into())
            .spawn(move || come_and_go(livepatch, hostile))?,
    );

    std::thread::sleep(Duration::from_secs(2));
    let pause_before = Duration::from_nanos(COUNTS.pause.swap(0, Relaxed));
    let mut soak = Soak::new(livepatch, &args)?;
    let outcome = soak.run(Duration::from_secs(args.seconds));
    let pause = Duration::from_nanos(COUNTS.pause.load(Relaxed));
    let lost = stop(workers);
    if hostile {
        println!("ticks of the profiler      {}", COUNTS.ticks.load(Relaxed));
        println!("exceptions thrown          {}", COUNTS.thrown.load(Relaxed));
        println!("forks                      {}", COUNTS.forks.load(Relaxed));
        println!(
            "descriptors were used up   {} times",
            COUNTS.exhausted.load(Relaxed)
        );
        println!("refused and asked again    {}", soak.asked_again);
    }
    outcome?;

    let mixes = COUNTS.mixes.load(Relaxed);
    println!("calls of outer functions   {}", COUNTS.calls.load(Relaxed));
    println!("threads born and died      {}", COUNTS.died.load(Relaxed));
    println!(
        "transitions completed      {}, {} of them reversed at least once",
        soak.completed, soak.reversed
    );
    println!("  that replaced a patch    {}", soak.replaced);
    println!("patches unloaded           {}", soak.unloaded);
    println!("older patches refused      {}", soak.refused);
    println!("kicks                      {}", soak.kicks);
    println!(
        "library came and went      {}",
        COUNTS.libraries.load(Relaxed)
    );
    println!("longest transition         {:?}", soak.longest);
    println!("longest pause of a thread  {pause:?} (without transitions: {pause_before:?})");
    println!("lost threads               {lost}");
    println!("mixes                      {mixes}");
    if mixes > 0 {
        println!("failed: threads saw a mix of versions");
    }
    if COUNTS.library_failed.load(Relaxed) {
        bail!("the shared library could not come or go");
    }
    if lost > 0 {
        println!("failed: threads were lost");
    }
    Ok(if mixes == 0 && lost == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Drives the transitions.
struct Soak {
    livepatch: &'static Livepatch,
    /// The patches with the halves of version 1.
    first: [PatchId; 2],
    /// The one with version 2, which takes their place.
    second: PatchId,
    /// The patch object that was enabled last, and which of the two it is.
    loaded: Option<(PatchId, usize)>,
    rng: fastrand::Rng,
    broken: Option<Break>,
    hostile: bool,
    /// A transition that takes longer does not finish.
    patience: Duration,
    /// What the engine could not do where it was, and was asked for again.
    asked_again: u64,
    completed: u64,
    reversed: u64,
    replaced: u64,
    unloaded: u64,
    refused: u64,
    kicks: u64,
    longest: Duration,
}

impl Soak {
    fn new(livepatch: &'static Livepatch, args: &Args) -> Result<Self> {
        let object =
            |name: &str, funcs: &mut dyn Iterator<Item = &Replaced>| -> Result<Object, Error> {
                let mut object = Object::module(name)?;
                for (old, new) in funcs {
                    // SAFETY: the tables hold pairs of the same type.
                    object = object
                        .func(unsafe { Func::new(old, CodeAddr::new(*new as usize as u64)) }?)?;
                }
                Ok(object)
            };
        // Every other function: `first` is in one half, `second` in the other.
        let half = |number: usize| {
            Patch::builder(["pairs-1a", "pairs-1b"][number])
                .object(object(
                    "vmlinux",
                    &mut FUNCS_1.iter().skip(number).step_by(2),
                ))
                .object(object(
                    MODULE.1,
                    &mut MODULE_FUNCS_1.iter().skip(number).step_by(2),
                ))
                .state(State::new(1, 1))
                .build()
        };
        let second = Patch::builder("pairs-2")
            .object(object("vmlinux", &mut FUNCS_2.iter()))
            .object(object(MODULE.1, &mut MODULE_FUNCS_2.iter()))
            .state(State::new(1, 2))
            .replace(Replace::All)
            .build()?;
        let add = |patch| {
            livepatch
                .engine()
                .add(patch)
                .map_err(|refused| refused.error)
        };
        Ok(Self {
            livepatch,
            first: [add(half(0)?)?, add(half(1)?)?],
            second: add(second)?,
            loaded: None,
            rng: fastrand::Rng::with_seed(args.seed),
            broken: args.broken,
            hostile: args.hostile,
            patience: Duration::from_secs(args.patience),
            asked_again: 0,
            completed: 0,
            reversed: 0,
            replaced: 0,
            unloaded: 0,
            refused: 0,
            kicks: 0,
            longest: Duration::ZERO,
        })
    }

    fn run(&mut self, time: Duration) -> Result<()> {
        let progress = progress(time);
        let begin = Instant::now();
        let mut next_line = begin;
        while begin.elapsed() < time {
            // What is forced away cannot be unloaded.
            if self.broken.is_none() && self.rng.u32(..4) == 0 {
                self.reload()?;
            } else {
                self.transition()?;
            }
            let now = Instant::now();
            if now >= next_line {
                let text = format!(
                    "{} transitions, {} mixes",
                    self.completed,
                    COUNTS.mixes.load(Relaxed)
                );
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
        let (first, second) = (self.first, [self.second]);
        let status = engine.status()?;
        let enabled = |patch| {
            status
                .iter()
                .any(|status| status.id == patch && status.enabled)
        };
        if enabled(first[0]) != enabled(first[1]) {
            bail!("one half of version 1 is enabled without the other");
        }
        let replaces = enabled(first[0]) && self.rng.bool();
        let (patches, enable): (&[PatchId], bool) = match (enabled(first[0]), enabled(self.second))
        {
            (false, false) if self.rng.bool() => (&first, true),
            (false, false) => (&second, true),
            (true, _) if replaces => (&second, true),
            (true, _) => (&first, false),
            (false, true) => {
                self.refuse_older()?;
                (&second, false)
            }
        };
        let poll = self.bring_on(patches, enable)?;
        self.replaced +=
            u64::from(replaces && matches!(poll, Poll::Complete { enabled: true, .. }));
        Ok(())
    }

    /// Loads a patch object that takes the place of the one before, and unloads that.
    fn reload(&mut self) -> Result<()> {
        let next = self.loaded.map_or(0, |(_, number)| 1 - number);
        let patch = match self.livepatch.load_file(LOADED[next]) {
            Err(error) if self.hostile => {
                self.is_refused(&error.to_string());
                return Ok(());
            }
            loaded => loaded?,
        };
        let poll = self.bring_on(&[patch], true)?;
        let gone = match poll {
            Poll::Complete { enabled: true, .. } => {
                self.loaded.replace((patch, next)).map(|(old, _)| old)
            }
            _ => Some(patch),
        };
        if let Some(gone) = gone {
            self.livepatch.unload(gone)?;
            self.unloaded += 1;
        }
        Ok(())
    }

    /// Enables or disables `patches` as one, turning round at times.
    fn bring_on(&mut self, patches: &[PatchId], enable: bool) -> Result<Poll> {
        let (livepatch, engine) = (self.livepatch, self.livepatch.engine());
        let begin = Instant::now();
        let begun = if enable {
            livepatch.enable_all(patches)
        } else {
            livepatch.disable_all(patches)
        };
        let mut poll = match begun {
            Err(error @ Error::Port(_)) if self.hostile => {
                self.is_refused(&error.to_string());
                return Ok(Poll::Idle);
            }
            begun => begun?,
        };
        // Any of them stands for all.
        let patch = *self.rng.choice(patches).context("no patch")?;
        let mut reversed = false;
        while let Poll::Waiting { .. } = poll {
            if begin.elapsed() > self.patience {
                let blockers = engine.blockers(patch)?;
                if self.hostile && blockers.is_empty() {
                    poll = engine.poll();
                    continue;
                }
                let lines: Vec<_> = blockers.iter().map(ToString::to_string).collect();
                bail!("a transition does not finish:\n{}", lines.join("\n"));
            }
            if self.broken == Some(Break::StackCheck) {
                // Any mixture of these functions works; it is noticed, which is the point here.
                poll = engine.force(patch)?;
                continue;
            }
            match self.rng.u32(..100) {
                0..5 => {
                    reversed = true;
                    poll = engine.reverse(patch)?;
                    continue;
                }
                5..10 => {
                    self.kicks += 1;
                    engine.kick(patch)?;
                }
                10..15 => drop(engine.blockers(patch)?),
                _ => std::thread::sleep(Duration::from_micros(self.rng.u64(..1000))),
            }
            poll = engine.poll();
        }
        self.completed += 1;
        self.reversed += u64::from(reversed);
        self.longest = self.longest.max(begin.elapsed());
        Ok(poll)
    }
}

impl Soak {
    /// The engine has refused something, as it may in such a place.
    fn is_refused(&mut self, why: &str) {
        if self.asked_again == 0 {
            eprintln!("refused for now: {why}");
        }
        self.asked_again += 1;
        std::thread::sleep(Duration::from_millis(1));
    }

    /// The patches with the older version of a state may not come on top of the one with the newer.
    fn refuse_older(&mut self) -> Result<()> {
        match self.livepatch.enable_all(&self.first) {
            Err(Error::Patch(error))
                if matches!(error.reason, PatchReason::IncompatibleStates { .. }) =>
            {
                self.refused += 1;
                Ok(())
            }
            Err(error @ Error::Port(_)) if self.hostile => {
                self.is_refused(&error.to_string());
                Ok(())
            }
            other => bail!("an older patch was not refused: {other:?}"),
        }
    }
}

/// Loads the shared library, calls it for a while, unloads it.
fn come_and_go(livepatch: &'static Livepatch, hostile: bool) {
    let mut rng = fastrand::Rng::with_seed(0);
    while !COUNTS.stop.load(Relaxed) {
        let result = visit(livepatch, rng.bool());
        if hostile && result.is_err() {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        if let Err(error) = &result {
            eprintln!("the shared library: {error:#}");
            COUNTS.library_failed.store(true, Relaxed);
            return;
        }
        COUNTS.libraries.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `twice`: opens it twice, and closes one of the two while it is used by way of the other.
fn visit(livepatch: &'static Livepatch, twice: bool) -> Result<()> {
    // SAFETY: the library has no constructors.
    let open = || unsafe { livepatch.open_library(MODULE.0) };
    let mut other = if twice { Some(open()?) } else { None };
    let library = open()?;
    let function = |name| -> Result<Outer> {
        let function = library
            .symbol(name)
            .context("a function of the shared library is missing")?;
        // SAFETY: all functions of the library have this type.
        Ok(unsafe {
            core::mem::transmute::<core::ptr::NonNull<core::ffi::c_void>, Outer>(function)
        })
    };
    // SAFETY: only this thread calls these functions.
    unsafe { set_module(function(c"module_first")?, function(c"module_second")?) };
    let outer = function(c"module_outer")?;
    for round in 0..50 {
        if let Some(other) = other.take_if(|_| round == 25) {
            // SAFETY: it is open by `library`, too.
            unsafe { other.close() }?;
        }
        call(outer, 50);
        std::thread::sleep(Duration::from_micros(100));
    }
    // SAFETY: only this thread was inside of it, and is not any more.
    unsafe { library.close() }?;
    Ok(())
}

/// Starts worker number `index`.
fn worker(index: u32, hostile: bool) -> Result<JoinHandle<()>> {
    COUNTS.born.fetch_add(1, Relaxed);
    let kinds = if hostile { 16 } else { 12 };
    let (name, work): (&str, fn()) = match index % kinds {
        12 => ("mask", mask),
        13 => ("throw", throw),
        14 if index < kinds => ("fork", fork),
        15 if index < kinds => ("descriptors", use_up_descriptors),
        0 => ("spin", spin),
        1 | 2 => ("sleep", || repeat(outer_sleep, 1000)),
        3 | 4 => ("syscall", || repeat(outer_syscall, 2000)),
        5 => ("extra", || repeat(outer_extra, 1000)),
        6 => ("sibling", || repeat(outer_sibling, 1000)),
        7 => ("cold", || repeat(outer_cold, 1000)),
        8 => ("loaded", || repeat(outer_loaded, 1000)),
        9 => ("coroutine", run_coroutines),
        10 => ("signal", || repeat_and_rest(outer_signal, 500)),
        _ => ("churn", churn),
    };
    let thread = std::thread::Builder::new().name(format!("{name}-{index}"));
    thread
        .spawn(work)
        .with_context(|| format!("thread {index} cannot be had"))
}

/// One call, checked.
fn call(outer: Outer, work: u32) {
    // SAFETY: the functions take any number.
    let seen = unsafe { outer(work) };
    COUNTS.calls.fetch_add(1, Relaxed);
    if !seen.is_power_of_two() && COUNTS.mixes.fetch_add(1, Relaxed) == 0 {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        eprintln!("thread {name} saw versions {seen:#05b} in one call");
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
            COUNTS
                .pause
                .fetch_max((now - last).as_nanos() as u64, Relaxed);
            last = now;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether coroutines are registered with the engine.
static REGISTERS: AtomicBool = AtomicBool::new(true);

thread_local! {
    /// Whether the thread throws where a coroutine would be suspended.
    static THROWS: Cell<bool> = const { Cell::new(false) };
}

extern "C-unwind" fn suspend() {
    if THROWS.get() {
        std::panic::resume_unwind(Box::new(()));
    }
    coroutines::suspend();
}

/// Throws through the outer function, in the midst of the pair.
fn throw() {
    THROWS.set(true);
    while !COUNTS.stop.load(Relaxed) {
        // SAFETY: the function takes any number; it has nothing to clean up.
        let thrown = std::panic::catch_unwind(|| unsafe { outer_yield(1) });
        COUNTS.thrown.fetch_add(u64::from(thrown.is_err()), Relaxed);
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Blocks every signal for moments, and calls the outer function meanwhile.
fn mask() {
    let mut rng = fastrand::Rng::new();
    while !COUNTS.stop.load(Relaxed) {
        // SAFETY: the sets are valid ones, and outlive the calls.
        unsafe {
            let (mut all, mut before) = (core::mem::zeroed(), core::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            for _ in 0..rng.u32(1..20) {
                call(outer_spin, 100);
            }
            if rng.u32(..10) == 0 {
                call(outer_sleep, 1000);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, core::ptr::null_mut());
        }
        call(outer_sleep, rng.u32(1..500));
    }
}

/// Forks; the child calls outer functions, too, and says by its end whether it saw a mix.
fn fork() {
    while !COUNTS.stop.load(Relaxed) {
        // SAFETY: the child calls functions that allocate nothing and take no lock, and ends.
        let child = unsafe {
            match libc::fork() {
                0 => {
                    let is_mixed = (0..20).any(|_| !outer_spin(10).is_power_of_two());
                    libc::_exit(i32::from(is_mixed))
                }
                child => child,
            }
        };
        let mut status = 0;
        // SAFETY: there is room for the answer.
        if child > 0 && unsafe { libc::waitpid(child, &raw mut status, 0) } == child {
            COUNTS.forks.fetch_add(1, Relaxed);
            COUNTS.mixes.fetch_add(u64::from(status != 0), Relaxed);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Opens files until there are no descriptors left, for moments.
fn use_up_descriptors() {
    let limit = libc::rlimit {
        rlim_cur: 256,
        rlim_max: 256,
    };
    // SAFETY: the limit is read.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    while !COUNTS.stop.load(Relaxed) {
        let mut files = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            files.push(file);
        }
        COUNTS.exhausted.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(3));
        drop(files);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Has a timer interrupt whoever computes, a thousand times a second.
fn profile() {
    extern "C" fn tick(_: libc::c_int) {
        // SAFETY: the function takes any number, and may be called anywhere.
        let seen = unsafe { outer_spin(10) };
        COUNTS.ticks.fetch_add(1, Relaxed);
        COUNTS
            .mixes
            .fetch_add(u64::from(!seen.is_power_of_two()), Relaxed);
    }
    klp_os_linux_fixtures::profile(tick);
}

/// Runs coroutines by turns, which are suspended in the midst of `outer_yield` nearly all the time.
fn run_coroutines() {
    let last_round = Arc::new(AtomicBool::new(false));
    let make = |_| {
        let last_round = Arc::clone(&last_round);
        let body = move || {
            while !last_round.load(Relaxed) {
                call(outer_yield, 1);
            }
        };
        if REGISTERS.load(Relaxed) {
            Coroutine::registered("soak", body)
        } else {
            Coroutine::unregistered(body)
        }
    };
    let mut all: Vec<_> = (0..3).map(make).collect();
    while !COUNTS.stop.load(Relaxed) {
        all.iter_mut().for_each(Coroutine::resume);
        std::thread::sleep(Duration::from_micros(200));
    }
    // Each is in the midst of its last call.
    last_round.store(true, Relaxed);
    all.iter_mut().for_each(Coroutine::resume);
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
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} s  {msg}")
        .expect("the template is valid");
    ProgressBar::new(time.as_secs()).with_style(style)
}
