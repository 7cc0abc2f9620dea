//! Published faults of real libraries are repaired while they work, by patches that were made out
//! of source diffs.

use klp_core::elf::view::{Home, View};
use klp_demo_meter as meter;
use klp_demo_numbers::LIBRARIES;
use klp_demo_zlib as zlib;
use klp_os_linux_fixtures::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

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
                        // On AArch64, the compiler's library adds, and has no unwind tables; an
                        // emulator would stop who does nothing else right there.
                        std::thread::sleep(Duration::from_millis(1));
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

/// Exceptions that new code throws are caught by new code, and go through old code, which cleans
/// up, into a handler of old code. What throws is a function of a template, called by way of a
/// virtual table; its static variable stays what it is.
#[test]
#[cfg_attr(
    target_arch = "powerpc64",
    ignore = "known fault: the object of a patched virtual function has lost its table there"
)]
fn cpp_throws_where_it_forgot() {
    let _alone = alone();
    let (fits, small, large) = (c"bc", c"abc", c"abcdefghijklmnop");
    let huge = std::ffi::CString::new(vec![255; 300]).expect("no NUL");
    let sum = |text: &core::ffi::CStr| {
        text.to_bytes()
            .iter()
            .map(|byte| i32::from(*byte))
            .sum::<i32>()
    };
    let round = || match (meter::short(fits), meter::long(large)) {
        (short, long) if short == sum(fits) && long == sum(large) => Ok(()),
        other => Err(format!("{other:?}")),
    };
    let is_old = || {
        assert_eq!(meter::short(small), sum(small) & 0xff);
        assert_eq!(meter::short(large), sum(large) & 0xff);
        assert_eq!(meter::long(&huge), sum(&huge) & 0xffff);
    };
    let kept = refers_to(meter::PATCH);
    for name in ["5bytes", "_ZTI7Damaged"] {
        assert!(
            kept.iter().any(|kept| kept.contains(name)),
            "{name}: {kept:?}"
        );
    }
    while_at_work(round, || {
        is_old();
        let patch = livepatch().load_file(meter::PATCH).expect("it fits");
        enable(patch);
        for _ in 0..2 {
            assert_eq!(meter::short(fits), sum(fits));
            // New code catches it; of the longer text, eight bytes are read.
            assert_eq!(meter::short(small), -2);
            assert_eq!(meter::short(c"\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01"), 8);
            // Old code does.
            assert_eq!(meter::long(&huge), -1);
        }
        disable(patch);
        is_old();
        livepatch().unload(patch).expect("it is disabled");
    });
    assert_eq!(
        meter::busy(),
        0,
        "an exception has left something as it was"
    );
}

/// Of a function that is generic, all copies are repaired: the one that is shared, and the one that
/// stands inside of its caller. Whatever rustc calls them.
#[test]
#[cfg_attr(
    target_arch = "powerpc64",
    ignore = "rustc makes no entry pads there: its code wants XRay's runtime"
)]
fn rust_grows_where_it_wrote_behind_its_buffer() {
    let _alone = alone();
    for library in &LIBRARIES {
        // SAFETY: the library has no constructors but its runtime's.
        let opened = unsafe { livepatch().open_library(library.path) }.expect("it can be patched");
        let function = |name| opened.symbol(name).expect("it is exported");
        type Fill = unsafe extern "C" fn(*mut u8, u8) -> usize;
        type Count = extern "C" fn(u8) -> usize;
        // SAFETY: it has this type.
        let between: Fill = unsafe { core::mem::transmute(function(c"between")) };
        // SAFETY: as above.
        let letters: Count = unsafe { core::mem::transmute(function(c"letters")) };
        // SAFETY: as above.
        let sum: Count = unsafe { core::mem::transmute(function(c"sum")) };
        let between = |count: u8| {
            let mut out = [0; 256];
            // SAFETY: there is enough room.
            let len = unsafe { between(out.as_mut_ptr(), count) };
            out[..len].to_vec()
        };
        assert!(library.functions.contains("insert_many"), "{library:?}");
        assert!(library.functions.contains("letters"), "{library:?}");
        // What fits, as ever.
        let round = || match (between(1), letters(1), sum(2)) {
            (numbers, 5, 8) if numbers == [200, 0, 201] => Ok(()),
            other => Err(format!("{other:?}")),
        };
        let is_old = || {
            let faults: [&dyn Fn() -> bool; 3] =
                [&|| between(100).is_empty(), &|| letters(100) == 0, &|| {
                    sum(100) == 0
                }];
            for fault in faults {
                let died = signal_of(|| assert!(!fault()));
                assert!(died.is_some(), "the fault is not there");
            }
        };
        while_at_work(round, || {
            is_old();
            let patch = livepatch().load_file(library.patch).expect("it fits");
            enable(patch);
            let numbers: Vec<u8> = [200].into_iter().chain(0..100).chain([201]).collect();
            assert_eq!(between(100), numbers);
            assert_eq!(letters(100), 10 + 2 * 90 + 4);
            assert_eq!(sum(100), 99 * 100 / 2 + 7);
            disable(patch);
            is_old();
            livepatch().unload(patch).expect("it is disabled");
        });
        // The library stays: its runtime may have left destructors with the threads.
    }
}
