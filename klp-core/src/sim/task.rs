//! Tasks, their stacks as data, and the life cycle of their states.

use super::fault::SimError;
use super::object::{REST, SimFunc};
use super::shared::{Phase, Shared, World};
use super::versions::Span;
use crate::addr::CodeAddr;
use crate::port::{
    Doubt, EntryCheck, Frame, FrameKind, InTurn, Moment, Moves, Progress, Reason, SelfSwitch,
    Stopper, TaskId, TaskName, TaskSet, TaskState, Unreliable, Unwinder, Visitor,
};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::ControlFlow;
use core::ptr::NonNull;

/// How deep a task sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sleep {
    /// Not at all.
    Awake,
    /// A kick wakes it.
    Interruptible,
    /// Only [`SimOs::sleep`](super::SimOs::sleep) wakes it.
    Deep,
    /// It is a stack that no task runs (a coroutine), until
    /// [`SimOs::resume`](super::SimOs::resume).
    Suspended,
}

/// One task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Task {
    pub(super) name: TaskName,
    pub(super) state: TaskState,
    /// The next instruction.
    pub(super) pc: CodeAddr,
    /// Return addresses, innermost last, each with the function that was called.
    pub(super) frames: Vec<(CodeAddr, SimFunc)>,
    /// The register that the thunk loads.
    pub(super) arg: u64,
    /// What the handler said.
    pub(super) chosen: Option<CodeAddr>,
    /// The function that is being called, until its body is reached.
    pub(super) calling: Option<SimFunc>,
    /// It was jumped to: the function before it left no frame.
    pub(super) jumped: bool,
    /// Where a jump goes whose code does not tell.
    pub(super) anywhere: Option<CodeAddr>,
    pub(super) sleep: Sleep,
    pub(super) unstoppable: Option<Reason>,
    pub(super) doubt: Option<Doubt>,
    pub(super) kicks: u32,
    /// A forced transition caught it in the middle of something: mixes do not count until it rests.
    pub(super) excused: bool,
    /// For each patch whose functions it is in, on which side it is.
    pub(super) spans: BTreeMap<String, Span>,
}

impl Task {
    fn new(name: &str, state: TaskState) -> Self {
        let mut short = TaskName::new();
        for letter in name.chars() {
            if short.push(letter).is_err() {
                break;
            }
        }
        Self {
            name: short,
            state,
            pc: REST,
            frames: Vec::new(),
            arg: 0,
            chosen: None,
            calling: None,
            jumped: false,
            anywhere: None,
            sleep: Sleep::Awake,
            unstoppable: None,
            doubt: None,
            kicks: 0,
            excused: false,
            spans: BTreeMap::new(),
        }
    }

    /// Every address that it executes, or will come back to.
    pub(super) fn places(&self) -> impl Iterator<Item = CodeAddr> + '_ {
        let returns = self.frames.iter().map(|(to, _)| to.wrapping_sub(1));
        [self.pc].into_iter().chain(self.chosen).chain(returns)
    }
}

/// What the engine lent to tasks that switch themselves.
#[derive(Debug)]
pub(super) struct Lent(NonNull<dyn EntryCheck>);

// SAFETY: the check itself is `Sync`, and nobody gets more than a shared reference to it.
unsafe impl Send for Lent {}

impl Lent {
    /// # Safety
    ///
    /// `check` outlives this.
    unsafe fn new(check: &dyn EntryCheck) -> Self {
        // SAFETY: only the lifetime changes, and the caller vouches for it.
        Self(NonNull::from(unsafe {
            core::mem::transmute::<&dyn EntryCheck, &'static dyn EntryCheck>(check)
        }))
    }

    pub(super) fn check(&self) -> &dyn EntryCheck {
        // SAFETY: it is there as long as this is, says `new`.
        unsafe { self.0.as_ref() }
    }
}

