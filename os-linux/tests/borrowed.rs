//! Code that runs with the thread-local variables of another thread: a child of `vfork`, and
//! threads that a program makes by `clone` without a thread pointer of their own.

use core::ffi::c_void;
use klp_os_linux_fixtures::*;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

const STACK: usize = 64 << 10;
/// The stack is a piece of this, as one from an allocator would be: what lies above it is no stack.
const MEMORY: usize = 4 << 20;

/// What makes a thread of this process, with the variables of the calling one.
const THREAD: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Runs `child`, which touches no variable of a thread's, on a stack of its own; `flags` are those
/// of `clone`.
fn run(child: extern "C" fn(*mut c_void) -> i32, argument: i32, flags: i32) -> i32 {
    let memory = Box::leak(vec![0_u8; MEMORY].into_boxed_slice());
    let stack = &mut memory[..STACK];
    // SAFETY: the stack is never freed, and the child touches nothing that others use.
    let tid = unsafe {
        libc::clone(
            child,
            stack.as_mut_ptr_range().end.cast(),
            flags,
            argument as usize as *mut c_void,
        )
    };
    assert!(tid > 0, "{}", std::io::Error::last_os_error());
    tid
}

static SEEN: AtomicI32 = AtomicI32::new(0);

/// As a child of `vfork` does that has something to do before it calls `exec`.
extern "C" fn call(_: *mut c_void) -> i32 {
    SEEN.store(fx_value(), Ordering::SeqCst);
    0
}

#[test]
fn a_child_of_vfork_is_its_parent() {
    let _alone = alone();
    let patch = add(
        "vfork",
        &[
            ("fx_read", 0, addr_of_fn!(fx_read_new)),
            ("fx_value", 0, addr_of_fn!(fx_value_new)),
        ],
    );
    let (reader, writer) = pipe();
    let holder = std::thread::spawn(move || fx_read(reader));
    let (go_on, goes_on) = channel::<()>();
    let (send_tid, tids) = channel();
    let (send_value, values) = channel();
    // It has no record of its own making until its child makes it one.
    let parent = std::thread::spawn(move || {
        send_tid.send(tid()).expect("the test listens");
        goes_on.recv().expect("the test says so");
        let child = run(call, 0, libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD);
        let mut status = -1;
        // SAFETY: there is room for the status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        let value = fx_value();
        send_value.send(value).expect("the test listens");
        // From here on it can only be moved by its stop signal.
        while goes_on.try_recv().is_err() {
            core::hint::spin_loop();
        }
        fx_value()
    });
    wait_asleep(tids.recv().expect("the thread says its id"));
    livepatch().enable(patch).expect("the patch fits");
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "somebody is in the old version"
    );
    go_on.send(()).expect("the thread listens");
    while SEEN.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(
        SEEN.load(Ordering::SeqCst),
        2,
        "as its parent, which was moved"
    );
    write_byte(writer);
    settle(patch);
    assert_eq!(holder.join().expect("it only reads"), 1);
    assert_eq!(values.recv(), Ok(2));
    disable(patch);
    go_on.send(()).expect("the thread listens");
    assert_eq!(parent.join().expect("no panic"), 1);
    livepatch().unload(patch).expect("it is disabled");
}

extern "C" fn sleep(reader: *mut c_void) -> i32 {
    let mut byte = 0_u8;
    // SAFETY: there is room for a byte.
    unsafe { libc::read(reader as usize as i32, (&raw mut byte).cast(), 1) };
    0
}

static ENDS: AtomicBool = AtomicBool::new(false);

extern "C" fn spin(_: *mut c_void) -> i32 {
    while !ENDS.load(Ordering::SeqCst) {
        core::hint::spin_loop();
    }
    0
}

fn wait_gone(tid: i32) {
    while std::path::Path::new(&format!("/proc/self/task/{tid}")).exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_thread_that_sleeps_keeps_nobody() {
    let _alone = alone();
    livepatch();
    let (reader, writer) = pipe();
    let sleeper = run(sleep, reader, THREAD);
    wait_asleep(sleeper);
    let patch = add("asleep", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
    enable(patch);
    assert_eq!(fx_value(), 2);
    disable(patch);
    assert_eq!(fx_value(), 1);
    write_byte(writer);
    wait_gone(sleeper);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_thread_that_runs_is_not_taken_for_the_one_whose_variables_it_has() {
    let _alone = alone();
    livepatch();
    // Its pad is rewritten before somebody is there who cannot be looked at.
    let patch = add("running", &[("fx_read", 0, addr_of_fn!(fx_read_new))]);
    enable(patch);
    disable(patch);
    let (reader, writer) = pipe();
    let (send_tid, tids) = channel();
    let owner = std::thread::spawn(move || {
        let spinner = run(spin, 0, THREAD);
        send_tid.send((tid(), spinner)).expect("the test listens");
        fx_read(reader)
    });
    let (owner_id, spinner) = tids.recv().expect("the thread says its id");
    wait_asleep(owner_id);
    livepatch().enable(patch).expect("the patch fits");
    for _ in 0..20 {
        assert!(!livepatch().wait(Duration::from_millis(10)));
    }
    let blockers = livepatch()
        .engine()
        .blockers(patch)
        .expect("the transition runs");
    let mut who: Vec<_> = blockers.iter().map(|blocker| blocker.task.0).collect();
    who.sort_unstable();
    assert_eq!(
        who,
        [owner_id as u64, spinner as u64],
        "one sleeps in the old version, the other one cannot be looked at"
    );
    ENDS.store(true, Ordering::SeqCst);
    wait_gone(spinner);
    write_byte(writer);
    settle(patch);
    assert_eq!(owner.join().expect("it only reads"), 1);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}
