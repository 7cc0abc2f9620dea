//! New code uses variables of which each thread has its own: the program's, and those of libraries
//! that come at the start or later.
#![cfg(target_arch = "x86_64")]

use klp_core::engine::PatchId;
use klp_os_linux::process::Library;
use klp_os_linux_fixtures::threads::*;
use klp_os_linux_fixtures::*;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::channel;

/// What the calling thread's variables must hold.
struct Sums {
    add: Add,
    count: i64,
    total: i64,
}

impl Sums {
    /// Of a thread that has not called it yet.
    fn new(add: Add) -> Self {
        Self {
            add,
            count: 0,
            total: 100,
        }
    }

    /// Calls the function, and says whether it is the old one (1) or the new one (2).
    fn step(&mut self, number: i64) -> i64 {
        let sums = (self.add)(number);
        let (count, total) = (sums >> 32, sums & 0xffff_ffff);
        let step = count - self.count;
        assert!(
            (1..=2).contains(&step) && total - self.total == step * number,
            "{count}, {total} after {}, {} and {number}: another thread's variables",
            self.count,
            self.total
        );
        (self.count, self.total) = (count, total);
        step
    }
}

/// Has threads use their variables while `change` makes new code of the function, and old code
/// again.
fn while_threads_add(add: Add, enable: impl FnOnce(), disable: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    /// Ends the work, even if the test fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let stop_at_end = Stop(&stop);
        for number in 1..=3 {
            let stop = &stop;
            scope.spawn(move || {
                let mut sums = Sums::new(add);
                while !stop.load(Relaxed) {
                    // What is added up stays below 2^32.
                    sums.step(if sums.total < 1 << 30 { number } else { 0 });
                    if sums.count > 1 << 28 {
                        break;
                    }
                }
            });
        }
        let (go, gone) = channel();
        let idle = scope.spawn(move || {
            gone.recv().expect("it is sent");
            Sums::new(add).step(7)
        });
        let mut sums = Sums {
            add,
            count: 0,
            total: 100,
        };
        // Other tests may have run in this thread: what its variables hold is learned.
        let first = add(0);
        (sums.count, sums.total) = (first >> 32, first & 0xffff_ffff);
        assert_eq!(sums.step(3), 1);
        enable();
        assert_eq!(sums.step(4), 2);
        go.send(()).expect("it waits");
        assert_eq!(idle.join().expect("no panic"), 2, "a thread from before");
        let new = scope.spawn(move || Sums::new(add).step(8));
        assert_eq!(new.join().expect("no panic"), 2, "a new thread");
        let status = in_child(|| sums.step(5) == 2);
        assert_eq!(status, 0, "a child has copies of its parent's");
        disable();
        assert_eq!(sums.step(6), 1);
        drop(stop_at_end);
    });
}

fn forget(patch: PatchId) {
    livepatch().unload(patch).expect("it is disabled");
}

fn open(path: impl AsRef<Path>) -> Library {
    // SAFETY: the libraries have no constructors.
    unsafe { livepatch().open_library(path) }.expect("it can be patched")
}

fn close(library: Library) {
    // SAFETY: no thread is inside of it.
    unsafe { library.close() }.expect("it can be unloaded");
}

fn add_of(library: &Library) -> Add {
    let function = library.symbol(c"fxm_threads_add").expect("it is exported");
    // SAFETY: it has this type.
    unsafe { core::mem::transmute(function) }
}

/// Patches what there is with the patch in the file `fix`.
fn patch_and_back(add: Add, fix: &str) {
    let patch = livepatch().load_file(fix).expect("it fits");
    while_threads_add(add, || enable(patch), || disable(patch));
    forget(patch);
}

#[test]
fn the_programs_variables_stay_each_threads_own() {
    let _alone = alone();
    for (model, fix) in FIXES {
        eprintln!("{model}");
        patch_and_back(fx_threads_add, fix);
    }
}

#[test]
fn so_do_those_of_a_library() {
    let _alone = alone();
    let library = open(LIBRARY);
    for (model, fix) in &LIBRARY_FIXES[..2] {
        eprintln!("{model}");
        patch_and_back(add_of(&library), fix);
    }
    close(library);
}

#[test]
fn so_do_those_of_a_library_at_a_fixed_distance() {
    let _alone = alone();
    let library = open(LIBRARY_FIXED);
    for (model, fix) in LIBRARY_FIXED_FIXES {
        eprintln!("{model}");
        patch_and_back(add_of(&library), fix);
    }
    close(library);
}

/// The dynamic linker gives its number to another library meanwhile.
#[test]
fn a_library_that_comes_again_has_another_number() {
    let _alone = alone();
    let patch = livepatch().load_file(LIBRARY_FIXES[0].1).expect("it fits");
    enable(patch);
    let first = open(LIBRARY);
    assert_eq!(Sums::new(add_of(&first)).step(3), 2);
    close(first);
    let between = open(LIBRARY_FIXED);
    let add_between = add_of(&between);
    let second = open(LIBRARY);
    let add = add_of(&second);
    std::thread::spawn(move || {
        let (mut between, mut sums) = (Sums::new(add_between), Sums::new(add));
        for number in 0..10 {
            assert_eq!((between.step(number), sums.step(number)), (1, 2));
        }
    })
    .join()
    .expect("each library has its own");
    close(between);
    close(second);
    disable(patch);
    forget(patch);
}

#[test]
fn what_lies_anywhere_is_not_sought_at_a_fixed_distance() {
    let _alone = alone();
    let library = open(LIBRARY);
    let patch = livepatch()
        .load_file(LIBRARY_FIXES[2].1)
        .expect("it waits for the library");
    let error = livepatch()
        .enable(patch)
        .expect_err("it is not proven")
        .to_string();
    for word in ["fxm_threads_", "-ftls-model=global-dynamic"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(
        std::thread::spawn({
            let add = add_of(&library);
            move || Sums::new(add).step(3)
        })
        .join()
        .expect("no panic"),
        1
    );
    forget(patch);
    close(library);
}

#[test]
fn two_of_one_name_are_not_told_apart() {
    let _alone = alone();
    let library = open(LIBRARY_TWIN);
    let patch = livepatch()
        .load_file(LIBRARY_TWIN_FIX)
        .expect("it waits for the library");
    let error = livepatch()
        .enable(patch)
        .expect_err("there are two")
        .to_string();
    assert!(error.contains("'fx_threads_total'"), "{error}");
    forget(patch);
    close(library);
}

/// The libraries are there from the start in another process.
#[test]
fn so_do_those_of_libraries_of_the_start() {
    for library in [LIBRARY, LIBRARY_FIXED] {
        let output = Command::new(std::env::current_exe().expect("it has a name"))
            .args(["--exact", "--ignored", "inside_of_that_process"])
            .env("LD_PRELOAD", library)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }
}

#[test]
#[ignore = "it is for a process that another test makes"]
fn inside_of_that_process() {
    let preloaded = std::env::var("LD_PRELOAD").expect("another test sets it");
    // SAFETY: the name ends with a zero byte.
    let add = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"fxm_threads_add".as_ptr()) };
    assert!(!add.is_null(), "{preloaded} is not there");
    // SAFETY: it has this type.
    let add: Add = unsafe { core::mem::transmute(add) };
    livepatch().adopt().expect("it can be patched");
    let fixes = match preloaded == LIBRARY_FIXED {
        true => &LIBRARY_FIXED_FIXES[..],
        false => &LIBRARY_FIXES[..2],
    };
    for (_, fix) in fixes {
        patch_and_back(add, fix);
    }
}
