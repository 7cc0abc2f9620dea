//! Scenarios on the simulated OS, told by the engine's log line by line, named after what Linux's
//! selftests call them where there is such a test.

mod activations;
mod callbacks;
#[path = "../common/mod.rs"]
mod common;
mod depends;
mod kprobes;
mod linux;
mod refused;
mod replace;
mod selftests;
mod several;

use common::{Basic, Sim, add, check, patch, patch_at};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::audit::audit;
use klp_core::config::SYMBOL_NAME_LEN;
use klp_core::error::{ApiMisuse, Error, PatchReason};
use klp_core::model::{BuildId, Digest, Object, OldCode, Patch, VMLINUX};
use klp_core::port::{
    Doubt, Extent, Platform, PortErrorKind, Reason, Symbol, SymbolResolver, TaskId, TaskState,
};
use klp_core::sim::machine::Insn;
use klp_core::sim::{self, Claim, Pad, Place, SimFunc, SimOs, Sleep, Step, insmod};
use klp_core::transition::Hindrance;
use klp_core::{Engine, PatchId, Poll};

impl Basic {
    fn both(&self, name: &str) -> Patch {
        patch(
            self.host(),
            name,
            &[(VMLINUX, "f", self.f), (VMLINUX, "g", self.g)],
        )
    }

    fn add(&self, name: &str) -> PatchId {
        add(&self.engine, self.both(name))
    }

    /// The log since the last time must be `lines`, and everything must hold.
    #[track_caller]
    fn log(&self, lines: &[&str]) {
        check_log(&self.engine, lines);
    }

    /// Which versions of `f` and `g` the task runs.
    fn versions(&self) -> (String, String) {
        (
            self.host().version(self.task, self.f),
            self.host().version(self.task, self.g),
        )
    }
}

#[track_caller]
fn check_log(engine: &Sim, lines: &[&str]) {
    assert_eq!(engine.host().take_transcript(), lines);
    check(engine);
}

fn names(f: &str, g: &str) -> (String, String) {
    (f.to_string(), g.to_string())
}

fn complete(patch: PatchId, enabled: bool) -> Result<Poll, Error> {
    Ok(Poll::Complete { patch, enabled })
}

const ENABLED: [&str; 5] = [
    "enabling patch 'p'",
    "'p': initializing patching transition",
    "'p': starting patching transition",
    "'p': completing patching transition",
    "'p': patching complete",
];
const DISABLED: [&str; 4] = [
    "'p': initializing unpatching transition",
    "'p': starting unpatching transition",
    "'p': completing unpatching transition",
    "'p': unpatching complete",
];

#[test]
fn basic_function_patching() {
    let basic = Basic::new();
    let p = basic.add("p");
    let before = basic.host().snapshot();
    basic.log(&[]);
    assert_eq!(basic.versions(), names("f", "g"));

    assert_eq!(basic.engine.enable(p), complete(p, true));
    basic.log(&ENABLED);
    assert_eq!(basic.versions(), names("p_f", "p_g"));

    assert_eq!(basic.engine.disable(p), complete(p, false));
    basic.log(&DISABLED);
    assert_eq!(basic.versions(), names("f", "g"));
    let after = basic.host().snapshot();
    assert_eq!(
        after.clone().without_images(),
        before.without_images(),
        "the text is what it was"
    );

    // A disabled patch can be enabled again without being loaded again.
    assert_eq!(basic.engine.enable(p), complete(p, true));
    basic.log(&ENABLED);
    assert_eq!(basic.engine.disable(p), complete(p, false));
    basic.log(&DISABLED);
    assert_eq!(
        basic.engine.remove(p).map(|patch| patch.name().to_string()),
        Ok("p".to_string())
    );
    assert_eq!(basic.host().snapshot(), after, "thunks are used again");
}

