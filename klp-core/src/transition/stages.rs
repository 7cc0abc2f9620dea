//! The stages of a transition, as types: only what is `Prepared` can be cancelled, only what is
//! `Running` reversed, and only when it is `Switched` do tasks come to rest.

use super::lent::Lent;
use super::stack_check::{Affected, AffectedFunc};
use super::straggler::{Blocker, Look, Looker, hindrance};
use super::switch::{Outcome, Slot, Switcher};
#[cfg(feature = "sim")]
use crate::addr::TextRange;
use crate::error::Error;
use crate::event::Obstacle;
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::ops::{Synchronized, Writer};
use crate::port::{
    Closed, Moves, Platform, PortError, Stated, Stopper, SymbolResolver, TaskId, TaskSet, TaskState,
};
use alloc::vec::Vec;
use core::fmt;

/// The error of a platform's tasks.
pub(crate) type TasksError<P> = <<P as Platform>::Tasks as TaskSet>::Error;

/// What goes with a transition until everybody has moved.
#[derive(Debug)]
struct Course {
    affected: Lent,
    /// Attempts since the transition started or turned round.
    attempts: u32,
    signaled: bool,
    /// It went one way only, and nobody was forced.
    straight: bool,
    tasks: Vec<TaskId>,
    slots: Vec<Slot>,
}

/// Every task is in the state that the transition starts from; none has moved.
#[derive(Debug)]
#[must_use]
pub(crate) struct Prepared {
    stated: Stated,
    course: Course,
}

impl Prepared {
    /// Puts every task into the state opposite to `target` (kernel: `klp_init_transition`).
    ///
    /// # Errors
    ///
    /// The tasks' own, or [`AttemptError::OutOfMemory`]; every task is idle then.
    ///
    /// # Safety
    ///
    /// There is no other stage of these tasks.
    pub(crate) unsafe fn init<P: Platform>(
        host: &P,
        target: TaskState,
        affected: Affected,
    ) -> Result<Self, AttemptError<TasksError<P>>> {
        let affected = Lent::new(affected)?;
        // SAFETY: the caller's promise.
        let stated = unsafe { Stated::init(host.tasks(), target) }.map_err(AttemptError::Tasks)?;
        let course = Course {
            affected,
            attempts: 0,
            signaled: false,
            straight: true,
            tasks: Vec::new(),
            slots: Vec::new(),
        };
        Ok(Self { stated, course })
    }

    /// Gives up before any task has moved (kernel: `klp_cancel_transition`).
    ///
    /// # Safety
    ///
    /// No func is in transition any more, and `proof` was made when none was.
    pub(crate) unsafe fn cancel<P: Platform>(self, host: &P, proof: &Synchronized<'_>) {
        let _ = proof;
        // SAFETY: the caller's promise.
        unsafe { self.stated.cancel(host.tasks()) };
    }

    /// Lets tasks move (kernel: `klp_start_transition`).
    ///
    /// # Errors
    ///
    /// The tasks' own; the stage comes back.
    ///
    /// # Safety
    ///
    /// Every affected site is routed to the handler.
    pub(crate) unsafe fn start<P: Platform>(
        self,
        host: &P,
    ) -> Result<Running, (Self, TasksError<P>)> {
        let Self { stated, mut course } = self;
        // SAFETY: the caller's promise.
        match unsafe { stated.start(host.tasks()) } {
            Ok(moves) => {
                course.affected.lend(host.self_switch(), &moves);
                Ok(Running { moves, course })
            }
            Err((stated, error)) => Err((Self { stated, course }, error)),
        }
    }
}

/// Tasks move.
#[derive(Debug)]
#[must_use]
pub(crate) struct Running {
    moves: Moves,
    course: Course,
}

/// What [`Running::try_complete`] achieved.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// Every task has moved.
    Switched(Switched),
    /// `pending` tasks have not; or new ones are being born right now, if it is 0.
    Waiting {
        /// The stage.
        running: Running,
        /// How many have not moved.
        pending: usize,
    },
    /// The attempt could not be made, for want of memory or because the tasks could not be listed.
    /// Nothing is lost; try again.
    Failed(Running),
}

/// Why an attempt could not be made.
#[derive(Debug)]
pub(crate) enum AttemptError<E> {
    /// Memory ran out.
    OutOfMemory,
    /// The tasks could not be listed.
    Tasks(E),
}

impl<E: PortError> AttemptError<E> {
    /// The engine's error for it, met while `doing` something for `patch`.
    #[must_use]
    pub(crate) fn into_error(self, doing: &'static str, patch: &str) -> Error {
        match self {
            Self::OutOfMemory => Error::OutOfMemory,
            Self::Tasks(error) => Error::port(doing, patch, &error),
        }
    }
}

impl<E> From<OutOfMemory> for AttemptError<E> {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl Running {
    /// Where tasks move to.
    #[must_use]
    pub(crate) fn target(&self) -> TaskState {
        self.moves.target()
    }

