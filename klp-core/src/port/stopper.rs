//! Stopping tasks, and looking at their stacks.

use super::stages::Moves;
use super::task_set::{TaskId, TaskState};
use core::fmt;

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

/// What is done with a stopped task. May run on the stopped task itself, in a signal handler: no
/// lock, no allocation, no panic; several tasks may be visited at once.
pub trait Visitor<C: ?Sized>: Sync {
    /// Looks at `tasks[index]`, which is stopped as `context` shows, and says which state to put it
    /// into; `None`: leave it.
    fn visit(&self, index: usize, context: &C) -> Option<TaskState>;

    /// `tasks[index]` could not be stopped.
    fn missed(&self, index: usize, reason: Reason);

    /// Whether the whole stack is wanted, for somebody to read. A host that can look at sleeping
    /// tasks without waking them may see less that way.
    fn wants_all(&self) -> bool {
        false
    }
}

/// Stops tasks while their stacks are looked at.
///
/// # Safety
///
/// A task does not run between the beginning of its [`Visitor::visit`] and the moment its new state
/// is in force.
///
/// # For OS porters
///
/// [`TaskSet`](super::TaskSet) shows a toy, and its conformance suite tests both.
pub unsafe trait Stopper: Sync {
    /// A stopped task, as the unwinder takes it.
    type Context: ?Sized;

    /// Stops each of `tasks` (sorted), lets `visitor` look at it, and puts it into the state that
    /// the visitor says. A task that is gone is passed over. Returns when the last visit has ended.
    ///
    /// # Safety
    ///
    /// `visitor` says a state for a task only if the task may run that version, wherever it is.
    unsafe fn with_stopped(
        &self,
        moves: &Moves,
        tasks: &[TaskId],
        visitor: &dyn Visitor<Self::Context>,
    );
}
