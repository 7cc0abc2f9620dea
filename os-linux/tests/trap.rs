//! SIGTRAP is the program's own, also while its code is changed.

use klp_os_linux_fixtures::machine::{breakpoint, go_on_behind_breakpoint};
use klp_os_linux_fixtures::*;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

static SEEN: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_trap(signal: i32, _: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    SEEN.fetch_add(signal, Ordering::SeqCst);
    // SAFETY: it is this handler's argument.
    unsafe { go_on_behind_breakpoint(ucontext) };
}

fn install() {
    // SAFETY: all-zero is a valid `sigaction`; the handler does what is allowed.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_trap as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGTRAP, &raw const action, core::ptr::null_mut());
    }
}

#[test]
fn it_goes_to_the_programs_handler() {
    let status = in_child(|| {
        install();
        let patch = add("trap", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
        breakpoint();
        enable(patch);
        breakpoint();
        send(tid(), libc::SIGTRAP);
        SEEN.load(Ordering::SeqCst) == 3 * libc::SIGTRAP && fx_value() == 2
    });
    assert_eq!(status, 0);
}

#[test]
fn the_program_may_set_it_as_it_likes() {
    for disposition in [libc::SIG_DFL, libc::SIG_IGN] {
        let status = in_child(|| {
            let patch = add("taken", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
            // SAFETY: the disposition of a signal that nobody else here cares for.
            unsafe { libc::signal(libc::SIGTRAP, disposition) };
            enable(patch);
            fx_value() == 2
        });
        assert_eq!(status, 0);
    }
    let status = in_child(|| {
        livepatch();
        breakpoint();
        true
    });
    assert!(
        libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGTRAP,
        "{status:#x}"
    );
}

/// Whoever blocks signals calls functions while they change, time and again.
#[test]
fn threads_that_block_every_signal_live() {
    static STOP: AtomicBool = AtomicBool::new(false);
    let status = in_child(|| {
        let patch = add("masked", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
        let calls_masked = || {
            // SAFETY: only this thread's mask changes, to and from what is written before.
            unsafe {
                let (mut all, mut before) = core::mem::zeroed();
                libc::sigfillset(&raw mut all);
                while !STOP.load(Ordering::Relaxed) {
                    libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
                    (0..1000).for_each(|_| assert!(matches!(fx_value(), 1 | 2)));
                    libc::pthread_sigmask(
                        libc::SIG_SETMASK,
                        &raw const before,
                        core::ptr::null_mut(),
                    );
                }
            }
        };
        let threads = [(); 3].map(|()| std::thread::spawn(calls_masked));
        for _ in 0..50 {
            enable(patch);
            disable(patch);
        }
        STOP.store(true, Ordering::Relaxed);
        threads.into_iter().all(|thread| thread.join().is_ok())
    });
    assert_eq!(status, 0);
}
