//! Published faults of real libraries are repaired while they work, by patches that were made out
//! of source diffs.

use klp_core::elf::view::{Home, View};
use klp_demo_zlib as zlib;
use klp_os_linux_fixtures::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Runs `test` while `count` threads do `work` again and again, which says what went wrong.
fn while_at_work(work: impl Fn() -> Result<(), String> + Sync, test: impl FnOnce()) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    /// Ends the work, even if the test fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let stop_at_end = Stop(&stop);
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        work().expect("it works all the time");
                        rounds.fetch_add(1, Relaxed);
                    }
                })
            })
            .collect();
        while rounds.load(Relaxed) < 100 && workers.iter().all(|worker| !worker.is_finished()) {
            std::thread::yield_now();
        }
        test();
        drop(stop_at_end);
    });
}

/// The signal that a child of this process dies of if it does `what`; `None` if it ends well.
fn signal_of(what: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child does `what` and ends, without this process's exit handlers.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(ended.is_err())) };
    }
    assert!(child > 0, "no child");
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    if libc::WIFSIGNALED(status) {
        return Some(libc::WTERMSIG(status));
    }
    assert_eq!(libc::WEXITSTATUS(status), 0, "the child failed");
    None
}

/// What of the program the patch object in the file `path` refers to.
fn refers_to(path: &str) -> Vec<String> {
    let bytes = std::fs::read(path).expect("it was built");
    let machine = u16::from_le_bytes([bytes[18], bytes[19]]);
    let view = View::parse(&bytes, machine, false).expect("a patch object");
    let symbols = view.symbols().iter();
    let live = symbols.filter(|symbol| symbol.home == Home::Livepatch);
    live.map(|symbol| symbol.name.to_owned()).collect()
}

/// Several functions in several files, through a header; a constant table that all of them use; a
/// new variable, which two of them share; a new function with a variable of its own; and static
/// variables of a function that stay what they are.
#[test]
fn zlib_reads_headers_that_are_too_long() {
    let _alone = alone();
    let data = b"a text to be packed and unpacked, and packed again".repeat(50);
    let [first, second] = zlib::exploit(&data).expect("it packs");
    let attack = || zlib::read_header(&[&first, &second]);
    let round = || {
        let packed = zlib::compress(&data).map_err(zlib::error_text)?;
        let unpacked = zlib::read_header(&[&packed]).map_err(zlib::error_text)?;
        if unpacked.data != data {
            return Err("other data came out".into());
        }
        Ok(())
    };
    let is_old = || {
        let died = signal_of(|| drop(attack()));
        assert_eq!(died, Some(libc::SIGSEGV), "the fault is not there");
        assert_eq!(zlib::error_text(zlib::DATA_ERROR), "data error");
        assert!(!zlib::was_attacked());
    };
    let functions: Vec<_> = zlib::PATCHED_FUNCTIONS.split(' ').collect();
    for function in ["deflate", "inflate", "zError", "zlibCompileFlags"] {
        assert!(functions.contains(&function), "{functions:?}");
    }
    let refers_to = refers_to(zlib::PATCH);
    for kept in ["virgin", "fixed"] {
        let is_it = |name: &String| name.contains(kept);
        assert!(refers_to.iter().any(is_it), "{kept}: {refers_to:?}");
    }
    while_at_work(round, || {
        is_old();
        let patch = livepatch().load_file(zlib::PATCH).expect("it fits");
        enable(patch);
        assert!(!zlib::was_attacked());
        for _ in 0..2 {
            let contents = attack().expect("it is repaired");
            assert!(contents.data == data);
            assert!(
                contents.extra.iter().copied().eq(0..16),
                "{:?}",
                contents.extra
            );
            assert!(zlib::was_attacked());
        }
        assert_eq!(zlib::error_text(zlib::DATA_ERROR), "damaged data");
        disable(patch);
        is_old();
        livepatch().unload(patch).expect("it is disabled");
    });
}
