//! How long a bystander pauses while 1,000 entry sites change at once: a thread that runs nothing
//! of what changes. One reads the clock all the time and notes the gaps; the other sleeps for 100
//! microseconds again and again and notes how late it wakes up. The rows "less waiting" are the
//! first one's gaps without the time for which the kernel let others have its processor: what is
//! left are interrupts, the stop signal's handler, and what a hypervisor takes.
//!
//! Slices of three kinds alternate, so that whatever else runs on the machine meets all of them:
//! nothing happens; one more thread computes, which wants a processor and nothing else, as the one
//! that changes the sites does; sites change, there and back without a pause. A gap counts for the
//! slice in which it began.

use super::{check_redirection, complete, many, millis, new_many};
use core::ffi::c_int;
use core::hint::black_box;
use klp_arch_x86_64::X86_64;
use klp_core::addr::CodeAddr;
use klp_core::port::Arch;
use klp_core::{Engine, Error, Func, Object, Patch, PatchId};
use klp_os_linux::process::Process;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SITES: usize = 1_000;
/// Sites of each kind of pad: as long as is recommended, and as long as a jump.
const EACH: usize = SITES / 2;
const TIGHT: usize = 1_000;

const ROUNDS: usize = 50;
const SLICE: Duration = Duration::from_millis(80);
/// Between two slices; nothing counts.
const REST: Duration = Duration::from_millis(5);
/// How long the second bystander sleeps, in nanoseconds.
const SLEEP: u64 = 100_000;
/// Of each stretch of so many nanoseconds, the longest gap is kept as well.
const STRETCH: u64 = 10_000_000;

/// What happens, by the number of its row; beyond, nothing counts.
const ROWS: [&str; 3] = ["nothing happens", "a thread computes", "1,000 sites change"];
const NOTHING: usize = 0;
const COMPUTING: usize = 1;
const CHANGING: usize = 2;
const RESTING: usize = 3;
const OVER: usize = 4;
static HAPPENS: AtomicUsize = AtomicUsize::new(RESTING);

unsafe extern "C" {
    static tight: [unsafe extern "C" fn(c_int) -> c_int; TIGHT];
}

/// Prints the table.
pub(super) fn table(engine: &Engine<Process>) -> Result<(), Box<dyn std::error::Error>> {
    let sites = Sites::choose();
    let id = engine
        .add(sites.patch()?)
        .map_err(|refused| refused.error)?;
    sites.check(engine, id)?;

    let spinner = std::thread::spawn(spin);
    let sleeper = std::thread::spawn(sleep);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        for what in [NOTHING, COMPUTING, CHANGING] {
            std::thread::sleep(REST);
            HAPPENS.store(what, Ordering::Relaxed);
            match what {
                NOTHING => std::thread::sleep(SLICE),
                COMPUTING => compute(),
                _ => change(engine, id, &mut times)?,
            }
            HAPPENS.store(RESTING, Ordering::Relaxed);
        }
    }
    HAPPENS.store(OVER, Ordering::Relaxed);
    let [spins, on_processor] = spinner.join().map_err(|_| "the spinner panicked")?;
    let sleeps = sleeper.join().map_err(|_| "the sleeper panicked")?;

    times.sort_unstable();
    println!(
        "\nSites of {SITES} functions, {} of them across two words, changed {} times; median \
         {:.3} ms, longest {:.3} ms",
        sites.across,
        times.len(),
        millis(times[times.len() / 2]),
        millis(times[times.len() - 1]),
    );
    println!("{:43} {:^39} | {:^19}", "", "gaps [us]", "longest of 10 ms");
    println!(
        "{:<22} {:<20} {:>9} {:>9} {:>9} {:>9} | {:>9} {:>9}",
        "bystander", "", "p50", "p99", "p99.9", "longest", "p50", "p99"
    );
    let kinds = [
        ("spins", spins),
        ("spins, less waiting", on_processor),
        ("sleeps 100 us", sleeps),
    ];
    for (kind, rows) in &kinds {
        for (row, gaps) in ROWS.iter().zip(rows) {
            println!(
                "{kind:<22} {row:<20} {:>9.2} {:>9.2} {:>9.2} {:>9.1} | {:>9.1} {:>9.1}",
                gaps.quantile(0.5),
                gaps.quantile(0.99),
                gaps.quantile(0.999),
                micros(gaps.longest),
                gaps.longest_of_stretches(0.5),
                gaps.longest_of_stretches(0.99),
            );
        }
    }
    println!();
    for (kind, rows) in &kinds {
        let longest = |what: usize| micros(rows[what].longest);
        println!(
            "{kind}, longest: {} / {} {:.2}, / {} {:.2}",
            ROWS[CHANGING],
            ROWS[NOTHING],
            longest(CHANGING) / longest(NOTHING),
            ROWS[COMPUTING],
            longest(CHANGING) / longest(COMPUTING),
        );
    }
    Ok(())
}

