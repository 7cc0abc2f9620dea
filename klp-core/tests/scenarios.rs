//! Scenarios on the simulated OS, told by the engine's log line by line, named after what Linux's selftests call them where
//! there is such a test.

mod common;

use common::{Sim, add, check, patch, patch_at};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::error::{ApiMisuse, Error, PatchReason};
use klp_core::model::{Func, Object, Patch, VMLINUX};
use klp_core::port::{Doubt, PortErrorKind, Reason, TaskId, TaskState};
use klp_core::sim::machine::Insn;
use klp_core::sim::{Pad, Place, SimFunc, SimOs, Sleep, Step};
use klp_core::transition::Hindrance;
use klp_core::{Engine, PatchId, Poll};

/// Two functions of the base image and a task.
struct Basic {
    engine: Sim,
    f: SimFunc,
    g: SimFunc,
    task: TaskId,
}

impl Basic {
    fn new() -> Self {
        let host = SimOs::new();
        let (f, g) = (host.function(VMLINUX, "f"), host.function(VMLINUX, "g"));
        let task = host.spawn("worker");
        Self { engine: Engine::new(host), f, g, task }
    }

    fn host(&self) -> &SimOs {
        self.engine.host()
    }

    fn both(&self, name: &str) -> Patch {
        patch(self.host(), name, &[(VMLINUX, "f", self.f), (VMLINUX, "g", self.g)])
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
        (self.host().version(self.task, self.f), self.host().version(self.task, self.g))
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
    let before = basic.host().snapshot();
    let p = basic.add("p");
    basic.log(&[]);
    assert_eq!(basic.versions(), names("f", "g"));

    assert_eq!(basic.engine.enable(p), complete(p, true));
    basic.log(&ENABLED);
    assert_eq!(basic.versions(), names("p_f", "p_g"));

    assert_eq!(basic.engine.disable(p), complete(p, false));
    basic.log(&DISABLED);
    assert_eq!(basic.versions(), names("f", "g"));
    let after = basic.host().snapshot();
    let site = |range: TextRange| basic.host().word(range.start());
    assert_eq!(site(basic.host().range(basic.f)), Insn::Nop.encode());
    assert_ne!(before, after, "the tracer keeps its thunks, the rest was checked by the audit");

    // A disabled patch can be enabled again without being loaded again.
    assert_eq!(basic.engine.enable(p), complete(p, true));
    basic.log(&ENABLED);
    assert_eq!(basic.engine.disable(p), complete(p, false));
    basic.log(&DISABLED);
    assert_eq!(basic.engine.remove(p).map(|patch| patch.name().to_string()), Ok("p".to_string()));
    assert_eq!(basic.host().snapshot(), after, "thunks are used again");
}

#[test]
fn sites_are_settled_between_transitions() {
    let basic = Basic::new();
    let p = basic.add("p");
    let site = basic.host().range(basic.f).start();
    basic.engine.enable(p).expect("enables");
    assert!(matches!(Insn::decode(basic.host().word(site)), Some(Insn::Jump(_))));
    assert!(basic.host().begin_call(basic.task, basic.f));
    assert_eq!(basic.host().step(basic.task), Step::Moved);
    assert_eq!(basic.host().whereabouts(basic.task), "p_f", "one jump, no handler");
}

#[test]
fn a_sleeping_straggler_holds_the_transition_and_is_named() {
    let basic = Basic::new();
    let p = basic.add("p");
    let other = basic.host().spawn("other");
    assert!(basic.host().call(basic.task, basic.g) && basic.host().call(basic.task, basic.f));
    basic.host().sleep(basic.task, Sleep::Deep);

    assert_eq!(basic.engine.enable(p), Ok(Poll::Waiting { patch: p, pending: 1 }));
    let held = "klp_try_switch_task: worker:1 is sleeping on function f";
    basic.log(&[&ENABLED[..3], &[held]].concat());
    assert_eq!(basic.host().version(other, basic.f), "p_f", "it rests, so it was switched");
    assert_eq!(basic.host().state(basic.task), Some(TaskState::Unpatched));

    let blockers = basic.engine.blockers(p).expect("a transition is under way");
    assert_eq!(blockers.len(), 1);
    assert_eq!((blockers[0].task, &*blockers[0].name), (basic.task, "worker"));
    let Hindrance::InFunction { object, func } = &blockers[0].hindrance else { panic!("{:?}", blockers[0]) };
    assert_eq!((&**object, &**func), ("vmlinux", "f"));
    let stack: Vec<&str> = blockers[0].stack.iter().map(|frame| &**frame).collect();
    assert_eq!(stack, ["f+0x8/0x10", "g+0xf/0x18", "rest+0x7/0x10"]);
    assert_eq!(
        blockers[0].to_string(),
        "worker:1 is in function 'f' of 'vmlinux'\n    f+0x8/0x10\n    g+0xf/0x18\n    rest+0x7/0x10"
    );
    let status = basic.engine.status().expect("memory");
    assert_eq!((status[0].pending, status[0].transition), (1, Some(TaskState::Patched)));

    // Out of f, still in g; then out of both.
    basic.host().sleep(basic.task, Sleep::Awake);
    assert!(basic.host().ret(basic.task));
    assert_eq!(basic.engine.poll(), Poll::Waiting { patch: p, pending: 1 });
    basic.log(&["klp_try_switch_task: worker:1 is sleeping on function g"]);
    assert_eq!(basic.host().version(basic.task, basic.f), "f", "inside g it stays with the old version");
    assert!(basic.host().ret(basic.task));
    assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: true });
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
    assert_eq!(basic.engine.enable(p), Ok(Poll::Waiting { patch: p, pending: 1 }));
    check(&basic.engine);
    assert!(basic.host().ret(basic.task) && basic.host().ret(basic.task));
    assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: true });
    check(&basic.engine);
}

