//! The tasks of the host, and which version of the patched functions each of them runs.

use super::error::PortError;
use super::stages::{InTurn, Moves};
use crate::config::KICK_INTERVAL;
use crate::config::TASK_NAME_LEN;

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

/// How far the tasks have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// Every task is in the target state, also those not born yet.
    Done,
    /// Some are not.
    Waiting,
}

/// The tasks of the host: their states, and lists of them. How they are stopped and looked at is
/// [`Stopper`](super::Stopper)'s.
///
/// A transition goes through [`Stated`](super::Stated), [`Moves`] and [`Closed`](super::Closed),
/// and these types call what changes states: a porter need not ask what came before. The sites are
/// routed to the handler between [`init`](TaskSet::init) and [`start`](TaskSet::start). All but
/// [`current_state`](TaskSet::current_state) are called with the engine's lock held, never at the
/// same time.
///
/// # Safety
///
/// * No task is missed: one that may have entered an affected function before the sites were routed
///   is reported by [`pending`](TaskSet::pending) until it is in the target state or gone.
/// * A task born during a transition starts in its parent's state, or in any state that fits what
///   is on its stack.
/// * A task whose [`current_state`](TaskSet::current_state) a handler has read in this transition
///   is known to `pending` and `close`.
///
/// # For OS porters
///
/// `klp_core::conformance::task_set` (feature `conformance`) is the test to call.
///
/// A system of one task, which runs the engine itself. It is stopped whenever the engine looks, and
/// moves if no affected function is on its stack:
///
/// ```
/// use core::sync::atomic::{AtomicI8, Ordering};
/// use klp_core::port::{
///     InTurn, Moves, PortError, PortErrorKind, Progress, Stated, Stopper, TaskId, TaskName,
///     TaskSet, TaskState, Visitor,
/// };
///
/// struct Alone(AtomicI8);
///
/// #[derive(Debug)]
/// enum Never {}
/// # impl core::fmt::Display for Never {
/// #     fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result { match *self {} }
/// # }
/// # impl PortError for Never {
/// #     fn kind(&self) -> PortErrorKind { match *self {} }
/// # }
///
/// impl Alone {
///     fn set(&self, state: TaskState) {
///         self.0.store(state as i8, Ordering::Relaxed);
///     }
/// }
///
/// // SAFETY: the only task is always known, and nobody is born.
/// unsafe impl TaskSet for Alone {
///     type Error = Never;
///     fn current_state(&self) -> TaskState {
///         TaskState::from_i8(self.0.load(Ordering::Relaxed)).unwrap_or(TaskState::Idle)
///     }
///     fn init(&self, initial: TaskState, _: InTurn) -> Result<(), Never> {
///         self.set(initial);
///         Ok(())
///     }
///     fn start(&self, _: TaskState, _: InTurn) -> Result<(), Never> {
///         Ok(())
///     }
///     fn pending(&self, moves: &Moves, each: &mut dyn FnMut(TaskId)) -> Result<(), Never> {
///         if self.current_state() != moves.target() {
///             each(TaskId(1));
///         }
///         Ok(())
///     }
///     fn close(&self, moves: &Moves) -> Progress {
///         if self.current_state() == moves.target() { Progress::Done } else { Progress::Waiting }
///     }
///     unsafe fn force(&self, moves: &Moves) {
///         self.set(moves.target());
///     }
///     fn kick(&self, _: TaskId) {}
///     fn finish(&self, _: InTurn) {
///         self.set(TaskState::Idle);
///     }
///     fn exists(&self, task: TaskId) -> bool {
///         task == TaskId(1)
///     }
///     fn name(&self, _: TaskId) -> TaskName {
///         TaskName::try_from("alone").unwrap_or_default()
///     }
/// }
///
/// // SAFETY: the task is in here, so it does not run anything else meanwhile.
/// unsafe impl Stopper for Alone {
///     type Context = ();
///     unsafe fn with_stopped(&self, _: &Moves, tasks: &[TaskId], visitor: &dyn Visitor<()>) {
///         for index in (0..tasks.len()).filter(|index| tasks[*index] == TaskId(1)) {
///             if let Some(state) = visitor.visit(index, &()) {
///                 self.set(state);
///             }
///         }
///     }
/// }
///
/// let tasks = Alone(AtomicI8::new(-1));
/// // SAFETY: it is the only transition.
/// let Ok(stated) = (unsafe { Stated::init(&tasks, TaskState::Patched) });
/// assert_eq!(tasks.current_state(), TaskState::Unpatched);
/// // SAFETY: there is no handler.
/// unsafe { stated.cancel(&tasks) };
/// assert_eq!(tasks.current_state(), TaskState::Idle);
/// ```
pub unsafe trait TaskSet: Sync {
    /// What can go wrong.
    type Error: PortError;

    /// The state of the task that calls. The handler's only question: no lock, no allocation, no
    /// panic.
    fn current_state(&self) -> TaskState;

    /// Puts every task into `initial`, from which the transition starts. Sites are not routed yet.
    ///
    /// # Errors
    ///
    /// Every task is idle then.
    fn init(&self, initial: TaskState, turn: InTurn) -> Result<(), Self::Error>;

    /// Starts (or, after a reversal, restarts) to move tasks to `target`. Every affected site leads
    /// to the handler by now: from here on a task that is born, or seen for the first time, may
    /// take `target`.
    ///
    /// # Errors
    ///
    /// The transition is then cancelled with [`finish`](TaskSet::finish); on a restart it keeps its
    /// old target.
    fn start(&self, target: TaskState, turn: InTurn) -> Result<(), Self::Error>;

    /// Reports every task that is not in the target state, in ascending order.
    ///
    /// # Errors
    ///
    /// If the tasks cannot be listed now; the engine asks again at its next poll.
    fn pending(&self, moves: &Moves, each: &mut dyn FnMut(TaskId)) -> Result<(), Self::Error>;

    /// Says whether every task is in the target state. After [`Progress::Done`] this stays true
    /// until [`finish`](TaskSet::finish), also for tasks that are being born.
    fn close(&self, moves: &Moves) -> Progress;

    /// Puts every task into the target state, whatever it is in the middle of (kernel:
    /// `klp_force_transition`).
    ///
    /// # Safety
    ///
    /// As for [`Engine::force`](crate::Engine::force).
    unsafe fn force(&self, moves: &Moves);

    /// Makes `task` leave an interruptible sleep if it is in one, as a signal that has no other
    /// effect would.
    fn kick(&self, task: TaskId);

    /// Whether the engine is to kick the stragglers now, by itself, after so many attempts to
    /// complete the transition. As it stands, as often as Linux does: every [`KICK_INTERVAL`]
    /// attempts after the first, of which it makes one a second. A host that polls at another pace
    /// asks its clock.
    fn kick_is_due(&self, attempts: u32) -> bool {
        attempts > KICK_INTERVAL && attempts % KICK_INTERVAL == 1
    }

    /// Puts every task into [`TaskState::Idle`]. No handler reads states any more.
    fn finish(&self, turn: InTurn);

    /// Whether the task is there. It is, unless the host knows that it is gone.
    fn exists(&self, task: TaskId) -> bool;

    /// The task's name; empty if it has none, is gone, or the name cannot be read.
    fn name(&self, task: TaskId) -> TaskName;
}
