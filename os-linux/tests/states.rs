//! Cumulative patches in C whose callbacks change the system, and hand the change on to their
//! successors.

use klp_core::engine::PatchId;
use klp_core::error::{Error, PatchReason};
use klp_os_linux_fixtures::*;
use std::thread::JoinHandle;
use std::time::Duration;

/// Loads the patch that does it in `version`.
fn load(version: usize) -> PatchId {
    livepatch()
        .load_file(LEVELS[version - 1])
        .expect("a patch object")
}

fn unload(patch: PatchId) {
    livepatch().unload(patch).expect("it is disabled");
}

/// What the patch keeps in its state.
fn data(patch: PatchId) -> usize {
    let data = livepatch()
        .engine()
        .with_patch(patch, |patch| patch.state(1).map(|state| state.data()));
    data.expect("it is known").expect("it has the state")
}

/// A thread that sleeps in `fx_read` until somebody writes a byte.
fn sleep_in_patch() -> (i32, JoinHandle<i32>) {
    let (reader, writer) = pipe();
    let (send_tid, tids) = std::sync::mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        send_tid.send(tid()).expect("somebody listens");
        fx_read(reader)
    });
    wait_asleep(tids.recv().expect("the thread says its id"));
    (writer, sleeper)
}

#[test]
fn a_change_lasts_as_long_as_its_patch() {
    let _alone = alone();
    let patch = load(1);
    enable(patch);
    assert_eq!(
        diary(),
        ["make room: (base) sees 4", "lift: (base) sees 100"]
    );
    assert_eq!((fx_value(), level()), (10, 100));
    assert_ne!(data(patch), 0, "what C wrote is what the engine keeps");
    disable(patch);
    assert_eq!(
        diary(),
        ["put back: (base) sees 4", "free room: (base) sees 4"]
    );
    assert_eq!((fx_value(), level(), data(patch)), (1, 4, 0));
    unload(patch);
}

#[test]
fn a_successor_takes_the_change_over() {
    let _alone = alone();
    let (first, second) = (load(1), load(2));
    enable(first);
    diary();
    let kept = data(first);
    let report = livepatch().engine().preflight(second).expect("it is known");
    assert!(report.is_ready(), "{:?}", report.findings);
    assert_eq!(report.replaces, ["level_1"]);

    enable(second);
    assert_eq!(
        diary(),
        [
            "room is there: (base) sees 100",
            "take over from: (base) sees 1"
        ]
    );
    assert_eq!((fx_value(), level(), data(second)), (20, 100, kept));
    let of_first = livepatch()
        .engine()
        .status()
        .expect("memory")
        .into_iter()
        .find(|patch| patch.id == first);
    assert!(!of_first.expect("it is known").enabled, "it gave way");
    assert_eq!(
        data(first),
        kept,
        "a state lasts as long as its patch is loaded"
    );
    unload(first);

    disable(second);
    assert_eq!(
        diary(),
        ["put back: (base) sees 4", "free room: (base) sees 4"]
    );
    assert_eq!((fx_value(), level()), (1, 4));
    unload(second);
}

#[test]
fn a_change_goes_through_many_hands() {
    let _alone = alone();
    let mut patch = load(1);
    enable(patch);
    diary();
    for version in [2, 3] {
        let next = load(version);
        enable(next);
        unload(std::mem::replace(&mut patch, next));
        let taken = format!("take over from: (base) sees {}", version - 1);
        assert_eq!(diary(), ["room is there: (base) sees 100", &*taken]);
    }
    disable(patch);
    assert_eq!(
        diary(),
        ["put back: (base) sees 4", "free room: (base) sees 4"]
    );
    unload(patch);
}

#[test]
fn a_version_that_is_too_low_is_refused() {
    let _alone = alone();
    let (old, new) = (load(1), load(2));
    enable(new);
    diary();
    let before = text();
    let Err(Error::Patch(error)) = livepatch().enable(old) else {
        panic!("not refused")
    };
    assert_eq!(&*error.patch, "level_1");
    let PatchReason::IncompatibleStates { with } = &error.reason else {
        panic!("refused otherwise: {error}")
    };
    assert_eq!(&**with, "level_2");
    let findings = livepatch()
        .engine()
        .preflight(old)
        .expect("it is known")
        .findings;
    let says = |finding: &str| {
        finding.contains("its states do not fit those of the enabled patch 'level_2'")
    };
    assert!(
        findings.iter().any(|finding| says(&finding.to_string())),
        "{findings:?}"
    );
    assert!(diary().is_empty(), "no callback ran");
    assert_eq!((fx_value(), level()), (20, 100));
    assert_eq!(text(), before, "the code is what it was");

    disable(new);
    enable(old);
    assert_eq!(fx_value(), 10, "nothing is in its way now");
    disable(old);
    diary();
    unload(old);
    unload(new);
}

#[test]
fn a_patch_compiled_by_clang_does_the_same() {
    let Some(file) = CLANG_LEVEL else {
        eprintln!("clang is not installed: what it compiles was not tested");
        return;
    };
    let _alone = alone();
    let (first, second) = (
        livepatch().load_file(file).expect("a patch object"),
        load(2),
    );
    enable(first);
    assert_eq!(
        diary(),
        ["make room: (base) sees 4", "lift: (base) sees 100"]
    );
    assert_eq!(fx_value(), 10);
    let (writer, sleeper) = sleep_in_patch();
    livepatch().enable(second).expect("it fits");
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "the sleeper is found in code of clang's"
    );
    write_byte(writer);
    assert_eq!(sleeper.join().expect("the thread only reads"), -1);
    settle(second);
    assert_eq!(
        diary(),
        [
            "room is there: (base) sees 100",
            "take over from: (base) sees 1"
        ]
    );
    disable(second);
    assert_eq!(
        diary(),
        ["put back: (base) sees 4", "free room: (base) sees 4"]
    );
    unload(first);
    unload(second);
}

#[test]
fn a_successor_that_is_given_up_leaves_all_as_it_was() {
    let _alone = alone();
    let (first, second) = (load(1), load(2));
    enable(first);
    diary();
    let (writer, sleeper) = sleep_in_patch();
    livepatch().enable(second).expect("it fits");
    assert!(
        !livepatch().wait(Duration::from_millis(50)),
        "the sleeper holds it back"
    );
    livepatch()
        .engine()
        .reverse(second)
        .expect("it is under way");
    settle(second);
    assert_eq!(
        diary(),
        [
            "room is there: (base) sees 100",
            "leave room: (base) sees 100"
        ]
    );
    assert_eq!((fx_value(), level(), data(second)), (10, 100, 0));
    write_byte(writer);
    assert_eq!(
        sleeper.join().expect("the thread only reads"),
        -1,
        "the first patch's version"
    );
    disable(first);
    assert_eq!(
        diary(),
        ["put back: (base) sees 4", "free room: (base) sees 4"]
    );
    unload(first);
    unload(second);
}