#[test]
fn a_task_in_the_cold_part_is_in_the_function() {
    let basic = Basic::new();
    basic.host().cold_part(basic.f);
    let p = basic.add("p");
    assert!(basic.host().call(basic.task, basic.f) && basic.host().go_cold(basic.task));
    assert_eq!(basic.engine.enable(p), Ok(Poll::Waiting { patch: p, pending: 1 }));
    basic.log(&[&ENABLED[..3], &["klp_try_switch_task: worker:1 is sleeping on function f"]].concat());
    assert!(basic.host().ret(basic.task));
    assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: true });
}

#[test]
fn tasks_that_cannot_be_checked_are_not_switched() {
    let basic = Basic::new();
    let p = basic.add("p");
    let (blocked, running) = (basic.host().spawn("blocked"), basic.host().spawn("running"));
    basic.host().set_unreliable(basic.task, Some(Doubt::UnknownRule));
    basic.host().set_unstoppable(blocked, Some(Reason::Blocked));
    basic.host().set_unstoppable(running, Some(Reason::Running));
    assert_eq!(basic.engine.enable(p), Ok(Poll::Waiting { patch: p, pending: 3 }));
    let held = [
        "klp_try_switch_task: worker:1 has an unreliable stack",
        "klp_try_switch_task: blocked:2 blocks the signal that would stop it",
        "klp_try_switch_task: running:3 is running",
    ];
    basic.log(&[&ENABLED[..3], &held].concat());
    let why: Vec<String> = basic.engine.blockers(p).expect("running").iter().map(ToString::to_string).collect();
    assert_eq!(
        why,
        [
            "worker:1 has an unreliable stack at 0x9000: unwind information that is not understood\n    rest+0x0/0x10",
            "blocked:2 blocks the signal that would stop it",
            "running:3 is running",
        ]
    );
    basic.host().rest_all();
    let why: Vec<Hindrance> = basic.engine.blockers(p).expect("running").into_iter().map(|one| one.hindrance).collect();
    assert_eq!(why, [Hindrance::None, Hindrance::None, Hindrance::None], "a look switches nobody");
    assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: true });
    check(&basic.engine);
}

