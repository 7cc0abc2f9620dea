//! The soak of calls across objects: functions of a shared library are patched while threads call
//! them, from within the library and from the executable, with more arguments than there are
//! registers for, with variable ones, recursively; their replacements call back into the executable
//! (which calls the library again), into a third object, each other, and the library's own hidden
//! functions. Each result is worked out by hand: it must be all of the old functions', or all of the
//! new ones'.
//!
//! This is about what belongs to an object and is kept in registers: on ppc64le register 2, the base
//! of its table of contents, and the link register. A wrong one would lead to another object's data,
//! or to nowhere.
//!
//! ```sh
//! cargo run --release -p klp-os-linux --example across -- --threads 8 --seconds 60
//! ```

use anyhow::{Context, Result, bail};
use clap::Parser;
use core::ffi::{CStr, c_long, c_void};
use core::mem::transmute;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use indicatif::ProgressBar;
use klp_demo_across::{FIX, LIBRARIES};
use klp_os_linux::process::{Livepatch, Options};
use std::ffi::CString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Soak: enables and disables a patch without end while threads call across objects.
#[derive(Parser)]
struct Args {
    /// Threads that call
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// How long to run
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Seconds that a transition may take: on a machine that is emulated, more
    #[arg(long, default_value_t = 20)]
    patience: u64,
}

type One = extern "C" fn(c_long) -> c_long;
type Many = extern "C" fn(
    c_long,
    c_long,
    c_long,
    c_long,
    c_long,
    c_long,
    c_long,
    c_long,
    c_long,
    c_long,
    c_long,
    c_long,
) -> c_long;
type Variadic = unsafe extern "C" fn(i32, ...) -> c_long;

/// The library's functions: those that call the patched ones from within, in the order of [`KINDS`],
/// and the patched ones themselves.
#[derive(Clone, Copy)]
struct Functions {
    within: [One; 4],
    leaf: One,
    many: Many,
    variadic: Variadic,
    deep: One,
}

const KINDS: [&str; 4] = ["leaf", "many", "variadic", "deep"];

/// For the callback, which the library calls.
static LEAF: AtomicU64 = AtomicU64::new(0);

/// The executable's own data.
static OWN: AtomicU64 = AtomicU64::new(7_000_000);

/// What the library calls back: it looks at data of its own before and after it calls the library.
extern "C" fn callback(x: c_long) -> c_long {
    let before = OWN.load(Relaxed) as c_long;
    // SAFETY: set before anybody can call back, to a function of this type.
    let leaf = unsafe { transmute::<u64, One>(LEAF.load(Relaxed)) };
    let found = leaf(x);
    before + found + OWN.load(Relaxed) as c_long
}

/// What a call of the function `kind` for `x` gives, worked out by hand.
fn expected(kind: usize, x: c_long, patched: bool) -> c_long {
    let (state, own, offset) = (100, 10_000, 1000);
    let third = |x: c_long| 2 * x + offset;
    let leaf = |x: c_long| {
        if patched {
            x + own + third(x) + x + state + state
        } else {
            x + 1
        }
    };
    let callback = |x: c_long| 14_000_000 + leaf(x);
    let weighted = |last: c_long| x + (2..=last).map(|i| i * i).sum::<c_long>();
    match (kind, patched) {
        (0, _) => leaf(x),
        (1, false) => weighted(12) + state,
        (1, true) => third(x) + 12 + state + callback(2) - weighted(12) + state + own,
        (2, false) => callback(10) + state + weighted(10),
        (2, true) => state + own + third(1) + callback(10) - 2 * weighted(10) - 10 * offset,
        (_, false) => (x + 1) * state + callback(0),
        (_, true) => x * (own + third(0)) + state + callback(0),
    }
}

impl Functions {
    /// Calls the function `kind` for `x`, from within the library or from here; what it found must
    /// be one of the two. Says whether it was the new one.
    fn call(&self, kind: usize, x: c_long, within: bool) -> Result<bool> {
        let found = match (within, kind) {
            // What its caller finds afterwards.
            (true, _) => (self.within[kind])(x) - 100 - 1000,
            (_, 0) => (self.leaf)(x),
            (_, 1) => (self.many)(x, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
            // SAFETY: as many `long`s as it is told.
            (_, 2) => unsafe {
                let [b, c, d, e, f, g, h, i, j]: [c_long; 9] = [2, 3, 4, 5, 6, 7, 8, 9, 10];
                (self.variadic)(10, x, b, c, d, e, f, g, h, i, j)
            },
            _ => (self.deep)(x),
        };
        let [old, new] = [false, true].map(|patched| expected(kind, x, patched));
        if found != old && found != new {
            let from = if within {
                "its library"
            } else {
                "the executable"
            };
            let name = KINDS[kind];
            bail!("{name}({x}), called from {from}, gave {found}: neither {old} nor {new}");
        }
        Ok(found == new)
    }
}

fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void> {
    // SAFETY: a handle of `dlopen`, and a string.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    if found.is_null() {
        bail!("the library has no {name:?}");
    }
    Ok(found)
}

