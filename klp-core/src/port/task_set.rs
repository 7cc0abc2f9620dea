//! The tasks of the host, and which version of the patched functions each of them runs.

use super::error::PortError;
use super::unwinder::Frame;
use crate::addr::CodeAddr;
use crate::config::TASK_NAME_LEN;
use core::fmt;

/// Which version a task runs during a transition (kernel: `task->patch_state`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i8)]
pub enum TaskState {
    /// No transition (kernel: `KLP_TRANSITION_IDLE`).
    Idle = -1,
    /// The version without the patch in transition.
    Unpatched = 0,
    /// The version with it.
    Patched = 1,
}

impl TaskState {
    /// The other side of a transition; `Idle` has none and stays.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Idle => Self::Idle,
            Self::Unpatched => Self::Patched,
            Self::Patched => Self::Unpatched,
        }
    }

    /// The state with that number (`state as i8`).
    #[must_use]
    pub const fn from_i8(number: i8) -> Option<Self> {
        match number {
            -1 => Some(Self::Idle),
            0 => Some(Self::Unpatched),
            1 => Some(Self::Patched),
            _ => None,
        }
    }
}

/// A task, by the host's number for it (a thread's id).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TaskId(pub u64);

/// The name of a task (kernel: `comm`).
pub type TaskName = heapless::String<TASK_NAME_LEN>;

/// Why a task could not be visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    /// It runs and could not be stopped in time.
    Running = 1,
    /// It refuses to be stopped: the signal, or whatever stops it, is blocked.
    Blocked = 2,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "is running",
            Self::Blocked => "blocks the signal that would stop it",
        })
    }
}

/// How far the tasks have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Every task is in the target state, also those not born yet.
    Done,
    /// Some are not.
    Waiting,
}

/// What is done with a stopped task. May run on the stopped task itself, in a signal handler: no lock, no allocation, no
/// panic; several tasks may be visited at once.
pub trait Visitor<C: ?Sized>: Sync {
    /// Looks at `tasks[index]`, which is stopped as `context` shows, and says which state to put it into; `None`: leave it.
    fn visit(&self, index: usize, context: &C) -> Option<TaskState>;

    /// `tasks[index]` could not be stopped.
    fn missed(&self, index: usize, reason: Reason);
}

/// What a task may not be in when it switches itself at the entry of an affected function.
pub trait EntryCheck: Sync {
    /// Whether `frame` keeps a task from moving to `target`; `called` is what
    /// [`Unwinder::called`](super::Unwinder::called) says of it, and `None` for the call that led to the entry. May run on any task at
    /// any time: no lock, no allocation, no panic.
    fn keeps(&self, target: TaskState, frame: Frame, called: Option<CodeAddr>) -> bool;
}

/// The tasks of the host.
///
/// A transition is `init` → sites routed to the handler → `start` → (`pending`, `with_stopped`)* → `close` → `finish`. `start`
/// comes again, with the other target, when the transition is reversed; `finish` comes without `start` when it is cancelled.
/// All but [`current_state`](TaskSet::current_state) are called with the engine's lock held, never at the same time.
///
/// # Safety
///
/// * No task is missed: one that may have entered an affected function before the sites were routed is reported by
///   [`pending`](TaskSet::pending) until it is in the target state or gone.
/// * A task born during a transition starts in its parent's state, or in any state that fits what is on its stack.
/// * A task does not run between the beginning of its [`Visitor::visit`] and the moment its new state is in force.
/// * A task whose [`current_state`](TaskSet::current_state) a handler has read in this transition is known to
///   `pending` and `close`.
///
/// # For OS porters
///
/// `klp_core::conformance::task_set` (feature `conformance`) is the test to call.
pub unsafe trait TaskSet: Sync {
    /// A stopped task, as the unwinder takes it.
    type Context: ?Sized;
    /// What can go wrong.
    type Error: PortError;

    /// Whether tasks of this host switch themselves at [entries](TaskSet::lend). Only then the engine works out where they may.
    const SWITCH_AT_ENTRIES: bool = false;

    /// The state of the task that calls. The handler's only question: no lock, no allocation, no panic.
    fn current_state(&self) -> TaskState;