    /// All code that keeps tasks from moving.
    #[cfg(feature = "sim")]
    pub(crate) fn affected(&self) -> impl Iterator<Item = TextRange> + '_ {
        self.course.affected.ranges()
    }

    /// Lists the tasks that have not moved.
    ///
    /// # Errors
    ///
    /// If they cannot be listed.
    pub(crate) fn pending<P: Platform>(
        &self,
        host: &P,
        each: &mut dyn FnMut(TaskId),
    ) -> Result<(), TasksError<P>> {
        host.tasks().pending(&self.moves, each)
    }

    /// Turns round: tasks that have moved move back (kernel: `klp_reverse_transition`).
    ///
    /// # Errors
    ///
    /// The tasks' own; the transition goes on as before then.
    pub(crate) fn reverse<P: Platform>(
        mut self,
        host: &P,
        writer: &mut Writer,
    ) -> Result<Self, (Self, TasksError<P>)> {
        // A task that is switching itself to the old target right now must not do so after the
        // turn.
        let Self { moves, course } = &mut self;
        course.affected.withdraw(writer, host.self_switch());
        course.affected.release(&writer.synchronize(host.tracer()));
        // SAFETY: what was lent is withdrawn, and the runs that could have seen it have ended.
        let turned = unsafe { moves.turn(host.tasks()) };
        if turned.is_ok() {
            course.attempts = 0;
            course.signaled = false;
            course.straight = false;
        }
        course.affected.lend(host.self_switch(), moves);
        match turned {
            Ok(()) => Ok(self),
            Err(error) => Err((self, error)),
        }
    }

    /// Takes `affected` for the code of both sides from here on: more of it than before, in an
    /// object that has just come.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; everything is as before.
    pub(crate) fn extend<P: Platform>(
        &mut self,
        host: &P,
        writer: &mut Writer,
        affected: Affected,
    ) -> Result<(), OutOfMemory> {
        let affected = Lent::new(affected)?;
        let course = &mut self.course;
        course.affected.withdraw(writer, host.self_switch());
        course.affected.release(&writer.synchronize(host.tracer()));
        course.affected = affected;
        course.affected.lend(host.self_switch(), &self.moves);
        Ok(())
    }

    /// Tries to switch each task that has not moved (kernel: `klp_try_complete_transition`).
    /// `waiting` hears of those that could not be switched.
    pub(crate) fn try_complete<P: Platform>(
        mut self,
        host: &P,
        writer: &mut Writer,
        waiting: &mut dyn FnMut(TaskId, Straggler),
    ) -> Attempt {
        self.course.attempts = self.course.attempts.saturating_add(1);
        let Self { moves, mut course } = self;
        match course.switch_tasks(host, &moves, waiting) {
            Err(_) => Attempt::Failed(Self { moves, course }),
            Ok(0) => match moves.close(host.tasks()) {
                Ok(closed) => Attempt::Switched(course.switched(host, writer, closed)),
                Err(moves) => Attempt::Waiting {
                    running: Self { moves, course },
                    pending: 0,
                },
            },
            Ok(pending) => Attempt::Waiting {
                running: Self { moves, course },
                pending,
            },
        }
    }

    /// Whether the stragglers are to be kicked now.
    #[must_use]
    pub(crate) fn kick_is_due<P: Platform>(&self, host: &P) -> bool {
        host.tasks().kick_is_due(self.course.attempts)
    }

    /// Makes stragglers leave interruptible sleeps (kernel: `klp_send_signals`). Says whether it
    /// was the first time.
    ///
    /// # Errors
    ///
    /// If the tasks cannot be listed.
    pub(crate) fn kick<P: Platform>(
        &mut self,
        host: &P,
    ) -> Result<bool, AttemptError<TasksError<P>>> {
        self.course.list(host, &self.moves)?;
        for task in &self.course.tasks {
            host.tasks().kick(*task);
        }
        Ok(!core::mem::replace(&mut self.course.signaled, true))
    }

    /// Switches every task without a check (kernel: `klp_force_transition`).
    ///
    /// # Safety
    ///
    /// As for [`Engine::force`](crate::Engine::force).
    pub(crate) unsafe fn force<P: Platform>(mut self, host: &P, writer: &mut Writer) -> Switched {
        self.course.straight = false;
        // SAFETY: the caller's promise.
        let closed = unsafe { self.moves.force(host.tasks()) };
        self.course.switched(host, writer, closed)
    }

