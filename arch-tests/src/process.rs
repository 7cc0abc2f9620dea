//! Real stacks: what the unwinder sees is what the compiler's own unwinder and the back chain tell,
//! and what it calls unreliable is. A test here is called by the test of its name.

use crate::frames::Frames;
use crate::page::{Page, Stub};
use crate::running::{Running, find, objects, read, rule};
use core::cell::RefCell;
use core::ffi::{c_int, c_void};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use core::{hint, mem, ptr};
use klp_core::addr::CodeAddr;
use klp_core::port::{Doubt, FrameKind, Unreliable};
use klp_unwind::{Machine, Rule, walk};
use std::collections::HashMap;
use std::thread;
use std::time::Instant;

/// Calls `bottom`, `depth` frames deep.
#[inline(never)]
pub fn deep(depth: u64, bottom: &dyn Fn()) -> u64 {
    if depth == 0 {
        bottom();
        return 0;
    }
    let buffer = hint::black_box([depth; 9]);
    deep(depth - 1, bottom) + hint::black_box(buffer)[3]
}

/// What is seen of the stack from here: to its end, and the same as others see.
#[inline(never)]
pub fn seen<P: Running>() -> Frames {
    let (mut ours, mut theirs) = (Frames::new(), Frames::new());
    let regs = P::registers();
    let result = ours.walk::<P>(regs);
    assert_eq!(result, Ok(()), "{:?}", ours.as_slice());
    let compare = |theirs: &Frames| {
        assert!(
            ours.ends(1, theirs),
            "{:?}\n{:?}",
            ours.as_slice(),
            theirs.as_slice()
        );
    };
    theirs.trace();
    compare(&theirs);
    if let Some(above) = P::CHAINED {
        theirs.chain(stack_pointer::<P::Arch>(&regs), above);
        compare(&theirs);
    }
    ours
}

fn stack_pointer<M: Machine>(regs: &M::Regs) -> u64 {
    M::get(regs, M::STACK_POINTER)
}

/// The stack of the main thread, which has to call this, ends in `_start`.
pub fn the_main_thread_ends_reliably<P: Running>() {
    assert!(
        seen::<P>().as_slice().len() > 3,
        "main, the runtime, libc, _start"
    );
}

/// The stack of a thread ends where the C library has begun it.
pub fn a_thread_ends_reliably<P: Running>() {
    deep(20, &|| assert!(seen::<P>().as_slice().len() > 20));
}

/// A walk that is to visit fewer frames than there are is not reliable.
pub fn more_frames_than_the_limit<P: Running>() {
    deep(150, &|| {
        let mut frames = Frames::new();
        let doubt = frames.walk::<P>(P::registers()).expect_err("too deep");
        assert_eq!(doubt.why, Doubt::NoEnd);
        assert_eq!(frames.as_slice().len(), Frames::LIMIT);
    });
}

/// A stack of 100,000 frames ends.
pub fn without_a_limit_a_deep_stack_is_walked_to_its_end<P: Running>() {
    let thread = thread::Builder::new().stack_size(1 << 28).spawn(|| {
        deep(100_000, &|| {
            let mut count = 0;
            let result = walk(P::registers(), usize::MAX, rule::<P>, read, &mut |_| {
                count += 1;
                ControlFlow::Continue(())
            });
            assert_eq!(result, Ok(()));
            assert!(count > 100_000, "{count}");
        });
    });
    thread.expect("a thread").join().expect("no panic");
}

/// More than `times` as many bytes of code have rules that are understood as have others.
pub fn most_rules_are_understood<P: Running>(times: u64) {
    for object in objects::<P>() {
        let (mut unknown, mut known) = (0, 0);
        let text = object.table.text();
        for offset in 0..text.len() {
            match object.table.find(text.start().wrapping_add(offset)) {
                Rule::Unknown => unknown += 1,
                Rule::Gap => {}
                _ => known += 1,
            }
        }
        let name = &object.name;
        let rows = object.table.rows();
        println!("{name}: {rows} rows, {known} bytes known, {unknown} not");
        assert!(
            known > times * unknown,
            "{name}: {known} bytes known, {unknown} not"
        );
    }
}

// What a signal handler saw, and what it compared.
thread_local! {
    static SEEN: RefCell<Seen> = const {
        RefCell::new(Seen {
            here: Frames::new(),
            interrupted: Frames::new(),
            theirs: Frames::new(),
        })
    };
}
static RELIABLE: AtomicUsize = AtomicUsize::new(0);
static UNRELIABLE: AtomicUsize = AtomicUsize::new(0);
/// In a vDSO of which no table tells: nothing can be reliable there.
static WITHOUT_TABLE: AtomicUsize = AtomicUsize::new(0);
static DIFFERENT: AtomicUsize = AtomicUsize::new(0);
/// Where the thread was interrupted: a bit for each instruction, as a hash of its address.
static PLACES: [AtomicU64; 1 << 10] = [const { AtomicU64::new(0) }; 1 << 10];

