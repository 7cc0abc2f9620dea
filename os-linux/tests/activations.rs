//! Threads that are inside of a function without its frame on their stack: parts that were split
//! off, code that was jumped to.

use klp_core::engine::{PatchId, Poll};
use klp_core::error::{ApiMisuse, Error};
use klp_os_linux_fixtures::*;
use std::thread::JoinHandle;
use std::time::Duration;

/// A thread that sleeps in `function` until its byte comes.
struct Sleeper {
    thread: JoinHandle<i32>,
    writer: i32,
}

impl Sleeper {
    fn new(function: fn(i32) -> i32) -> Self {
        let (reader, writer) = pipe();
        let (send, receive) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            send.send(tid()).expect("the test listens");
            function(reader)
        });
        wait_asleep(receive.recv().expect("the thread says its id"));
        Self { thread, writer }
    }

    /// Wakes it; what the function returned.
    fn wake(self) -> i32 {
        write_byte(self.writer);
        self.thread.join().expect("the thread only waits")
    }
}

#[track_caller]
fn waits(poll: Result<Poll, Error>) {
    assert!(
        matches!(poll, Ok(Poll::Waiting { pending: 1.., .. })),
        "{poll:?}"
    );
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "the transition waits for the sleeper"
    );
}

fn load(number: usize) -> PatchId {
    livepatch().load_file(HELD[number]).expect("a patch object")
}

#[test]
fn a_sibling_call_of_the_old_version_reaches_the_old_version() {
    let _alone = alone();
    let funcs = [
        ("fx_caller", 0, addr_of_fn!(fx_caller_new)),
        ("fx_callee", 0, addr_of_fn!(fx_callee_new)),
    ];
    let patch = add("sibling", &funcs);
    for round in 0..20 {
        let sleeper = Sleeper::new(|fd| fx_caller(fd));
        waits(livepatch().enable(patch));
        assert_eq!(
            sleeper.wake(),
            7,
            "round {round}: the old caller jumped to the new callee"
        );
        settle(patch);
        // The same when the new version is left.
        let sleeper = Sleeper::new(|fd| fx_caller(fd));
        waits(livepatch().disable(patch));
        assert_eq!(
            sleeper.wake(),
            8,
            "round {round}: the new caller jumped to the old callee"
        );
        settle(patch);
    }
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn parts_of_both_versions_hold_the_transition() {
    let _alone = alone();
    let patch = add("split", &[("fx_split", 0, addr_of_fn!(fx_split_new))]);
    let sleeper = Sleeper::new(|fd| fx_split(fd));
    waits(livepatch().enable(patch));
    assert_eq!(sleeper.wake(), 1);
    settle(patch);
    let sleeper = Sleeper::new(|fd| fx_split(fd));
    waits(livepatch().disable(patch));
    let blockers = livepatch()
        .engine()
        .blockers(patch)
        .expect("it is in transition");
    assert!(
        blockers[0].to_string().contains("'fx_split' of 'vmlinux'"),
        "{}",
        blockers[0]
    );
    assert_eq!(sleeper.wake(), 12);
    settle(patch);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_replaced_patch_is_not_unloaded_under_a_thread_in_other_code_of_it() {
    let _alone = alone();
    let (first, second) = (load(0), load(1));
    enable(first);
    let sleeper = Sleeper::new(|fd| fx_split(fd));
    waits(livepatch().enable(second));
    let refused = livepatch().unload(first);
    assert!(
        matches!(refused, Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled))),
        "{refused:?}"
    );
    assert_eq!(sleeper.wake(), 42);
    settle(second);
    livepatch().unload(first).expect("nobody is in it");
    assert_eq!(fx_split(-1), 40);
    disable(second);
    livepatch().unload(second).expect("it is disabled");
    assert_eq!(fx_split(-1), 0);
}

#[test]
fn disabling_waits_for_a_thread_in_other_code_of_the_patch() {
    let _alone = alone();
    let patch = load(0);
    enable(patch);
    let sleeper = Sleeper::new(|fd| fx_split(fd));
    waits(livepatch().disable(patch));
    assert!(matches!(livepatch().unload(patch), Err(Error::Busy { .. })));
    assert_eq!(sleeper.wake(), 42);
    settle(patch);
    livepatch().unload(patch).expect("it is disabled");
}
