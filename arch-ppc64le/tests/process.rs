//! Real stacks: what the unwinder sees is what the compiler's own unwinder and the back chain tell,
//! and what it calls unreliable is.
#![cfg(all(target_os = "linux", target_arch = "powerpc64"))]

mod common;

use common::{Frames, objects};
use core::cell::RefCell;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use core::{hint, mem, ptr};
use klp_arch_ppc64le::Ppc64Le;
use klp_arch_ppc64le::unwind::{Regs, Rule};
use klp_core::addr::CodeAddr;
use klp_core::port::{Arch, Doubt};
use std::collections::HashMap;
use std::thread;
use std::time::Instant;

#[inline(never)]
fn deep(depth: u64, bottom: &dyn Fn()) -> u64 {
    if depth == 0 {
        bottom();
        return 0;
    }
    let buffer = hint::black_box([depth; 9]);
    deep(depth - 1, bottom) + hint::black_box(buffer)[3]
}

#[test]
fn a_thread_ends_reliably() {
    deep(20, &|| {
        let (mut ours, mut theirs) = (Frames::new(), Frames::new());
        let regs = regs_here!();
        let result = ours.walk(regs);
        theirs.trace();
        assert_eq!(result, Ok(()), "{:?}", ours.as_slice());
        assert!(ours.as_slice().len() > 20);
        assert!(
            ours.ends(1, &theirs),
            "{:?}\n{:?}",
            ours.as_slice(),
            theirs.as_slice()
        );
        theirs.chain(regs.r1);
        assert!(
            ours.ends(1, &theirs),
            "{:?}\n{:?}",
            ours.as_slice(),
            theirs.as_slice()
        );
    });
}

#[test]
fn more_frames_than_the_limit() {
    deep(150, &|| {
        let mut frames = Frames::new();
        let doubt = frames.walk(regs_here!()).expect_err("too deep");
        assert_eq!(doubt.why, Doubt::NoEnd);
        assert_eq!(frames.as_slice().len(), common::LIMIT);
    });
}

#[test]
fn most_rules_are_understood() {
    for object in objects() {
        let (mut unknown, mut known) = (0, 0);
        let text = object.table.text();
        for offset in (0..text.len()).step_by(4) {
            match object.table.find(text.start().wrapping_add(offset)) {
                Rule::Unknown => unknown += 1,
                Rule::Gap => {}
                _ => known += 1,
            }
        }
        println!(
            "{}: {} rows, {known} words known, {unknown} not",
            object.name,
            object.table.rows()
        );
        // "lr in r0", as prologues have it, is not; libgcc_s has long ones.
        assert!(
            known > 5 * unknown,
            "{}: {known} words known, {unknown} not",
            object.name
        );
    }
}

// What a signal handler saw, and what it compared.
thread_local! {
    static SEEN: RefCell<(Frames, Frames)> = const { RefCell::new((Frames::new(), Frames::new())) };
}
static RELIABLE: AtomicUsize = AtomicUsize::new(0);
static UNRELIABLE: AtomicUsize = AtomicUsize::new(0);
static DIFFERENT: AtomicUsize = AtomicUsize::new(0);
/// Where the thread was interrupted: a bit for each instruction, as a hash of its address.
static PLACES: [AtomicU64; 1 << 10] = [const { AtomicU64::new(0) }; 1 << 10];

fn note_place(pc: u64) {
    let bit = (pc / 4).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    PLACES[bit as usize / 64].fetch_or(1 << (bit % 64), Relaxed);
}

fn places() -> u32 {
    PLACES
        .iter()
        .map(|bits| bits.load(Relaxed).count_ones())
        .sum()
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    SEEN.with_borrow_mut(|(interrupted, chain)| {
        let regs = Regs::from_ucontext(ucontext as u64, common::read).expect("a ucontext");
        note_place(regs.pc);
        let count = if interrupted.walk(regs).is_err() {
            &UNRELIABLE
        } else {
            chain.chain(regs.r1);
            // Whom the interrupted function was called by, only its rules tell.
            let same = interrupted.ends(2, chain) && interrupted.as_slice().len() > 3;
            if same { &RELIABLE } else { &DIFFERENT }
        };
        count.fetch_add(1, Relaxed);
    });
}