/// At fewer instructions a thread was not interrupted "anywhere".
const PLACES_AT_LEAST: u32 = 200;

fn note_place(pc: u64) {
    let bit = pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    PLACES[bit as usize / 64].fetch_or(1 << (bit % 64), Relaxed);
}

fn places() -> u32 {
    PLACES
        .iter()
        .map(|bits| bits.load(Relaxed).count_ones())
        .sum()
}

struct Seen {
    here: Frames,
    interrupted: Frames,
    theirs: Frames,
}

impl Seen {
    /// Looks from a signal handler at what it has interrupted: whether others see the same.
    fn look<P: Running>(&mut self, ucontext: u64) -> Result<bool, Unreliable> {
        let regs = P::from_ucontext(ucontext).expect("a ucontext");
        let pc = P::Arch::pc(&regs);
        note_place(pc);
        self.interrupted.walk::<P>(regs)?;
        let interrupted = self.interrupted.as_slice();
        if let Some(above) = P::CHAINED {
            self.theirs.chain(stack_pointer::<P::Arch>(&regs), above);
            // Whom the interrupted function was called by, only its rules tell.
            return Ok(self.interrupted.ends(2, &self.theirs) && interrupted.len() > 3);
        }
        self.here.walk::<P>(P::registers())?;
        self.theirs.trace();
        // The interrupted function is seen both ways, and at the very same instruction.
        let here = self.here.as_slice();
        let across = here
            .windows(2)
            .position(|pair| pair[1].kind == FrameKind::Interrupted);
        let same = across.is_some_and(|signal| here[signal + 1..] == *interrupted);
        Ok(same && self.here.ends(1, &self.theirs) && interrupted[0].pc.get() == pc)
    }
}

extern "C" fn on_signal<P: Running>(_: c_int, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    let same = SEEN.with_borrow_mut(|seen| seen.look::<P>(ucontext as u64));
    let count = match same {
        Ok(true) => &RELIABLE,
        Ok(false) => &DIFFERENT,
        Err(doubt) if is_bare_vdso::<P>(doubt.at) => &WITHOUT_TABLE,
        Err(_) => &UNRELIABLE,
    };
    count.fetch_add(1, Relaxed);
}

/// Whether `at` is in the kernel's vDSO, and that has no unwind information.
fn is_bare_vdso<P: Running>(at: CodeAddr) -> bool {
    /// None has more.
    const MAX_LEN: u64 = 1 << 16;
    // SAFETY: always works.
    let start = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    let is_there = start != 0 && (start..start + MAX_LEN).contains(&at.get());
    is_there && find::<P>(at) == Rule::Gap
}

fn install<P: Running>(signal: c_int, flags: c_int) {
    // SAFETY: an all-zero sigaction is a valid one.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_signal::<P> as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | flags;
    assert_eq!(
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) },
        0
    );
}

fn raise_and_compare(signal: c_int) {
    deep(10, &|| {
        let before = RELIABLE.load(Relaxed);
        // SAFETY: the signal has a handler.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
        SEEN.with_borrow(|seen| {
            assert!(
                RELIABLE.load(Relaxed) > before,
                "{:?}\n{:?}",
                seen.here.as_slice(),
                seen.theirs.as_slice()
            );
            assert!(seen.interrupted.as_slice().len() > 10);
        });
    });
}

/// A signal handler sees what it has interrupted.
pub fn through_a_signal_frame<P: Running>() {
    objects::<P>();
    install::<P>(libc::SIGUSR1, 0);
    raise_and_compare(libc::SIGUSR1);
}

/// Also from a stack of its own.
pub fn through_a_signal_frame_on_another_stack<P: Running>() {
    objects::<P>();
    let mut memory = vec![0u8; 1 << 16];
    let stack = libc::stack_t {
        ss_sp: memory.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: memory.len(),
    };
    assert_eq!(
        // SAFETY: the memory outlives the use: it is taken away again below.
        unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) },
        0
    );
    install::<P>(libc::SIGUSR2, libc::SA_ONSTACK);
    raise_and_compare(libc::SIGUSR2);
    let none = libc::stack_t {
        ss_sp: ptr::null_mut(),
        ss_flags: libc::SS_DISABLE,
        ss_size: 0,
    };
    assert_eq!(
        // SAFETY: nobody is on it.
        unsafe { libc::sigaltstack(&raw const none, ptr::null_mut()) },
        0
    );
}

