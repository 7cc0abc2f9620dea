//! A module comes and goes, and whatever can fail then fails.

use super::case::{Case, Operation, SET_UP, arm_alloc, arm_port, disarm_alloc, disarm_port, replacing};
use super::common::{add, check, patch_at};
use super::failing::{border, engine_runs};
use klp_core::model::VMLINUX;
use klp_core::port::TaskId;
use klp_core::sim::{Place, SimFunc, SimOs, insmod};
use klp_core::{Engine, Poll};

/// A module comes: two patches have it, and a third one, in transition, takes their place and gives one of its functions back.
/// Whatever fails, the module is refused, nobody knows it, and the next time it comes.
#[test]
fn every_fault_of_coming() {
    for (arm, disarm) in [(arm_port as fn(&Case, u64), disarm_port as fn(&Case) -> bool), (arm_alloc, disarm_alloc)] {
        let mut faults = 0;
        for n in 1.. {
            let (case, m, task) = coming();
            let (before, status, set_up) = (case.system(), case.engine.status(), SET_UP.get());
            arm(&case, n);
            let result = engine_runs(|| insmod(&case.engine, "mod"));
            if !disarm(&case) {
                result.expect("nothing failed");
                break;
            }
            faults += 1;
            if let Err(error) = result {
                assert_eq!(case.system(), before, "fault {n}: {error}");
                assert_eq!((case.engine.status(), SET_UP.get()), (status, set_up), "fault {n}: {error}");
                check(&case.engine);
                insmod(&case.engine, "mod").expect("nothing fails now");
            }
            check(&case.engine);
            assert_eq!(case.engine.host().version(task, m), "below2_m", "fault {n}: the task has not moved");
            case.engine.host().rest_all();
            assert_eq!(case.engine.poll(), Poll::Complete { patch: case.id, enabled: true }, "fault {n}");
            check(&case.engine);
            assert_eq!(case.engine.host().version(task, m), "m", "fault {n}");
        }
        assert!(faults >= 10, "only {faults} faults");
    }
}

/// The system into which the module comes, its function, and a task that keeps the transition waiting.
fn coming() -> (Case, SimFunc, TaskId) {
    let host = SimOs::new();
    let (f, m) = (host.function(VMLINUX, "f"), host.function("mod", "m"));
    host.not_loaded("mod");
    let holder = host.spawn("holder");
    host.watch_border(border);
    let olds = ["below", "below2"].map(|name| patch_at(&host, name, Place::Far, &[(VMLINUX, "f", f), ("mod", "m", m)]));
    let new = replacing(&host, f);
    let engine = Engine::new(host);
    for old in olds {
        let old = add(&engine, old);
        assert!(matches!(engine.enable(old), Ok(Poll::Complete { .. })));
    }
    let id = add(&engine, new);
    assert!(engine.host().call(holder, f));
    assert!(matches!(engine.enable(id), Ok(Poll::Waiting { .. })));
    check(&engine);
    (Case { engine, id, ids: vec![id], operation: Operation::Enable }, m, holder)
}
