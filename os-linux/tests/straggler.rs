//! A thread asleep in a function that is being patched holds the transition back.

use klp_core::engine::{PatchId, Poll};
use klp_core::transition::Hindrance;
use klp_os_linux_fixtures::*;
use std::time::Duration;

/// Runs `meanwhile` while a thread named "sleeper" sleeps in `fx_read`, wakes it, and returns what
/// it returned.
fn with_sleeper(meanwhile: impl FnOnce(i32)) -> i32 {
    let (reader, writer) = pipe();
    let (send_tid, sleeper) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("sleeper".into())
        .spawn(move || {
            send_tid.send(tid()).expect("the test listens");
            fx_read(reader)
        });
    let sleeper = sleeper.recv().expect("the thread says its id");
    wait_asleep(sleeper);
    meanwhile(sleeper);
    write_byte(writer);
    thread
        .expect("threads can be had")
        .join()
        .expect("the thread only reads")
}

fn add_read(name: &str) -> PatchId {
    add(
        name,
        &[
            ("fx_read", 0, addr_of_fn!(fx_read_new)),
            ("fx_value", 0, addr_of_fn!(fx_value_new)),
        ],
    )
}

fn enable_but_wait(patch: PatchId) {
    let poll = livepatch().enable(patch).expect("the patch fits");
    assert!(matches!(poll, Poll::Waiting { .. }), "{poll:?}");
    assert!(!livepatch().wait(Duration::from_millis(50)));
}

#[test]
fn it_is_named_and_the_transition_completes_when_it_returns() {
    let _alone = alone();
    let before = text();
    let patch = add_read("held");
    let read = with_sleeper(|sleeper| {
        enable_but_wait(patch);
        let blockers = livepatch()
            .engine()
            .blockers(patch)
            .expect("the transition runs");
        let [blocker] = &blockers[..] else {
            panic!("one thread is asleep: {blockers:?}")
        };
        assert_eq!(blocker.task.0, sleeper as u64);
        assert_eq!(blocker.name.as_str(), "sleeper");
        let Hindrance::InFunction { object, func } = &blocker.hindrance else {
            panic!("{blocker}")
        };
        assert_eq!((&**object, &**func), ("vmlinux", "fx_read"));
        assert!(
            blocker
                .stack
                .iter()
                .any(|frame| frame.starts_with("fx_read+")),
            "{blocker}"
        );
        assert!(blocker.stack.len() > 3, "{blocker}");
        assert_eq!(fx_value(), 2, "this thread was switched");
    });
    assert_eq!(read, 1, "the sleeper ran the old version to its end");
    settle(patch);
    assert_eq!(fx_value(), 2);
    disable(patch);
    assert_eq!(text(), before);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_transition_that_is_held_back_can_be_reversed() {
    let _alone = alone();
    let before = text();
    let patch = add_read("reversed");
    let read = with_sleeper(|_| {
        enable_but_wait(patch);
        assert_eq!(fx_value(), 2);
        livepatch()
            .engine()
            .reverse(patch)
            .expect("the transition runs");
        settle(patch);
        assert_eq!(fx_value(), 1);
        assert_eq!(text(), before);
    });
    assert_eq!(read, 1);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn one_that_sleeps_in_the_new_version_holds_back_the_disabling() {
    let _alone = alone();
    let before = text();
    let patch = add_read("back");
    enable(patch);
    let read = with_sleeper(|sleeper| {
        let poll = livepatch().disable(patch).expect("it is enabled");
        assert!(matches!(poll, Poll::Waiting { .. }), "{poll:?}");
        assert!(!livepatch().wait(Duration::from_millis(50)));
        let blockers = livepatch()
            .engine()
            .blockers(patch)
            .expect("the transition runs");
        assert_eq!(
            blockers
                .iter()
                .map(|blocker| blocker.task.0)
                .collect::<Vec<_>>(),
            [sleeper as u64]
        );
        assert_eq!(fx_value(), 1, "this thread was switched");
    });
    assert_eq!(read, 12, "the sleeper ran the new version to its end");
    settle(patch);
    assert_eq!(text(), before);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_thread_born_in_the_transition_does_not_hold_it_back() {
    let _alone = alone();
    let patch = add_read("newborn");
    let read = with_sleeper(|_| {
        enable_but_wait(patch);
        let newborn = std::thread::spawn(|| {
            let (reader, writer) = pipe();
            write_byte(writer);
            (fx_value(), fx_read(reader))
        });
        assert_eq!(
            newborn.join().expect("the thread only calls"),
            (2, 12),
            "it runs the new version"
        );
    });
    assert_eq!(read, 1);
    settle(patch);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn force_ends_a_transition_that_is_held_back() {
    let _alone = alone();
    let patch = add("forced", &[("fx_read", 0, addr_of_fn!(fx_read_new))]);
    let read = with_sleeper(|_| {
        enable_but_wait(patch);
        // The patch has one function, so there is nothing to mix.
        let poll = livepatch()
            .engine()
            .force(patch)
            .expect("the transition runs");
        assert!(
            matches!(poll, Poll::Complete { enabled: true, .. }),
            "{poll:?}"
        );
    });
    assert_eq!(read, 1);
    disable(patch);
}
