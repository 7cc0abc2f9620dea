//! Coroutines that nobody has registered: nothing is patched, and the error says why. Each test is
//! a process of its own.

use klp_core::Error;
use klp_core::engine::Poll;
use klp_os_linux::process::{Context, Contexts};
use klp_os_linux_fixtures::coroutines::{Coroutine, FIBER, MAKER, suspend};
use klp_os_linux_fixtures::*;
use std::ffi::CString;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Runs `test` in a process that has no engine yet.
fn alone_in_process(test: impl FnOnce()) {
    let status = in_child(|| {
        test();
        true
    });
    assert_eq!(status, 0);
}

fn load(library: &str) -> *mut libc::c_void {
    let name = CString::new(library).expect("no zero");
    // SAFETY: the library has no constructors.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY) };
    assert!(!handle.is_null());
    handle
}

/// That `result` is a refusal because of `what`, and says what can be done.
fn assert_refused<T: core::fmt::Debug>(result: Result<T, Error>, what: &str) {
    let words = result.expect_err("it is refused").to_string();
    for part in [what, "coroutine", "docs/coroutines.md"] {
        assert!(words.contains(part), "{words}");
    }
}

#[test]
fn a_program_that_makes_contexts_is_not_patched() {
    alone_in_process(|| {
        let before = text();
        let patch = add_pair("refused");
        assert!(
            livepatch()
                .preflight(patch)
                .expect("it is known")
                .is_ready(),
            "there are no contexts yet"
        );
        let (send, seen) = channel();
        let mut coroutine =
            Coroutine::unregistered(move || send.send(pair(suspend)).expect("the test listens"));
        coroutine.resume();

        assert_refused(
            livepatch().enable(patch),
            "the program has called makecontext",
        );
        assert_refused(livepatch().engine().enable(patch), "Options::contexts");
        let findings = livepatch().preflight(patch).expect("it is known").findings;
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(
            findings[0].to_string().contains("makecontext"),
            "{findings:?}"
        );
        assert_eq!(livepatch().engine().poll(), Poll::Idle);
        assert_eq!(text(), before, "nothing has changed");
        coroutine.resume();
        assert_eq!(seen.recv(), Ok(111));
        livepatch().unload(patch).expect("it was never enabled");
    });
}

#[test]
fn contexts_that_were_made_before_the_engine_count() {
    alone_in_process(|| {
        let coroutine = Coroutine::unregistered(|| ());
        let patch = add_pair("late");
        assert_refused(livepatch().enable(patch), "makecontext");
        drop(coroutine);
    });
}

#[test]
fn an_enabled_patch_stays() {
    alone_in_process(|| {
        let patch = add_pair("stays");
        enable(patch);
        let coroutine = Coroutine::unregistered(|| ());
        assert_refused(livepatch().disable(patch), "makecontext");
        assert_refused(livepatch().disable_all(&[patch]), "makecontext");
        assert_eq!(livepatch().engine().poll(), Poll::Idle);
        assert_eq!(pair(|| ()), 222);
        assert!(livepatch().unload(patch).is_err(), "it is enabled");
        drop(coroutine);
    });
}

#[test]
fn the_embedder_may_vouch() {
    alone_in_process(|| {
        livepatch_with(Contexts::Registered);
        let coroutine = Coroutine::unregistered(|| ());
        let patch = add_pair("vouched");
        assert!(
            livepatch()
                .preflight(patch)
                .expect("it is known")
                .is_ready()
        );
        enable(patch);
        disable(patch);
        livepatch().unload(patch).expect("nobody is inside of it");
        drop(coroutine);
    });
}

#[test]
fn the_first_context_in_a_transition_holds_it() {
    alone_in_process(|| {
        let patch = add_pair("held");
        let (send, seen) = channel();
        let mut coroutine = None;
        let outer = pair(|| {
            livepatch()
                .enable(patch)
                .expect("there are no contexts yet");
            let mut new = Coroutine::unregistered(move || {
                send.send(pair(suspend)).expect("the test listens")
            });
            // In the old state, as all that this thread does.
            new.resume();
            coroutine = Some(new);
        });
        assert_eq!(outer, 111);
        assert_eq!(pair(|| ()), 111, "nor does it move now");
        assert!(!livepatch().wait(Duration::from_millis(30)));
        let blockers = blockers(patch);
        assert!(blockers.contains("\"makecontext\""), "{blockers}");
        coroutine.as_mut().expect("it is there").resume();
        assert_eq!(seen.recv(), Ok(111), "no mix");
        livepatch()
            .engine()
            .reverse(patch)
            .expect("it is in transition");
        assert!(!livepatch().wait(Duration::from_millis(30)));
        // The pair works in any mixture.
        livepatch()
            .engine()
            .force(patch)
            .expect("it is in transition");
        assert_eq!(livepatch().engine().poll(), Poll::Idle);
    });
}

#[test]
fn a_library_that_comes_later_makes_contexts_by_us() {
    alone_in_process(|| {
        let handle = load(MAKER);
        let patch = add_pair("by a library");
        enable(patch);
        // SAFETY: it is a function without arguments.
        let make: extern "C" fn() -> i32 = unsafe {
            let function = libc::dlsym(handle, c"fxl_make".as_ptr());
            assert!(!function.is_null());
            core::mem::transmute(function)
        };
        disable(patch);
        assert_eq!(make(), 0);
        assert_refused(
            livepatch().enable(patch),
            "the program has called makecontext",
        );
    });
}

#[test]
fn a_library_that_asks_for_boost_counts() {
    alone_in_process(|| {
        let patch = add_pair("boost");
        assert!(
            livepatch()
                .preflight(patch)
                .expect("it is known")
                .is_ready()
        );
        load(FIBER);
        assert_refused(livepatch().enable(patch), "make_fcontext");
    });
}

#[test]
fn contexts_that_are_entered_out_of_turn_count() {
    alone_in_process(|| {
        livepatch_with(Contexts::Registered);
        let patch = add_pair("out of turn");
        let context = Context::new("wrong").expect("memory");
        // The thread's own stack was not left.
        // SAFETY: nothing is done there.
        unsafe { context.enter() };
        let words = livepatch()
            .enable(patch)
            .expect_err("it is refused")
            .to_string();
        assert!(words.contains("klp_context_enter"), "{words}");
    });
}