    /// Puts every task into `initial`, from which the transition starts. Sites are not routed yet.
    ///
    /// # Errors
    ///
    /// Every task is idle then.
    ///
    /// # Safety
    ///
    /// No transition is under way.
    unsafe fn init(&self, initial: TaskState) -> Result<(), Self::Error>;

    /// Starts (or, after a reversal, restarts) to move tasks to `target`: from here on a task that is born, or seen for the first
    /// time, may take it.
    ///
    /// # Errors
    ///
    /// The transition is then cancelled with [`finish`](TaskSet::finish); on a restart it keeps its old target.
    ///
    /// # Safety
    ///
    /// [`init`](TaskSet::init) has been called, and every affected site leads to the handler by now. On a restart, nothing is
    /// [lent](TaskSet::lend), and no run of the handler is left from when something was.
    unsafe fn start(&self, target: TaskState) -> Result<(), Self::Error>;

    /// Reports every task that is not in `target`, in ascending order.
    ///
    /// # Errors
    ///
    /// If the tasks cannot be listed now; the engine asks again at its next poll.
    fn pending(&self, target: TaskState, each: &mut dyn FnMut(TaskId)) -> Result<(), Self::Error>;

    /// Stops each of `tasks` (sorted), lets `visitor` look at it, and puts it into the state that the visitor says. A task
    /// that is gone is passed over. Returns when the last visit has ended.
    ///
    /// # Safety
    ///
    /// `visitor` says a state for a task only if the task may run that version, wherever it is.
    unsafe fn with_stopped(&self, tasks: &[TaskId], visitor: &dyn Visitor<Self::Context>);

    /// Lends the tasks `check`: until [`withdraw`](TaskSet::withdraw), a task that calls an affected function may switch itself there,
    /// before the handler chooses, if [`ops::may_switch`](crate::ops::may_switch) says so of the entry, its stack below that call is
    /// reliable, and `check` keeps no frame of it. So threads move that are inside of affected functions whenever they are looked at
    /// from outside.
    ///
    /// A task does this inside a run of the handler. A host that cannot walk stacks there leaves this out. A host that does it says
    /// so by [`SWITCH_AT_ENTRIES`](TaskSet::SWITCH_AT_ENTRIES); one that has other moments at which a task can look at its own
    /// stack (a kernel's scheduler) may use the check there.
    ///
    /// # Safety
    ///
    /// `check` stays until [`withdraw`](TaskSet::withdraw) was called and
    /// [`Tracer::synchronize`](super::Tracer::synchronize) has returned after it. That is true of what was lent before, too.
    unsafe fn lend(&self, check: &dyn EntryCheck) {
        let _ = check;
    }

    /// Ends what [`lend`](TaskSet::lend) began: no task begins to use the check any more.
    fn withdraw(&self) {}

    /// Says whether every task is in `target`. After [`Progress::Done`] this stays true until [`finish`](TaskSet::finish),
    /// also for tasks that are being born.
    ///
    /// # Safety
    ///
    /// The transition has [started](TaskSet::start), for this target.
    unsafe fn close(&self, target: TaskState) -> Progress;

    /// Puts every task into `target`, whatever it is in the middle of (kernel: `klp_force_transition`).
    ///
    /// # Safety
    ///
    /// As for [`close`](TaskSet::close), and as for [`Engine::force`](crate::Engine::force).
    unsafe fn force(&self, target: TaskState);

    /// Makes `task` leave an interruptible sleep if it is in one, as a signal that has no other effect would.
    fn kick(&self, task: TaskId);

    /// Puts every task into [`TaskState::Idle`].
    ///
    /// # Safety
    ///
    /// No handler reads states any more, and every task runs the version that is in force for those that are idle. What was lent was
    /// withdrawn, and [`Tracer::synchronize`](super::Tracer::synchronize) has returned after it.
    unsafe fn finish(&self);

    /// Whether the task is there. It is, unless the host knows that it is gone.
    fn exists(&self, task: TaskId) -> bool;

    /// The task's name; empty if it has none, is gone, or the name cannot be read.
    fn name(&self, task: TaskId) -> TaskName;
}
