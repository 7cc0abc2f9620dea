//! A thread that is in an affected function whenever it is looked at switches itself when it enters
//! the function anew.

use klp_core::engine::Poll;
use klp_os_linux_fixtures::*;
use std::sync::mpsc::channel;
use std::time::Duration;

#[test]
fn it_moves_between_two_calls_without_a_poll() {
    let _alone = alone();
    let (reader, writer) = pipe();
    let (send_tid, tids) = channel();
    let (send_read, reads) = channel();
    let thread = std::thread::spawn(move || {
        send_tid.send(tid()).expect("the test listens");
        for _ in 0..3 {
            send_read.send(fx_read(reader)).expect("the test listens");
        }
    });
    let sleeper = tids.recv().expect("the thread says its id");
    wait_asleep(sleeper);

    let patch = add(
        "entered",
        &[
            ("fx_read", 0, addr_of_fn!(fx_read_new)),
            ("fx_value", 0, addr_of_fn!(fx_value_new)),
        ],
    );
    let poll = livepatch().enable(patch).expect("the patch fits");
    assert!(matches!(poll, Poll::Waiting { pending: 1, .. }), "{poll:?}");
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "it is asleep in the old version"
    );

    let before = livepatch().ways();
    write_byte(writer);
    assert_eq!(reads.recv(), Ok(1), "the old version runs to its end");
    wait_asleep(sleeper);
    assert_eq!(
        livepatch().ways().entering,
        before.entering + 1,
        "the next call switched the thread"
    );
    let poll = livepatch().engine().poll();
    assert!(
        matches!(poll, Poll::Complete { enabled: true, .. }),
        "nobody is left to wait for: {poll:?}"
    );
    write_byte(writer);
    assert_eq!(reads.recv(), Ok(12), "that call went to the new version");

    wait_asleep(sleeper);
    let poll = livepatch().disable(patch).expect("it is enabled");
    assert!(
        matches!(poll, Poll::Waiting { pending: 1, .. }),
        "it is asleep in the new version: {poll:?}"
    );
    write_byte(writer);
    assert_eq!(reads.recv(), Ok(12));
    thread.join().expect("the thread only reads");
    settle(patch);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_call_from_inside_an_affected_function_does_not_switch() {
    let _alone = alone();
    let patch = add_pair("nested");
    let before = livepatch().ways();
    let seen = pair(|| {
        let poll = livepatch().enable(patch).expect("the patch fits");
        assert!(
            matches!(poll, Poll::Waiting { .. }),
            "this very thread is in the old version: {poll:?}"
        );
        assert_eq!([fx_first(), fx_second()], [1, 1]);
    });
    assert_eq!(seen, 111, "one version from entry to exit");
    assert_eq!(livepatch().ways().entering, before.entering);
    assert_eq!(pair(|| ()), 222, "the next call is the outermost");
    assert_eq!(livepatch().ways().entering, before.entering + 1);
    settle(patch);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}