#[test]
fn a_call_on_its_way_through_the_stub_is_not_switched() {
    let basic = Basic::new();
    let p = basic.add("p");
    // Somebody keeps the transition going.
    let keeper = basic.host().spawn("keeper");
    assert!(basic.host().call(keeper, basic.f));
    basic.host().set_unreliable(basic.task, Some(Doubt::Corrupt));
    basic.engine.enable(p).expect("starts");
    basic.host().set_unreliable(basic.task, None);
    // site → thunk → stub → decided.
    assert!(basic.host().begin_call(basic.task, basic.f));
    for step in ["thunk", "thunk's jump", "stub", "decided"] {
        assert_eq!(basic.host().step(basic.task), Step::Moved);
        assert_eq!(basic.engine.poll(), Poll::Waiting { patch: p, pending: 2 }, "at {step}");
        assert_eq!(basic.host().state(basic.task), Some(TaskState::Unpatched), "at {step}");
        check(&basic.engine);
    }
    assert!(basic.host().run(basic.task));
    assert_eq!(basic.host().whereabouts(basic.task), "f");
    basic.host().rest_all();
    assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: true });
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
    assert_eq!(engine.enable(p), Ok(Poll::Waiting { patch: p, pending: 1 }));
    check(&engine);
    assert!(engine.host().run(task));
    assert_eq!(engine.host().whereabouts(task), "f");
    assert!(engine.host().ret(task));
    assert_eq!(engine.poll(), Poll::Complete { patch: p, enabled: true });
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

    assert_eq!(basic.engine.reverse(p), Ok(Poll::Waiting { patch: p, pending: 1 }));
    basic.log(&[
        "'p': reversing transition from patching to unpatching",
        "'p': starting unpatching transition",
        "klp_try_switch_task: other:2 is sleeping on function g",
    ]);
    assert!(!basic.engine.status().expect("memory")[0].enabled);
    assert!(basic.host().ret(other));
    assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: false });
    basic.log(&DISABLED[2..]);
    assert_eq!(basic.host().version(other, basic.f), "f");
}

#[test]
fn reversing_an_unpatching_transition_and_back_again() {
    let basic = Basic::new();
    let p = basic.add("p");
    basic.engine.enable(p).expect("enables");
    assert!(basic.host().call(basic.task, basic.f));
    assert_eq!(basic.engine.disable(p), Ok(Poll::Waiting { patch: p, pending: 1 }));
    basic.log(&[&ENABLED[..], &DISABLED[..2], &["klp_try_switch_task: worker:1 is sleeping on function f"]].concat());
    // The other way: nobody is in the old functions.
    let keeper = basic.host().spawn("keeper");
    basic.host().set_unstoppable(keeper, Some(Reason::Running));
    let reversed = basic.engine.reverse(p);
    assert!(matches!(reversed, Ok(Poll::Waiting { pending: 1, .. } | Poll::Complete { enabled: true, .. })), "{reversed:?}");
    check(&basic.engine);
    if basic.engine.status().expect("memory")[0].transition.is_some() {
        assert!(basic.engine.reverse(p).is_ok());
        check(&basic.engine);
        basic.host().rest_all();
        assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: false });
        assert_eq!(basic.versions(), names("f", "g"));
    }
    check(&basic.engine);
}

#[test]
fn multiple_livepatches_disabled_in_any_order() {
    // Which order, which versions run after each step.
    for (order, expected) in [([2, 1, 0], ["b_f", "a_f", "f"]), ([0, 1, 2], ["c_f", "c_f", "f"]), ([1, 0, 2], ["c_f", "c_f", "f"]), ([1, 2, 0], ["c_f", "a_f", "f"])] {
        let basic = Basic::new();
        let ids = ["a", "b", "c"].map(|name| {
            let id = basic.add(name);
            assert_eq!(basic.engine.enable(id), complete(id, true));
            check(&basic.engine);
            assert_eq!(basic.versions(), names(&format!("{name}_f"), &format!("{name}_g")));
            id
        });
        for (index, expected) in order.into_iter().zip(expected) {
            assert_eq!(basic.engine.disable(ids[index]), complete(ids[index], false));
            check(&basic.engine);
            assert_eq!(basic.host().version(basic.task, basic.f), expected, "{order:?}");
        }
    }
}