type Function = unsafe extern "C" fn(c_int) -> c_int;

/// Functions with entry sites, as the compiler has laid them out.
struct Sites {
    /// Name, number, address.
    funcs: Vec<(String, usize, Function)>,
    /// How many have five bytes to be rewritten that are not in one word.
    across: usize,
}

impl Sites {
    fn choose() -> Self {
        // SAFETY: the tables are constant.
        let (olds, tights) = unsafe { (&many, &tight) };
        let long = (TIGHT..).take(EACH);
        let long = long.map(|index| (format!("many_{index}"), index, olds[index]));
        // Others lie across two lines of the cache, and are refused.
        let short = (0..TIGHT).filter(|&index| Self::place(tights[index]) % 64 <= 64 - 5);
        let short = short.map(|index| (format!("tight_{index}"), index, tights[index]));
        let funcs: Vec<_> = long.chain(short.take(EACH)).collect();
        let across = |(.., function): &&(String, usize, Function)| Self::place(*function) % 8 > 3;
        let across = funcs.iter().filter(across).count();
        Self { funcs, across }
    }

    /// Where the bytes of `function` begin that are rewritten.
    fn place(function: Function) -> u64 {
        let at = function as usize as u64;
        // SAFETY: it is followed by other functions, or by what is behind all code.
        let bytes = unsafe { core::slice::from_raw_parts(at as *const u8, X86_64::MAX_ENTRY) };
        let entry = X86_64::entry(CodeAddr::new(at), bytes).expect("it was built with a pad");
        at + u64::from(entry.skip)
    }

    fn patch(&self) -> Result<Patch, Error> {
        let mut object = Object::vmlinux()?;
        for (name, index, _) in &self.funcs {
            // SAFETY: the table is constant.
            let new = CodeAddr::new(unsafe { new_many[*index] } as usize as u64);
            // SAFETY: the functions have one type, and do the same if they have the same number.
            object = object.func(unsafe { Func::new(name, new) }?)?;
        }
        Patch::builder("bystanders")
            .object(Ok::<_, Error>(object))
            .build()
    }

    /// Sees to it that all sites change, and that the functions work.
    fn check(&self, engine: &Engine<Process>, id: PatchId) -> Result<(), Error> {
        let places: Vec<_> = self.funcs.iter().map(|(.., f)| Self::place(*f)).collect();
        let jumps = || {
            // SAFETY: code can be read; nobody changes it now.
            let first = |place: &&u64| unsafe { (**place as *const u8).read_volatile() } == 0xe9;
            places.iter().filter(first).count()
        };
        assert_eq!((places.len(), jumps()), (SITES, 0));
        complete(engine, || engine.enable(id))?;
        assert_eq!(jumps(), SITES);
        for (_, index, function) in &self.funcs {
            // SAFETY: the functions take any number.
            assert_eq!(unsafe { function(7) }, 21 + *index as c_int);
        }
        complete(engine, || engine.disable(id))?;
        check_redirection(SITES);
        Ok(())
    }
}

fn compute() {
    let begin = Instant::now();
    while begin.elapsed() < SLICE {
        black_box((0..10_000_u32).fold(0, |sum, number| black_box(sum ^ number)));
    }
}

/// Has the patch come and go; adds how long each took.
fn change(engine: &Engine<Process>, id: PatchId, times: &mut Vec<Duration>) -> Result<(), Error> {
    let begin = Instant::now();
    while begin.elapsed() < SLICE {
        times.push(complete(engine, || engine.enable(id))?);
        times.push(complete(engine, || engine.disable(id))?);
    }
    Ok(())
}

/// The bystander that reads the clock all the time: its gaps, and what is left of them without the
/// time for which it waited for a processor.
fn spin() -> [[Gaps; 3]; 2] {
    let mut all = [(); 2].map(|()| [(); 3].map(|()| Gaps::new()));
    let schedstat = File::open("/proc/thread-self/schedstat").ok();
    let mut waited_before = waited(schedstat.as_ref());
    let mut before = clock();
    loop {
        let happens = HAPPENS.load(Ordering::Relaxed);
        let now = clock();
        let gap = now - before;
        let mut on_processor = gap;
        // To ask for it takes a microsecond.
        if gap > 5_000 {
            let waited = waited(schedstat.as_ref());
            on_processor = gap.saturating_sub(waited.saturating_sub(waited_before));
            waited_before = waited;
        }
        for (gaps, gap) in all.iter_mut().zip([gap, on_processor]) {
            if let Some(gaps) = gaps.get_mut(happens) {
                gaps.note(before, gap);
            }
        }
        if happens == OVER {
            return all;
        }
        before = now;
    }
}

