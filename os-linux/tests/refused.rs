//! What is refused, and that the process is as before then, byte for byte.

use klp_core::error::PatchReason;
use klp_core::{Error, Object, Patch};
use klp_os_linux::process::LoadError;
use klp_os_linux_fixtures::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Tries to enable a patch of one function; returns the error after a look at the text.
fn refused(name: &str, func: (&str, u32, u64)) -> Error {
    let before = text();
    let patch = add(name, &[("fx_first", 0, addr_of_fn!(fx_first_new)), func]);
    let error = livepatch().enable(patch).expect_err("it cannot be enabled");
    assert_eq!(text(), before, "the code is what it was");
    assert!(
        livepatch().wait(Duration::ZERO),
        "no transition is under way"
    );
    assert_eq!((fx_first(), fx_value()), (1, 1));
    livepatch().unload(patch).expect("it is not enabled");
    let words = error.to_string();
    println!("{words}");
    assert!(words.contains(name), "the message names the patch: {words}");
    error
}

/// The reason, if the error names that function.
fn reason_about(func: &str, error: Error) -> PatchReason {
    let Error::Patch(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.object.as_deref(), Some("vmlinux"));
    assert_eq!(error.func.as_deref(), Some(func));
    error.reason
}

#[test]
fn a_function_without_a_pad() {
    let _alone = alone();
    let error = refused("no_pad", ("fx_nopad", 0, addr_of_fn!(fx_value_new)));
    assert!(matches!(
        reason_about("fx_nopad", error),
        PatchReason::NoEntrySite { .. }
    ));
    assert_eq!(fx_nopad(), 51);
}

#[test]
fn names_that_are_unknown_or_ambiguous_or_not_there_so_often() {
    let _alone = alone();
    let new = addr_of_fn!(fx_value_new);
    assert_eq!(
        (fx_call_local1(), fx_call_local2()),
        (11, 22),
        "there are two functions of the same name"
    );
    let error = refused("unknown", ("fx_no_such_function", 0, new));
    assert_eq!(
        reason_about("fx_no_such_function", error),
        PatchReason::SymbolNotFound
    );
    let error = refused("ambiguous", ("fx_local", 0, new));
    assert_eq!(
        reason_about("fx_local", error),
        PatchReason::SymbolAmbiguous
    );
    let error = refused("position", ("fx_local", 3, new));
    assert_eq!(
        reason_about("fx_local", error),
        PatchReason::SymbolPositionNotFound { sympos: 3 }
    );
}

#[test]
fn a_second_patch_during_a_transition() {
    let _alone = alone();
    let (reader, writer) = pipe();
    let first = add("first", &[("fx_read", 0, addr_of_fn!(fx_read_new))]);
    let second = add("second", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
    let thread = std::thread::spawn(move || fx_read(reader));
    std::thread::sleep(Duration::from_millis(50));
    livepatch().enable(first).expect("the patch fits");
    let during = text();
    let error = livepatch().enable(second).expect_err("one at a time");
    assert!(
        matches!(&error, Error::Busy { patch } if *patch == "first"),
        "{error}"
    );
    assert_eq!(text(), during);
    write_byte(writer);
    thread.join().expect("the thread only reads");
    settle(first);
    enable(second);
    disable(second);
    disable(first);
}

/// Does `work` in a thread called `name` that blocks every signal; returns its id when it has
/// begun to.
fn masked<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> (i32, JoinHandle<T>) {
    let (send_tid, tids) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            // SAFETY: only this thread's mask changes.
            unsafe {
                let mut all = core::mem::zeroed();
                libc::sigfillset(&raw mut all);
                libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, core::ptr::null_mut());
            }
            send_tid.send(tid()).expect("the test listens");
            work()
        });
    let id = tids.recv().expect("the thread says its id");
    (id, thread.expect("threads can be had"))
}

#[test]
fn a_thread_that_runs_and_blocks_every_signal() {
    let _alone = alone();
    livepatch();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (blocking, thread) = masked("all blocked", move || {
        while !stopped.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
    });
    if machine::PADS_ARE_SPLIT {
        // The pads are several instructions: the thread might stand in one.
        let error = refused("silent", ("fx_value", 0, addr_of_fn!(fx_value_new)));
        let words = error.to_string();
        assert!(
            words.contains(&format!(
                "thread {blocking} (all blocked) may stand in an entry pad"
            )),
            "{words}"
        );
    }
    // A pad of one instruction is rewritten, but the transition waits.
    let patch = add("mcount", &[("fx_mcount", 0, addr_of_fn!(fx_mcount_new))]);
    livepatch().enable(patch).expect("the patch fits");
    assert!(!livepatch().wait(Duration::from_millis(50)));
    let words = blockers(patch);
    assert!(
        words.contains("all blocked") && words.contains("Blocked"),
        "{words}"
    );
    assert_eq!(fx_mcount(0), 42);
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("the thread only waits");
    settle(patch);
    disable(patch);
}

