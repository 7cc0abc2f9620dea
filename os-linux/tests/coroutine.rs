//! Coroutines that are registered: a suspended one holds a transition as a thread does.

use klp_core::Error;
use klp_core::engine::Poll;
use klp_os_linux::process::{Context, Contexts, Livepatch};
use klp_os_linux_fixtures::coroutines::{Coroutine, suspend};
use klp_os_linux_fixtures::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn engine() -> &'static Livepatch {
    livepatch_with(Contexts::Registered)
}

/// Waits for a moment; whether the transition has ended.
fn ends_soon() -> bool {
    livepatch().wait(Duration::from_millis(30))
}

/// A coroutine that is suspended in the midst of `fx_pair`, and what that will have seen.
fn inside_pair(name: &str) -> (Coroutine, Arc<AtomicI32>) {
    let seen = Arc::new(AtomicI32::new(0));
    let to = Arc::clone(&seen);
    let mut coroutine =
        Coroutine::registered(name, move || to.store(pair(suspend), Ordering::Relaxed));
    coroutine.resume();
    (coroutine, seen)
}

#[test]
fn a_coroutine_suspended_inside_a_function_holds_both_ways() {
    let _alone = alone();
    engine();
    let patch = add_pair("suspended");
    let (mut old, seen) = inside_pair("the old one");
    let poll = livepatch().enable(patch).expect("the patch fits");
    assert!(matches!(poll, Poll::Waiting { pending: 1, .. }), "{poll:?}");
    assert!(!ends_soon());
    let blockers = livepatch()
        .engine()
        .blockers(patch)
        .expect("there is a transition");
    let words: Vec<String> = blockers.iter().map(ToString::to_string).collect();
    assert_eq!(words.len(), 1, "{words:?}");
    assert!(words[0].starts_with("the old one:"), "{words:?}");
    assert!(
        words[0].contains("is in function 'fx_pair' of 'vmlinux'"),
        "{words:?}"
    );
    assert!(
        blockers[0]
            .stack
            .iter()
            .any(|frame| frame.contains("fx_pair")),
        "{words:?}"
    );
    assert_eq!(pair(|| ()), 222, "this thread has moved");

    old.resume();
    assert_eq!(
        seen.load(Ordering::Relaxed),
        111,
        "one version from entry to exit"
    );
    settle(patch);

    let (mut new, seen) = inside_pair("the new one");
    livepatch().disable(patch).expect("it is enabled");
    assert!(!ends_soon());
    let refused = livepatch().unload(patch);
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert_eq!(pair(|| ()), 111);
    new.resume();
    assert_eq!(seen.load(Ordering::Relaxed), 222);
    settle(patch);
    livepatch().unload(patch).expect("nobody is inside of it");
}

#[test]
fn a_coroutine_suspended_elsewhere_moves_where_it_is() {
    let _alone = alone();
    engine();
    let patch = add_pair("elsewhere");
    let seen = Arc::new(AtomicI32::new(0));
    let to = Arc::clone(&seen);
    let mut coroutine = Coroutine::registered("", move || {
        suspend();
        to.store(pair(|| ()), Ordering::Relaxed);
    });
    coroutine.resume();
    let before = livepatch().ways().suspended;
    enable(patch);
    assert_eq!(livepatch().ways().suspended, before + 1);
    coroutine.resume();
    assert_eq!(seen.load(Ordering::Relaxed), 222);
    disable(patch);
    livepatch().unload(patch).expect("nobody is inside of it");
}

#[test]
fn a_thread_that_has_moved_goes_on_in_the_old_version_inside_of_an_old_coroutine() {
    let _alone = alone();
    engine();
    let patch = add_pair("goes on");
    let (send, calls) = channel();
    let mut coroutine = Coroutine::registered("goes on", move || {
        let seen = pair(|| {
            for _ in 0..3 {
                suspend();
                // Calls of other functions of the patch, by who is in the old version still.
                send.send(fx_first() + fx_second())
                    .expect("the test listens");
            }
        });
        send.send(seen).expect("the test listens");
        suspend();
        send.send(pair(|| ())).expect("the test listens");
    });
    coroutine.resume();
    livepatch().enable(patch).expect("the patch fits");
    for _ in 0..2 {
        assert!(!ends_soon());
        assert_eq!(fx_first(), 2, "this thread has moved");
        coroutine.resume();
        assert_eq!(calls.recv(), Ok(2), "the old versions");
        assert_eq!(fx_first(), 2, "and it is still there");
    }
    // Another thread goes on with it.
    let thread = std::thread::spawn(move || {
        assert_eq!(fx_first(), 2);
        coroutine.resume();
        assert_eq!(fx_first(), 2);
        coroutine
    });
    let mut coroutine = thread.join().expect("the assertions hold");
    assert_eq!([calls.recv(), calls.recv()], [Ok(2), Ok(111)], "to its end");
    settle(patch);
    coroutine.resume();
    assert_eq!(calls.recv(), Ok(222));
    disable(patch);
    livepatch().unload(patch).expect("nobody is inside of it");
}

