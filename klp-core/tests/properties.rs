//! Random sequences of operations on the simulated OS, against a small model of what the engine should say, with the audit after
//! each step.
//!
//! `KLP_STEPS` sets the longest sequence (default 60), `PROPTEST_CASES` how many are tried (default 1,500).

mod common;

use common::{Sim, check, patch_at};
use klp_core::error::{ApiMisuse, Error};
use klp_core::model::{Patch, VMLINUX};
use klp_core::port::{Doubt, Reason, TaskId, TaskState};
use klp_core::sim::{Chance, Pad, Place, SimFunc, SimOs, Sleep, Snapshot};
use klp_core::{Engine, PatchId, Poll};
use proptest::prelude::*;
use std::env;

/// Patches of the model.
const PATCHES: usize = 4;
/// More tasks are not born.
const MAX_TASKS: usize = 10;

#[derive(Clone, Debug)]
enum Op {
    Enable(usize),
    Disable(usize),
    Reverse(usize),
    Force(usize),
    Kick(usize),
    Blockers(usize),
    AddOrRemove(usize),
    Poll,
    /// Every task finishes what it is doing; a poll must then complete.
    RestAll,
    Task(usize, TaskOp),
    Spawn,
    /// During the next operation of the engine, this call of a port fails.
    Fault(u64),
    /// During the next operation of the engine, tasks run.
    Noise(u64),
}

#[derive(Clone, Debug)]
enum TaskOp {
    Call(usize),
    BeginCall(usize),
    Step,
    Return,
    Cold,
    Child,
    Fork,
    Exit,
    Sleep(Sleep),
    Unreliable(bool),
    Unstoppable(bool),
}