#[test]
fn a_thread_that_sleeps_and_blocks_every_signal_keeps_nobody() {
    let _alone = alone();
    livepatch();
    let (reader, writer) = pipe();
    let (sleeper, thread) = masked("asleep", move || fx_read(reader));
    wait_asleep(sleeper);
    let patch = add("around", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
    enable(patch);
    assert_eq!(fx_value(), 2);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
    // Inside of what changes, it does.
    let patch = add("inside", &[("fx_read", 0, addr_of_fn!(fx_read_new))]);
    livepatch().enable(patch).expect("the patch fits");
    assert!(!livepatch().wait(Duration::from_millis(50)));
    let words = blockers(patch);
    assert!(
        words.contains("asleep") && words.contains("fx_read"),
        "{words}"
    );
    write_byte(writer);
    thread.join().expect("the thread only reads");
    settle(patch);
    disable(patch);
}

#[test]
fn the_caller_may_block_every_signal() {
    let _alone = alone();
    let (_, thread) = masked("caller", || {
        let patch = add("masked", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
        enable(patch);
        assert_eq!(fx_value(), 2);
        disable(patch);
        livepatch().unload(patch).expect("it is disabled");
        // SAFETY: all-zero is a valid mask, and only this thread's is read.
        let blocks = unsafe {
            let mut mask = core::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, core::ptr::null(), &raw mut mask);
            libc::sigismember(&raw const mask, libc::SIGRTMAX() - 2)
        };
        assert_eq!(blocks, 1, "its mask is as it was");
    });
    thread.join().expect("it is right");
}

#[test]
fn the_stop_signal_in_other_hands() {
    let _alone = alone();
    for disposition in [libc::SIG_DFL, libc::SIG_IGN] {
        let status = in_child(|| {
            livepatch();
            let stop = Arc::new(AtomicBool::new(false));
            let stopped = Arc::clone(&stop);
            let thread = std::thread::spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    core::hint::spin_loop();
                }
            });
            let signal = libc::SIGRTMAX() - 2;
            // SAFETY: the disposition of a signal, which is what the engine has to bear.
            unsafe { libc::signal(signal, disposition) };
            let error = refused("taken", ("fx_value", 0, addr_of_fn!(fx_value_new)));
            stop.store(true, Ordering::Relaxed);
            thread.join().expect("the thread only waits");
            error.to_string().contains(&format!("signal {signal}"))
        });
        assert_eq!(status, 0);
    }
}

/// Has the kernel answer the system call `number` with `EPERM` from here on, in the whole process
/// (`seccomp(2)`).
fn forbid(number: libc::c_long) {
    let filter = |code: u32, jump_if_not, value: u32| libc::sock_filter {
        code: code.try_into().expect("sixteen bits"),
        jt: 0,
        jf: jump_if_not,
        k: value,
    };
    let number = u32::try_from(number).expect("a number");
    let mut filters = [
        // The call's number is the first word of `struct seccomp_data`.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, number),
        filter(
            libc::BPF_RET | libc::BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs(),
        ),
        filter(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filters.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which is as long as it says.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_NO_NEW_PRIVS,
            1_usize,
            0_usize,
            0_usize,
            0_usize,
        );
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as usize,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// A program may give up system calls after the engine was made: what needs them is refused, by
/// their names, and nothing has changed.
#[test]
fn system_calls_that_are_forbidden_later() {
    let _alone = alone();
    livepatch();
    let before = text();
    for (number, name) in [
        (libc::SYS_membarrier, "membarrier"),
        (libc::SYS_mprotect, "mprotect"),
        (libc::SYS_rt_sigaction, "signal"),
    ] {
        let status = in_child(|| {
            let patch = add("strict", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
            forbid(number);
            let error = livepatch().enable(patch).expect_err("it cannot be done");
            assert!(error.to_string().contains(name), "{error}");
            fx_value() == 1 && text() == before
        });
        assert_eq!(status, 0, "{name}");
        let status = in_child(|| {
            let patch = add("strict", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
            enable(patch);
            forbid(number);
            let error = livepatch().disable(patch).expect_err("it cannot be done");
            assert!(error.to_string().contains(name), "{error}");
            fx_value() == 2
        });
        assert_eq!(status, 0, "{name}, while a patch is in force");
    }
}

#[test]
fn patches_that_say_nothing() {
    let _alone = alone();
    let error = Patch::builder("empty")
        .build()
        .expect_err("it has no objects");
    assert!(
        matches!(&error, Error::Patch(error) if error.reason == PatchReason::NoObjects),
        "{error}"
    );
    let error = Patch::builder("empty")
        .object(Object::vmlinux())
        .build()
        .expect_err("it has no functions");
    assert!(
        matches!(&error, Error::Patch(error) if error.reason == PatchReason::NoFuncs),
        "{error}"
    );
}

#[test]
fn files_that_are_no_patch_objects() {
    let _alone = alone();
    let before = text();
    let exe = std::fs::read("/proc/self/exe").expect("there is a /proc");
    for file in [&b""[..], b"not an ELF file", &exe[..100], &exe] {
        let error = livepatch()
            .load(file, "bad")
            .expect_err("it is no patch object");
        let LoadError::Engine(Error::Patch(error)) = error else {
            panic!("{error}")
        };
        assert_eq!(error.patch, "bad");
    }
    let error = livepatch()
        .load_file("/no/such/file.ko")
        .expect_err("it is not there");
    assert!(matches!(error, LoadError::File { .. }), "{error}");
    assert_eq!(text(), before);
}

#[test]
fn a_thread_local_variable_is_not_taken_for_another() {
    let _alone = alone();
    let error = livepatch()
        .load_file(THREAD_LOCAL)
        .expect_err("there is no such ordinary variable");
    let words = error.to_string();
    assert!(words.contains("symbol 'errno'"), "{words}");
}