#[test]
fn the_list_of_patches_is_in_the_order_of_enabling() {
    let basic = Basic::new();
    let [a, b, c] = ["a", "b", "c"].map(|name| basic.add(name));
    let order = || -> Vec<PatchId> { basic.engine.status().expect("memory").iter().map(|patch| patch.id).collect() };
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
    let [a, b] = ["a", "b"].map(|name| add(&basic.engine, patch_at(basic.host(), name, Place::Far, &funcs)));
    for _ in 0..3 {
        assert_eq!(basic.engine.enable(a), complete(a, true));
        assert_eq!(basic.versions(), names("a_f", "a_g"));
        assert_eq!(basic.engine.enable(b), complete(b, true));
        assert_eq!(basic.versions(), names("b_f", "b_g"));
        check(&basic.engine);
        // A task in the veneer belongs to the version that it is on its way to.
        assert!(basic.host().begin_call(basic.task, basic.f));
        assert_eq!(basic.host().step(basic.task), Step::Moved);
        assert_eq!(basic.engine.disable(b), Ok(Poll::Waiting { patch: b, pending: 1 }));
        check(&basic.engine);
        assert!(basic.host().run(basic.task));
        assert_eq!(basic.host().whereabouts(basic.task), "b_f");
        assert!(basic.host().ret(basic.task));
        assert_eq!(basic.engine.poll(), Poll::Complete { patch: b, enabled: false });
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
    assert_eq!(basic.engine.force(p), complete(p, true));
    basic.log(&[&["forcing remaining tasks to the patched state"], &ENABLED[3..]].concat());
    assert!(!basic.engine.status().expect("memory")[0].forced, "nothing goes away");
    assert!(basic.host().ret(basic.task));

    assert!(basic.host().call(basic.task, basic.f));
    basic.engine.disable(p).expect("starts");
    assert_eq!(basic.engine.force(p), complete(p, false));
    check(&basic.engine);
    assert!(basic.engine.status().expect("memory")[0].forced);
    assert_eq!(basic.engine.remove(p), Err(Error::ApiMisuse(ApiMisuse::Forced)));
    // It can be enabled again all the same.
    assert!(basic.host().ret(basic.task));
    assert_eq!(basic.engine.enable(p), complete(p, true));
    check(&basic.engine);
    assert_eq!(basic.engine.force(p), Err(Error::ApiMisuse(ApiMisuse::NoTransition)));
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
    let signaling: Vec<usize> = (0..log.len()).filter(|line| log[*line] == "signaling remaining tasks").collect();
    assert_eq!(signaling, [15], "once, at the first time");

    // By hand, on a task that a kick wakes; after a reversal the counting starts anew.
    basic.host().sleep(basic.task, Sleep::Interruptible);
    basic.engine.kick(p).expect("a transition is under way");
    assert_eq!(basic.host().take_transcript(), [""; 0], "it was said already");
    assert!(basic.host().ret(basic.task), "it is awake");
    assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: true });
    assert_eq!(basic.engine.kick(p), Err(Error::ApiMisuse(ApiMisuse::NoTransition)));
    check(&basic.engine);
}

#[test]
fn tasks_are_born_and_die_during_a_transition() {
    let basic = Basic::new();
    let p = basic.add("p");
    let done = basic.host().spawn("done");
    assert!(basic.host().call(basic.task, basic.f));
    assert_eq!(basic.engine.enable(p), Ok(Poll::Waiting { patch: p, pending: 1 }));
    // Children are what their parents are.
    let (old, new) = (basic.host().spawn_child("old", basic.task), basic.host().spawn_child("new", done));
    let twin = basic.host().fork(basic.task).expect("the parent lives");
    assert_eq!(basic.host().version(old, basic.f), "f");
    assert_eq!(basic.host().version(new, basic.f), "p_f");
    check(&basic.engine);
    assert_eq!(basic.engine.poll(), Poll::Waiting { patch: p, pending: 2 });
    assert_eq!(basic.host().version(old, basic.f), "p_f", "it rested, so it was switched");
    check(&basic.engine);
    // Who dies holds nothing back.
    basic.host().exit(basic.task);
    assert_eq!(basic.engine.poll(), Poll::Waiting { patch: p, pending: 1 });
    basic.host().exit(twin);
    assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: true });
    check(&basic.engine);
}