/// Interrupts a busy thread at whatever instruction it is: prologues, epilogues, library code.
#[test]
fn interrupted_anywhere() {
    objects();
    let signal = libc::SIGRTMIN() + 3;
    // SAFETY: an all-zero sigaction is a valid one.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    assert_eq!(
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) },
        0
    );
    let target = AtomicU64::new(0);
    thread::scope(|scope| {
        let busy = scope.spawn(|| {
            // The first use may allocate.
            SEEN.with_borrow_mut(|(frames, _)| frames.trace());
            // SAFETY: always works.
            target.store(unsafe { libc::pthread_self() }, Relaxed);
            let mut map = HashMap::new();
            let mut sum = 0;
            while target.load(Relaxed) != 0 {
                for key in 0..50_u64 {
                    map.insert(key, format!("{key} {sum} {:?}", Instant::now()));
                    sum += deep(key % 7, &|| {
                        hint::black_box(&map);
                    });
                }
                let mut lines: Vec<_> = map.drain().collect();
                lines.sort_by(|a, b| a.1.cmp(&b.1));
                sum += lines.len() as u64;
            }
            sum
        });
        let pthread = loop {
            match target.load(Relaxed) {
                0 => thread::yield_now(),
                pthread => break pthread,
            }
        };
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            // SAFETY: the thread lives until it is told to end, below.
            assert_eq!(unsafe { libc::pthread_kill(pthread, signal) }, 0);
            // Longer than the handler takes: else the thread gets nowhere.
            thread::sleep(Duration::from_millis(1));
        }
        target.store(0, Relaxed);
        assert!(busy.join().expect("no panic") > 0);
    });
    let (reliable, unreliable) = (RELIABLE.load(Relaxed), UNRELIABLE.load(Relaxed));
    println!(
        "{reliable} reliable, {unreliable} not, at {} instructions",
        places()
    );
    assert_eq!(
        DIFFERENT.load(Relaxed),
        0,
        "a stack called reliable was not what the back chain tells"
    );
    assert!(
        reliable > 1000 && reliable > 10 * unreliable && places() > 200,
        "{reliable} reliable, {unreliable} not"
    );
}

static IN_HANDLER: AtomicU64 = AtomicU64::new(0);

extern "C" fn doubtful_handler(arg: u64) -> u64 {
    let mut frames = Frames::new();
    let doubt = frames
        .walk(regs_here!())
        .expect_err("a task in the entry stub is unreliable");
    assert_eq!(doubt.why, Doubt::NoTable);
    IN_HANDLER.store(doubt.at.get(), Relaxed);
    arg
}

klp_arch_ppc64le::entry_stub!(fn klp_test_doubtful_stub, doubtful_handler);

extern "C" fn answer() -> u64 {
    42
}

#[test]
fn inside_the_entry_stub_nothing_is_reliable() {
    let stub = klp_test_doubtful_stub as *const () as u64;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            1 << 16,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    let thunk = Ppc64Le::thunk(
        CodeAddr::new(page as u64),
        answer as *const () as u64,
        CodeAddr::new(stub),
    );
    // SAFETY: the page is ours and large enough; the thunk lies in one line of the cache, which is
    // made fit to be executed (Power ISA, book II, 1.8). It has the signature of `answer`.
    let through: extern "C" fn() -> u64 = unsafe {
        ptr::copy_nonoverlapping(thunk.as_ptr(), page.cast(), thunk.len());
        core::arch::asm!(
            "dcbst 0, {0}", "sync", "icbi 0, {0}", "sync", "isync",
            in(reg) page,
            options(nostack, preserves_flags),
        );
        mem::transmute(page)
    };
    assert_eq!(through(), 42);
    let at = IN_HANDLER.load(Relaxed);
    assert!(
        (stub..stub + 1024).contains(&at),
        "{at:#x} is not in the stub at {stub:#x}"
    );
    for offset in (0..400).step_by(4) {
        assert_eq!(common::find(CodeAddr::new(stub + offset)), Rule::Gap);
        assert_eq!(common::find(CodeAddr::new(page as u64 + offset)), Rule::Gap);
    }
}
