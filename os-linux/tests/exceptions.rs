//! Code of patches is code like any other: what unwinds goes through it.

use core::ffi::{CStr, c_void};
use core::sync::atomic::{AtomicBool, Ordering};
use klp_core::engine::PatchId;
use klp_os_linux_fixtures::through::*;
use klp_os_linux_fixtures::*;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

fn load(path: &str) -> PatchId {
    livepatch().load_file(path).expect("a patch object")
}

fn unload(patch: PatchId) {
    livepatch().unload(patch).expect("it is disabled");
}

/// Whether a panic comes through `fx_through`, with what it bears.
fn panic_comes_through() -> bool {
    let thrown = catch_unwind(|| through(|| resume_unwind(Box::new(7_u8))));
    thrown.is_err_and(|what| what.downcast_ref() == Some(&7_u8))
}

/// How many frames `backtrace` finds inside of `fx_through`.
fn depth() -> i32 {
    let mut frames = [core::ptr::null_mut(); 128];
    let mut depth = 0;
    through(|| {
        // SAFETY: there is room for so many.
        depth = unsafe { libc::backtrace(frames.as_mut_ptr(), 128) };
        0
    });
    depth
}

#[test]
fn a_panic_goes_through_a_patched_function() {
    let _alone = alone();
    assert!(panic_comes_through());
    for path in [THROUGH, THROUGH_CLEANING] {
        let (patch, before) = (load(path), left());
        enable(patch);
        assert_eq!(through(|| 1), 101);
        assert!(panic_comes_through());
        let cleaned = left() - before;
        assert_eq!(cleaned, if path == THROUGH { 0 } else { 2 });
        disable(patch);
        assert_eq!(through(|| 1), 2);
        assert!(panic_comes_through());
        unload(patch);
        assert!(panic_comes_through());
    }
}

#[test]
fn a_thread_that_ends_inside_of_a_patch_cleans_up() {
    let _alone = alone();
    let patch = load(THROUGH_CLEANING);
    for _ in 0..2 {
        for exits in [false, true] {
            assert_eq!(end_through(exits), 1, "original");
            enable(patch);
            let before = left();
            assert_eq!(end_through(exits), 1, "patched");
            assert_eq!(left() - before, 1, "the patch's function itself");
            disable(patch);
        }
    }
    unload(patch);
}

#[test]
fn a_backtrace_goes_through_a_patched_function() {
    let _alone = alone();
    let before = depth();
    assert!(before > 4, "{before}");
    let patch = load(THROUGH);
    enable(patch);
    assert_eq!(depth(), before);
    disable(patch);
    unload(patch);
    assert_eq!(depth(), before);
}

#[test]
fn a_patch_in_cpp_catches_what_it_throws() {
    let Some(path) = THROUGH_CPP else {
        return eprintln!("there is no C++ compiler: not tested");
    };
    let _alone = alone();
    // Of the program, only the patch needs it.
    let library = c"libstdc++.so.6";
    // SAFETY: a part of the system.
    let handle = unsafe { libc::dlopen(library.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    assert!(!handle.is_null(), "a C++ compiler comes with it");
    let patch = load(path);
    enable(patch);
    assert_eq!(through(|| 5), 105);
    assert_eq!(through(|| -5), -105, "thrown and caught");
    assert!(panic_comes_through());
    disable(patch);
    unload(patch);
}

#[test]
fn patches_come_and_go_while_others_unwind() {
    let _alone = alone();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(panic_comes_through());
                }
            });
        }
        let all_went_well = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..30 {
                let patch = load(THROUGH_CLEANING);
                enable(patch);
                disable(patch);
                unload(patch);
            }
        }));
        done.store(true, Ordering::Relaxed);
        all_went_well.expect("patches fit");
    });
}

/// A number of the library with an unwinder of its own.
fn number(library: *mut c_void, name: &CStr) -> i32 {
    // SAFETY: an `int` of the library, which nobody writes now.
    unsafe {
        let number = libc::dlsym(library, name.as_ptr()).cast::<i32>();
        assert!(!number.is_null());
        *number
    }
}

#[test]
fn an_unwinder_that_comes_later_is_told_of_each_function() {
    let _alone = alone();
    livepatch();
    // Without threads that must not be woken: what was removed goes at once then.
    assert_eq!(in_child(an_unwinder_comes_later), 0);
}

fn an_unwinder_comes_later() -> bool {
    assert_eq!(livepatch().free_removed(), 0, "of other tests");
    let first = load(THROUGH);
    let name = CString::new(UNWINDER).expect("no zero in it");
    // SAFETY: it has no constructors.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null());
    let known = || number(library, c"fxu_known");
    assert_eq!(known(), 0);
    livepatch().adopt().expect("nothing is patched");
    let of_first = known();
    assert!(of_first >= 1, "{of_first}");
    livepatch().adopt().expect("nothing is patched");
    assert_eq!(known(), of_first, "it is told once");
    let second = load(THROUGH_CLEANING);
    assert!(known() > of_first, "{}", known());
    // The engine tells it as long as there are patches.
    // SAFETY: what it exports is not used any more, if it should go.
    assert_eq!(unsafe { libc::dlclose(library) }, 0);
    assert!(known() > of_first, "it is held");
    unload(first);
    unload(second);
    assert_eq!(known(), 0);
    assert!(number(library, c"fxu_forgotten") > of_first);
    assert_eq!(number(library, c"fxu_bad"), 0);
    true
}