#[test]
fn target_module_not_present() {
    let host = SimOs::new();
    let (f, m) = (host.function(VMLINUX, "f"), host.function("mod", "m"));
    host.set_loaded("mod", false);
    let task = host.spawn("worker");
    let both = patch(&host, "p", &[(VMLINUX, "f", f), ("mod", "m", m)]);
    let engine = Engine::new(host);
    let p = add(&engine, both);
    assert_eq!(engine.enable(p), complete(p, true));
    check_log(&engine, &ENABLED);
    assert_eq!(engine.host().version(task, f), "p_f");
    assert_eq!(engine.host().version(task, m), "m");
    assert_eq!(engine.disable(p), complete(p, false));
    check(&engine);
    // Enabled again, it finds the object.
    engine.host().set_loaded("mod", true);
    assert_eq!(engine.enable(p), complete(p, true));
    assert_eq!(engine.host().version(task, m), "p_m");
    check(&engine);
}

/// Bad input: each a typed error that names object, function and reason; nothing has changed.
mod refused {
    use super::*;

    /// Enabling `patch` is refused: with this reason, this message, this errno, these lines of log.
    #[track_caller]
    fn refuse(engine: &Sim, patch: Patch, message: &str, errno: i32, log: &[&str]) -> Error {
        let id = add(engine, patch);
        let before = engine.host().snapshot();
        let error = engine.enable(id).expect_err("must be refused");
        assert_eq!(error.to_string(), message);
        assert_eq!(error.errno(), errno);
        assert_eq!(engine.host().take_transcript(), log);
        assert_eq!(engine.host().snapshot(), before, "nothing has changed");
        assert!(engine.status().expect("memory").iter().all(|patch| !patch.enabled && patch.transition.is_none()));
        check(engine);
        engine.remove(id).expect("it is not enabled");
        error
    }

    fn one(name: &str, sympos: u32, host: &SimOs, func: SimFunc) -> Patch {
        let new = Func::new(name, host.replacement("p", func, Place::Near).start()).expect("memory").sympos(sympos);
        Patch::builder("p").object(Object::vmlinux().and_then(|object| object.func(new))).build().expect("well formed")
    }

    fn reason(error: Error) -> PatchReason {
        match error {
            Error::Patch(error) => error.reason,
            other => panic!("not the patch's fault: {other:?}"),
        }
    }

    #[test]
    fn no_entry_site() {
        let host = SimOs::new();
        let f = host.function_with(VMLINUX, "f", Pad::None);
        let patch = one("f", 0, &host, f);
        let error = refuse(
            &Engine::new(host),
            patch,
            "patch 'p', object 'vmlinux', function 'f': it cannot be redirected: it has no entry site (compiled without an entry pad?)",
            -22,
            &["failed to find location for function 'f'"],
        );
        assert!(matches!(reason(error), PatchReason::NoEntrySite { .. }));
    }

    #[test]
    fn unknown_name() {
        let host = SimOs::new();
        let f = host.function(VMLINUX, "f");
        let patch = one("nobody", 0, &host, f);
        let error = refuse(
            &Engine::new(host),
            patch,
            "patch 'p', object 'vmlinux', function 'nobody': no symbol has that name",
            -22,
            &["symbol 'nobody' not found in symbol table"],
        );
        assert_eq!(reason(error), PatchReason::SymbolNotFound);
    }

