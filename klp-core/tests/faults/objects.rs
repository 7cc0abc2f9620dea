//! A module comes and goes, and whatever can fail then fails.

use super::case::{
    Case, Operation, SET_UP, arm_alloc, arm_port, disarm_alloc, disarm_port, replacing, waiting,
};
use super::common::{add, check, patch_at};
use super::failing::{BYTES, border, engine_runs};
use klp_core::addr::CodeAddr;
use klp_core::model::VMLINUX;
use klp_core::port::TaskId;
use klp_core::sim::{Place, SimFunc, SimOs, insmod, rmmod};
use klp_core::{Engine, Poll};

/// How something fails: what arms it for the n-th time, and what disarms it and says whether it
/// failed.
type Way = (fn(&Case, u64), fn(&Case) -> bool);
const WAYS: [Way; 2] = [(arm_port, disarm_port), (arm_alloc, disarm_alloc)];

/// A module that three patches have to do with: two replace its function, the third refers to it. A
/// fourth one, in transition, takes their place and gives the function back.
struct Module {
    case: Case,
    m: SimFunc,
    /// Keeps the transition waiting.
    task: TaskId,
    /// Where the third patch has the address of the function.
    reference: CodeAddr,
}

impl Module {
    /// It is not loaded.
    fn new() -> Self {
        let host = SimOs::new();
        let (f, m) = (host.function(VMLINUX, "f"), host.function("mod", "m"));
        host.not_loaded("mod");
        let task = host.spawn("holder");
        host.watch_border(border);
        let both = [(VMLINUX, "f", f), ("mod", "m", m)];
        let [below, below2] =
            ["below", "below2"].map(|name| patch_at(&host, name, Place::Far, &both));
        let (waits, reference) = waiting(&host, f);
        let new = replacing(&host, f);
        let engine = Engine::new(host);
        for old in [below, waits, below2] {
            let old = add(&engine, old);
            assert!(matches!(engine.enable(old), Ok(Poll::Complete { .. })));
        }
        let id = add(&engine, new);
        assert!(engine.host().call(task, f));
        assert!(matches!(engine.enable(id), Ok(Poll::Waiting { .. })));
        check(&engine);
        Self {
            case: Case {
                engine,
                id,
                ids: vec![id],
                operation: Operation::Enable,
            },
            m,
            task,
            reference,
        }
    }

    fn comes(&self) -> Result<(), klp_core::Error> {
        engine_runs(|| insmod(&self.case.engine, "mod"))
    }

    fn goes(&self) {
        assert!(
            engine_runs(|| rmmod(&self.case.engine, "mod")),
            "nobody is in it"
        );
    }

    /// The module is there, and patched, and referred to where it is now.
    fn is_right(&self, what: &str) {
        check(&self.case.engine);
        let host = self.case.engine.host();
        assert_eq!(
            host.version(self.task, self.m),
            "below2_m",
            "{what}: the task has not moved"
        );
        let refers = CodeAddr::new(u64::from_le_bytes(host.word(self.reference)));
        assert_eq!(refers, host.range(self.m).start(), "{what}");
    }

    /// The transition comes to its end.
    fn ends(&self, what: &str) {
        let (engine, host) = (&self.case.engine, self.case.engine.host());
        host.rest_all();
        assert_eq!(
            engine.poll(),
            Poll::Complete {
                patch: self.case.id,
                enabled: true
            },
            "{what}"
        );
        check(engine);
        assert_eq!(host.version(self.task, self.m), "m", "{what}");
    }
}

/// Whatever fails, the module is refused, nobody knows it or refers to it, and the next time,
/// elsewhere, it comes.
#[test]
fn every_fault_of_coming() {
    for (arm, disarm) in WAYS {
        let mut faults = 0;
        for n in 1.. {
            let (what, module) = (format!("fault {n}"), Module::new());
            let case = &module.case;
            let (before, status, set_up) = (case.system(), case.engine.status(), SET_UP.get());
            arm(case, n);
            let result = module.comes();
            if !disarm(case) {
                result.expect("nothing failed");
                break;
            }
            faults += 1;
            if let Err(error) = result {
                assert_eq!(case.system(), before, "{what}: {error}");
                assert_eq!(
                    (case.engine.status(), SET_UP.get()),
                    (status, set_up),
                    "{what}: {error}"
                );
                check(&case.engine);
                module.comes().expect("nothing fails now");
            }
            module.is_right(&what);
            module.ends(&what);
        }
        assert!(faults >= 10, "only {faults} faults");
    }
}

/// Nothing keeps a module from going. When it comes again, elsewhere, everything is as it should
/// be.
#[test]
fn every_fault_of_going() {
    for (arm, disarm) in WAYS {
        let mut faults = 0;
        for n in 1.. {
            let (what, module) = (format!("fault {n}"), Module::new());
            let case = &module.case;
            let (status, set_up) = (case.engine.status(), SET_UP.get());
            module.comes().expect("nothing fails");
            arm(case, n);
            module.goes();
            let failed = disarm(case);
            check(&case.engine);
            assert_eq!(
                (case.engine.status(), SET_UP.get()),
                (status, set_up),
                "{what}"
            );
            module.comes().expect("nothing fails now");
            module.is_right(&what);
            module.ends(&what);
            if !failed {
                break;
            }
            faults += 1;
        }
        assert!(faults >= 5, "only {faults} faults");
    }
}

/// A patch that could not be made what it was when the module went is enabled when that is back: it
/// must not refer to where the module was.
#[test]
fn a_disabled_patch_does_not_keep_an_old_address() {
    let module = Module::new();
    let case = &module.case;
    module.comes().expect("nothing fails");
    module.ends("while it is loaded");
    case.engine.host().fail_calls(&[("Text::fill", 1)]);
    module.goes();
    assert_eq!(case.engine.host().disarm(), Some("Text::fill"));
    module
        .comes()
        .expect("nobody is in force that refers to it");
    let waits = case
        .engine
        .find("waits")
        .expect("it gave way, and is known");
    assert!(matches!(
        case.engine.enable(waits),
        Ok(Poll::Complete { .. })
    ));
    let refers = CodeAddr::new(u64::from_le_bytes(
        case.engine.host().word(module.reference),
    ));
    assert_eq!(refers, case.engine.host().range(module.m).start());
}

/// A module that comes and goes for ever costs no memory, whether a transition is under way or not.
#[test]
fn a_thousand_times() {
    let module = Module::new();
    let cycles = |count: u32| {
        for _ in 0..count {
            module.comes().expect("nothing fails");
            module.goes();
        }
        module.case.engine.host().take_transcript();
        (BYTES.get(), module.case.engine.host().images())
    };
    let before = cycles(20);
    assert_eq!(cycles(1_000), before, "in the middle of a transition");
    module.case.engine.host().rest_all();
    assert!(matches!(module.case.engine.poll(), Poll::Complete { .. }));
    let old = module
        .case
        .engine
        .find("below2")
        .expect("it gave way, and is known");
    assert!(matches!(
        module.case.engine.enable(old),
        Ok(Poll::Complete { .. })
    ));
    let before = cycles(20);
    assert_eq!(cycles(1_000), before);
    module.comes().expect("nothing fails");
    check(&module.case.engine);
}