/// Loads the libraries.
fn load() -> Result<Functions> {
    let mut library = core::ptr::null_mut();
    for path in LIBRARIES {
        let name = CString::new(path)?;
        // SAFETY: a string; the libraries have no constructors.
        library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if library.is_null() {
            bail!("{path} cannot be loaded");
        }
    }
    // SAFETY: the types that they have in `target.c`.
    unsafe {
        let [leaf, many, variadic, deep] = symbol(library, c"across_functions")?
            .cast::<[u64; 4]>()
            .read();
        let one = |name| -> Result<One> {
            let function = symbol(library, name)?;
            Ok(transmute::<*mut c_void, One>(function))
        };
        let set_callback: extern "C" fn(One) = transmute(symbol(library, c"across_set_callback")?);
        LEAF.store(leaf, Relaxed);
        set_callback(callback);
        Ok(Functions {
            within: [
                one(c"across_leaf")?,
                one(c"across_many")?,
                one(c"across_variadic")?,
                one(c"across_deep")?,
            ],
            leaf: transmute::<u64, One>(leaf),
            many: transmute::<u64, Many>(many),
            variadic: transmute::<u64, Variadic>(variadic),
            deep: transmute::<u64, One>(deep),
        })
    }
}

/// What all threads count together.
#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    /// Calls of old functions, and of new ones.
    calls: [AtomicU64; 2],
}

/// Calls everything until told to stop.
fn worker(functions: Functions, counts: &Counts, seed: u32) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(seed.into());
    while !counts.stop.load(Relaxed) {
        for kind in 0..KINDS.len() {
            let patched = functions.call(kind, rng.i64(0..20) as c_long, rng.bool())?;
            counts.calls[usize::from(patched)].fetch_add(1, Relaxed);
        }
    }
    Ok(())
}

/// Enables and disables the patch for as long as `args` say; says how many transitions there were.
fn patch(livepatch: &'static Livepatch, args: &Args) -> Result<u64> {
    let fix = livepatch.load_file(FIX)?;
    let (begin, mut transitions) = (Instant::now(), 0);
    let progress = ProgressBar::new(args.seconds);
    while begin.elapsed().as_secs() < args.seconds {
        progress.set_position(begin.elapsed().as_secs());
        for enable in [true, false] {
            if enable {
                livepatch.enable(fix)?;
            } else {
                livepatch.disable(fix)?;
            }
            if !livepatch.wait(Duration::from_secs(args.patience)) {
                let blockers = livepatch.engine().blockers(fix)?;
                let blockers: Vec<_> = blockers.iter().map(ToString::to_string).collect();
                bail!("a transition does not end:\n{}", blockers.join("\n"));
            }
            transitions += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    progress.finish_and_clear();
    Ok(transitions)
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let functions = load()?;
    let livepatch = Livepatch::init(Options::default()).context("livepatching cannot be set up")?;
    let counts = Counts::default();
    let (transitions, wrong) = std::thread::scope(|scope| {
        let counts = &counts;
        let workers: Vec<_> = (0..args.threads)
            .map(|seed| {
                scope.spawn(move || {
                    let result = worker(functions, counts, seed);
                    if let Err(error) = &result {
                        eprintln!("WRONG: {error}");
                    }
                    result
                })
            })
            .collect();
        let transitions = patch(livepatch, &args);
        counts.stop.store(true, Relaxed);
        let ended = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
        let wrong = ended.filter(|ended| !matches!(ended, Ok(Ok(())))).count();
        (transitions, wrong)
    });
    let [old, new] = counts.calls.map(AtomicU64::into_inner);
    let transitions = transitions?;
    println!(
        "{transitions} transitions, {old} calls of old functions, {new} of new ones, {wrong} threads \
         with a wrong result"
    );
    if wrong > 0 || old == 0 || new == 0 {
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