    #[test]
    fn ambiguous_name_and_wrong_position() {
        let host = SimOs::new();
        let first = host.function(VMLINUX, "dup");
        let second = host.function(VMLINUX, "dup");
        let task = host.spawn("worker");
        let patches = [one("dup", 0, &host, first), one("dup", 3, &host, first), one("dup", 2, &host, second)];
        let [ambiguous, wrong, right] = patches;
        let engine = Engine::new(host);
        let error = refuse(
            &engine,
            ambiguous,
            "patch 'p', object 'vmlinux', function 'dup': several symbols have that name; say with sympos which one is meant",
            -22,
            &["unresolvable ambiguity for symbol 'dup' in object 'vmlinux'"],
        );
        assert_eq!(reason(error), PatchReason::SymbolAmbiguous);
        let error = refuse(
            &engine,
            wrong,
            "patch 'p', object 'vmlinux', function 'dup': there is no symbol of that name at position 3",
            -22,
            &["symbol position 3 for symbol 'dup' in object 'vmlinux' not found"],
        );
        assert_eq!(reason(error), PatchReason::SymbolPositionNotFound { sympos: 3 });
        let id = add(&engine, right);
        assert_eq!(engine.enable(id), complete(id, true));
        assert_eq!(engine.host().version(task, first), "dup");
        assert_eq!(engine.host().version(task, second), "p_dup");
        check(&engine);
    }

    #[test]
    fn symbol_without_size() {
        let host = SimOs::new();
        let f = host.function(VMLINUX, "f");
        host.sizeless_alias(f, "label");
        let patch = one("label", 0, &host, f);
        let error = refuse(
            &Engine::new(host),
            patch,
            "patch 'p', object 'vmlinux', function 'label': its symbol has no size",
            -22,
            &[],
        );
        assert_eq!(reason(error), PatchReason::SymbolWithoutSize);
    }

    #[test]
    fn new_function_unknown() {
        let host = SimOs::new();
        host.function(VMLINUX, "f");
        let func = Func::new("f", CodeAddr::new(0x7777_0000)).expect("memory");
        let patch = Patch::builder("p").object(Object::vmlinux().and_then(|object| object.func(func))).build();
        let error = refuse(
            &Engine::new(host),
            patch.expect("well formed"),
            "patch 'p', object 'vmlinux', function 'f': no symbol tells the size of its new version",
            -2,
            &["kallsyms size lookup failed for 'f' replacement"],
        );
        assert_eq!(reason(error), PatchReason::NewFunctionUnknown);
    }

    #[test]
    fn entry_held_by_somebody_else() {
        let host = SimOs::new();
        let f = host.function(VMLINUX, "f");
        let site = host.range(f).start();
        let [first, again] = [one("f", 0, &host, f), one("f", 0, &host, f)];
        let engine = Engine::new(host);
        let held = |engine: &Sim, patch| {
            let id = add(engine, patch);
            let foreign = Insn::Jump(CodeAddr::new(0x1234_0000)).encode();
            let built = engine.host().word(site);
            engine.host().overwrite(site, &foreign);
            let error = engine.enable(id).expect_err("must be refused");
            assert_eq!(
                error.to_string(),
                "patch 'p', object 'vmlinux', function 'f': its entry is taken: the entry at 0x1000000 is not as it was built"
            );
            assert_eq!(error.errno(), -16);
            assert_eq!(engine.host().word(site), foreign, "it is left alone");
            engine.host().overwrite(site, &built);
            check(engine);
            engine.remove(id).expect("it is not enabled");
        };
        held(&engine, first);
        // Also a site that the tracer knows already.
        let id = add(&engine, again);
        engine.enable(id).expect("nobody holds it now");
        engine.disable(id).expect("disables");
        let again = engine.remove(id).expect("disabled");
        held(&engine, again);
    }

    #[test]
    fn no_memory_in_reach() {
        let host = SimOs::new();
        let f = host.function(VMLINUX, "f");
        host.set_exhausted(true);
        host.spawn("worker");
        let patch = one("f", 0, &host, f);
        let engine = Engine::new(host);
        let error = refuse(
            &engine,
            patch,
            "routing entry sites for patch 'p' failed: Text::alloc failed: NoMemoryInReach",
            -12,
            &[
                "enabling patch 'p'",
                "'p': initializing patching transition",
                "failed to enable patch 'p'",
                "'p': canceling patching transition, going to unpatch",
                "'p': completing unpatching transition",
                "'p': unpatching complete",
            ],
        );
        assert!(matches!(error, Error::Port(fault) if fault.kind == PortErrorKind::NoMemoryInReach));
        engine.host().set_exhausted(false);
        let again = add(&engine, one("f", 0, engine.host(), f));
        assert_eq!(engine.enable(again), complete(again, true));
        check(&engine);
    }

