//! Libraries that are loaded by a plain `dlopen`, and several times: which of them patches have to
//! do with, and when.

use klp_core::engine::PatchId;
use klp_core::model::{CallbackContext, Callbacks};
use klp_core::{Object, Patch};
use klp_os_linux::process::{Library, LoadError};
use klp_os_linux_fixtures::libraries::*;
use klp_os_linux_fixtures::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

fn open(path: impl AsRef<std::path::Path>) -> Result<Library, LoadError> {
    // SAFETY: the library has no constructors that do harm.
    unsafe { livepatch().open_library(path) }
}

fn close(library: Library) {
    // SAFETY: no thread is inside of it.
    unsafe { library.close() }.expect("it can be unloaded");
}

fn answer(library: &Library) -> i32 {
    let function = library
        .symbol(c"fxm_answer")
        .expect("the library exports it");
    // SAFETY: it has this type.
    let function: extern "C" fn() -> i32 = unsafe { core::mem::transmute(function) };
    function()
}

fn forget(patch: PatchId) {
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_library_that_comes_or_goes_is_left_alone() {
    let _alone = alone();
    let patch = patch_of("gated", "libfixture_gated");
    let ((reader, let_go), (arrived, writer)) = (pipe(), pipe());
    // SAFETY: the numbers are the library's, nobody else has them.
    unsafe { assert!(libc::dup2(reader, 200) == 200 && libc::dup2(writer, 201) == 201) };
    let wait_arrived = || {
        let mut byte = 0_u8;
        // SAFETY: there is room for one byte.
        assert_eq!(unsafe { libc::read(arrived, (&raw mut byte).cast(), 1) }, 1);
    };
    let child = copy("libadopt_child");
    let of_child = patch_of("child", "libadopt_child");
    enable(of_child);
    let opener = std::thread::spawn(|| open(GATED));
    for gate in ["mapped, but not relocated", "in a constructor"] {
        wait_arrived();
        assert!(is_mapped("libfixture_gated"), "{gate}");
        let begin = Instant::now();
        enable(patch);
        let patched = livepatch()
            .engine()
            .object_patched(patch, "libfixture_gated")
            .expect("it is known");
        assert_eq!(patched, Some(false), "{gate}");
        livepatch().adopt().expect("there is nothing to adopt yet");
        if gate.starts_with("mapped") {
            disable(patch);
        }
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{gate}: nobody waits for the dynamic linker"
        );
        let status = in_child(|| {
            // SAFETY: the child dies of it should it hang.
            unsafe { libc::alarm(10) };
            let plain = Plain::open(&child);
            livepatch().adopt().is_ok() && plain.answer()() == 2
        });
        assert_eq!(status, 0, "{gate}: a child is not concerned");
        write_byte(let_go);
    }
    let library = opener.join().expect("no panic").expect("the patch fits");
    assert_eq!(answer(&library), 2, "patched when it was complete");

    disable(patch);
    let closer = std::thread::spawn(|| close(library));
    wait_arrived();
    assert!(is_mapped("libfixture_gated"), "in a destructor");
    let begin = Instant::now();
    enable(patch);
    let patched = livepatch()
        .engine()
        .object_patched(patch, "libfixture_gated")
        .expect("it is known");
    assert_eq!(patched, Some(false), "in a destructor");
    assert!(
        begin.elapsed() < Duration::from_secs(30),
        "in a destructor: nobody waits for the dynamic linker"
    );
    write_byte(let_go);
    closer.join().expect("no panic");
    assert!(!is_mapped("libfixture_gated"));
    for gate in [200, 201] {
        // SAFETY: it is the test's.
        unsafe { libc::close(gate) };
    }
    forget(patch);
    forget(of_child);
}

#[test]
fn a_plain_dlopen_after_enable_is_adopted_and_stays() {
    let _alone = alone();
    let path = copy("libadopt_later");
    let patch = patch_of("later", "libadopt_later");
    enable(patch);
    let plain = Plain::open(&path);
    let function = plain.answer();
    assert_eq!(function(), 1, "nobody has taken notice yet");
    livepatch().adopt().expect("the patch fits");
    assert_eq!(function(), 2);
    plain.close();
    assert!(is_mapped("libadopt_later"), "held under the patch");
    assert_eq!(function(), 2);
    disable(patch);
    assert_eq!(function(), 1);
    enable(patch);
    assert_eq!(function(), 2);
    forget(patch);
}

#[test]
fn enable_takes_in_what_its_patch_names_and_nothing_else() {
    let _alone = alone();
    let (named, other) = (
        Plain::open(&copy("libadopt_named")),
        Plain::open(&copy("libadopt_other")),
    );
    let (patch, of_other) = (
        patch_of("named", "libadopt_named"),
        patch_of("other", "libadopt_other"),
    );
    assert!(
        livepatch()
            .preflight(patch)
            .expect("it is disabled")
            .waiting
            .is_empty()
    );
    enable(patch);
    assert_eq!((named.answer()(), other.answer()()), (2, 1));
    named.close();
    other.close();
    assert!(is_mapped("libadopt_named"));
    assert!(
        !is_mapped("libadopt_other"),
        "another patch names it: it was not enabled"
    );
    forget(patch);
    livepatch().unload(of_other).expect("it is disabled");
}