/// For how long a thread was ready to run and had no processor, by its file (`proc(5)`).
fn waited(schedstat: Option<&File>) -> u64 {
    let mut text = [0; 64];
    let read = schedstat.and_then(|file| file.read_at(&mut text, 0).ok());
    let text = core::str::from_utf8(&text[..read.unwrap_or(0)]).unwrap_or_default();
    let second = text.split(' ').nth(1);
    second.map_or(0, |nanos| nanos.parse().unwrap_or(0))
}

/// The bystander that sleeps most of the time.
fn sleep() -> [Gaps; 3] {
    let mut all = [(); 3].map(|()| Gaps::new());
    // SAFETY: timers of this thread are precise from now on, that is all.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    loop {
        let happens = HAPPENS.load(Ordering::Relaxed);
        if happens == OVER {
            return all;
        }
        let due = clock() + SLEEP;
        let until = libc::timespec {
            tv_sec: (due / 1_000_000_000) as i64,
            tv_nsec: (due % 1_000_000_000) as i64,
        };
        let mut now = 0;
        while now < due {
            let (clock_id, none) = (libc::CLOCK_MONOTONIC, core::ptr::null_mut());
            // A signal ends it early. SAFETY: the time is valid, and nothing is written.
            unsafe { libc::clock_nanosleep(clock_id, libc::TIMER_ABSTIME, &raw const until, none) };
            now = clock();
        }
        if let Some(gaps) = all.get_mut(happens) {
            gaps.note(due, now - due);
        }
    }
}

/// The monotonic clock, in nanoseconds.
fn clock() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: there is room for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Gaps, counted by their length.
struct Gaps {
    /// 32 classes for each power of two.
    counts: Vec<u64>,
    longest: u64,
    /// The number of the stretch of time under way, and its longest gap.
    stretch: (u64, u64),
    stretches: Vec<u64>,
}

impl Gaps {
    const BITS: u32 = 5;

    fn new() -> Self {
        let mut gaps = Self {
            counts: vec![0; (64 - Self::BITS as usize + 1) << Self::BITS],
            longest: 0,
            stretch: (0, 0),
            stretches: vec![0; ROUNDS * (2 + SLICE.as_nanos() as usize / STRETCH as usize)],
        };
        // So that the kernel gives the memory now, and not in a gap.
        black_box(&mut gaps.counts).fill(0);
        black_box(&mut gaps.stretches).fill(0);
        gaps.stretches.clear();
        gaps
    }

    /// The class of a length: the position of its highest bit, and the bits behind it.
    fn class(gap: u64) -> usize {
        let shift = (64 - gap.leading_zeros()).saturating_sub(Self::BITS + 1);
        ((shift as usize) << Self::BITS) + (gap >> shift) as usize
    }

    /// The shortest length that is in a class.
    fn shortest(class: usize) -> u64 {
        let shift = (class >> Self::BITS).saturating_sub(1);
        ((class - (shift << Self::BITS)) as u64) << shift
    }

    /// A gap that began at `at`.
    fn note(&mut self, at: u64, gap: u64) {
        self.counts[Self::class(gap)] += 1;
        self.longest = self.longest.max(gap);
        let (number, longest) = &mut self.stretch;
        if *number != at / STRETCH {
            if *number != 0 {
                self.stretches.push(*longest);
            }
            (*number, *longest) = (at / STRETCH, 0);
        }
        *longest = gap.max(*longest);
    }

    /// The length that a share of all gaps does not exceed, in microseconds.
    fn quantile(&self, share: f64) -> f64 {
        let all: u64 = self.counts.iter().sum();
        let mut left = (all as f64 * share).ceil() as u64;
        let class = self.counts.iter().position(|count| {
            left = left.saturating_sub(*count);
            left == 0
        });
        class.map_or(f64::NAN, |class| micros(Self::shortest(class)))
    }

    /// The same of the longest gaps of stretches of time.
    fn longest_of_stretches(&self, share: f64) -> f64 {
        let mut longest = self.stretches.clone();
        longest.sort_unstable();
        let index = (longest.len() as f64 * share) as usize;
        longest.get(index).map_or(f64::NAN, |gap| micros(*gap))
    }
}
