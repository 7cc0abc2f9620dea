//! A thread asleep in a function that is being patched holds the transition back.

use klp_core::engine::Poll;
use klp_core::transition::Hindrance;
use klp_os_linux_fixtures::*;
use std::time::Duration;

const READ: [(&str, u32, u64); 0] = [];

/// Runs `meanwhile` while a thread named "sleeper" sleeps in `fx_read`, wakes it, and returns what it returned.
fn with_sleeper(meanwhile: impl FnOnce(i32)) -> i32 {
    let (reader, writer) = pipe();
    let (send_tid, sleeper) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("sleeper".into()).spawn(move || {
        send_tid.send(tid()).expect("the test listens");
        fx_read(reader)
    });
    let sleeper = sleeper.recv().expect("the thread says its id");
    wait_asleep(sleeper);
    meanwhile(sleeper);
    write_byte(writer);
    thread.expect("threads can be had").join().expect("the thread only reads")
}

fn add_read(name: &str) -> klp_core::engine::PatchId {
    add(name, &[("fx_read", 0, addr_of_fn!(fx_read_new)), ("fx_value", 0, addr_of_fn!(fx_value_new))])
}

#[test]
fn it_is_named_and_the_transition_completes_when_it_returns() {
    let _alone = alone();
    let before = text();
    let patch = add_read("held");
    let read = with_sleeper(|sleeper| {
        let poll = livepatch().enable(patch).expect("the patch fits");
        assert!(matches!(poll, Poll::Waiting { .. }), "{poll:?}");
        assert!(!livepatch().wait(Duration::from_millis(100)));

        let blockers = livepatch().engine().blockers(patch).expect("the transition runs");
        let [blocker] = &blockers[..] else { panic!("one thread is asleep: {blockers:?}") };
        assert_eq!(blocker.task.0, sleeper as u64);
        assert_eq!(blocker.name.as_str(), "sleeper");
        let Hindrance::InFunction { object, func } = &blocker.hindrance else { panic!("{blocker}") };
        assert_eq!((&**object, &**func), ("vmlinux", "fx_read"));
        assert!(blocker.stack.iter().any(|frame| frame.starts_with("fx_read+")), "{blocker}");
        assert!(blocker.stack.len() > 3, "{blocker}");

        assert_eq!(fx_value(), 2, "this thread was switched");
        assert!(livepatch().disable(patch).is_err() || !livepatch().wait(Duration::ZERO));
    });
    assert_eq!(read, 1, "the sleeper ran the old version to its end");
    livepatch().wait(Duration::from_secs(20));
    let _ = (READ, before);
}
