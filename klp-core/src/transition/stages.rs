//! The stages of a transition, as types: only what is `Prepared` can be cancelled, only what is `Running` reversed, and only when it is
//! `Switched` do tasks come to rest.

use super::lent::Lent;
use super::stack_check::{Affected, AffectedFunc};
use super::straggler::{Blocker, Look, Looker, hindrance};
use super::switch::{Outcome, Slot, Switcher};
use crate::config::KICK_INTERVAL;
use crate::error::Error;
use crate::event::Obstacle;
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::ops::{Synchronized, Writer};
use crate::port::{Platform, PortError, Progress, SymbolResolver, TaskId, TaskSet, TaskState};
use alloc::vec::Vec;
use core::fmt;

/// The error of a platform's tasks.
pub(crate) type TasksError<P> = <<P as Platform>::Tasks as TaskSet>::Error;

#[derive(Debug)]
struct Moving {
    target: TaskState,
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
pub(crate) struct Prepared(Moving);

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
        unsafe { host.tasks().init(target.opposite()) }.map_err(AttemptError::Tasks)?;
        Ok(Self(Moving {
            target,
            affected,
            attempts: 0,
            signaled: false,
            straight: true,
            tasks: Vec::new(),
            slots: Vec::new(),
        }))
    }

    /// Gives up before any task has moved (kernel: `klp_cancel_transition`).
    ///
    /// # Safety
    ///
    /// No func is in transition any more. As `proof` is one of now, handlers ask for no state.
    pub(crate) unsafe fn cancel<P: Platform>(self, host: &P, proof: &Synchronized<'_>) {
        let _ = proof;
        // SAFETY: the caller's promise; nobody has moved, and nothing was lent.
        unsafe { host.tasks().finish() };
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
    pub(crate) unsafe fn start<P: Platform>(mut self, host: &P) -> Result<Running, (Self, TasksError<P>)> {
        // SAFETY: the caller's promise; this stage came after `init`.
        match unsafe { host.tasks().start(self.0.target) } {
            Ok(()) => {
                self.0.affected.lend(host.tasks());
                Ok(Running(self.0))
            }
            Err(error) => Err((self, error)),
        }
    }
}

