//! Preflight on the simulated OS: all that enabling would refuse, and nothing touched.

mod common;

use common::{add, patch};
use klp_core::error::{ApiMisuse, Error, PatchReason};
use klp_core::model::{Object, Patch, Replace, VMLINUX};
use klp_core::sim::machine::Insn;
use klp_core::sim::{self, Pad, Place, SimOs};
use klp_core::state::State;
use klp_core::{Engine, PatchId, Poll};

fn reasons(findings: &[Error]) -> Vec<(Option<&str>, &PatchReason)> {
    let reasons = findings.iter().map(|finding| match finding {
        Error::Patch(error) => (error.func.as_deref(), &error.reason),
        other => panic!("not the patch's fault: {other}"),
    });
    reasons.collect()
}

/// Preflight must leave everything as it is.
#[track_caller]
fn preflight(engine: &Engine<SimOs>, id: PatchId) -> klp_core::engine::Preflight {
    engine.host().take_transcript();
    let before = engine.host().snapshot();
    let report = engine.preflight(id).expect("it is not enabled");
    assert_eq!(engine.host().snapshot(), before);
    assert!(engine.host().take_transcript().is_empty());
    report
}

#[test]
fn a_patch_that_fits_is_ready() {
    let host = SimOs::new();
    let (f, g, m) = (
        host.function(VMLINUX, "f"),
        host.function(VMLINUX, "g"),
        host.function("m", "in_m"),
    );
    host.not_loaded("m");
    let old = patch(&host, "old", &[(VMLINUX, "f", f)]);
    let mut new = Patch::builder("new").replace(Replace::All);
    for (object, name, func) in [(VMLINUX, "g", g), ("m", "in_m", m)] {
        let code = host.replacement("new", func, Place::Near);
        new = new
            .object(Object::module(object).and_then(|object| object.func(sim::func(name, code)?)));
    }
    let engine = Engine::new(host);
    let old = add(&engine, old);
    let new = add(&engine, new.build().expect("the patch is well formed"));
    engine.enable(old).expect("the patch fits");
    let report = preflight(&engine, new);
    assert!(report.is_ready());
    assert_eq!(
        report.to_string(),
        "object 'm' is not loaded; it is checked when it comes\n\
         the enabled patch 'old' will be replaced\n\
         1 functions checked: the patch can be enabled"
    );
    assert_eq!(
        engine.enable(new),
        Ok(Poll::Complete {
            patch: new,
            enabled: true
        })
    );
    assert_eq!(
        engine.preflight(new),
        Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled))
    );
}

#[test]
fn every_fault_is_found() {
    let host = SimOs::new();
    let good = host.function(VMLINUX, "good");
    let twice = host.function(VMLINUX, "twice");
    let other = host.function(VMLINUX, "other");
    host.alias(other, "twice");
    let nopad = host.function_with(VMLINUX, "nopad", Pad::None);
    let held = host.function(VMLINUX, "held");
    host.overwrite(host.range(held).start(), &[0xcc; 8]);
    let marked = host.function(VMLINUX, "marked");
    host.notrace(marked);
    let names = [
        ("good", good),
        ("gone", good),
        ("twice", twice),
        ("nopad", nopad),
        ("held", held),
        ("marked", marked),
    ];
    let object = Object::vmlinux().and_then(|object| {
        let func = |(name, func)| sim::func(name, host.replacement("p", func, Place::Near));
        let object = names
            .into_iter()
            .try_fold(object, |object, named| object.func(func(named)?))?;
        // A second name of a function that is listed already; a position that does not exist.
        object.func(func(("twice", other))?.sympos(3))
    });
    let p = Patch::builder("p")
        .object(object)
        .build()
        .expect("the patch is well formed");
    let engine = Engine::new(host);
    let p = add(&engine, p);
    let report = preflight(&engine, p);
    let found = reasons(&report.findings);
    assert_eq!(report.functions, 7);
    assert_eq!(found.len(), 6, "{report}");
    assert_eq!(found[0], (Some("gone"), &PatchReason::SymbolNotFound));
    assert_eq!(found[1], (Some("twice"), &PatchReason::SymbolAmbiguous));
    assert!(
        matches!(found[2], (Some("nopad"), PatchReason::NoEntrySite { .. })),
        "{report}"
    );
    assert!(
        matches!(found[3], (Some("held"), PatchReason::EntryHeld { .. })),
        "{report}"
    );
    assert_eq!(found[4], (Some("marked"), &PatchReason::Notrace));
    assert_eq!(
        found[5],
        (
            Some("twice"),
            &PatchReason::SymbolPositionNotFound { sympos: 3 }
        )
    );
    assert_eq!(
        engine.enable(p).as_ref(),
        Err(&report.findings[0]),
        "enabling says the first"
    );
}

#[test]
fn two_names_of_one_function() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    host.alias(f, "alias");
    let p = patch(&host, "p", &[(VMLINUX, "f", f), (VMLINUX, "alias", f)]);
    let engine = Engine::new(host);
    let p = add(&engine, p);
    let report = preflight(&engine, p);
    assert_eq!(
        reasons(&report.findings),
        [(Some("alias"), &PatchReason::ListedTwice)]
    );
    assert!(engine.enable(p).is_err());
}

#[test]
fn states_sets_and_a_transition_of_another() {
    let host = SimOs::new();
    let (f, g) = (host.function(VMLINUX, "f"), host.function(VMLINUX, "g"));
    let task = host.spawn("worker");
    let build = |name: &str, replace, version| {
        let object = Object::vmlinux().and_then(|object| {
            object.func(sim::func("f", host.replacement(name, f, Place::Near))?)
        });
        let patch = Patch::builder(name)
            .replace(replace)
            .state(State::new(7, version))
            .object(object);
        patch.build().expect("the patch is well formed")
    };
    let (first, second) = (
        build("first", Replace::Set(1), 2),
        build("second", Replace::Set(2), 1),
    );
    let holder = patch(&host, "holder", &[(VMLINUX, "g", g)]);
    let engine = Engine::new(host);
    let (first, second, holder) = (
        add(&engine, first),
        add(&engine, second),
        add(&engine, holder),
    );
    engine.enable(first).expect("the patch fits");
    assert!(engine.host().call(task, g));
    assert!(matches!(engine.enable(holder), Ok(Poll::Waiting { .. })));
    let report = preflight(&engine, second);
    let [busy, rest @ ..] = &report.findings[..] else {
        panic!("{report}")
    };
    assert!(
        matches!(busy, Error::Busy { patch } if patch == "holder"),
        "{report}"
    );
    let with = |name| klp_core::mem::Name::new(name).expect("memory");
    assert_eq!(
        reasons(rest),
        [
            (
                None,
                &PatchReason::IncompatibleStates {
                    with: with("first")
                }
            ),
            (
                None,
                &PatchReason::SharedWithOtherSet {
                    with: with("first")
                }
            ),
        ]
    );
    assert!(!report.is_ready());
    assert_eq!(report.findings[1].errno(), -22);
}

/// A look leaves nothing behind: nobody would tell of it when the code goes and other code comes to
/// the same place.
#[test]
fn what_was_looked_at_is_looked_at_anew() {
    let host = SimOs::new();
    let f = host.function(VMLINUX, "f");
    let p = patch(&host, "p", &[(VMLINUX, "f", f)]);
    let engine = Engine::new(host);
    let p = add(&engine, p);
    assert!(preflight(&engine, p).is_ready());
    engine
        .host()
        .overwrite(engine.host().range(f).start(), &Insn::ShortNop.encode());
    let report = preflight(&engine, p);
    assert!(report.is_ready(), "another kind of entry: {report}");
}
