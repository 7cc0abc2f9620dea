//! `fork` while the engine, or a maker of shadow variables, is at work.

use core::alloc::Layout;
use klp_core::engine::Poll;
use klp_core::shadow::{nothing, zeroed};
use klp_os_linux::process::shadows;
use klp_os_linux_fixtures::libraries::*;
use klp_os_linux_fixtures::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

#[test]
fn a_child_finishes_the_transition_on_its_own() {
    let _alone = alone();
    let before = text();
    let patch = add(
        "fork",
        &[
            ("fx_read", 0, addr_of_fn!(fx_read_new)),
            ("fx_value", 0, addr_of_fn!(fx_value_new)),
        ],
    );
    let (reader, writer) = pipe();
    let (send_tid, sleeper) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        send_tid.send(tid()).expect("the test listens");
        fx_read(reader)
    });
    wait_asleep(sleeper.recv().expect("the thread says its id"));
    let poll = livepatch().enable(patch).expect("the patch fits");
    assert!(matches!(poll, Poll::Waiting { .. }), "{poll:?}");

    let status = in_child(|| {
        assert_eq!(
            fx_value(),
            2,
            "the child's thread was switched before the fork"
        );
        // The sleeper is not there, so nobody holds the child's transition back.
        settle(patch);
        assert_eq!(fx_value(), 2);
        let born = std::thread::spawn(|| fx_value());
        assert_eq!(born.join().expect("the thread only calls"), 2);
        disable(patch);
        fx_value() == 1 && text() == before
    });
    assert_eq!(status, 0, "the child is well");

    assert!(
        !livepatch().wait(Duration::from_millis(20)),
        "the parent's transition is still held back"
    );
    write_byte(writer);
    assert_eq!(thread.join().expect("the thread only reads"), 1);
    settle(patch);
    assert_eq!(fx_value(), 2);
    disable(patch);
    assert_eq!(text(), before);
}

#[test]
fn forks_of_busy_threads_do_no_harm() {
    let _alone = alone();
    let patch = add_pair("busy");
    std::thread::scope(|scope| {
        let forker = scope.spawn(|| {
            for _ in 0..50 {
                let status = in_child(|| {
                    let seen = pair(|| ());
                    // A transition may have been under way.
                    livepatch().wait(Duration::from_secs(30)) && (seen == 111 || seen == 222)
                });
                assert_eq!(status, 0);
            }
        });
        while !forker.is_finished() {
            enable(patch);
            disable(patch);
        }
    });
}

#[test]
fn a_child_can_make_shadow_variables_whoever_was_making_one() {
    const ID: u64 = 1;
    let _alone = alone();
    livepatch();
    let (send, begun) = std::sync::mpsc::channel();
    let maker = std::thread::spawn(move || {
        let slowly = |_, _| {
            send.send(()).expect("the test listens");
            std::thread::sleep(Duration::from_millis(100));
            Ok(())
        };
        shadows()
            .alloc(0x10, ID, Layout::new::<u32>(), slowly)
            .is_ok()
    });
    begun.recv().expect("the constructor says so");
    let status = in_child(|| {
        // SAFETY: no handler: the signal ends the child if the lock is not free.
        unsafe { libc::alarm(10) };
        shadows().get(0x10, ID).is_some()
            && shadows()
                .alloc(0x20, ID, Layout::new::<u32>(), zeroed)
                .is_ok()
    });
    assert_eq!(status, 0, "the child is well");
    assert!(maker.join().expect("the thread only makes a variable"));
    assert_eq!(
        shadows().get(0x20, ID),
        None,
        "the child's variables are its own"
    );
    // SAFETY: nobody uses it.
    assert!(unsafe { shadows().free(0x10, ID, nothing) });
}

/// Whatever the parent's other threads are at, a child finds nothing locked.
#[test]
fn forks_beside_libraries_that_come_and_go() {
    let _alone = alone();
    let path = copy("libfork_module");
    let patch = patch_of("libraries", "libfork_module");
    enable(patch);
    std::thread::scope(|scope| {
        let forker = scope.spawn(|| {
            for _ in 0..50 {
                let status = in_child(|| {
                    // SAFETY: the child dies of it should it hang.
                    unsafe { libc::alarm(10) };
                    // SAFETY: the library has no constructors.
                    let opened = unsafe { livepatch().open_library(&path) };
                    opened.is_ok()
                        && is_mapped("libfork_module")
                        && livepatch().wait(Duration::from_secs(30))
                });
                assert_eq!(status, 0);
            }
        });
        static DONE: AtomicBool = AtomicBool::new(false);
        for path in ["libfork_a", "libfork_b"].map(copy) {
            scope.spawn(move || {
                while !DONE.load(Ordering::Relaxed) {
                    come_and_go(&path);
                }
            });
        }
        while !forker.is_finished() {
            come_and_go(&path);
        }
        DONE.store(true, Ordering::Relaxed);
    });
    disable(patch);
}

fn come_and_go(path: &std::path::Path) {
    // SAFETY: the library has no constructors, and nobody calls it.
    unsafe {
        livepatch()
            .open_library(path)
            .and_then(|library| library.close())
    }
    .expect("the patch fits");
}
