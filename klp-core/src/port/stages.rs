//! The order in which a transition calls [`TaskSet`], as types.
//!
//! ```text
//!              start             close, force           finish
//!   Stated ─────────────► Moves ──────────────► Closed ────────► (idle)
//!     │ cancel             │ ▲
//!     ▼               turn └─┘
//!   (idle)
//! ```

use super::task_set::{Progress, TaskSet, TaskState};

/// Proof that a call comes in its turn: only the stages of a transition make one.
///
/// ```compile_fail,E0423
/// let turn = klp_core::port::InTurn(()); // the field is private
/// ```
#[derive(Debug)]
pub struct InTurn(());

/// Every task is in the state opposite to the target, and none has moved.
#[derive(Debug)]
#[must_use]
pub struct Stated {
    target: TaskState,
}

impl Stated {
    /// Puts every task into the state opposite to `target` (kernel: `klp_init_transition`).
    ///
    /// # Errors
    ///
    /// The tasks' own; every task is idle then.
    ///
    /// # Safety
    ///
    /// No other transition of these tasks is under way: an engine's tasks are the engine's.
    pub unsafe fn init<T: TaskSet>(tasks: &T, target: TaskState) -> Result<Self, T::Error> {
        tasks.init(target.opposite(), InTurn(()))?;
        Ok(Self { target })
    }

    /// Lets tasks move.
    ///
    /// # Errors
    ///
    /// The tasks' own; the stage comes back.
    ///
    /// # Safety
    ///
    /// Every affected site leads to the handler.
    pub unsafe fn start<T: TaskSet>(self, tasks: &T) -> Result<Moves, (Self, T::Error)> {
        match tasks.start(self.target, InTurn(())) {
            Ok(()) => Ok(Moves {
                target: self.target,
            }),
            Err(error) => Err((self, error)),
        }
    }

    /// Gives up.
    ///
    /// # Safety
    ///
    /// No handler asks for states any more.
    pub unsafe fn cancel<T: TaskSet>(self, tasks: &T) {
        tasks.finish(InTurn(()));
    }
}

/// Tasks move to the target state.
#[derive(Debug)]
#[must_use]
pub struct Moves {
    target: TaskState,
}

impl Moves {
    /// The state that tasks move to.
    #[must_use]
    pub fn target(&self) -> TaskState {
        self.target
    }

    /// Turns round: tasks that have moved move back.
    ///
    /// # Errors
    ///
    /// The tasks' own; the target stays.
    ///
    /// # Safety
    ///
    /// No check is lent, and no run of the handler is left from when one was.
    pub unsafe fn turn<T: TaskSet>(&mut self, tasks: &T) -> Result<(), T::Error> {
        tasks.start(self.target.opposite(), InTurn(()))?;
        self.target = self.target.opposite();
        Ok(())
    }

    /// Ends the moving if every task has moved.
    ///
    /// # Errors
    ///
    /// The stage comes back if some have not.
    pub fn close<T: TaskSet>(self, tasks: &T) -> Result<Closed, Self> {
        match tasks.close(&self) {
            Progress::Done => Ok(Closed {
                target: self.target,
            }),
            Progress::Waiting => Err(self),
        }
    }

    /// Moves every task, whatever it is in the middle of.
    ///
    /// # Safety
    ///
    /// As for [`Engine::force`](crate::Engine::force).
    pub unsafe fn force<T: TaskSet>(self, tasks: &T) -> Closed {
        // SAFETY: the caller's promise.
        unsafe { tasks.force(&self) };
        // After that nobody is left to wait for.
        let _ = tasks.close(&self);
        Closed {
            target: self.target,
        }
    }
}

/// Every task is in the target state, also those not born yet.
///
/// So it is for the host to say, and nobody else:
///
/// ```compile_fail,E0133
/// # use klp_core::port::{Moves, TaskSet};
/// # fn example(moves: Moves, tasks: &impl TaskSet) {
/// let closed = moves.force(tasks); // who says that tasks may run parts of both versions?
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Closed {
    target: TaskState,
}

impl Closed {
    /// The state that tasks are in.
    #[must_use]
    pub fn target(&self) -> TaskState {
        self.target
    }

    /// Puts every task to rest.
    ///
    /// # Safety
    ///
    /// No handler asks for states any more, and every task runs the version that is in force for
    /// those that are idle. What was lent is withdrawn, and no run of the handler is left from
    /// before that.
    pub unsafe fn finish<T: TaskSet>(self, tasks: &T) {
        tasks.finish(InTurn(()));
    }
}
