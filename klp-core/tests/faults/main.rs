//! Every port call and every allocation of enabling, disabling and of a module's coming and going
//! fails once; each time the system is as it was before, or the transition goes on, and the next
//! attempt succeeds.

mod case;
#[path = "../common/mod.rs"]
mod common;
mod failing;
mod objects;

use case::{
    Case, KINDS, Kind, Operation, arm_alloc, arm_port, disarm_alloc, disarm_port, fail_each,
};
use common::{add, check, patch_at};
use failing::{FAIL_IN, FAILED, border, engine_runs};
use klp_core::model::VMLINUX;
use klp_core::port::Doubt;
use klp_core::sim::machine::Insn;
use klp_core::sim::{Place, SimOs};
use klp_core::{Engine, Error, Poll};

#[test]
fn every_port_call_of_enabling_fails() {
    for kind in KINDS {
        let calls = fail_each(kind, Operation::Enable, arm_port, disarm_port);
        assert!(calls >= 10, "{kind:?}: only {calls} calls were found");
    }
}

#[test]
fn every_port_call_of_disabling_fails() {
    for kind in KINDS {
        let calls = fail_each(kind, Operation::Disable, arm_port, disarm_port);
        assert!(calls >= 5, "{kind:?}: only {calls} calls were found");
    }
}

#[test]
fn every_allocation_of_enabling_fails() {
    for kind in KINDS {
        let allocations = fail_each(kind, Operation::Enable, arm_alloc, disarm_alloc);
        assert!(
            allocations >= 10,
            "{kind:?}: only {allocations} allocations were found"
        );
    }
}

#[test]
fn every_allocation_of_disabling_fails() {
    for kind in KINDS {
        let allocations = fail_each(kind, Operation::Disable, arm_alloc, disarm_alloc);
        assert!(
            allocations >= 3,
            "{kind:?}: only {allocations} allocations were found"
        );
    }
}

/// Relocations of a patch are taken back when it is removed; a fault leaves it known, and the next
/// attempt succeeds.
#[test]
fn every_fault_of_removing() {
    for (arm, disarm) in [
        (arm_port as fn(&Case, u64), disarm_port as fn(&Case) -> bool),
        (arm_alloc, disarm_alloc),
    ] {
        let mut faults = 0;
        for n in 1.. {
            let case = Case::new(Kind::Relocated, Operation::Disable);
            assert!(matches!(
                case.engine.disable(case.id),
                Ok(Poll::Complete { .. })
            ));
            let before = case.system();
            arm(&case, n);
            let result = engine_runs(|| case.engine.remove(case.id));
            if !disarm(&case) {
                result.expect("nothing failed");
                break;
            }
            faults += 1;
            result.expect_err("something failed");
            assert_eq!(case.system(), before);
            check(&case.engine);
            let patch = case.engine.remove(case.id).expect("nothing fails now");
            let fields = patch.objects()[0].relocs().fields();
            assert!(
                fields
                    .iter()
                    .all(|field| case.engine.host().word(field.at)[..4] == [0; 4]),
                "fields are cleared"
            );
            assert_eq!(case.engine.find("p"), None);
        }
        assert!(faults >= 2, "only {faults} faults");
    }
}

/// The patch is refused before anything is known of it; it comes back.
#[test]
fn every_allocation_of_adding_fails() {
    let mut faults = 0;
    for n in 1.. {
        let host = SimOs::new();
        let f = host.function(VMLINUX, "f");
        let patch = patch_at(&host, "p", Place::Near, &[(VMLINUX, "f", f)]);
        let engine = Engine::new(host);
        FAILED.set(false);
        FAIL_IN.set(n);
        border(false);
        let result = engine.add(patch);
        border(true);
        FAIL_IN.set(0);
        if !FAILED.get() {
            result.expect("nothing failed");
            break;
        }
        faults += 1;
        let refused = result.expect_err("memory ran out");
        assert_eq!(
            (refused.error, engine.find("p")),
            (Error::OutOfMemory, None)
        );
        engine.add(refused.patch).expect("nothing fails now");
    }
    assert!(faults >= 2, "only {faults} allocations were found");
}

/// Somebody holds the entry: memory may run out while that is put into words, and nothing changes
/// nevertheless.
#[test]
fn every_allocation_of_a_refusal_fails() {
    for enabled in [false, true] {
        let mut faults = 0;
        for n in 1.. {
            let host = SimOs::new();
            let f = host.function(VMLINUX, "f");
            let site = host.range(f).start();
            host.watch_border(border);
            let engine = Engine::new(host);
            let patch = patch_at(engine.host(), "p", Place::Far, &[(VMLINUX, "f", f)]);
            let p = add(&engine, patch);
            if enabled {
                engine.enable(p).expect("nobody holds the entry");
            }
            let free = engine.host().word(site);
            engine.host().overwrite(site, &Insn::Jump(site).encode());
            let held = engine.host().word(site);
            FAILED.set(false);
            FAIL_IN.set(n);
            let refused = engine_runs(|| {
                if enabled {
                    engine.disable(p)
                } else {
                    engine.enable(p)
                }
            });
            FAIL_IN.set(0);
            let error = refused.expect_err("somebody holds the entry");
            assert_eq!(engine.host().word(site), held, "it is left alone");
            engine.host().overwrite(site, &free);
            check(&engine);
            if !FAILED.get() {
                assert!(
                    error
                        .to_string()
                        .contains("a jump to f+0x0/0x10 stands at f+0x0/0x10"),
                    "{error}"
                );
                break;
            }
            assert_eq!(error, Error::OutOfMemory);
            faults += 1;
        }
        assert!(faults >= 5, "only {faults} allocations were found");
    }
}