    /// Names each task that has not moved, and why. Changes nothing.
    ///
    /// # Errors
    ///
    /// If the tasks cannot be listed, or memory runs out.
    pub(crate) fn blockers<P: Platform>(
        &mut self,
        host: &P,
        name_of: &mut dyn FnMut(AffectedFunc) -> Result<(Name, Name), OutOfMemory>,
    ) -> Result<Vec<Blocker>, AttemptError<TasksError<P>>> {
        let Self { moves, course } = self;
        course.list(host, moves)?;
        let tasks = &course.tasks;
        let mut looks = try_vec(tasks.len())?;
        looks.resize_with(tasks.len(), Look::new);
        let looker = Looker {
            unwinder: host.unwinder(),
            affected: &course.affected,
            target: moves.target(),
            looks: &looks,
        };
        // SAFETY: it leaves each as it is.
        unsafe { host.tasks().with_stopped(moves, tasks, &looker) };
        let mut blockers = try_vec(tasks.len())?;
        for (task, look) in tasks.iter().zip(&looks) {
            if look.outcome() == Outcome::NotSeen {
                continue; // It is gone.
            }
            let mut stack = Vec::new();
            for addr in look.stack()? {
                try_push(
                    &mut stack,
                    Name::display(&Described {
                        symbols: host.symbols(),
                        addr,
                    })?,
                )?;
            }
            let hindrance = hindrance(look.outcome(), name_of)?;
            blockers.push(Blocker {
                task: *task,
                name: host.tasks().name(*task),
                hindrance,
                stack,
            });
        }
        Ok(blockers)
    }
}

/// Why [`Running::try_complete`] did not switch a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Straggler {
    /// It is inside this function.
    InFunction(AffectedFunc),
    /// As it says; never [`Obstacle::InFunction`].
    Other(Obstacle<'static>),
}

impl Course {
    /// Every task has moved.
    fn switched<P: Platform>(mut self, host: &P, writer: &mut Writer, closed: Closed) -> Switched {
        self.affected.withdraw(writer, host.self_switch());
        Switched {
            closed,
            affected: self.affected,
            straight: self.straight,
        }
    }

    /// Lists the tasks that have not moved.
    fn list<P: Platform>(
        &mut self,
        host: &P,
        moves: &Moves,
    ) -> Result<(), AttemptError<TasksError<P>>> {
        self.tasks.clear();
        let mut full = Ok(());
        host.tasks()
            .pending(moves, &mut |task| {
                if full.is_ok() {
                    full = try_push(&mut self.tasks, task);
                }
            })
            .map_err(AttemptError::Tasks)?;
        Ok(full?)
    }

    /// Says how many tasks are left.
    fn switch_tasks<P: Platform>(
        &mut self,
        host: &P,
        moves: &Moves,
        waiting: &mut dyn FnMut(TaskId, Straggler),
    ) -> Result<usize, AttemptError<TasksError<P>>> {
        self.list(host, moves)?;
        if self.tasks.is_empty() {
            return Ok(0);
        }
        self.slots.clear();
        self.slots
            .try_reserve(self.tasks.len())
            .map_err(OutOfMemory::from)?;
        self.slots.resize_with(self.tasks.len(), Slot::default);
        let switcher = Switcher {
            unwinder: host.unwinder(),
            affected: &self.affected,
            target: moves.target(),
            slots: &self.slots,
        };
        // SAFETY: it says the target's state only of a task on whose reliable stack is nothing that
        // it must leave first.
        unsafe { host.tasks().with_stopped(moves, &self.tasks, &switcher) };
        let mut left = 0;
        for (task, slot) in self.tasks.iter().zip(&self.slots) {
            let straggler = match slot.get() {
                Outcome::NotSeen | Outcome::Switched => continue,
                Outcome::InFunction(func) => Straggler::InFunction(func),
                Outcome::Unreliable(_) => Straggler::Other(Obstacle::UnreliableStack),
                Outcome::Missed(reason) => Straggler::Other(Obstacle::NotStopped(reason)),
            };
            left += 1;
            waiting(*task, straggler);
        }
        Ok(left)
    }
}

struct Described<'a, S> {
    symbols: &'a S,
    addr: crate::addr::CodeAddr,
}

impl<S: SymbolResolver> fmt::Display for Described<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.symbols.describe(self.addr, f)
    }
}

/// Every task is in the target state, also those not born yet.
#[derive(Debug)]
#[must_use]
pub(crate) struct Switched {
    closed: Closed,
    affected: Lent,
    straight: bool,
}

impl Switched {
    /// Where the tasks are.
    #[must_use]
    pub(crate) fn target(&self) -> TaskState {
        self.closed.target()
    }

    /// Whether every task has moved here from the other state, by its own stack: each was seen on a
    /// reliable stack since the sites were routed to the handler, or was born later.
    #[must_use]
    pub(crate) fn all_were_seen(&self) -> bool {
        self.straight
    }

    /// Puts every task to rest.
    ///
    /// # Safety
    ///
    /// No func is in transition any more, and `proof` was made when none was: handlers ask for no
    /// state.
    pub(crate) unsafe fn finish<P: Platform>(mut self, host: &P, proof: &Synchronized<'_>) {
        // SAFETY: the caller's promise; what was lent was withdrawn before the proof was made.
        unsafe { self.closed.finish(host.tasks()) };
        self.affected.release(proof);
    }
}
