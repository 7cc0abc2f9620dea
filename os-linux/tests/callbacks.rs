//! Callbacks of patch objects, in C; and shadow variables, which they leave behind or take away.

use klp_core::Error;
use klp_core::error::PatchReason;
use klp_os_linux::process::{Library, LoadError, shadows};
use klp_os_linux_fixtures::*;
use std::time::Duration;

fn open() -> Result<Library, LoadError> {
    // SAFETY: the library has no constructors.
    unsafe { livepatch().open_library(MODULE) }
}

fn close(library: Library) {
    // SAFETY: no thread is inside of it.
    unsafe { library.close() }.expect("it can be unloaded");
}

/// The message of an error, which must be the veto of the callback for `object`.
#[track_caller]
fn assert_vetoed(error: &Error, object: &str, errno: i32) {
    let Error::Patch(patch) = error else {
        panic!("not the patch's fault: {error}")
    };
    assert_eq!(patch.reason, PatchReason::Vetoed { errno });
    assert_eq!(patch.object.as_deref(), Some(object));
    assert_eq!(error.errno(), errno);
}

#[test]
fn each_is_called_when_its_object_is_patched_and_unpatched() {
    let _alone = alone();
    let patch = livepatch().load_file(CALLBACKS).expect("a patch object");
    assert!(diary().is_empty(), "loading calls nothing");
    enable(patch);
    assert_eq!(
        diary(),
        ["pre_patch: (base) sees 1", "post_patch: (base) sees 2"]
    );

    let library = open().expect("no veto");
    assert_eq!(
        diary(),
        [
            "pre_patch: libfixture_module sees 1",
            "post_patch: libfixture_module sees 42"
        ]
    );
    close(library);
    assert_eq!(
        diary(),
        [
            "pre_unpatch: libfixture_module sees 42",
            "post_unpatch: libfixture_module sees 1"
        ]
    );

    let library = open().expect("no veto");
    diary();
    disable(patch);
    assert_eq!(
        diary(),
        [
            "pre_unpatch: (base) sees 2",
            "pre_unpatch: libfixture_module sees 42",
            "post_unpatch: (base) sees 1",
            "post_unpatch: libfixture_module sees 1"
        ]
    );
    enable(patch);
    assert_eq!(
        diary(),
        [
            "pre_patch: (base) sees 1",
            "pre_patch: libfixture_module sees 1",
            "post_patch: (base) sees 2",
            "post_patch: libfixture_module sees 42"
        ]
    );
    disable(patch);
    close(library);
    livepatch().unload(patch).expect("it is disabled");
    diary();
}

#[test]
fn a_veto_is_the_end_of_it() {
    let _alone = alone();
    let before = text();
    let patch = livepatch().load_file(CALLBACKS).expect("a patch object");
    answer_pre_patch(-libc::ENODEV);
    assert_vetoed(
        &livepatch().enable(patch).expect_err("vetoed"),
        "vmlinux",
        -libc::ENODEV,
    );
    assert_eq!(diary(), ["pre_patch: (base) sees 1"]);
    assert_eq!(text(), before, "the code is what it was");

    answer_pre_patch(0);
    enable(patch);
    diary();
    answer_pre_patch(-libc::ENODEV);
    match open() {
        Err(LoadError::Engine(error)) => assert_vetoed(&error, "libfixture_module", -libc::ENODEV),
        other => panic!("not vetoed: {other:?}"),
    }
    assert_eq!(diary(), ["pre_patch: libfixture_module sees 1"]);
    assert_eq!(fx_value(), 2, "the executable stays patched");

    answer_pre_patch(0);
    close(open().expect("no veto"));
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
    diary();
}

#[test]
fn a_patch_that_is_given_up_halfway_only_cleans_up() {
    let _alone = alone();
    let patch = livepatch().load_file(CALLBACKS).expect("a patch object");
    let (reader, writer) = pipe();
    let (send_tid, tids) = std::sync::mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        send_tid.send(tid()).expect("somebody listens");
        fx_read(reader)
    });
    wait_asleep(tids.recv().expect("the thread says its id"));
    livepatch().enable(patch).expect("no veto");
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "the sleeper holds it back"
    );
    assert_eq!(diary(), ["pre_patch: (base) sees 1"]);
    livepatch()
        .engine()
        .reverse(patch)
        .expect("it is under way");
    settle(patch);
    assert_eq!(diary(), ["post_unpatch: (base) sees 1"]);
    write_byte(writer);
    assert_ne!(
        sleeper.join().expect("the thread only reads"),
        -2,
        "the old version"
    );
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_patch_of_callbacks_only_lives_and_goes_as_others_do() {
    let _alone = alone();
    let patch = livepatch()
        .load_file(ONLY_CALLBACKS)
        .expect("a patch object");
    enable(patch);
    assert_eq!(diary(), ["post_patch: (base) sees 0"]);
    assert!(is_memory(code_of_patch()));
    disable(patch);
    assert_eq!(diary(), ["post_unpatch: (base) sees 0"]);
    assert!(is_memory(code_of_patch()), "disabled is not unloaded");
    livepatch().unload(patch).expect("it is disabled");
    // What becomes of its memory: removed.rs.
}

#[test]
fn objects_get_a_field_that_they_have_no_room_for() {
    let _alone = alone();
    let patch = livepatch().load_file(STATIONS_FIX).expect("a patch object");
    let station = |id| Station::new(id).expect("unpatched, or its counter can be made");
    let (old, unused, late, odd) = (station(1), station(2), station(3), station(-1));
    assert_eq!([old.use_it(), unused.use_it()], [0, 0]);

    enable(patch);
    assert!(shadows().is_empty());
    let new = Station::new(4).expect("one variable can be made, and no second of the same id");
    assert_eq!(shadows().len(), 1);
    assert_eq!(
        [new.use_it(), new.use_it()],
        [101, 102],
        "made together with its station"
    );
    assert_eq!(
        [old.use_it(), old.use_it()],
        [201, 202],
        "made when it was first used"
    );
    assert_eq!(odd.use_it(), -1, "its constructor says no");
    assert_eq!(shadows().len(), 2);

    assert_eq!(counters_freed(), (0, 0));
    drop(new);
    drop(unused);
    assert_eq!(counters_freed(), (1, 2), "one of them had no counter yet");
    assert_eq!(late.use_it(), 201);

    disable(patch);
    assert_eq!(
        counters_freed(),
        (3, 5),
        "the rest went when nobody used it any more"
    );
    assert!(shadows().is_empty());
    assert_eq!(old.use_it(), 0);
    livepatch().unload(patch).expect("it is disabled");
}