/// Tasks move.
#[derive(Debug)]
#[must_use]
pub(crate) struct Running(Moving);

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
    /// The attempt could not be made, for want of memory or because the tasks could not be listed. Nothing is lost; try again.
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
        self.0.target
    }

    /// Turns round: tasks that have moved move back (kernel: `klp_reverse_transition`).
    ///
    /// # Errors
    ///
    /// The tasks' own; the transition goes on as before then.
    pub(crate) fn reverse<P: Platform>(mut self, host: &P, writer: &mut Writer) -> Result<Self, (Self, TasksError<P>)> {
        // A task that is switching itself to the old target right now must not do so after the turn.
        self.0.affected.withdraw(writer, host.tasks());
        self.0.affected.release(&writer.synchronize(host.tracer()));
        // SAFETY: sites have led to the handler since the transition started; what was lent is withdrawn.
        let turned = unsafe { host.tasks().start(self.0.target.opposite()) };
        if turned.is_ok() {
            self.0.target = self.0.target.opposite();
            self.0.attempts = 0;
            self.0.signaled = false;
            self.0.straight = false;
        }
        self.0.affected.lend(host.tasks());
        match turned {
            Ok(()) => Ok(self),
            Err(error) => Err((self, error)),
        }
    }

    /// Takes `affected` for the code of both sides from here on: more of it than before, in an object that has just come.
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
        self.0.affected.withdraw(writer, host.tasks());
        self.0.affected.release(&writer.synchronize(host.tracer()));
        self.0.affected = affected;
        self.0.affected.lend(host.tasks());
        Ok(())
    }

    /// Tries to switch each task that has not moved (kernel: `klp_try_complete_transition`). `waiting` hears of those
    /// that could not be switched.
    pub(crate) fn try_complete<P: Platform>(
        mut self,
        host: &P,
        writer: &mut Writer,
        waiting: &mut dyn FnMut(TaskId, Straggler),
    ) -> Attempt {
        self.0.attempts = self.0.attempts.saturating_add(1);
        match self.0.switch_tasks(host, waiting) {
            Err(_) => Attempt::Failed(self),
            // SAFETY: it has started, for this target.
            Ok(0) if unsafe { host.tasks().close(self.0.target) } == Progress::Done => {
                Attempt::Switched(self.0.switched(host, writer))
            }
            Ok(pending) => Attempt::Waiting { running: self, pending },
        }
    }

    /// Whether the stragglers are to be kicked now: every [`KICK_INTERVAL`] attempts after the first.
    #[must_use]
    pub(crate) fn kick_is_due(&self) -> bool {
        self.0.attempts > KICK_INTERVAL && self.0.attempts % KICK_INTERVAL == 1
    }

    /// Makes stragglers leave interruptible sleeps (kernel: `klp_send_signals`). Says whether it was the first time.
    ///
    /// # Errors
    ///
    /// If the tasks cannot be listed.
    pub(crate) fn kick<P: Platform>(&mut self, host: &P) -> Result<bool, AttemptError<TasksError<P>>> {
        self.0.list(host)?;
        for task in &self.0.tasks {
            host.tasks().kick(*task);
        }
        Ok(!core::mem::replace(&mut self.0.signaled, true))
    }

    /// Switches every task without a check (kernel: `klp_force_transition`).
    ///
    /// # Safety
    ///
    /// As for [`Engine::force`](crate::Engine::force).
    pub(crate) unsafe fn force<P: Platform>(mut self, host: &P, writer: &mut Writer) -> Switched {
        self.0.straight = false;
        // SAFETY: the caller's promise; the transition has started, for this target.
        unsafe { host.tasks().force(self.0.target) };
        // The host's contract: after `force` nobody is left to wait for.
        // SAFETY: as above.
        let _ = unsafe { host.tasks().close(self.0.target) };
        self.0.switched(host, writer)
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
        self.0.list(host)?;
        let tasks = &self.0.tasks;
        let mut looks = try_vec(tasks.len())?;
        looks.resize_with(tasks.len(), Look::new);
        let looker =
            Looker { unwinder: host.unwinder(), affected: &self.0.affected, target: self.0.target, looks: &looks };
        // SAFETY: it leaves each as it is.
        unsafe { host.tasks().with_stopped(tasks, &looker) };
        let mut blockers = try_vec(tasks.len())?;
        for (task, look) in tasks.iter().zip(&looks) {
            if look.outcome() == Outcome::NotSeen {
                continue; // It is gone.
            }
            let mut stack = Vec::new();
            for addr in look.stack()? {
                try_push(&mut stack, Name::display(&Described { symbols: host.symbols(), addr })?)?;
            }
            let hindrance = hindrance(look.outcome(), name_of)?;
            blockers.push(Blocker { task: *task, name: host.tasks().name(*task), hindrance, stack });
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

impl Moving {
    /// Every task has moved.
    fn switched<P: Platform>(mut self, host: &P, writer: &mut Writer) -> Switched {
        self.affected.withdraw(writer, host.tasks());
        Switched { target: self.target, affected: self.affected, straight: self.straight }
    }

    /// Lists the tasks that have not moved.
    fn list<P: Platform>(&mut self, host: &P) -> Result<(), AttemptError<TasksError<P>>> {
        self.tasks.clear();
        let mut full = Ok(());
        host.tasks()
            .pending(self.target, &mut |task| {
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
        waiting: &mut dyn FnMut(TaskId, Straggler),
    ) -> Result<usize, AttemptError<TasksError<P>>> {
        self.list(host)?;
        if self.tasks.is_empty() {
            return Ok(0);
        }
        self.slots.clear();
        self.slots.try_reserve(self.tasks.len()).map_err(OutOfMemory::from)?;
        self.slots.resize_with(self.tasks.len(), Slot::default);
        let switcher =
            Switcher { unwinder: host.unwinder(), affected: &self.affected, target: self.target, slots: &self.slots };
        // SAFETY: it says the target's state only of a task on whose reliable stack is nothing that it must leave first.
        unsafe { host.tasks().with_stopped(&self.tasks, &switcher) };
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
    target: TaskState,
    affected: Lent,
    straight: bool,
}

impl Switched {
    /// Where the tasks are.
    #[must_use]
    pub(crate) fn target(&self) -> TaskState {
        self.target
    }

    /// Whether every task has moved here from the other state, by its own stack: each was seen on a reliable stack since the sites were
    /// routed to the handler, or was born later.
    #[must_use]
    pub(crate) fn all_were_seen(&self) -> bool {
        self.straight
    }

    /// Puts every task to rest.
    ///
    /// # Safety
    ///
    /// No func is in transition any more. As `proof` is one of now, handlers ask for no state.
    pub(crate) unsafe fn finish<P: Platform>(mut self, host: &P, proof: &Synchronized<'_>) {
        // SAFETY: the caller's promise; every task is in the target's state. What was lent was withdrawn when this stage began, and the
        // proof is from after that.
        unsafe { host.tasks().finish() };
        self.affected.release(proof);
    }
}
