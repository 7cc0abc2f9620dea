//! Real stacks: what the unwinder sees is what the compiler's own unwinder sees, and what it calls
//! unreliable is.
#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

mod common;

use common::{Frames, objects};
use core::cell::RefCell;
use core::ffi::{c_int, c_void};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use core::{hint, mem, ptr};
use klp_arch_aarch64::AArch64;
use klp_arch_aarch64::unwind::{Regs, Rule, walk};
use klp_core::addr::CodeAddr;
use klp_core::port::{Arch, Doubt, FrameKind};
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
        let result = ours.walk(regs_here!());
        theirs.trace();
        assert_eq!(result, Ok(()));
        assert!(ours.as_slice().len() > 20);
        assert!(
            ours.ends(&theirs),
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
fn without_a_limit_a_deep_stack_is_walked_to_its_end() {
    let thread = thread::Builder::new().stack_size(1 << 28).spawn(|| {
        deep(100_000, &|| {
            let mut count = 0;
            let result = walk(
                regs_here!(),
                usize::MAX,
                common::rule,
                common::read,
                &mut |_| {
                    count += 1;
                    ControlFlow::Continue(())
                },
            );
            assert_eq!(result, Ok(()));
            assert!(count > 100_000, "{count}");
        });
    });
    thread.expect("a thread").join().expect("no panic");
}

#[test]
fn most_rules_are_understood() {
    for object in objects() {
        let (mut unknown, mut known) = (0, 0);
        let text = object.table.text();
        for offset in 0..text.len() {
            match object.table.find(text.start().wrapping_add(offset)) {
                Rule::Unknown => unknown += 1,
                Rule::Gap => {}
                _ => known += 1,
            }
        }
        println!(
            "{}: {} rows, {known} bytes known, {unknown} not",
            object.name,
            object.table.rows()
        );
        assert!(
            known > 20 * unknown,
            "{}: {known} bytes known, {unknown} not",
            object.name
        );
    }
}

// What a signal handler saw, and what it compared.
thread_local! {
    static SEEN: RefCell<Seen> = const { RefCell::new(Seen { here: Frames::new(), interrupted: Frames::new(), theirs: Frames::new() }) };
}
static RELIABLE: AtomicUsize = AtomicUsize::new(0);
static UNRELIABLE: AtomicUsize = AtomicUsize::new(0);
static DIFFERENT: AtomicUsize = AtomicUsize::new(0);

struct Seen {
    here: Frames,
    interrupted: Frames,
    theirs: Frames,
}

extern "C" fn on_signal(_: c_int, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    SEEN.with_borrow_mut(
        |Seen {
             here,
             interrupted,
             theirs,
         }| {
            let regs = Regs::from_ucontext(ucontext as u64, common::read).expect("a ucontext");
            let inner = interrupted.walk(regs);
            let all = here.walk(regs_here!());
            if inner.is_err() || all.is_err() {
                UNRELIABLE.fetch_add(1, Relaxed);
                return;
            }
            theirs.trace();
            // The interrupted function is seen both ways, and at the very same instruction.
            let across = here
                .as_slice()
                .windows(2)
                .position(|pair| pair[1].kind == FrameKind::Interrupted);
            let same = across
                .is_some_and(|signal| here.as_slice()[signal + 1..] == *interrupted.as_slice());
            let same = same && here.ends(theirs) && interrupted.as_slice()[0].pc.get() == regs.pc;
            if same {
                RELIABLE.fetch_add(1, Relaxed)
            } else {
                DIFFERENT.fetch_add(1, Relaxed)
            };
        },
    );
}

fn install(signal: c_int, flags: c_int) {
    // SAFETY: an all-zero sigaction is a valid one.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as usize;
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

#[test]
fn through_a_signal_frame() {
    objects();
    install(libc::SIGUSR1, 0);
    raise_and_compare(libc::SIGUSR1);
}

#[test]
fn through_a_signal_frame_on_another_stack() {
    objects();
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
    install(libc::SIGUSR2, libc::SA_ONSTACK);
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
/// kernel's vdso.
#[test]
fn interrupted_anywhere() {
    objects();
    let signal = libc::SIGRTMIN() + 3;
    install(signal, 0);
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
        // An emulated machine takes longer.
        let (end, last) = (
            Instant::now() + Duration::from_secs(2),
            Instant::now() + Duration::from_secs(60),
        );
        let enough = || RELIABLE.load(Relaxed) > reliable + 1000;
        while Instant::now() < end || !enough() && Instant::now() < last {
            // SAFETY: the thread lives until it is told to end, below.
            assert_eq!(unsafe { libc::pthread_kill(pthread, signal) }, 0);
            thread::sleep(Duration::from_micros(50));
        }
        target.store(0, Relaxed);
        assert!(busy.join().expect("no panic") > 0);
    });
    let (reliable, unreliable) = (
        RELIABLE.load(Relaxed) - reliable,
        UNRELIABLE.load(Relaxed) - unreliable,
    );
    println!("{reliable} reliable, {unreliable} not");
    assert_eq!(
        DIFFERENT.load(Relaxed),
        0,
        "a stack called reliable was not what the other unwinder saw"
    );
    assert!(
        // Since Linux 5.8 the vDSO has no unwind information, and the thread reads the clock a lot.
        reliable > 1000 && reliable > 5 * unreliable,
        "{reliable} reliable, {unreliable} not"
    );
}

core::arch::global_asm!(
    ".pushsection .text",
    ".type klp_test_return_column,%function",
    "klp_test_return_column:",
    ".cfi_startproc",
    ".cfi_return_column 3", // x3
    "nop",
    "ret",
    ".cfi_endproc",
    ".size klp_test_return_column, . - klp_test_return_column",
    ".popsection",
);

// SAFETY: defined above; never called.
unsafe extern "C" {
    fn klp_test_return_column();
}

#[test]
fn a_return_address_in_another_column_is_not_understood() {
    assert_eq!(
        common::find(CodeAddr::new(klp_test_return_column as *const () as u64)),
        Rule::Unknown
    );
}

// What GCC 12 -O2 -mbranch-protection=pac-ret makes of a function that calls its first argument.
core::arch::global_asm!(
    ".pushsection .text",
    ".type klp_test_signing,%function",
    "klp_test_signing:",
    ".cfi_startproc",
    "hint #25", // paciasp
    ".cfi_negate_ra_state",
    "stp x29, x30, [sp, #-16]!",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset 29, -16",
    ".cfi_offset 30, -8",
    "mov x29, sp",
    "mov x2, x0",
    "mov x0, x1",
    "blr x2",
    "ldp x29, x30, [sp], #16",
    ".cfi_restore 30",
    ".cfi_restore 29",
    ".cfi_def_cfa_offset 0",
    "hint #29", // autiasp
    ".cfi_negate_ra_state",
    "ret",
    ".cfi_endproc",
    ".size klp_test_signing, . - klp_test_signing",
    ".popsection",
);

// SAFETY: defined above, with this signature.
unsafe extern "C" {
    fn klp_test_signing(call: extern "C" fn(u64), arg: u64);
}

extern "C" fn signing(depth: u64) {
    if depth > 0 {
        // SAFETY: it calls what it is given.
        return unsafe { klp_test_signing(signing, depth - 1) };
    }
    let (mut ours, mut theirs) = (Frames::new(), Frames::new());
    let result = ours.walk(regs_here!());
    theirs.trace();
    assert_eq!(result, Ok(()));
    assert!(
        ours.ends(&theirs),
        "{:?}\n{:?}",
        ours.as_slice(),
        theirs.as_slice()
    );
    let start = klp_test_signing as *const () as u64;
    let through = ours
        .as_slice()
        .iter()
        .filter(|frame| (start..start + 128).contains(&frame.pc.get()))
        .count();
    assert_eq!(through, 5);
}

/// Return addresses are signed if the machine does that.
#[test]
fn through_frames_that_sign_their_return_addresses() {
    deep(10, &|| signing(5));
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

klp_arch_aarch64::entry_stub!(fn klp_test_doubtful_stub, doubtful_handler);

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
            4096,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    let thunk = AArch64::thunk(
        CodeAddr::new(page as u64),
        answer as *const () as u64,
        CodeAddr::new(stub),
    );
    // SAFETY: the page is ours and large enough; what is written there has the signature of
    // `answer`.
    let through: extern "C" fn() -> u64 = unsafe {
        ptr::copy_nonoverlapping(thunk.as_ptr(), page.cast(), thunk.len());
        for line in (page as u64..page as u64 + thunk.len() as u64).step_by(16) {
            core::arch::asm!("dc cvau, {line}", "dsb ish", "ic ivau, {line}", line = in(reg) line);
        }
        core::arch::asm!("dsb ish", "isb");
        mem::transmute(page)
    };
    assert_eq!(through(), 42);
    let at = IN_HANDLER.load(Relaxed);
    assert!(
        (stub..stub + 1024).contains(&at),
        "{at:#x} is not in the stub at {stub:#x}"
    );
    for offset in 0..64 {
        assert_eq!(common::find(CodeAddr::new(stub + offset)), Rule::Gap);
        assert_eq!(common::find(CodeAddr::new(page as u64 + offset)), Rule::Gap);
    }
}
