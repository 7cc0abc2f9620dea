//! How long a transition takes: functions × sleeping threads, enable + complete and disable +
//! complete.
//!
//! Each figure is the median of several cycles, after one that is not counted. All of it comes from
//! one run; the last lines put figures of the same run in relation.
//!
//! Then: how long threads pause that have nothing to do with it.

mod bystanders;

use core::ffi::c_int;
use klp_core::addr::CodeAddr;
use klp_core::{Engine, Error, Func, Object, Patch, PatchId, Poll};
use klp_os_linux::process::{Livepatch, Options, Process};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const FUNCTIONS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
const THREADS: [usize; 4] = [10, 100, 200, 1_000];
const CYCLES: usize = 9;

unsafe extern "C" {
    static many: [unsafe extern "C" fn(c_int) -> c_int; 10_000];
    static new_many: [unsafe extern "C" fn(c_int) -> c_int; 10_000];
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let livepatch = Livepatch::init(Options::default())?;
    let engine = livepatch.engine();
    let mut patches = Vec::new();
    for count in FUNCTIONS {
        patches.push(engine.add(patch(count)?).map_err(|refused| refused.error)?);
    }

    println!(
        "{:>9} {:>8} {:>14} {:>14}",
        "functions", "threads", "enable [ms]", "disable [ms]"
    );
    let mut table = Vec::new();
    for threads in THREADS {
        let sleepers = Sleepers::new(threads)?;
        for (count, &id) in FUNCTIONS.iter().zip(&patches) {
            let (enable, disable) = median_cycle(engine, id)?;
            check_redirection(*count);
            println!(
                "{count:>9} {threads:>8} {:>14.3} {:>14.3}",
                millis(enable),
                millis(disable)
            );
            table.push(((*count, threads), enable, disable));
        }
        sleepers.wake();
    }

    let sum = |count, threads| {
        let row = table
            .iter()
            .find(|((c, t), ..)| (*c, *t) == (count, threads));
        row.map_or(f64::NAN, |(_, enable, disable)| millis(*enable + *disable))
    };
    println!();
    for threads in THREADS {
        println!(
            "1,000 functions / 1 function, {threads} threads: {:.2}",
            sum(1_000, threads) / sum(1, threads)
        );
    }
    println!(
        "1,000 threads / 100 threads, 1 function: {:.2}",
        sum(1, 1_000) / sum(1, 100)
    );
    println!(
        "1,000 functions x 200 threads, enable + disable: {:.2} ms",
        sum(1_000, 200)
    );
    bystanders::table(engine)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn patch(count: usize) -> Result<Patch, Error> {
    let mut object = Object::vmlinux()?;
    // SAFETY: the table is constant.
    for (index, new) in unsafe { &new_many[..count] }.iter().enumerate() {
        // SAFETY: each has the type of the one whose number it has.
        let func = unsafe {
            Func::new(
                &format!("many_{index}"),
                CodeAddr::new(*new as usize as u64),
            )
        }?;
        object = object.func(func)?;
    }
    Patch::builder(&format!("many-{count}"))
        .object(Ok::<_, Error>(object))
        .build()
}

/// Says that the first and the last function work, whichever version runs: this keeps them in the
/// program, too.
fn check_redirection(count: usize) {
    for index in [0, count - 1] {
        // SAFETY: the functions take any number.
        let (old, new) = unsafe { (many[index](7), new_many[index](7)) };
        assert_eq!((old, new), (21 + index as c_int, 21 + index as c_int));
    }
}

fn median_cycle(engine: &Engine<Process>, id: PatchId) -> Result<(Duration, Duration), Error> {
    let (mut enables, mut disables) = (Vec::new(), Vec::new());
    for cycle in 0..=CYCLES {
        let enable = complete(engine, || engine.enable(id))?;
        let disable = complete(engine, || engine.disable(id))?;
        if cycle > 0 {
            enables.push(enable);
            disables.push(disable);
        }
    }
    enables.sort_unstable();
    disables.sort_unstable();
    Ok((enables[CYCLES / 2], disables[CYCLES / 2]))
}

/// How long a transition takes that `start` begins.
fn complete(
    engine: &Engine<Process>,
    start: impl FnOnce() -> Result<Poll, Error>,
) -> Result<Duration, Error> {
    let begin = Instant::now();
    let mut poll = start()?;
    while let Poll::Waiting { .. } = poll {
        poll = engine.poll();
    }
    Ok(begin.elapsed())
}

/// Threads that sleep until they are woken.
struct Sleepers(Vec<(Sender<()>, JoinHandle<()>)>);

impl Sleepers {
    fn new(count: usize) -> std::io::Result<Self> {
        let sleeper = |_| {
            let (wake, sleep) = channel();
            let thread = std::thread::Builder::new().stack_size(64 * 1024);
            let thread = thread.spawn(move || sleep.recv().unwrap_or_default())?;
            Ok((wake, thread))
        };
        let sleepers = (0..count)
            .map(sleeper)
            .collect::<std::io::Result<Vec<_>>>()?;
        std::thread::sleep(Duration::from_millis(100));
        Ok(Self(sleepers))
    }

    fn wake(self) {
        for (wake, thread) in self.0 {
            drop(wake);
            let _ = thread.join();
        }
    }
}
