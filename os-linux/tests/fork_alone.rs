//! `fork` by a signal handler that interrupts the engine itself.
//!
//! In a process that has only ever had one thread: elsewhere the C library's own locks forbid it
//! (`malloc` that is interrupted, say). So this test runs without the harness, which makes threads.

use core::sync::atomic::{AtomicI32, Ordering};
use klp_os_linux_fixtures::*;

/// Forks that are made.
const ENOUGH: i32 = 200;

static FORKS: AtomicI32 = AtomicI32::new(0);
/// This process is one of them.
static IS_CHILD: AtomicI32 = AtomicI32::new(0);
static BAD: AtomicI32 = AtomicI32::new(0);

/// Forks; the child ends, as a crash reporter's does, or goes on.
extern "C" fn fork(_: i32) {
    // On a slow machine the signals come so fast that nothing else would be done any more.
    if IS_CHILD.load(Ordering::Relaxed) != 0 || FORKS.load(Ordering::Relaxed) >= ENOUGH {
        return;
    }
    let goes_on = FORKS.fetch_add(1, Ordering::Relaxed) % 10 == 9;
    let mut status = -1;
    // SAFETY: the child ends at once, or goes on where the parent is. The handler interrupts
    // the only thread, and the C library knows that there is no other one.
    unsafe {
        match libc::fork() {
            0 if goes_on => IS_CHILD.store(1, Ordering::Relaxed),
            0 => libc::_exit(0),
            child => {
                libc::waitpid(child, &raw mut status, 0);
                BAD.fetch_add(i32::from(status != 0), Ordering::Relaxed);
            }
        }
    }
}

fn main() {
    livepatch();
    // A deadlock ends here.
    // SAFETY: no handler: it ends the process.
    unsafe { libc::alarm(600) };
    profile(fork);
    let patch = add_pair("interrupted");
    while FORKS.load(Ordering::Relaxed) < ENOUGH {
        enable(patch);
        assert_eq!(pair(|| ()), 222);
        disable(patch);
        assert_eq!(pair(|| ()), 111);
        if IS_CHILD.load(Ordering::Relaxed) != 0 {
            // It has finished what the parent had begun, and some more.
            enable(patch);
            assert_eq!(pair(|| ()), 222);
            return;
        }
    }
    assert_eq!(BAD.load(Ordering::Relaxed), 0, "children fail");
}