/// A stopped task: what its stack holds, innermost frame first.
#[derive(Clone, Debug)]
pub struct SimContext {
    frames: Vec<Frame>,
    /// For each frame, which function was called there.
    called: Vec<Option<CodeAddr>>,
    doubt: Option<Unreliable>,
}

impl World {
    /// Adds a task. One that nobody gave birth to was there all the time, or is seen for the first
    /// time now.
    pub(super) fn spawn(&mut self, name: &str, parent: Option<TaskId>) -> TaskId {
        let state = match (
            parent.and_then(|parent| self.tasks.get(&parent)),
            self.phase,
        ) {
            (Some(parent), _) => parent.state,
            (None, Phase::Idle) => TaskState::Idle,
            (None, Phase::Initial(state) | Phase::Moving(state)) => state,
        };
        self.insert(Task::new(name, state))
    }

    pub(super) fn insert(&mut self, task: Task) -> TaskId {
        let id = TaskId(self.next_task);
        self.next_task += 1;
        self.tasks.insert(id, task);
        id
    }

    /// Whether the host lists the task.
    fn sees(&self, task: &Task) -> bool {
        self.sees_suspended || task.sleep != Sleep::Suspended
    }

    fn set_all(&mut self, state: TaskState) {
        self.tasks.values_mut().for_each(|task| task.state = state);
    }

    fn stop(&self, task: &Task) -> SimContext {
        let interrupted = Frame {
            pc: task.pc,
            kind: FrameKind::Interrupted,
        };
        let calls = task.frames.iter().rev().map(|(pc, _)| Frame {
            pc: *pc,
            kind: FrameKind::Call,
        });
        let unreliable = |why| Some(Unreliable { at: task.pc, why });
        // Stubs, thunks and veneers are in no function.
        let (frames, doubt) = match (task.doubt, self.code_at(task.pc)) {
            (_, None) => (Vec::new(), unreliable(Doubt::NoTable)),
            (Some(why), _) => (alloc::vec![interrupted], unreliable(why)),
            (None, Some(_)) => (core::iter::once(interrupted).chain(calls).collect(), None),
        };
        let called = task.frames.iter().rev().map(|(_, func)| self.called(*func));
        SimContext {
            frames,
            called: core::iter::once(None).chain(called).collect(),
            doubt,
        }
    }
}

/// The simulated OS's [`Unwinder`].
#[derive(Clone, Debug)]
pub struct SimUnwinder(pub(super) Arc<Shared>);

// SAFETY: the context holds the whole stack unless it holds a doubt.
unsafe impl Unwinder for SimUnwinder {
    type Context = SimContext;

    fn walk(
        &self,
        context: &SimContext,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        if self.0.world().faults.strikes("Unwinder::walk") {
            return Err(Unreliable {
                at: REST,
                why: Doubt::BadMemory,
            });
        }
        for frame in &context.frames {
            if visit(*frame).is_break() {
                return Ok(());
            }
        }
        context.doubt.map_or(Ok(()), Err)
    }

    fn called(&self, context: &SimContext, index: usize, _: Frame) -> Option<CodeAddr> {
        context.called.get(index).copied().flatten()
    }
}

/// The simulated OS's [`TaskSet`].
#[derive(Clone, Debug)]
pub struct SimTasks(pub(super) Arc<Shared>);

// SAFETY: all tasks are in one map; a task that is visited takes no step before its new state is in
// force; children are made with their parent's state.
unsafe impl TaskSet for SimTasks {
    type Error = SimError;

    fn current_state(&self) -> TaskState {
        self.0.current_state()
    }

    fn init(&self, initial: TaskState, _: InTurn) -> Result<(), SimError> {
        let _inside = self.0.enter("TaskSet::init")?;
        let mut world = self.0.world();
        world.set_all(initial);
        world.phase = Phase::Initial(initial);
        Ok(())
    }