/// Interrupts a busy thread at whatever instruction it is: prologues, epilogues, library code, the
/// kernel's vDSO. More than `times` as many stacks are reliable as are not, but for those in a vDSO
/// without tables, where none can be.
///
/// The variable `KLP_CONTEXTS` says how many reliable ones are compared at least, and may take as
/// long as it takes; without it, as many as there are in two seconds.
pub fn interrupted_anywhere<P: Running>(times: usize) {
    objects::<P>();
    let signal = libc::SIGRTMIN() + 3;
    install::<P>(signal, 0);
    let target = AtomicU64::new(0);
    let (reliable, unreliable) = (RELIABLE.load(Relaxed), UNRELIABLE.load(Relaxed));
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            // The first use may allocate.
            SEEN.with_borrow_mut(|seen| seen.theirs.trace());
            // SAFETY: always works.
            target.store(unsafe { libc::pthread_self() }, Relaxed);
            let mut map = HashMap::new();
            let mut sum = 0;
            loop {
                for key in 0..50u64 {
                    map.insert(key, format!("{key} {sum} {:?}", Instant::now()));
                    sum += deep(key % 7, &|| {
                        hint::black_box(&map);
                    });
                }
                let mut lines: Vec<_> = map.drain().collect();
                lines.sort_by(|a, b| a.1.cmp(&b.1));
                sum += lines.len() as u64;
                // Once at least, however slow the machine is.
                if target.load(Relaxed) == 0 {
                    break;
                }
            }
            sum
        });
        let pthread = loop {
            match target.load(Relaxed) {
                0 => thread::yield_now(),
                pthread => break pthread,
            }
        };
        let begin = Instant::now();
        let wanted = std::env::var("KLP_CONTEXTS").ok();
        let (wanted, patience) = match wanted.and_then(|number| number.parse().ok()) {
            Some(number) => (number, Duration::MAX),
            // An emulated machine takes longer.
            None => (1000, Duration::from_secs(60)),
        };
        let all = [&RELIABLE, &UNRELIABLE, &WITHOUT_TABLE, &DIFFERENT];
        let handled = || all.map(|count| count.load(Relaxed));
        let enough = || RELIABLE.load(Relaxed) > reliable + wanted && places() > PLACES_AT_LEAST;
        while begin.elapsed() < Duration::from_secs(2) || !enough() && begin.elapsed() < patience {
            let before = handled();
            // SAFETY: the thread lives until it is told to end, below.
            assert_eq!(unsafe { libc::pthread_kill(pthread, signal) }, 0);
            // Where the handler takes longer than that, the thread would get nowhere.
            while {
                thread::sleep(Duration::from_micros(50));
                handled() == before
            } {}
        }
        target.store(0, Relaxed);
        assert!(busy.join().expect("no panic") > 0);
    });
    let (reliable, unreliable) = (
        RELIABLE.load(Relaxed) - reliable,
        UNRELIABLE.load(Relaxed) - unreliable,
    );
    let places = places();
    println!("{reliable} reliable, {unreliable} not, at {places} instructions");
    assert_eq!(
        DIFFERENT.load(Relaxed),
        0,
        "a stack called reliable was not what others see"
    );
    assert!(
        reliable > 1000 && reliable > times * unreliable && places > PLACES_AT_LEAST,
        "{reliable} reliable, {unreliable} not, at {places} instructions"
    );
}

static IN_HANDLER: AtomicU64 = AtomicU64::new(0);

/// The handler of the stub in the next test.
pub extern "C" fn doubtful_handler<P: Running>(arg: u64) -> u64 {
    let mut frames = Frames::new();
    let doubt = frames
        .walk::<P>(P::registers())
        .expect_err("a task in the entry stub is unreliable");
    assert_eq!(doubt.why, Doubt::NoTable);
    IN_HANDLER.store(doubt.at.get(), Relaxed);
    arg
}

extern "C" fn answer() -> u64 {
    42
}

/// A walk from the handler of a stub is not reliable. The handler is [`doubtful_handler`], and the
/// stub has `len` bytes at least.
pub fn inside_the_entry_stub_nothing_is_reliable<P: Running>(stub: Stub, len: u64) {
    let page = Page::with_thunk::<P::Arch>(answer as *const () as u64, stub);
    // SAFETY: the thunk leads through the stub to `answer`, which has this signature.
    let through: extern "C" fn() -> u64 = unsafe { mem::transmute(page.function()) };
    assert_eq!(through(), 42);
    let stub = stub as *const () as u64;
    let at = IN_HANDLER.load(Relaxed);
    assert!(
        (stub..stub + 1024).contains(&at),
        "{at:#x} is not in the stub at {stub:#x}"
    );
    for offset in 0..len {
        assert_eq!(find::<P>(CodeAddr::new(stub + offset)), Rule::Gap);
        assert_eq!(find::<P>(page.addr().wrapping_add(offset)), Rule::Gap);
    }
}