#[test]
fn a_library_that_is_open_twice_is_patched_until_the_last_is_closed() {
    let _alone = alone();
    let path = copy("libadopt_twice");
    let patch = patch_of("twice", "libadopt_twice");
    let first = open(&path).expect("no patch is enabled");
    enable(patch);
    let second = open(&path).expect("the patch fits");
    close(first);
    assert_eq!(answer(&second), 2, "it is still open");
    close(second);
    assert!(!is_mapped("libadopt_twice"));

    // If something else holds it, it stays patched.
    let plain = Plain::open(&path);
    let library = open(&path).expect("the patch fits");
    assert_eq!(plain.answer()(), 2);
    close(library);
    assert_eq!(plain.answer()(), 2);
    plain.close();
    assert!(is_mapped("libadopt_twice"), "held under the patch");
    forget(patch);
}

#[test]
fn a_veto_leaves_the_library_as_it_is() {
    let _alone = alone();
    let path = copy("libadopt_veto");
    let veto = Veto::default();
    let patch = patch_with("veto", "libadopt_veto", veto.clone());
    enable(patch);
    veto.0.store(1, Ordering::Relaxed);
    let plain = Plain::open(&path);
    let refused = livepatch().adopt().expect_err("the callback vetoes");
    assert!(
        matches!(&refused, LoadError::Engine(error) if error.errno() == -libc::ENODEV),
        "{refused}"
    );
    assert_eq!(plain.answer()(), 1);
    plain.close();
    assert!(!is_mapped("libadopt_veto"), "it is not held");

    let plain = Plain::open(&path);
    let second = patch_of("after a veto", "libadopt_veto");
    veto.0.store(1, Ordering::Relaxed);
    let refused = livepatch()
        .enable(second)
        .expect_err("it would be enabled without its library");
    assert_eq!(refused.errno(), -libc::ENODEV, "{refused}");
    livepatch().unload(second).expect("it is disabled");
    livepatch().adopt().expect("no veto this time");
    assert_eq!(plain.answer()(), 2);
    forget(patch);
}

/// Says no, after a look at what calls of the library lead to.
struct Suspicious {
    answer: extern "C" fn() -> i32,
    saw: Arc<AtomicI32>,
}

impl Callbacks for Suspicious {
    fn pre_patch(&self, _: &CallbackContext<'_>) -> Result<(), i32> {
        self.saw.store((self.answer)(), Ordering::Relaxed);
        Err(-libc::ENODEV)
    }
}

#[test]
fn no_call_is_led_into_a_patch_before_all_have_agreed() {
    let _alone = alone();
    let name = "libadopt_agreed";
    let first = patch_of("agrees", name);
    enable(first);
    let plain = Plain::open(&copy(name));
    let saw = Arc::new(AtomicI32::new(0));
    let object = Object::module(name).map(|object| {
        object.with_callbacks(Box::new(Suspicious {
            answer: plain.answer(),
            saw: Arc::clone(&saw),
        }))
    });
    let second = Patch::builder("does not agree").object(object);
    let second = livepatch()
        .engine()
        .add(second.build().expect("well formed"))
        .expect("the name is new");
    // Not by `Livepatch::enable`, which would take the library in.
    livepatch().engine().enable(second).expect("it waits");
    settle(second);

    // Threads are inside of the library meanwhile.
    let stop = AtomicBool::new(false);
    let (answer, stop_it) = (plain.answer(), &stop);
    let others = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || {
                    let (mut calls, mut others) = (0_u64, 0_u64);
                    while !stop_it.load(Ordering::Relaxed) || calls == 0 {
                        calls += 1;
                        others += u64::from(answer() != 1);
                    }
                    others
                })
            })
            .collect();
        for _ in 0..50 {
            let refused = livepatch().adopt().expect_err("the callback vetoes");
            assert!(
                matches!(&refused, LoadError::Engine(error) if error.errno() == -libc::ENODEV),
                "{refused}"
            );
            assert_eq!(
                saw.swap(0, Ordering::Relaxed),
                1,
                "the first is not in force"
            );
        }
        stop.store(true, Ordering::Relaxed);
        let callers = callers.into_iter();
        callers
            .map(|caller| caller.join().expect("no panic"))
            .sum::<u64>()
    });
    assert_eq!(others, 0, "nobody was led there");
    forget(second);
    livepatch().adopt().expect("nobody is against it");
    assert_eq!(plain.answer()(), 2);
    forget(first);
}

#[test]
fn two_libraries_of_one_name_are_not_mixed_up() {
    let _alone = alone();
    let path = copy("libadopt_alike");
    let (folder, name) = (
        path.parent().expect("it has one").join("other"),
        path.file_name().expect("it has one"),
    );
    std::fs::create_dir_all(&folder).expect("there is room");
    let other = folder.join(name);
    std::fs::copy(MODULE, &other).expect("there is room");
    let library = open(&path).expect("no patch is enabled");
    close(open(&other).expect("no patch names it"));
    let patch = patch_of("alike", "libadopt_alike");
    enable(patch);
    let refused = open(&other).expect_err("it would not be patched");
    let two = format!(
        "there are two libraries called 'libadopt_alike': {} and {}",
        path.display(),
        other.display()
    );
    assert_eq!(refused.to_string(), two);
    assert_eq!(answer(&library), 2);
    disable(patch);
    let plain = Plain::open(&other);
    let refused = livepatch().enable(patch).expect_err("which one is meant?");
    assert_eq!(
        refused.to_string(),
        format!("adopting libraries for patch 'alike' failed: {two}")
    );
    plain.close();
    close(library);
    livepatch().unload(patch).expect("it is disabled");
}