#[test]
fn the_stack_of_the_thread_itself_is_a_context() {
    let _alone = alone();
    engine();
    let patch = add_pair("own stack");
    let (send, calls) = channel();
    let mut coroutine = Coroutine::registered("inner", move || {
        // The thread's own stack is suspended inside of `fx_pair`; this one is new, and moves.
        let poll = livepatch().enable(patch).expect("the patch fits");
        assert!(matches!(poll, Poll::Waiting { .. }), "{poll:?}");
        assert!(!ends_soon());
        send.send((fx_first(), blockers(patch)))
            .expect("the test listens");
    });
    let resume = &mut coroutine;
    let seen = pair(move || resume.resume());
    assert_eq!(seen, 111, "though the coroutine had moved");
    let (first, blockers) = calls.recv().expect("the coroutine has sent");
    assert!(blockers.contains("fx_pair"), "{blockers}");
    assert_eq!(first, 2, "the coroutine itself had moved: {blockers}");
    settle(patch);
    disable(patch);
    livepatch().unload(patch).expect("nobody is inside of it");
}

#[test]
fn a_coroutine_that_is_freed_or_begins_holds_nothing() {
    let _alone = alone();
    engine();
    let patch = add_pair("freed");
    let (old, _) = inside_pair("abandoned");
    let fresh = Coroutine::registered("fresh", || ());
    livepatch().enable(patch).expect("the patch fits");
    assert!(!ends_soon());
    let (send, seen) = channel();
    let mut born = Coroutine::registered("born", move || {
        send.send(pair(suspend)).expect("the test listens")
    });
    born.resume();
    drop(old);
    settle(patch);
    born.resume();
    assert_eq!(
        seen.recv(),
        Ok(222),
        "it was born by a thread that had moved"
    );
    drop(fresh);
    disable(patch);
    livepatch().unload(patch).expect("nobody is inside of it");
}

#[test]
fn a_forced_transition_leaves_coroutines_where_they_are() {
    let _alone = alone();
    engine();
    let patch = add_pair("forced");
    let (mut coroutine, seen) = inside_pair("forced");
    livepatch().enable(patch).expect("the patch fits");
    assert!(!ends_soon());
    livepatch()
        .engine()
        .reverse(patch)
        .expect("it is in transition");
    settle(patch);
    livepatch().enable(patch).expect("the patch fits");
    assert!(!ends_soon());
    // The pair works in any mixture.
    livepatch()
        .engine()
        .force(patch)
        .expect("it is in transition");
    coroutine.resume();
    assert_eq!(
        seen.load(Ordering::Relaxed),
        112,
        "that is what forcing means"
    );
    disable(patch);
    livepatch()
        .unload(patch)
        .expect("it was forced to come, not to go");
}

#[test]
fn a_child_keeps_the_contexts_of_the_thread_that_forks() {
    let _alone = alone();
    engine();
    let patch = add_pair("child");
    // A coroutine of another thread, inside of the function, running; and that thread's own stack,
    // suspended there too.
    let (send, ready) = channel();
    let (end, ends) = channel::<()>();
    let other = std::thread::spawn(move || {
        let mut running = Coroutine::registered("running", move || {
            pair(|| {
                send.send(()).expect("the test listens");
                let _ = ends.recv();
            });
        });
        pair(move || running.resume())
    });
    ready.recv().expect("the thread is there");
    let (mut own, seen) = inside_pair("own");
    livepatch().enable(patch).expect("the patch fits");
    let status = in_child(|| {
        assert!(!ends_soon());
        let blocking = blockers(patch);
        assert!(
            blocking.contains("own") && !blocking.contains("running"),
            "{blocking}"
        );
        own.resume();
        assert_eq!(seen.load(Ordering::Relaxed), 111);
        // The other thread's stacks are gone with it.
        settle(patch);
        let (mut new, seen) = inside_pair("new");
        livepatch().disable(patch).expect("it is enabled");
        assert!(!ends_soon());
        new.resume();
        settle(patch);
        seen.load(Ordering::Relaxed) == 222 && fx_first() == 1
    });
    assert_eq!(status, 0, "the child is well");
    own.resume();
    assert_eq!(seen.load(Ordering::Relaxed), 111);
    assert!(!ends_soon());
    drop(end);
    assert_eq!(other.join().expect("the thread only calls"), 111);
    settle(patch);
    disable(patch);
    livepatch().unload(patch).expect("nobody is inside of it");
}