/// After `TaskSet::start` errors do not end a transition: it stays under way, and the next poll
/// goes on.
#[test]
fn a_transition_survives_faults_while_it_runs() {
    for n in 1..=12 {
        let case = Case::new(Kind::Stacked, Operation::Enable);
        let host = case.engine.host();
        let [first, _] = host.task_ids()[..] else {
            panic!("two tasks")
        };
        host.set_unreliable(first, Some(Doubt::Corrupt));
        assert_eq!(
            case.attempt(),
            Ok(Poll::Waiting {
                patch: case.id,
                pending: 1
            })
        );
        host.fail_at(n);
        for _ in 0..3 {
            let poll = engine_runs(|| case.engine.poll());
            assert!(
                matches!(poll, Poll::Waiting { patch, .. } if patch == case.id),
                "{poll:?}"
            );
            let blockers = engine_runs(|| case.engine.blockers(case.id));
            assert!(blockers.is_err() || blockers.is_ok_and(|blockers| blockers.len() == 1));
            // It may fail to list the tasks.
            let _ = engine_runs(|| case.engine.kick(case.id));
            check(&case.engine);
        }
        assert!(host.disarm().is_some(), "call {n} was made");
        host.set_unreliable(first, None);
        case.finish(&format!("fault {n}"));
    }
}

/// A transition that cannot be turned round goes on as before.
#[test]
fn reversing_that_fails_changes_nothing() {
    let case = Case::new(Kind::Plain, Operation::Enable);
    let host = case.engine.host();
    let [first, _] = host.task_ids()[..] else {
        panic!("two tasks")
    };
    host.set_unreliable(first, Some(Doubt::Corrupt));
    assert_eq!(
        case.attempt(),
        Ok(Poll::Waiting {
            patch: case.id,
            pending: 1
        })
    );
    let (before, status) = (case.system(), case.engine.status());
    host.fail_at(1);
    let error = case.engine.reverse(case.id).expect_err("`start` fails");
    assert_eq!(
        error.to_string(),
        "reversing the transition for patch 'p' failed: TaskSet::start failed: Failed"
    );
    assert_eq!(host.disarm(), Some("TaskSet::start"));
    assert_eq!((case.system(), case.engine.status()), (before, status));
    check(&case.engine);
    host.set_unreliable(first, None);
    case.finish("after a failed reversal");
}

const OPERATIONS: [Operation; 2] = [Operation::Enable, Operation::Disable];

/// Two faults in a row: the second one hits the way back. Sites then lead to the handler for a
/// while, which answers as they would.
#[test]
fn the_way_back_fails_too() {
    for operation in OPERATIONS {
        let case = Case::new(Kind::FarStacked, operation);
        let host = case.engine.host();
        let before = case.engine.status();
        // Sites are routed there, then back.
        host.fail_calls(&[("TaskSet::start", 1), ("Text::poke", 2)]);
        let error = case.attempt().expect_err("`start` fails");
        assert!(error.to_string().contains("TaskSet::start"), "{error}");
        host.disarm();
        assert_eq!(case.engine.status(), before);
        check(&case.engine);
        assert!(
            host.take_transcript()
                .iter()
                .any(|line| line.contains("entry sites not settled"))
        );
        assert_eq!(case.engine.poll(), Poll::Idle, "settles");
        assert!(matches!(case.attempt(), Ok(Poll::Complete { .. })));
        case.finish("after an unsettled time");
    }
}

/// The new contents of a veneer were written, but the site could not be led there: the veneer's old
/// contents must not be trusted any more.
#[test]
fn a_veneer_is_filled_in_vain() {
    let case = Case::new(Kind::FarStacked, Operation::Enable);
    let host = case.engine.host();
    // To the handler, then to the new function.
    host.fail_calls(&[("Text::poke", 2)]);
    assert!(matches!(
        case.attempt(),
        Ok(Poll::Complete { enabled: true, .. })
    ));
    assert_eq!(host.disarm(), Some("Text::poke"));
    check(&case.engine);
    assert!(matches!(
        case.engine.disable(case.id),
        Ok(Poll::Complete { enabled: false, .. })
    ));
    check(&case.engine);
}

/// Slots for thunks that a failed routing took are free again, however often it fails.
#[test]
fn a_routing_that_fails_often_costs_nothing() {
    let host = SimOs::new();
    let [first, second] = ["f", "g"].map(|name| {
        let func = host.function(VMLINUX, name);
        patch_at(
            &host,
            &format!("for_{name}"),
            Place::Far,
            &[(VMLINUX, name, func)],
        )
    });
    let engine = Engine::new(host);
    let [first, second] = [first, second].map(|patch| add(&engine, patch));
    assert!(matches!(engine.enable(first), Ok(Poll::Complete { .. })));
    let images = engine.host().images();
    for _ in 0..200 {
        engine.host().fail_calls(&[("Text::fill", 1)]);
        engine
            .enable(second)
            .expect_err("its thunk cannot be written");
    }
    engine.host().disarm();
    assert!(matches!(engine.enable(second), Ok(Poll::Complete { .. })));
    assert_eq!(engine.host().images(), images);
}