    fn start(&self, target: TaskState, _: InTurn) -> Result<(), SimError> {
        let _inside = self.0.enter("TaskSet::start")?;
        self.0.world().phase = Phase::Moving(target);
        Ok(())
    }

    fn pending(&self, moves: &Moves, each: &mut dyn FnMut(TaskId)) -> Result<(), SimError> {
        let inside = self.0.enter("TaskSet::pending")?;
        let world = self.0.world();
        let pending = world
            .tasks
            .iter()
            .filter(|(_, task)| task.state != moves.target() && world.sees(task));
        let pending: Vec<_> = pending.map(|(id, _)| *id).collect();
        drop(world);
        inside.outside(|| pending.into_iter().for_each(each));
        Ok(())
    }

    fn close(&self, moves: &Moves) -> Progress {
        let Ok(_inside) = self.0.enter("TaskSet::close") else {
            return Progress::Waiting;
        };
        let world = self.0.world();
        let all = world
            .tasks
            .values()
            .filter(|task| world.sees(task))
            .all(|task| task.state == moves.target());
        drop(world);
        if all {
            Progress::Done
        } else {
            Progress::Waiting
        }
    }

    unsafe fn force(&self, moves: &Moves) {
        let _inside = self.0.inside();
        self.0.world().set_all(moves.target());
    }

    fn kick(&self, task: TaskId) {
        let _inside = self.0.inside();
        if let Some(task) = self.0.world().tasks.get_mut(&task) {
            task.kicks += 1;
            if task.sleep == Sleep::Interruptible {
                task.sleep = Sleep::Awake;
            }
        }
    }

    fn finish(&self, _: InTurn) {
        let _inside = self.0.inside();
        self.0.make_noise();
        let mut world = self.0.world();
        world.set_all(TaskState::Idle);
        world.phase = Phase::Idle;
    }

    fn exists(&self, task: TaskId) -> bool {
        let _inside = self.0.inside();
        self.0.world().tasks.contains_key(&task)
    }

    fn name(&self, task: TaskId) -> TaskName {
        let _inside = self.0.inside();
        self.0
            .world()
            .tasks
            .get(&task)
            .map(|task| task.name.clone())
            .unwrap_or_default()
    }
}

// SAFETY: a simulated task runs only when the test lets it.
unsafe impl Stopper for SimTasks {
    type Context = SimContext;

    unsafe fn with_stopped(&self, _: &Moves, tasks: &[TaskId], visitor: &dyn Visitor<SimContext>) {
        let (inside, fails) = match self.0.enter("Stopper::with_stopped") {
            Ok(inside) => (inside, false),
            Err(_) => (self.0.inside(), true),
        };
        for (index, id) in tasks.iter().enumerate() {
            self.0.make_noise();
            let world = self.0.world();
            let Some(task) = world.tasks.get(id) else {
                continue;
            };
            if let Some(reason) = fails.then_some(Reason::Running).or(task.unstoppable) {
                drop(world);
                inside.outside(|| visitor.missed(index, reason));
                continue;
            }
            let context = world.stop(task);
            drop(world);
            let state = inside.outside(|| visitor.visit(index, &context));
            if let (Some(state), Some(task)) = (state, self.0.world().tasks.get_mut(id)) {
                task.state = state;
            }
        }
    }
}

// SAFETY: tasks look only while the test has them make a step, and `withdraw` takes the check away.
unsafe impl SelfSwitch for SimTasks {
    fn moment(&self) -> Moment {
        Moment::Entry
    }

    unsafe fn lend(&self, _: &Moves, check: &dyn EntryCheck) {
        let _inside = self.0.inside();
        // SAFETY: the caller keeps it until `withdraw`, where it is given up; the simulated handler
        // has always ended by then.
        let check = unsafe { Lent::new(check) };
        self.0.world().lent = Some(check);
    }

    fn withdraw(&self) {
        let _inside = self.0.inside();
        self.0.world().lent = None;
    }
}