    #[test]
    fn two_names_of_one_function() {
        let host = SimOs::new();
        let f = host.function(VMLINUX, "f");
        host.alias(f, "also_f");
        let patch = patch(&host, "p", &[(VMLINUX, "f", f), (VMLINUX, "also_f", f)]);
        let error = refuse(
            &Engine::new(host),
            patch,
            "patch 'p', object 'vmlinux', function 'also_f': it is listed twice",
            -22,
            &[],
        );
        assert_eq!(reason(error), PatchReason::ListedTwice);
    }

    #[test]
    fn a_second_patch_during_a_transition() {
        let basic = Basic::new();
        let [p, q] = ["p", "q"].map(|name| basic.add(name));
        assert!(basic.host().call(basic.task, basic.f));
        basic.engine.enable(p).expect("starts");
        basic.host().take_transcript();
        let before = basic.host().snapshot();
        for refused in [basic.engine.enable(q), basic.engine.disable(p), basic.engine.disable(q)] {
            let error = refused.expect_err("one transition at a time");
            assert!(matches!(&error, Error::Busy { patch } if patch == "p"), "{error:?}");
            assert_eq!(error.to_string(), "patch 'p' is in transition; one transition at a time");
            assert_eq!(error.errno(), -16);
        }
        assert!(matches!(basic.engine.remove(p), Err(Error::Busy { .. })));
        let misused = [basic.engine.reverse(q), basic.engine.force(q), basic.engine.kick(q).map(|()| Poll::Idle)];
        for refused in misused {
            assert_eq!(refused, Err(Error::ApiMisuse(ApiMisuse::NoTransition)));
        }
        assert_eq!(basic.engine.enable(p), Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled)));
        assert_eq!(basic.host().snapshot(), before);
        basic.log(&[]);
        basic.host().rest_all();
        assert_eq!(basic.engine.poll(), Poll::Complete { patch: p, enabled: true });
        assert_eq!(basic.engine.enable(q), complete(q, true), "nothing is lost");
        check(&basic.engine);
    }

    #[test]
    fn misuse() {
        let basic = Basic::new();
        let p = basic.add("p");
        let refused = basic.engine.add(basic.both("p")).expect_err("the name is taken");
        assert_eq!((refused.error, &**refused.patch.name()), (Error::ApiMisuse(ApiMisuse::NameTaken), "p"));
        assert_eq!(basic.engine.disable(p), Err(Error::ApiMisuse(ApiMisuse::NotEnabled)));
        basic.engine.enable(p).expect("enables");
        assert_eq!(basic.engine.enable(p), Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled)));
        assert_eq!(basic.engine.remove(p), Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled)));
        assert_eq!(basic.engine.reverse(p), Err(Error::ApiMisuse(ApiMisuse::NoTransition)));
        assert_eq!(basic.engine.blockers(p).map(|_| ()), Err(Error::ApiMisuse(ApiMisuse::NoTransition)));
        basic.engine.disable(p).expect("disables");
        assert_eq!(basic.engine.find("p"), Some(p));
        basic.engine.remove(p).expect("it is disabled");
        assert_eq!(basic.engine.find("p"), None);
        let unknown = Error::ApiMisuse(ApiMisuse::UnknownPatch);
        assert_eq!(basic.engine.enable(p), Err(Error::ApiMisuse(ApiMisuse::UnknownPatch)));
        assert_eq!(basic.engine.remove(p).map(|_| ()), Err(Error::ApiMisuse(ApiMisuse::UnknownPatch)));
        assert_eq!(unknown.errno(), -22);
        check(&basic.engine);
    }
}
