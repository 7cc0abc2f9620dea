//! SIGTRAPs that are not the engine's.

use klp_os_linux_fixtures::*;
use std::sync::atomic::{AtomicI32, Ordering};

static SEEN: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_trap(signal: i32) {
    SEEN.fetch_add(signal, Ordering::SeqCst);
}

/// Meets a breakpoint of its own.
fn breakpoint() {
    // SAFETY: the instruction changes nothing.
    unsafe { core::arch::asm!("int3") };
}

#[test]
fn they_go_where_they_went_before() {
    let status = in_child(|| {
        on_signal(libc::SIGTRAP, on_trap);
        let patch = add("trap", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
        breakpoint();
        assert_eq!(SEEN.load(Ordering::SeqCst), libc::SIGTRAP);
        enable(patch);
        breakpoint();
        send(tid(), libc::SIGTRAP);
        SEEN.load(Ordering::SeqCst) == 3 * libc::SIGTRAP && fx_value() == 2
    });
    assert_eq!(status, 0);
}

#[test]
fn without_a_handler_they_end_the_process() {
    let dies_of_sigtrap =
        |status: i32| libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGTRAP;
    let status = in_child(|| {
        livepatch();
        breakpoint();
        true
    });
    assert!(dies_of_sigtrap(status), "{status:#x}");
    let status = in_child(|| {
        livepatch();
        send(tid(), libc::SIGTRAP);
        true
    });
    assert!(dies_of_sigtrap(status), "{status:#x}");
}

#[test]
fn ignored_ones_are_ignored_if_they_were_sent() {
    let status = in_child(|| {
        // SAFETY: ignoring a signal is harmless.
        unsafe { libc::signal(libc::SIGTRAP, libc::SIG_IGN) };
        livepatch();
        send(tid(), libc::SIGTRAP);
        true
    });
    assert_eq!(status, 0);
}

#[test]
fn no_code_is_changed_when_somebody_has_taken_the_signal() {
    let status = in_child(|| {
        let patch = add("taken", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
        on_signal(libc::SIGTRAP, on_trap);
        let error = livepatch()
            .enable(patch)
            .expect_err("breakpoints would go astray");
        error.to_string().contains("signal 5") && fx_value() == 1
    });
    assert_eq!(status, 0);
}