fn task_op() -> impl Strategy<Value = TaskOp> {
    prop_oneof![
        6 => any::<usize>().prop_map(TaskOp::Call),
        4 => any::<usize>().prop_map(TaskOp::BeginCall),
        8 => Just(TaskOp::Step),
        6 => Just(TaskOp::Return),
        1 => Just(TaskOp::Cold),
        1 => Just(TaskOp::Child),
        1 => Just(TaskOp::Fork),
        1 => Just(TaskOp::Exit),
        1 => prop_oneof![Just(Sleep::Awake), Just(Sleep::Interruptible), Just(Sleep::Deep)].prop_map(TaskOp::Sleep),
        1 => any::<bool>().prop_map(TaskOp::Unreliable),
        1 => any::<bool>().prop_map(TaskOp::Unstoppable),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let patch = || 0..PATCHES;
    prop_oneof![
        8 => patch().prop_map(Op::Enable),
        6 => patch().prop_map(Op::Disable),
        4 => patch().prop_map(Op::Reverse),
        1 => patch().prop_map(Op::Force),
        1 => patch().prop_map(Op::Kick),
        2 => patch().prop_map(Op::Blockers),
        2 => patch().prop_map(Op::AddOrRemove),
        8 => Just(Op::Poll),
        2 => Just(Op::RestAll),
        40 => (any::<usize>(), task_op()).prop_map(|(task, op)| Op::Task(task, op)),
        2 => Just(Op::Spawn),
        3 => (1u64..40).prop_map(Op::Fault),
        5 => any::<u64>().prop_map(Op::Noise),
    ]
}

/// The system, and what the engine should say about it.
struct Model {
    engine: Sim,
    funcs: Vec<SimFunc>,
    /// A patch that is known has an id; otherwise it waits here.
    ids: [Option<PatchId>; PATCHES],
    waiting: [Option<Patch>; PATCHES],
    /// Patches that are on function stacks, in the order of enabling.
    order: Vec<usize>,
    transition: Option<(usize, TaskState)>,
    forced: [bool; PATCHES],
    /// A fault or noise may spoil the next operation of the engine.
    disturbed: bool,
    built: Snapshot,
}

impl Model {
    fn new(self_switching: bool) -> Self {
        let host = SimOs::new();
        host.set_self_switching(self_switching);
        let [f, g] = ["f", "g"].map(|name| host.function(VMLINUX, name));
        let h = host.function_with(VMLINUX, "h", Pad::Split);
        let [m, n] = ["m", "n"].map(|name| host.function_with("mod", name, Pad::Split));
        let bystander = host.function("mod", "bystander");
        host.cold_part(f);
        host.cold_part(m);
        let [f_, g_, h_] = [(VMLINUX, "f", f), (VMLINUX, "g", g), (VMLINUX, "h", h)];
        let [m_, n_] = [("mod", "m", m), ("mod", "n", n)];
        let waiting = [
            Some(patch_at(&host, "a", Place::Near, &[f_, g_, h_, m_])),
            Some(patch_at(&host, "b", Place::Far, &[f_, g_])),
            Some(patch_at(&host, "c", Place::Near, &[f_, g_, h_, m_, n_])),
            Some(patch_at(&host, "d", Place::Far, &[h_, m_, n_])),
        ];
        for name in ["one", "two", "three"] {
            host.spawn(name);
        }
        let built = host.snapshot().without_images().without_tasks();
        let mut model = Self {
            engine: Engine::new(host),
            funcs: vec![f, g, h, m, n, bystander],
            ids: [None; PATCHES],
            waiting,
            order: Vec::new(),
            transition: None,
            forced: [false; PATCHES],
            disturbed: false,
            built,
        };
        (0..PATCHES).for_each(|patch| model.add_or_remove(patch));
        model
    }

    fn host(&self) -> &SimOs {
        self.engine.host()
    }

    fn is_enabled(&self, patch: usize) -> bool {
        self.order.contains(&patch) && self.transition != Some((patch, TaskState::Unpatched))
    }

    fn misuse(misuse: ApiMisuse) -> Result<Poll, Error> {
        Err(Error::ApiMisuse(misuse))
    }

    /// One operation, and what must hold behind it.
    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Fault(n) => {
                self.host().fail_at(n);
                self.disturbed = true;
                return;
            }
            Op::Noise(seed) => {
                self.host().make_noise(Some(Chance::new(seed)), MAX_TASKS);
                self.disturbed = true;
                return;
            }
            Op::Task(task, ref op) => self.task(task, op),
            Op::Spawn => {
                if self.host().task_ids().len() < MAX_TASKS {
                    self.host().spawn("new");
                }
            }
            Op::Poll => {
                let poll = self.engine.poll();
                self.polled(poll);
            }
            Op::RestAll => {
                self.calm();
                self.host().rest_all();
                let poll = self.engine.poll();
                assert!(
                    !matches!(poll, Poll::Waiting { .. }),
                    "nothing holds it back: {:?}",
                    self.engine.blockers_of()
                );
                self.polled(poll);
            }
            Op::AddOrRemove(patch) => self.add_or_remove(patch),
            Op::Enable(patch) | Op::Disable(patch) | Op::Reverse(patch) | Op::Force(patch) => self.change(op, patch),
            Op::Kick(patch) | Op::Blockers(patch) => self.ask(op, patch),
        }
        if !matches!(op, Op::Task(..) | Op::Spawn) {
            self.calm();
        }
        self.check();
    }

    /// No fault and no noise any more.
    fn calm(&mut self) {
        self.host().disarm();
        self.host().make_noise(None, 0);
        self.disturbed = false;
    }

    fn change(&mut self, op: &Op, patch: usize) {
        let Some(id) = self.ids[patch] else { return };
        let moving = self.transition.is_some_and(|(moving, _)| moving == patch);
        let (result, refusal) = match op {
            Op::Enable(_) => {
                let refusal = if self.is_enabled(patch) { Some(ApiMisuse::AlreadyEnabled) } else { None };
                (self.engine.enable(id), refusal)
            }
            Op::Disable(_) => {
                let off = self.transition.is_none() && !self.is_enabled(patch);
                (self.engine.disable(id), off.then_some(ApiMisuse::NotEnabled))
            }
            Op::Reverse(_) => (self.engine.reverse(id), (!moving).then_some(ApiMisuse::NoTransition)),
            _ => (self.engine.force(id), (!moving).then_some(ApiMisuse::NoTransition)),
        };
        if let Some(refusal) = refusal {
            assert_eq!(result, Self::misuse(refusal), "{op:?}");
            return;
        }
        if let (Op::Enable(_) | Op::Disable(_), Some(_)) = (op, self.transition) {
            assert!(matches!(result, Err(Error::Busy { .. })), "{op:?}: {result:?}");
            return;
        }
        match result {
            Ok(poll) => {
                self.started(op, patch);
                self.polled(poll);
            }
            Err(error) => {
                assert!(self.disturbed, "{op:?}: {error}");
                assert!(matches!(error, Error::Port(_) | Error::Patch(_)), "{op:?}: {error}");
            }
        }
    }

    /// `op` was accepted.
    fn started(&mut self, op: &Op, patch: usize) {
        match (op, self.transition) {
            (Op::Enable(_), _) => {
                self.order.push(patch);
                self.transition = Some((patch, TaskState::Patched));
            }
            (Op::Disable(_), _) => self.transition = Some((patch, TaskState::Unpatched)),
            (Op::Reverse(_), Some((_, target))) => self.transition = Some((patch, target.opposite())),
            (_, Some((_, target))) => self.forced[patch] |= target == TaskState::Unpatched,
            (_, None) => panic!("{op:?} without a transition"),
        }
    }

    /// What a poll says fits what is under way.
    fn polled(&mut self, poll: Poll) {
        match (poll, self.transition) {
            (Poll::Idle, None) => {}
            (Poll::Waiting { patch, .. }, Some((moving, _))) => assert_eq!(Some(patch), self.ids[moving]),
            (Poll::Complete { patch, enabled }, Some((moving, target))) => {
                assert_eq!((Some(patch), enabled), (self.ids[moving], target == TaskState::Patched));
                self.transition = None;
                self.order.retain(|other| enabled || *other != moving);
            }
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, op: &Op, patch: usize) {
        let Some(id) = self.ids[patch] else { return };
        let result = match op {
            Op::Kick(_) => self.engine.kick(id),
            _ => self.engine.blockers(id).map(|_| ()),
        };
        match result {
            Ok(()) => assert!(self.transition.is_some_and(|(moving, _)| moving == patch)),
            Err(Error::ApiMisuse(ApiMisuse::NoTransition)) => {
                assert!(self.transition.is_none_or(|(moving, _)| moving != patch));
            }
            Err(error) => assert!(self.disturbed, "{error}"),
        }
    }

    fn add_or_remove(&mut self, patch: usize) {
        match (self.ids[patch], self.waiting[patch].take()) {
            (None, Some(waits)) => self.ids[patch] = Some(self.engine.add(waits).expect("it is new")),
            (Some(id), None) => match self.engine.remove(id) {
                Ok(removed) => {
                    assert!(!self.order.contains(&patch) && !self.forced[patch]);
                    self.ids[patch] = None;
                    self.waiting[patch] = Some(removed);
                }
                Err(Error::ApiMisuse(ApiMisuse::Forced)) => assert!(self.forced[patch]),
                Err(Error::Busy { .. } | Error::ApiMisuse(ApiMisuse::AlreadyEnabled)) => {
                    assert!(self.order.contains(&patch));
                }
                Err(error) => panic!("{error}"),
            },
            _ => panic!("a patch is either known or waits"),
        }
    }

    fn task(&mut self, task: usize, op: &TaskOp) {
        let host = self.host();
        let tasks = host.task_ids();
        let task: TaskId = tasks[task % tasks.len()];
        let func = |func: usize| self.funcs[func % self.funcs.len()];
        match *op {
            TaskOp::Call(index) => {
                host.call(task, func(index));
            }
            TaskOp::BeginCall(index) => {
                host.begin_call(task, func(index));
            }
            TaskOp::Step => {
                host.step(task);
            }
            TaskOp::Return => {
                host.ret(task);
            }
            TaskOp::Cold => {
                host.go_cold(task);
            }
            TaskOp::Child if tasks.len() < MAX_TASKS => {
                host.spawn_child("child", task);
            }
            TaskOp::Fork if tasks.len() < MAX_TASKS => {
                host.fork(task);
            }
            TaskOp::Exit if tasks.len() > 1 => host.exit(task),
            TaskOp::Child | TaskOp::Fork | TaskOp::Exit => {}
            TaskOp::Sleep(sleep) => host.sleep(task, sleep),
            TaskOp::Unreliable(on) => host.set_unreliable(task, on.then_some(Doubt::UnknownRule)),
            TaskOp::Unstoppable(on) => host.set_unstoppable(task, on.then_some(Reason::Blocked)),
        }
    }

    /// The engine says what the model says, and the audit finds nothing.
    fn check(&self) {
        check(&self.engine);
        let status = self.engine.status().expect("memory");
        let on: Vec<_> = status.iter().filter(|patch| patch.enabled || patch.transition.is_some()).collect();
        let expected: Vec<_> = self.order.iter().map(|patch| self.ids[*patch]).collect();
        assert_eq!(on.iter().map(|patch| Some(patch.id)).collect::<Vec<_>>(), expected);
        let moving = on.iter().find_map(|patch| patch.transition.map(|target| (Some(patch.id), target)));
        for (id, forced) in self.ids.iter().zip(self.forced) {
            let known = status.iter().find(|patch| Some(patch.id) == *id);
            assert!(known.is_none_or(|patch| patch.forced == forced), "{known:?}, forced: {forced}");
        }
        assert_eq!(moving, self.transition.map(|(patch, target)| (self.ids[patch], target)));
    }

    /// Takes everything back; the text must be what it was built as.
    fn take_down(mut self) {
        self.apply(&Op::RestAll);
        while let Some(patch) = self.order.first().copied() {
            self.apply(&Op::Disable(patch));
            self.apply(&Op::RestAll);
        }
        let now = self.host().snapshot().without_images().without_tasks();
        assert_eq!(now, self.built, "the text is what it was built as");
    }
}

trait BlockersOf {
    fn blockers_of(&self) -> Vec<String>;
}

impl BlockersOf for Sim {
    /// Who holds back whatever is in transition.
    fn blockers_of(&self) -> Vec<String> {
        let moving = self.status().expect("memory").into_iter().find(|patch| patch.transition.is_some());
        let blockers = moving.and_then(|patch| self.blockers(patch.id).ok()).unwrap_or_default();
        blockers.iter().map(ToString::to_string).collect()
    }
}

fn number(name: &str, default: u32) -> u32 {
    env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

#[test]
fn random_sequences() {
    let steps = number("KLP_STEPS", 60) as usize;
    let cases = number("PROPTEST_CASES", 1_500);
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(self_switching: bool, ops in proptest::collection::vec(op(), 1..=steps))| {
        let mut model = Model::new(self_switching);
        for op in &ops {
            model.apply(op);
        }
        model.take_down();
    });
}
