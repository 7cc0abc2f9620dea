//! A small model of what the engine should say.

use super::common::{Sim, check};
use super::ledger::{Ledger, Stage};
use super::ops::{Op, TaskOp};
use super::patches::{self, MOD, PATCHES, SPECS};
use klp_core::addr::CodeAddr;
use klp_core::error::{ApiMisuse, Error, PatchReason};
use klp_core::model::{Patch, VMLINUX};
use klp_core::port::{Doubt, Reason, TaskId, TaskState};
use klp_core::sim::{Chance, SimFunc, SimOs, Snapshot, insmod, rmmod};
use klp_core::{Engine, PatchId, Poll};
use std::sync::Arc;

/// More tasks are not born.
const MAX_TASKS: usize = 10;

/// The system, and what the engine should say about it.
pub(crate) struct Model {
    engine: Arc<Sim>,
    ledger: Ledger,
    /// Whether the module is loaded.
    loaded: bool,
    funcs: Vec<(&'static str, SimFunc)>,
    /// A patch that is known has an id; otherwise it waits here.
    ids: [Option<PatchId>; PATCHES],
    waiting: [Option<Patch>; PATCHES],
    /// Patches that are on function stacks, in the order of enabling.
    order: Vec<usize>,
    /// The patches in transition, in the order of enabling.
    transition: Option<(Vec<usize>, TaskState)>,
    /// It went one way only, and nobody was forced.
    straight: bool,
    /// The field of each patch that is relocated with the module.
    fields: [CodeAddr; PATCHES],
    forced: [bool; PATCHES],
    /// A fault or noise may spoil the next operation of the engine.
    disturbed: bool,
    built: Snapshot,
}

impl Model {
    pub(crate) fn new(self_switching: bool) -> Self {
        let (host, ledger) = (SimOs::new(), Ledger::default());
        host.see_suspended(std::env::var_os("KLP_BLIND").is_none());
        host.set_self_switching(self_switching);
        host.relocate_patches();
        let (funcs, waiting) = patches::build(&host, &ledger);
        let fields = waiting.each_ref().map(|patch| {
            let patch = patch.as_ref().expect("it waits");
            patches::field_of(patch).expect("it has one")
        });
        host.not_loaded(MOD);
        // A task need not have a name.
        for name in ["one", "two", ""] {
            host.spawn(name);
        }
        let built = host.snapshot().without_images().without_tasks();
        let mut model = Self {
            engine: Arc::new(Engine::new(host)),
            ledger,
            loaded: false,
            funcs,
            ids: [None; PATCHES],
            waiting,
            order: Vec::new(),
            transition: None,
            straight: true,
            fields,
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
        let leaves = matches!(&self.transition, Some((moving, TaskState::Unpatched)) if moving.contains(&patch));
        self.order.contains(&patch) && !leaves
    }

    fn moves(&self, patch: usize) -> bool {
        self.transition
            .as_ref()
            .is_some_and(|(moving, _)| moving.contains(&patch))
    }

    /// The enabled patches that give way when `new` are enabled as one.
    fn giving_way(&self, new: &[usize]) -> Vec<usize> {
        let older = self.order.iter().take_while(|other| !new.contains(other));
        older
            .copied()
            .filter(|old| new.iter().any(|new| SPECS[*new].replaces(&SPECS[*old])))
            .collect()
    }

    /// What the engine must say of enabling `patches` as one, or, with `None`, that it must try;
    /// the state of things decides then.
    fn refusal(&self, op: &Op, patches: &[usize]) -> Option<Refusal> {
        let on = |patch: &usize| self.is_enabled(*patch);
        let twice = (0..patches.len()).any(|at| patches[..at].contains(&patches[at]));
        let misuse = |misuse| Some(Refusal::Misuse(misuse));
        match op {
            Op::Enable(_) | Op::EnableAll(_) | Op::Disable(_) | Op::DisableAll(_) => {
                let enable = matches!(op, Op::Enable(_) | Op::EnableAll(_));
                match () {
                    () if patches.is_empty() => misuse(ApiMisuse::NoPatches),
                    () if twice => Some(Refusal::Patch(|reason| {
                        matches!(reason, PatchReason::ListedTwice)
                    })),
                    () if enable && patches.iter().any(on) => misuse(ApiMisuse::AlreadyEnabled),
                    () if self.transition.is_some() => Some(Refusal::Busy),
                    () if !enable && !patches.iter().all(on) => misuse(ApiMisuse::NotEnabled),
                    () if enable => self.unmet(patches).or_else(|| self.misfit(patches)),
                    () => self.needed(patches),
                }
            }
            _ => {
                if self.moves(patches[0]) {
                    None
                } else {
                    misuse(ApiMisuse::NoTransition)
                }
            }
        }
    }

    /// Why `patches` must not be enabled as one: what they, or those that stay, depend on.
    fn unmet(&self, patches: &[usize]) -> Option<Refusal> {
        let there: Vec<usize> = self.order.iter().chain(patches).copied().collect();
        let has = |name: &str| there.iter().any(|other| SPECS[*other].name == name);
        let mut wanted = patches.iter().flat_map(|new| SPECS[*new].depends);
        if !wanted.all(|name| has(name)) {
            return Some(Refusal::Patch(|reason| {
                matches!(reason, PatchReason::DependsOn { .. })
            }));
        }
        let goes = self.giving_way(patches);
        let stays = there.iter().filter(|patch| !goes.contains(patch));
        let mut lost = stays.flat_map(|patch| goes.iter().map(move |old| (*patch, *old)));
        lost.any(|(patch, old)| SPECS[patch].needs(&SPECS[old]))
            .then_some(Refusal::Patch(|reason| {
                matches!(reason, PatchReason::ReplacesNeeded { .. })
            }))
    }

    /// Why `patches` must not be disabled as one: others depend on them.
    fn needed(&self, patches: &[usize]) -> Option<Refusal> {
        let others = self.order.iter().filter(|other| !patches.contains(other));
        let mut pairs = others.flat_map(|other| patches.iter().map(move |patch| (*other, *patch)));
        pairs
            .any(|(other, patch)| SPECS[other].needs(&SPECS[patch]))
            .then_some(Refusal::Patch(|reason| {
                matches!(reason, PatchReason::NeededBy { .. })
            }))
    }

    /// Why `patches` do not fit each other and those that are enabled.
    fn misfit(&self, patches: &[usize]) -> Option<Refusal> {
        let mut conflict = None;
        for (at, new) in patches.iter().enumerate() {
            let (companions, new) = (&patches[..at], &SPECS[*new]);
            if companions.iter().any(|other| new.replaces(&SPECS[*other])) {
                return Some(Refusal::Patch(|reason| {
                    matches!(reason, PatchReason::ReplacesCompanion { .. })
                }));
            }
            let gone = self.giving_way(companions);
            let below = || {
                self.order
                    .iter()
                    .filter(|old| !gone.contains(old))
                    .chain(companions)
                    .map(|old| &SPECS[*old])
            };
            if below().any(|old| !new.fits(old)) {
                return Some(Refusal::Patch(|reason| {
                    matches!(reason, PatchReason::IncompatibleStates { .. })
                }));
            }
            if below().any(|old| new.conflicts(old)) {
                conflict = Some(Refusal::Late(|reason| {
                    matches!(reason, PatchReason::SharedWithOtherSet { .. })
                }));
            }
        }
        conflict
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
            Op::Enable(patch) | Op::Disable(patch) | Op::Reverse(patch) | Op::Force(patch) => {
                self.change(op, &[patch])
            }
            Op::EnableAll(ref patches) | Op::DisableAll(ref patches) => self.change(op, patches),
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

    fn change(&mut self, op: &Op, patches: &[usize]) {
        let ids: Option<Vec<PatchId>> = patches.iter().map(|patch| self.ids[*patch]).collect();
        let Some(ids) = ids else { return };
        let result = match op {
            Op::Enable(_) => self.engine.enable(ids[0]),
            Op::EnableAll(_) => self.engine.enable_all(&ids),
            Op::Disable(_) => self.engine.disable(ids[0]),
            Op::DisableAll(_) => self.engine.disable_all(&ids),
            Op::Reverse(_) => self.engine.reverse(ids[0]),
            _ => klp_core::sim::force(&self.engine, ids[0]),
        };
        if let Some(refusal) = self.refusal(op, patches) {
            let right = match (&refusal, &result) {
                (Refusal::Misuse(misuse), Err(Error::ApiMisuse(said))) => misuse == said,
                (Refusal::Busy, Err(Error::Busy { .. })) => true,
                (Refusal::Patch(is) | Refusal::Late(is), Err(Error::Patch(error)))
                    if is(&error.reason) =>
                {
                    true
                }
                (Refusal::Late(_), Err(_)) => self.disturbed,
                _ => false,
            };
            assert!(right, "{op:?}: {result:?}");
            return;
        }
        match result {
            Ok(poll) => {
                self.started(op, patches);
                self.polled(poll);
            }
            Err(error) => {
                assert!(self.disturbed || self.ledger.vetoed(), "{op:?}: {error}");
                assert!(
                    matches!(error, Error::Port(_) | Error::Patch(_)),
                    "{op:?}: {error}"
                );
            }
        }
    }

    /// `op` was accepted.
    fn started(&mut self, op: &Op, patches: &[usize]) {
        self.straight = !matches!(op, Op::Reverse(_) | Op::Force(_))
            && (self.straight || self.transition.is_none());
        match (op, self.transition.take()) {
            (Op::Enable(_) | Op::EnableAll(_), _) => {
                self.order.extend(patches);
                self.transition = Some((patches.to_vec(), TaskState::Patched));
            }
            (Op::Disable(_) | Op::DisableAll(_), _) => {
                let moving = self
                    .order
                    .iter()
                    .copied()
                    .filter(|patch| patches.contains(patch));
                self.transition = Some((moving.collect(), TaskState::Unpatched));
            }
            (Op::Reverse(_), Some((moving, target))) => {
                self.transition = Some((moving, target.opposite()))
            }
            (_, Some((moving, target))) => {
                let goes = if target == TaskState::Patched {
                    self.giving_way(&moving)
                } else {
                    moving.clone()
                };
                goes.into_iter().for_each(|patch| self.forced[patch] = true);
                self.transition = Some((moving, target));
            }
            (_, None) => panic!("{op:?} without a transition"),
        }
    }

    /// What a poll says fits what is under way.
    fn polled(&mut self, poll: Poll) {
        match (poll, self.transition.take()) {
            (Poll::Idle, None) => {}
            (Poll::Waiting { patch, .. }, Some((moving, target))) => {
                assert_eq!(Some(patch), self.ids[moving[0]]);
                self.transition = Some((moving, target));
            }
            (Poll::Complete { patch, enabled }, Some((moving, target))) => {
                assert_eq!(
                    (Some(patch), enabled),
                    (self.ids[moving[0]], target == TaskState::Patched)
                );
                let gone = if enabled {
                    self.giving_way(&moving)
                } else {
                    moving.clone()
                };
                if self.straight {
                    self.check_veneers(&moving);
                }
                self.order.retain(|other| !gone.contains(other));
                if enabled {
                    gone.iter()
                        .for_each(|old| self.ledger.replaced(SPECS[*old].name));
                }
            }
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, op: &Op, patch: usize) {
        let Some(id) = self.ids[patch] else { return };
        let result = match op {
            Op::Kick(_) => self.engine.kick(id),
            _ => self.engine.blockers(id).map(|blockers| {
                if !self.disturbed {
                    let named: Vec<_> = blockers.iter().map(|blocker| blocker.task).collect();
                    assert_eq!(self.engine.pending_tasks(), Ok(named), "all are named");
                }
            }),
        };
        match result {
            Ok(()) => assert!(self.moves(patch)),
            Err(Error::ApiMisuse(ApiMisuse::NoTransition)) => assert!(!self.moves(patch)),
            Err(error) => assert!(self.disturbed, "{error}"),
        }
    }

    fn add_or_remove(&mut self, patch: usize) {
        match (self.ids[patch], self.waiting[patch].take()) {
            (None, Some(waits)) => {
                let id = self.engine.add(waits).expect("it is new");
                self.ledger.call(&self.engine, id);
                self.ids[patch] = Some(id);
            }
            (Some(id), None) => match self.engine.remove(id) {
                Ok(removed) => {
                    // Its memory may go.
                    self.engine.host().forbid_code_of(SPECS[patch].name);
                    assert!(!self.order.contains(&patch) && !self.forced[patch]);
                    self.ids[patch] = None;
                    self.waiting[patch] = Some(removed);
                }
                Err(Error::ApiMisuse(ApiMisuse::Forced)) => assert!(self.forced[patch]),
                Err(Error::Busy { .. } | Error::ApiMisuse(ApiMisuse::AlreadyEnabled)) => {
                    assert!(self.order.contains(&patch));
                }
                Err(error) => assert!(self.disturbed, "{error}"),
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
        let func = |func: usize| self.funcs[func % self.funcs.len()].1;
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
            TaskOp::Helper => {
                host.go_helper(task);
            }
            TaskOp::End(end, index) => {
                host.begin_end(task, end, func(index));
            }
            TaskOp::Jump(end, index) => {
                if host.begin_end(task, end, func(index)) {
                    host.run(task);
                }
            }
            TaskOp::Suspend => host.suspend(task),
            TaskOp::Resume(by) => host.resume(task, tasks[by % tasks.len()]),
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
        let on: Vec<_> = status
            .iter()
            .filter(|patch| patch.enabled || patch.transition.is_some())
            .collect();
        let expected: Vec<_> = self.order.iter().map(|patch| self.ids[*patch]).collect();
        assert_eq!(
            on.iter().map(|patch| Some(patch.id)).collect::<Vec<_>>(),
            expected
        );
        let moving: Vec<_> = on
            .iter()
            .filter_map(|patch| Some((Some(patch.id), patch.transition?)))
            .collect();
        for (id, forced) in self.ids.iter().zip(self.forced) {
            let known = status.iter().find(|patch| Some(patch.id) == *id);
            assert!(
                known.is_none_or(|patch| patch.forced == forced),
                "{known:?}, forced: {forced}"
            );
        }
        let (patches, target) = self
            .transition
            .as_ref()
            .map_or((&[][..], TaskState::Idle), |(all, to)| (all, *to));
        assert_eq!(
            moving,
            patches
                .iter()
                .map(|patch| (self.ids[*patch], target))
                .collect::<Vec<_>>()
        );
        let asked = (!self.disturbed).then(|| self.host().task_ids());
        for task in asked.into_iter().flatten() {
            let state = self.engine.task_state(task).expect("it is at rest");
            assert!(state.is_some(), "task {task:?} is there");
        }
        self.check_callbacks();
        self.check_relocs();
    }

    /// Of each patch, its own field and what the system's loader does are relocated together: when
    /// it is in force and the module is there, and never when it is not known.
    fn check_relocs(&self) {
        for (patch, spec) in SPECS.iter().enumerate() {
            let own = self.host().word(self.fields[patch]) != [0; 8];
            let by_loader = self.host().is_relocated(spec.name, MOD);
            assert_eq!(own, by_loader, "both or none of '{}'", spec.name);
            let needed = self.loaded && self.order.contains(&patch);
            assert!(own || !needed, "'{}' is in force", spec.name);
            assert!(!own || self.ids[patch].is_some(), "'{}' is gone", spec.name);
        }
    }

    /// Every task was seen outside of veneers: those that the sites of `patches`, which have moved,
    /// do not need are for others.
    fn check_veneers(&self, patches: &[usize]) {
        for patch in patches {
            for name in SPECS[*patch].funcs() {
                let spare = self.host().spare_veneers(patches::find(&self.funcs, name));
                assert_eq!(spare, 0, "veneers of '{name}'");
            }
        }
    }

    /// What callbacks have set up is what the engine says.
    fn check_callbacks(&self) {
        let wrong = self.ledger.wrong();
        assert!(wrong.is_empty(), "{wrong:?}");
        for (patch, spec) in SPECS.iter().enumerate() {
            for object in [VMLINUX, MOD] {
                let there = self.order.contains(&patch) && (object == VMLINUX || self.loaded);
                let moves = self.moves(patch);
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
        let free = |order: &[usize]| {
            let needed = |patch: usize| order.iter().any(|by| SPECS[*by].needs(&SPECS[patch]));
            order.iter().copied().find(|patch| !needed(*patch))
        };
        while let Some(patch) = free(&self.order) {
            self.apply(&Op::Disable(patch));
            self.apply(&Op::RestAll);
        }
        self.apply(&Op::Rmmod);
        assert!(!self.loaded, "nobody is in the module");
        let now = self.host().snapshot().without_images().without_tasks();
        assert_eq!(now, self.built, "the text is what it was built as");
    }
}

/// What the engine must refuse.
enum Refusal {
    Misuse(ApiMisuse),
    Busy,
    /// Before it asks any port.
    Patch(fn(&PatchReason) -> bool),
    /// After it has asked ports, which may have failed.
    Late(fn(&PatchReason) -> bool),
}

trait BlockersOf {
    fn blockers_of(&self) -> Vec<String>;
}

impl BlockersOf for Sim {
    /// Who holds back whatever is in transition.
    fn blockers_of(&self) -> Vec<String> {
        let moving = self
            .status()
            .expect("memory")
            .into_iter()
            .find(|patch| patch.transition.is_some());
        let blockers = moving
            .and_then(|patch| self.blockers(patch.id).ok())
            .unwrap_or_default();
        blockers.iter().map(ToString::to_string).collect()
    }
}