#[test]
fn sites_are_settled_between_transitions() {
    let basic = Basic::new();
    let p = basic.add("p");
    let site = basic.host().range(basic.f).start();
    basic.engine.enable(p).expect("enables");
    assert!(matches!(
        Insn::decode(basic.host().word(site)),
        Some(Insn::Jump(_))
    ));
    assert!(basic.host().begin_call(basic.task, basic.f));
    assert_eq!(basic.host().step(basic.task), Step::Moved);
    assert_eq!(
        basic.host().whereabouts(basic.task),
        "p_f",
        "one jump, no handler"
    );
}

#[test]
fn a_sleeping_straggler_holds_the_transition_and_is_named() {
    let basic = Basic::new();
    let p = basic.add("p");
    let other = basic.host().spawn("other");
    assert!(basic.host().call(basic.task, basic.g) && basic.host().call(basic.task, basic.f));
    basic.host().sleep(basic.task, Sleep::Deep);

    assert_eq!(
        basic.engine.enable(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    let held = "klp_try_switch_task: worker:1 is sleeping on function f";
    basic.log(&[&ENABLED[..3], &[held]].concat());
    assert_eq!(
        basic.host().version(other, basic.f),
        "p_f",
        "it rests, so it was switched"
    );
    assert_eq!(basic.host().state(basic.task), Some(TaskState::Unpatched));

    let blockers = basic.engine.blockers(p).expect("a transition is under way");
    assert_eq!(blockers.len(), 1);
    assert_eq!(
        (blockers[0].task, &*blockers[0].name),
        (basic.task, "worker")
    );
    let Hindrance::InFunction { object, func } = &blockers[0].hindrance else {
        panic!("{:?}", blockers[0])
    };
    assert_eq!((&**object, &**func), ("vmlinux", "f"));
    let stack: Vec<&str> = blockers[0].stack.iter().map(|frame| &**frame).collect();
    assert_eq!(stack, ["f+0x8/0x10", "g+0xf/0x18", "rest+0x7/0x10"]);
    assert_eq!(
        blockers[0].to_string(),
        "worker:1 is in function 'f' of 'vmlinux'\n    f+0x8/0x10\n    g+0xf/0x18\n    rest+0x7/0x10"
    );
    let status = basic.engine.status().expect("memory");
    assert_eq!(
        (status[0].pending, status[0].transition),
        (1, Some(TaskState::Patched))
    );

    // Out of f, still in g; then out of both.
    basic.host().sleep(basic.task, Sleep::Awake);
    assert!(basic.host().ret(basic.task));
    assert_eq!(
        basic.engine.poll(),
        Poll::Waiting {
            patch: p,
            pending: 1
        }
    );
    basic.log(&["klp_try_switch_task: worker:1 is sleeping on function g"]);
    assert_eq!(
        basic.host().version(basic.task, basic.f),
        "f",
        "inside g it stays with the old version"
    );
    assert!(basic.host().ret(basic.task));
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    basic.log(&ENABLED[3..]);
    assert_eq!(basic.versions(), names("p_f", "p_g"));
    assert_eq!(basic.engine.poll(), Poll::Idle);
}

#[test]
fn a_call_that_ends_its_function_is_inside_it() {
    // `f` ends with its call: the return address is the first address behind it.
    let basic = Basic::new();
    let p = basic.add("p");
    let helper = basic.host().function(VMLINUX, "helper");
    assert!(basic.host().call(basic.task, basic.f) && basic.host().call(basic.task, helper));
    assert_eq!(
        basic.engine.enable(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    check(&basic.engine);
    assert!(basic.host().ret(basic.task) && basic.host().ret(basic.task));
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    check(&basic.engine);
}

#[test]
fn a_task_in_the_cold_part_is_in_the_function() {
    let basic = Basic::new();
    basic.host().cold_part(basic.f);
    let p = basic.add("p");
    assert!(basic.host().call(basic.task, basic.f) && basic.host().go_cold(basic.task));
    assert_eq!(
        basic.engine.enable(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    basic.log(
        &[
            &ENABLED[..3],
            &["klp_try_switch_task: worker:1 is sleeping on function f"],
        ]
        .concat(),
    );
    assert!(basic.host().ret(basic.task));
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
}

#[test]
fn tasks_that_cannot_be_checked_are_not_switched() {
    let basic = Basic::new();
    let p = basic.add("p");
    let (blocked, running) = (basic.host().spawn("blocked"), basic.host().spawn("running"));
    basic
        .host()
        .set_unreliable(basic.task, Some(Doubt::UnknownRule));
    basic.host().set_unstoppable(blocked, Some(Reason::Blocked));
    basic.host().set_unstoppable(running, Some(Reason::Running));
    assert_eq!(
        basic.engine.enable(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 3
        })
    );
    let held = [
        "klp_try_switch_task: worker:1 has an unreliable stack",
        "klp_try_switch_task: blocked:2 blocks the signal that would stop it",
        "klp_try_switch_task: running:3 is running",
    ];
    basic.log(&[&ENABLED[..3], &held].concat());
    let why: Vec<String> = basic
        .engine
        .blockers(p)
        .expect("running")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        why,
        [
            "worker:1 has an unreliable stack at 0x9000: unwind information that is not understood\n    rest+0x0/0x10",
            "blocked:2 blocks the signal that would stop it",
            "running:3 is running",
        ]
    );
    basic.host().rest_all();
    let why: Vec<Hindrance> = basic
        .engine
        .blockers(p)
        .expect("running")
        .into_iter()
        .map(|one| one.hindrance)
        .collect();
    assert_eq!(
        why,
        [Hindrance::None, Hindrance::None, Hindrance::None],
        "a look switches nobody"
    );
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    check(&basic.engine);
}

#[test]
fn a_call_on_its_way_through_the_stub_is_not_switched() {
    let basic = Basic::new();
    let p = basic.add("p");
    // Somebody keeps the transition going.
    let keeper = basic.host().spawn("keeper");
    assert!(basic.host().call(keeper, basic.f));
    basic
        .host()
        .set_unreliable(basic.task, Some(Doubt::Corrupt));
    basic.engine.enable(p).expect("starts");
    basic.host().set_unreliable(basic.task, None);
    // site → thunk → stub → decided.
    assert!(basic.host().begin_call(basic.task, basic.f));
    for step in ["thunk", "thunk's jump", "stub", "decided"] {
        assert_eq!(basic.host().step(basic.task), Step::Moved);
        assert_eq!(
            basic.engine.poll(),
            Poll::Waiting {
                patch: p,
                pending: 2
            },
            "at {step}"
        );
        assert_eq!(
            basic.host().state(basic.task),
            Some(TaskState::Unpatched),
            "at {step}"
        );
        check(&basic.engine);
    }
    assert!(basic.host().run(basic.task));
    assert_eq!(basic.host().whereabouts(basic.task), "f");
    basic.host().rest_all();
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    check(&basic.engine);
}

#[test]
fn a_task_between_the_instructions_of_a_pad_is_moved_out_of_it() {
    let host = SimOs::new();
    let f = host.function_with(VMLINUX, "f", Pad::Split);
    let task = host.spawn("worker");
    let p = patch(&host, "p", &[(VMLINUX, "f", f)]);
    let engine = Engine::new(host);
    let p = add(&engine, p);
    assert!(engine.host().begin_call(task, f));
    for _ in 0..3 {
        assert_eq!(engine.host().step(task), Step::Moved);
    }
    assert_eq!(
        engine.enable(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    check(&engine);
    assert!(engine.host().run(task));
    assert_eq!(engine.host().whereabouts(task), "f");
    assert!(engine.host().ret(task));
    assert_eq!(
        engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    assert_eq!(engine.host().version(task, f), "p_f");
    assert_eq!(engine.disable(p), complete(p, false));
    check(&engine);
}

#[test]
fn reversing_a_patching_transition() {
    let basic = Basic::new();
    let p = basic.add("p");
    let other = basic.host().spawn("other");
    assert!(basic.host().call(basic.task, basic.f));
    basic.engine.enable(p).expect("starts");
    assert!(basic.host().call(other, basic.g));
    assert_eq!(basic.host().whereabouts(other), "p_g");
    basic.host().take_transcript();

    assert_eq!(
        basic.engine.reverse(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    basic.log(&[
        "'p': reversing transition from patching to unpatching",
        "'p': starting unpatching transition",
        "klp_try_switch_task: other:2 is sleeping on function g",
    ]);
    assert!(!basic.engine.status().expect("memory")[0].enabled);
    assert!(basic.host().ret(other));
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: false
        }
    );
    basic.log(&DISABLED[2..]);
    assert_eq!(basic.host().version(other, basic.f), "f");
}

#[test]
fn reversing_an_unpatching_transition_and_back_again() {
    let basic = Basic::new();
    let p = basic.add("p");
    basic.engine.enable(p).expect("enables");
    assert!(basic.host().call(basic.task, basic.f));
    assert_eq!(
        basic.engine.disable(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    basic.log(
        &[
            &ENABLED[..],
            &DISABLED[..2],
            &["klp_try_switch_task: worker:1 is sleeping on function f"],
        ]
        .concat(),
    );
    // The other way: nobody is in the old functions.
    let keeper = basic.host().spawn("keeper");
    basic.host().set_unstoppable(keeper, Some(Reason::Running));
    assert_eq!(
        basic.engine.reverse(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    basic.log(&[
        "'p': reversing transition from unpatching to patching",
        "'p': starting patching transition",
        "klp_try_switch_task: keeper:2 is running",
    ]);
    assert!(basic.engine.status().expect("memory")[0].enabled);
    assert_eq!(
        basic.engine.reverse(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    basic.log(&[
        "'p': reversing transition from patching to unpatching",
        "'p': starting unpatching transition",
        "klp_try_switch_task: worker:1 is sleeping on function f",
    ]);
    basic.host().rest_all();
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: false
        }
    );
    basic.log(&DISABLED[2..]);
    assert_eq!(basic.versions(), names("f", "g"));
}

/// Tasks that switch themselves where they call: a task that always is inside the same function,
/// whenever it is looked at.
#[test]
fn a_task_switches_itself_at_its_next_call() {
    let basic = Basic::new();
    let p = basic.add("p");
    basic.host().set_self_switching(true);
    assert!(basic.host().call(basic.task, basic.f));
    assert_eq!(
        basic.engine.enable(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    // From inside `f` it may not.
    assert_eq!(basic.host().version(basic.task, basic.g), "g");
    assert!(basic.host().ret(basic.task));
    assert!(basic.host().call(basic.task, basic.f));
    assert_eq!(basic.host().whereabouts(basic.task), "p_f");
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    check(&basic.engine);
}

/// The tests' own eyes: a task that is switched where it must not be is noticed.
#[test]
fn mixes_are_noticed() {
    let basic = Basic::new();
    let p = basic.add("p");
    assert!(basic.host().call(basic.task, basic.f));
    basic.engine.enable(p).expect("starts");
    check(&basic.engine);
    // Behind the engine's back.
    let tasks = basic.host().tasks();
    // SAFETY: none; that is what the test is about, and simulated tasks come to no harm.
    let _ = unsafe {
        let stated =
            klp_core::port::Stated::init(tasks, TaskState::Patched).expect("it does not fail");
        stated.start(tasks).expect("it does not fail").force(tasks)
    };
    let findings = audit(&basic.engine).expect_err("the task has old code on its stack");
    assert_eq!(
        findings[0].to_string(),
        "task 1 is Patched, but has code of the other side at 0x1000008"
    );
    assert!(basic.host().call(basic.task, basic.g));
    assert_eq!(basic.host().whereabouts(basic.task), "p_g");
    assert_eq!(
        basic.host().mixes(),
        ["task 1 in both versions of 'p': it called SimFunc(1) and ran 'p'"]
    );
}

#[test]
fn multiple_livepatches_disabled_in_any_order() {
    // Which order, which versions run after each step.
    for (order, expected) in [
        ([2, 1, 0], ["b_f", "a_f", "f"]),
        ([0, 1, 2], ["c_f", "c_f", "f"]),
        ([1, 0, 2], ["c_f", "c_f", "f"]),
        ([1, 2, 0], ["c_f", "a_f", "f"]),
    ] {
        let basic = Basic::new();
        let ids = ["a", "b", "c"].map(|name| {
            let id = basic.add(name);
            assert_eq!(basic.engine.enable(id), complete(id, true));
            check(&basic.engine);
            assert_eq!(
                basic.versions(),
                names(&format!("{name}_f"), &format!("{name}_g"))
            );
            id
        });
        for (index, expected) in order.into_iter().zip(expected) {
            assert_eq!(
                basic.engine.disable(ids[index]),
                complete(ids[index], false)
            );
            check(&basic.engine);
            assert_eq!(
                basic.host().version(basic.task, basic.f),
                expected,
                "{order:?}"
            );
        }
    }
}

#[test]
fn the_list_of_patches_is_in_the_order_of_enabling() {
    let basic = Basic::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| basic.add(name));
    let order = || -> Vec<PatchId> {
        basic
            .engine
            .status()
            .expect("memory")
            .iter()
            .map(|patch| patch.id)
            .collect()
    };
    for id in [b, a] {
        basic.engine.enable(id).expect("enables");
    }
    assert_eq!(order(), [b, a, c]);
    basic.engine.disable(b).expect("disables");
    assert_eq!(order()[0], a);
    basic.engine.enable(c).expect("enables");
    assert_eq!(order(), [a, c, b]);
    basic.engine.enable(b).expect("enables");
    assert_eq!(order(), [a, c, b]);
    check(&basic.engine);
}

#[test]
fn far_replacements_are_reached_through_veneers() {
    let basic = Basic::new();
    let funcs = [(VMLINUX, "f", basic.f), (VMLINUX, "g", basic.g)];
    let [a, b] = ["a", "b"].map(|name| {
        add(
            &basic.engine,
            patch_at(basic.host(), name, Place::Far, &funcs),
        )
    });
    for _ in 0..3 {
        assert_eq!(basic.engine.enable(a), complete(a, true));
        assert_eq!(basic.versions(), names("a_f", "a_g"));
        assert_eq!(basic.engine.enable(b), complete(b, true));
        assert_eq!(basic.versions(), names("b_f", "b_g"));
        check(&basic.engine);
        // A task in the veneer belongs to the version that it is on its way to.
        assert!(basic.host().begin_call(basic.task, basic.f));
        assert_eq!(basic.host().step(basic.task), Step::Moved);
        assert_eq!(
            basic.engine.disable(b),
            Ok(Poll::Waiting {
                patch: b,
                pending: 1
            })
        );
        check(&basic.engine);
        assert!(basic.host().run(basic.task));
        assert_eq!(basic.host().whereabouts(basic.task), "b_f");
        assert!(basic.host().ret(basic.task));
        assert_eq!(
            basic.engine.poll(),
            Poll::Complete {
                patch: b,
                enabled: false
            }
        );
        assert_eq!(basic.versions(), names("a_f", "a_g"));
        assert_eq!(basic.engine.disable(a), complete(a, false));
        assert_eq!(basic.versions(), names("f", "g"));
        check(&basic.engine);
    }
}

#[test]
fn forcing_ends_the_transition_and_pins_what_goes_away() {
    let basic = Basic::new();
    let p = basic.add("p");
    assert!(basic.host().call(basic.task, basic.f));
    basic.engine.enable(p).expect("starts");
    basic.host().take_transcript();
    assert_eq!(sim::force(&basic.engine, p), complete(p, true));
    basic.log(
        &[
            &["forcing remaining tasks to the patched state"],
            &ENABLED[3..],
        ]
        .concat(),
    );
    assert!(
        !basic.engine.status().expect("memory")[0].forced,
        "nothing goes away"
    );
    assert!(basic.host().ret(basic.task));

    assert!(basic.host().call(basic.task, basic.f));
    basic.engine.disable(p).expect("starts");
    assert_eq!(sim::force(&basic.engine, p), complete(p, false));
    check(&basic.engine);
    assert!(basic.engine.status().expect("memory")[0].forced);
    assert_eq!(
        basic.engine.remove(p).err(),
        Some(Error::ApiMisuse(ApiMisuse::Forced))
    );
    // It can be enabled again all the same.
    assert!(basic.host().ret(basic.task));
    assert_eq!(basic.engine.enable(p), complete(p, true));
    check(&basic.engine);
    assert_eq!(
        sim::force(&basic.engine, p),
        Err(Error::ApiMisuse(ApiMisuse::NoTransition))
    );
}

#[test]
fn stragglers_are_kicked_every_fifteen_polls() {
    let basic = Basic::new();
    let p = basic.add("p");
    assert!(basic.host().call(basic.task, basic.f));
    basic.host().sleep(basic.task, Sleep::Deep);
    basic.engine.enable(p).expect("starts");
    basic.host().take_transcript();
    let mut kicks = Vec::new();
    for poll in 1..=31 {
        let before = basic.host().kicks(basic.task);
        basic.engine.poll();
        if basic.host().kicks(basic.task) > before {
            kicks.push(poll);
        }
    }
    assert_eq!(kicks, [15, 30]);
    let log = basic.host().take_transcript();
    let signaling: Vec<usize> = (0..log.len())
        .filter(|line| log[*line] == "signaling remaining tasks")
        .collect();
    assert_eq!(signaling, [15], "once, at the first time");

    // By hand, on a task that a kick wakes; after a reversal the counting starts anew.
    basic.host().sleep(basic.task, Sleep::Interruptible);
    basic.engine.kick(p).expect("a transition is under way");
    assert_eq!(
        basic.host().take_transcript(),
        [""; 0],
        "it was said already"
    );
    assert!(basic.host().ret(basic.task), "it is awake");
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    assert_eq!(
        basic.engine.kick(p),
        Err(Error::ApiMisuse(ApiMisuse::NoTransition))
    );
    check(&basic.engine);
}

#[test]
fn tasks_are_born_and_die_during_a_transition() {
    let basic = Basic::new();
    let p = basic.add("p");
    let done = basic.host().spawn("done");
    assert!(basic.host().call(basic.task, basic.f));
    assert_eq!(
        basic.engine.enable(p),
        Ok(Poll::Waiting {
            patch: p,
            pending: 1
        })
    );
    // Children are what their parents are.
    let (old, new) = (
        basic.host().spawn_child("old", basic.task),
        basic.host().spawn_child("new", done),
    );
    let twin = basic.host().fork(basic.task).expect("the parent lives");
    assert_eq!(basic.host().version(old, basic.f), "f");
    assert_eq!(basic.host().version(new, basic.f), "p_f");
    check(&basic.engine);
    assert_eq!(
        basic.engine.poll(),
        Poll::Waiting {
            patch: p,
            pending: 2
        }
    );
    assert_eq!(
        basic.host().version(old, basic.f),
        "p_f",
        "it rested, so it was switched"
    );
    check(&basic.engine);
    // Who dies holds nothing back.
    basic.host().exit(basic.task);
    assert_eq!(
        basic.engine.poll(),
        Poll::Waiting {
            patch: p,
            pending: 1
        }
    );
    basic.host().exit(twin);
    assert_eq!(
        basic.engine.poll(),
        Poll::Complete {
            patch: p,
            enabled: true
        }
    );
    check(&basic.engine);
}

#[test]
fn target_module_not_present() {
    let host = SimOs::new();
    let (f, m) = (host.function(VMLINUX, "f"), host.function("mod", "m"));
    host.not_loaded("mod");
    let task = host.spawn("worker");
    let both = patch(&host, "p", &[(VMLINUX, "f", f), ("mod", "m", m)]);
    let engine = Engine::new(host);
    let p = add(&engine, both);
    assert_eq!(engine.enable(p), complete(p, true));
    check_log(&engine, &ENABLED);
    assert_eq!(engine.host().version(task, f), "p_f");
    assert!(!engine.host().call(task, m), "it is not there");
    assert_eq!(engine.disable(p), complete(p, false));
    check(&engine);
    // Enabled again, it finds the object.
    insmod(&engine, "mod").expect("it has nothing to fear");
    assert_eq!(engine.enable(p), complete(p, true));
    assert_eq!(engine.host().version(task, m), "p_m");
    check(&engine);
}