#[test]
fn threads_switch_coroutines_while_patches_come_and_go() {
    const ROUNDS: usize = 8;
    let _alone = alone();
    engine();
    let patch = add_pair("busy");
    let stop = AtomicI32::new(0);
    // Whoever takes one goes on in it, wherever it was suspended.
    let suspended = Mutex::new(VecDeque::new());
    let finish = |(mut coroutine, seen): (Coroutine, Arc<AtomicI32>)| {
        coroutine.resume();
        let seen = seen.load(Ordering::Relaxed);
        assert!(seen == 111 || seen == 222, "a mix: {seen}");
    };
    let lock = || suspended.lock().expect("no mix");
    std::thread::scope(|scope| {
        let workers = [(); 3].map(|()| {
            scope.spawn(|| {
                let mut finished = 0_u64;
                while stop.load(Ordering::Relaxed) == 0 {
                    let new = inside_pair("");
                    lock().push_back(new);
                    let oldest = lock().pop_front();
                    if let Some(oldest) = oldest {
                        finish(oldest);
                        finished += 1;
                    }
                }
                finished
            })
        });
        (0..8).for_each(|_| lock().push_back(inside_pair("")));
        for _ in 0..ROUNDS {
            enable(patch);
            disable(patch);
        }
        stop.store(1, Ordering::Relaxed);
        for worker in workers {
            assert!(worker.join().expect("no mix") > 0);
        }
    });
    lock().drain(..).for_each(finish);
    livepatch().unload(patch).expect("nobody is inside of it");
}

#[test]
fn contexts_can_be_registered_in_rust() {
    use libc::{getcontext, makecontext, swapcontext, ucontext_t};
    use std::cell::UnsafeCell;

    struct Switch {
        contexts: [ucontext_t; 2],
        registered: Option<Context>,
        seen: i32,
    }
    std::thread_local! {
        static SWITCH: UnsafeCell<Switch> = const {
            // SAFETY: all-zero is a valid value of this plain struct.
            let contexts = unsafe { core::mem::zeroed() };
            UnsafeCell::new(Switch { contexts, registered: None, seen: 0 })
        };
    }
    /// From one of the two to the other.
    fn switch(context: Context, from: usize, to: usize) {
        let switch = SWITCH.with(UnsafeCell::get);
        // SAFETY: the thread's own; the one that is gone to was left, or is new.
        unsafe {
            let contexts = (&raw mut (*switch).contexts).cast::<ucontext_t>();
            context.switch(|| assert_eq!(swapcontext(contexts.add(from), contexts.add(to)), 0));
        }
    }
    extern "C" fn body() {
        let state = SWITCH.with(UnsafeCell::get);
        // SAFETY: as above; this is the beginning of the context.
        let context = unsafe {
            let context = (*state).registered.expect("it is registered");
            context.enter();
            context
        };
        let seen = pair(|| switch(context, 1, 0));
        // SAFETY: as above.
        unsafe { (*state).seen = seen };
        switch(context, 1, 0);
    }

    let _alone = alone();
    engine();
    let patch = add_pair("rust");
    let mut stack = vec![0_u64; 1 << 15];
    let state = SWITCH.with(UnsafeCell::get);
    let (own, other) = (
        Context::of_thread().expect("memory"),
        Context::new("in Rust").expect("memory"),
    );
    // SAFETY: the stack outlives the context, and nobody else uses the state.
    unsafe {
        (*state).registered = Some(other);
        let context = (&raw mut (*state).contexts).cast::<ucontext_t>().add(1);
        assert_eq!(getcontext(context), 0);
        (*context).uc_stack.ss_sp = stack.as_mut_ptr().cast();
        (*context).uc_stack.ss_size = size_of_val(&*stack);
        makecontext(context, body, 0);
    }
    switch(own, 0, 1);
    livepatch().enable(patch).expect("the patch fits");
    assert!(!ends_soon());
    assert!(blockers(patch).contains("in Rust"), "{}", blockers(patch));
    switch(own, 0, 1);
    // SAFETY: as above.
    assert_eq!(unsafe { (*state).seen }, 111);
    settle(patch);
    // SAFETY: nobody goes on there.
    unsafe { other.free() };
    disable(patch);
    livepatch().unload(patch).expect("nobody is inside of it");
}
