//! The kernel patches itself: two functions are replaced together, while tasks call them and one
//! sleeps inside of them.

#![no_std]
#![no_main]

extern crate alloc;

mod conformance;

use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use klp_core::addr::CodeAddr;
use klp_core::{Engine, Error, Func, Object, Patch, Poll};
use toy_kernel::boot;
use toy_kernel::host::Toy;
use toy_kernel::interrupt::yield_now;
use toy_kernel::{machine, println, sched};

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer() -> u32 {
    black_box(41)
}

#[inline(never)]
extern "C" fn answer_fixed() -> u32 {
    black_box(42)
}

static BELL: AtomicBool = AtomicBool::new(false);

/// Asks once before the bell rings and once after it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ask_twice(told: &mut [u32; 2]) {
    told[0] = answer();
    sched::wait(&BELL);
    told[1] = answer();
}

#[inline(never)]
extern "C" fn ask_twice_fixed(told: &mut [u32; 2]) {
    *told = [answer(); 2];
}

/// What each worker was told last, and how often it has asked.
static TOLD: [(AtomicU32, AtomicUsize); 4] =
    [const { (AtomicU32::new(0), AtomicUsize::new(0)) }; 4];

extern "C" fn worker() {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (told, times) = &TOLD[NEXT.fetch_add(1, Ordering::Relaxed)];
    loop {
        told.store(answer(), Ordering::Relaxed);
        times.fetch_add(1, Ordering::Release);
        (0..1000).for_each(|step| _ = black_box(step));
    }
}

/// What the sleeper was told, before it works like all the others.
static TOLD_TWICE: spin::Mutex<[u32; 2]> = spin::Mutex::new([0; 2]);

extern "C" fn sleeper() {
    let mut told = [0; 2];
    ask_twice(&mut told);
    *TOLD_TWICE.lock() = told;
    worker();
}

/// Every task but the last `but` ones asks, and is told `expected`.
fn everybody_is_told(expected: u32, but: usize) {
    for (told, times) in &TOLD[..TOLD.len() - but] {
        let before = times.load(Ordering::Acquire);
        while times.load(Ordering::Acquire) < before + 2 {
            yield_now();
        }
        assert_eq!(told.load(Ordering::Relaxed), expected, "what a worker was told");
    }
    assert_eq!(answer(), expected, "what main was told");
    println!("toy: everybody{} is told {expected}", ["", " but the sleeper"][but]);
}

/// Polls until only so many tasks are waited for.
fn poll(engine: &Engine<Toy>, mut last: Poll, until: usize) {
    while matches!(last, Poll::Waiting { pending, .. } if pending > until) {
        yield_now();
        last = engine.poll();
    }
}

fn fix() -> Result<Patch, Error> {
    let at = |function: usize| CodeAddr::new(function as u64);
    // SAFETY: pairs of functions of the same type, which stay and may run side by side.
    let (one, two) = unsafe {
        (
            Func::new("answer", at(answer_fixed as usize))?,
            Func::new("ask_twice", at(ask_twice_fixed as usize))?,
        )
    };
    let object = Object::vmlinux().and_then(|object| object.func(one)?.func(two));
    Patch::builder("fix").object(object).build()
}

fn patch_yourself(engine: &Engine<Toy>) -> Result<(), Error> {
    for _ in 1..TOLD.len() {
        sched::spawn("worker", worker);
    }
    everybody_is_told(41, 1);
    let id = sched::spawn("sleeper", sleeper);
    while !sched::sleeps(id) {
        yield_now();
    }

    let fix = engine.add(fix()?).map_err(|refused| refused.error)?;
    poll(engine, engine.enable(fix)?, 1);
    let blockers = engine.blockers(fix)?;
    println!("toy: {}", blockers[0]);
    everybody_is_told(42, 1);
    BELL.store(true, Ordering::Release);
    poll(engine, engine.poll(), 0);
    everybody_is_told(42, 0);
    println!("toy: the sleeper was told {:?}", *TOLD_TWICE.lock());

    poll(engine, engine.disable(fix)?, 0);
    everybody_is_told(41, 0);
    engine.remove(fix).map(drop)
}

#[unsafe(no_mangle)]
extern "C" fn main() {
    let engine = Engine::new(Toy::new(boot::image()));
    match boot::command_line() {
        "" => patch_yourself(&engine).unwrap_or_else(|error| panic!("{error}")),
        "conformance" => conformance::check(engine.host()),
        "a task is missed" => conformance::a_task_is_missed(),
        "walks end early" => conformance::walks_end_early(engine.host()),
        other => panic!("'{other}' is nothing that can be asked for"),
    }
    println!("toy: done");
    machine::exit(16);
}
