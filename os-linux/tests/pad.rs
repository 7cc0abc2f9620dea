//! Threads in the midst of a pad of several instructions while it is rewritten.

// Where an instruction of four bytes becomes another one there are no such pads: x86-64 alone has
// them.
#![cfg(target_arch = "x86_64")]

use core::ffi::c_void;
use core::ptr;
use klp_os_linux::process::Options;
use klp_os_linux_fixtures::*;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

/// Where in the pad the thread stands: at the last byte that is rewritten. A jump backwards has
/// 0xff there, which with the NOPs behind it would be a call through a wild address.
const IN_PAD: u64 = 4;

static GO_ON: AtomicBool = AtomicBool::new(false);
static IN_HANDLER: AtomicBool = AtomicBool::new(false);
static NEXT_SIGNAL: AtomicI32 = AtomicI32::new(0);
/// The function whose pad it is. Each test has its own: a pad has several instructions only until it
/// is rewritten for the first time.
static FUNC: AtomicU64 = AtomicU64::new(0);

type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void);

/// Has `handler` called at each `signal`, with all signals blocked but SIGTRAP and those of a
/// crash.
fn install(signal: i32, handler: Handler, block: bool) {
    // SAFETY: all-zero is a valid `sigaction`; the handlers do what is allowed.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        if block {
            libc::sigfillset(&raw mut action.sa_mask);
            for signal in [
                libc::SIGTRAP,
                libc::SIGSEGV,
                libc::SIGILL,
                libc::SIGBUS,
                libc::SIGABRT,
            ] {
                libc::sigdelset(&raw mut action.sa_mask, signal);
            }
        }
        libc::sigaction(signal, &raw const action, ptr::null_mut());
    }
}

/// Where in the pad the thread stands.
fn in_pad() -> u64 {
    FUNC.load(Ordering::SeqCst) + IN_PAD
}

/// Makes the interrupted thread go on in the midst of the pad.
fn go_into_pad(ucontext: *mut c_void) {
    // SAFETY: it is a signal handler's argument.
    let ucontext = unsafe { &mut *ucontext.cast::<libc::ucontext_t>() };
    ucontext.uc_mcontext.gregs[libc::REG_RIP as usize] = in_pad() as i64;
}

fn wait_for(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The next signal arrives as soon as this handler returns: when the thread stands in the pad.
extern "C" fn into_pad(_: i32, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    go_into_pad(ucontext);
    assert!(send(tid(), NEXT_SIGNAL.load(Ordering::SeqCst)));
}

/// Interrupts the thread in the pad, and waits there.
extern "C" fn wait_in_pad(_: i32, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    // SAFETY: it is this handler's argument.
    let pc =
        unsafe { (*ucontext.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] };
    assert_eq!(
        pc as u64,
        in_pad(),
        "the thread was to be interrupted in the pad"
    );
    IN_HANDLER.store(true, Ordering::SeqCst);
    wait_for(&GO_ON);
}

/// Interrupts the thread behind its stop signal's handler, and waits there.
extern "C" fn wait_on_the_way(_: i32, _: *mut libc::siginfo_t, _: *mut c_void) {
    wait_for(&GO_ON);
}

/// Keeps the stop signal waiting until the thread stands in the pad; [`wait_on_the_way`] comes
/// after it.
extern "C" fn into_pad_late(_: i32, _: *mut libc::siginfo_t, ucontext: *mut c_void) {
    go_into_pad(ucontext);
    assert!(send(tid(), libc::SIGRTMAX() - 1));
    IN_HANDLER.store(true, Ordering::SeqCst);
    loop {
        // SAFETY: the set is written before it is read.
        let is_pending = unsafe {
            let mut pending = core::mem::zeroed();
            libc::sigpending(&raw mut pending);
            libc::sigismember(&raw const pending, Options::default().stop_signal) == 1
        };
        if is_pending {
            return;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn first_byte() -> u8 {
    // SAFETY: code can be read.
    unsafe { ptr::read_volatile(FUNC.load(Ordering::SeqCst) as *const u8) }
}

/// All of a function's pad that is rewritten.
fn pad(func: u64) -> [u8; 5] {
    // SAFETY: code can be read.
    unsafe { ptr::read_volatile(func as *const [u8; 5]) }
}

#[test]
fn a_thread_interrupted_in_a_pad_goes_on_behind_it() {
    let _alone = alone();
    let patch = add("nested", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
    FUNC.store(addr_of_fn!(fx_value), Ordering::SeqCst);
    IN_HANDLER.store(false, Ordering::SeqCst);
    NEXT_SIGNAL.store(libc::SIGUSR2, Ordering::SeqCst);
    GO_ON.store(false, Ordering::SeqCst);
    install(libc::SIGUSR1, into_pad, true);
    install(libc::SIGUSR2, wait_in_pad, false);
    let thread =
        std::thread::spawn(|| fx_signal_self(std::process::id() as i32, tid(), libc::SIGUSR1));
    wait_for(&IN_HANDLER);

    livepatch().enable(patch).expect("the patch fits");
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "a thread is in the function"
    );
    assert!(blockers(patch).contains("fx_value"), "{}", blockers(patch));
    assert_ne!(first_byte(), 0x90, "the pad has been rewritten");

    GO_ON.store(true, Ordering::SeqCst);
    assert_eq!(
        thread.join().expect("the thread lives"),
        1,
        "the old body has run"
    );
    settle(patch);
    assert_eq!(fx_value(), 2);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_thread_that_stands_in_a_pad_goes_on_behind_it() {
    let _alone = alone();
    let patch = add("direct", &[("fx_first", 0, addr_of_fn!(fx_first_new))]);
    FUNC.store(addr_of_fn!(fx_first), Ordering::SeqCst);
    IN_HANDLER.store(false, Ordering::SeqCst);
    GO_ON.store(false, Ordering::SeqCst);
    install(libc::SIGUSR1, into_pad_late, true);
    install(libc::SIGRTMAX() - 1, wait_on_the_way, false);
    let thread =
        std::thread::spawn(|| fx_signal_self(std::process::id() as i32, tid(), libc::SIGUSR1));
    wait_for(&IN_HANDLER);

    livepatch().enable(patch).expect("the patch fits");
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "a thread is in the function"
    );
    GO_ON.store(true, Ordering::SeqCst);
    assert_eq!(
        thread.join().expect("the thread lives"),
        1,
        "the old body has run"
    );
    settle(patch);
    assert_eq!(fx_first(), 2);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_pad_that_was_rewritten_once_is_a_single_instruction_from_then_on() {
    let _alone = alone();
    let func = addr_of_fn!(fx_second);
    assert_eq!(pad(func), [0x90; 5], "as it was built");
    let patch = add("once", &[("fx_second", 0, addr_of_fn!(fx_second_new))]);
    for _ in 0..3 {
        enable(patch);
        assert_eq!(fx_second(), 2);
        disable(patch);
        assert_eq!((pad(func), fx_second()), ([0x0f, 0x1f, 0x44, 0, 0], 1));
    }
    livepatch().unload(patch).expect("it is disabled");
}
