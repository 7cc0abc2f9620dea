//! A small model of what the engine should say.

use super::common::{Sim, check};
use super::ledger::{Ledger, Stage};
use super::ops::{Op, TaskOp};
use super::patches::{self, MOD, PATCHES, SPECS};
use klp_core::error::{ApiMisuse, Error, PatchReason};
use klp_core::model::{Patch, VMLINUX};
use klp_core::port::{Doubt, Reason, TaskId, TaskState};
use klp_core::sim::{Chance, SimFunc, SimOs, Snapshot, insmod, rmmod};
use klp_core::{Engine, PatchId, Poll};

/// More tasks are not born.
const MAX_TASKS: usize = 10;

/// The system, and what the engine should say about it.
pub(crate) struct Model {
    engine: Sim,
    ledger: Ledger,
    /// Whether the module is loaded.
    loaded: bool,
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
    pub(crate) fn new(self_switching: bool) -> Self {
        let (host, ledger) = (SimOs::new(), Ledger::default());
        host.set_self_switching(self_switching);
        let (funcs, waiting) = patches::build(&host, &ledger);
        host.not_loaded(MOD);
        for name in ["one", "two", "three"] {
            host.spawn(name);
        }
        let built = host.snapshot().without_images().without_tasks();
        let mut model = Self {
            engine: Engine::new(host),
            ledger,
            loaded: false,
            funcs,
            ids: [None; PATCHES],
            waiting,
            order: Vec::new(),
            transition: None,
            forced: [false; PATCHES],
            disturbed: false,
            built,
        };
        (0..PATCHES).for_each(|patch| model.add_or_remove(patch));
        model.insmod();
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

    /// The enabled patches that give way when `patch` is enabled.
    fn giving_way(&self, patch: usize) -> Vec<usize> {
        let older = self.order.iter().take_while(|other| **other != patch);
        older.copied().filter(|old| SPECS[patch].replaces(&SPECS[*old])).collect()
    }

    /// One operation, and what must hold behind it.
    pub(crate) fn apply(&mut self, op: &Op) {
        match *op {
            Op::Veto(n) => {
                self.ledger.veto_in(n);
                return;
            }
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
            Op::Insmod => self.insmod(),
            Op::Rmmod => self.rmmod(),
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
        self.ledger.veto_in(0);
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
        if let Op::Enable(_) = op {
            let on = || self.order.iter().filter(|other| **other != patch).map(|other| &SPECS[*other]);
            let reason = match &result {
                Err(Error::Patch(error)) => Some(&error.reason),
                _ => None,
            };
            if on().any(|other| !SPECS[patch].fits(other)) {
                assert!(matches!(reason, Some(PatchReason::IncompatibleStates { .. })), "{result:?}");
                return;
            }
            if on().any(|other| SPECS[patch].conflicts(other)) {
                let refused = matches!(reason, Some(PatchReason::SharedWithOtherSet { .. }));
                assert!(refused || self.disturbed && result.is_err(), "{result:?}");
                return;
            }
        }
        match result {
            Ok(poll) => {
                self.started(op, patch);
                self.polled(poll);
            }
            Err(error) => {
                assert!(self.disturbed || self.ledger.vetoed(), "{op:?}: {error}");
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
            (_, Some((_, TaskState::Patched))) => {
                self.giving_way(patch).into_iter().for_each(|old| self.forced[old] = true);
            }
            (_, Some(_)) => self.forced[patch] = true,
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
                let gone = if enabled { self.giving_way(moving) } else { vec![moving] };
                self.order.retain(|other| !gone.contains(other));
                if enabled {
                    gone.iter().for_each(|old| self.ledger.replaced(SPECS[*old].name));
                }
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

    fn insmod(&mut self) {
        if self.loaded {
            return;
        }
        match insmod(&self.engine, MOD) {
            Ok(()) => self.loaded = true,
            Err(error) => assert!(self.disturbed || self.ledger.vetoed(), "{error}"),
        }
    }

    fn rmmod(&mut self) {
        if rmmod(&self.engine, MOD) {
            assert!(self.loaded);
            self.loaded = false;
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
        self.check_callbacks();
    }

    /// What callbacks have set up is what the engine says.
    fn check_callbacks(&self) {
        let wrong = self.ledger.wrong();
        assert!(wrong.is_empty(), "{wrong:?}");
        for (patch, spec) in SPECS.iter().enumerate() {
            for object in [VMLINUX, MOD] {
                let there = self.order.contains(&patch) && (object == VMLINUX || self.loaded);
                let moves = self.transition.is_some_and(|(moving, _)| moving == patch);
                let stage = self.ledger.stage(spec.name, object);
                let right = match stage {
                    Stage::Off => !there,
                    Stage::On => there && !moves,
                    Stage::Prepared | Stage::Leaving => there && moves,
                };
                assert!(
                    right,
                    "callbacks of '{}' for '{object}' are in stage {stage:?}; {:?}",
                    spec.name, self.transition
                );
            }
        }
    }

    /// Takes everything back; the text must be what it was built as.
    pub(crate) fn take_down(mut self) {
        self.apply(&Op::RestAll);
        while let Some(patch) = self.order.first().copied() {
            self.apply(&Op::Disable(patch));
            self.apply(&Op::RestAll);
        }
        self.apply(&Op::Rmmod);
        assert!(!self.loaded, "nobody is in the module");
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
