//! Threads and suspended [contexts](super::contexts) as tasks: the port [`TaskSet`].
//!
//! Each thread has a record that holds its state. A thread that is seen for the first time gets the
//! state that the registry has for newborn threads:
//!
//! ```text
//!   init ───────────────► start ──────────────────► finish
//!   newborn = initial     every thread is known     newborn = idle
//!   (sites get routed)    newborn = target
//! ```
//!
//! Why a newborn thread may take the target: `start` lists all threads when every affected site
//! leads to the handler already, and makes a record for each. A thread without a record after that
//! was born later, so all its calls of affected functions go through the handler, and the first of
//! them makes its record.

use super::arch;
use super::context::Interrupted;
use super::contexts;
use super::entry::{self, Loan};
use super::error::Error;
use super::lock::Mutex;
use super::records::{self, Record, registry};
use super::scan::{self, Threads};
use super::space::Space;
use super::stop::{self, FromOutside, Look, Missed, Records, why_missed};
use super::sys::thread_exists;
use super::ucontext;
use super::unwind::Stopped;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use klp_core::config::KICK_INTERVAL;
use klp_core::port::{
    EntryCheck, InTurn, Moment, Moves, Progress, Reason, SelfSwitch, Stopper, TaskId, TaskName,
    TaskSet, TaskState, Visitor,
};
use std::time::Instant;

/// How long stragglers are left in peace, as Linux does: its 15 attempts come once a second.
const KICK_PAUSE: Duration = Duration::from_secs(KICK_INTERVAL as u64);

/// The threads of this process.
pub struct Tasks {
    space: Arc<Space>,
    inner: Mutex<Inner>,
    ways: WayCounts,
}

#[derive(Default)]
struct Inner {
    /// Whether every thread is known that existed when the sites were routed.
    complete: bool,
    /// Whether all known threads were there a moment ago.
    fresh: bool,
    /// The state that threads move to, once `start` has said.
    target: Option<TaskState>,
    listing: Vec<TaskId>,
    records: Records,
    /// When the stragglers are kicked next.
    next_kick: Option<Instant>,
    /// What threads look at that switch themselves; kept until nobody can look any more.
    loan: Option<Box<[Loan; 1]>>,
}

/// How threads came to be in the target state, counted since the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ways {
    /// Switched while blocked in a system call.
    pub in_system_call: u64,
    /// Switched while running.
    pub running: u64,
    /// Switched by themselves, in a call of an affected function.
    pub entering: u64,
    /// Contexts that were switched while they were suspended.
    pub suspended: u64,
    /// Threads seen for the first time at a call that was being redirected, or at a stop signal.
    pub joined: u64,
}

#[derive(Default)]
struct WayCounts {
    in_system_call: AtomicU64,
    running: AtomicU64,
    entering: Arc<AtomicU64>,
    suspended: AtomicU64,
}

impl Tasks {
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self {
            space,
            inner: Mutex::default(),
            ways: WayCounts::default(),
        }
    }

    /// How many threads were switched, and by which way.
    pub fn ways(&self) -> Ways {
        Ways {
            in_system_call: self.ways.in_system_call.load(Ordering::Relaxed),
            running: self.ways.running.load(Ordering::Relaxed),
            entering: self.ways.entering.load(Ordering::Relaxed),
            suspended: self.ways.suspended.load(Ordering::Relaxed),
            joined: registry().joined,
        }
    }

    /// Makes a record for each thread that exists now.
    fn scan(inner: &mut Inner) -> Result<(), Error> {
        stop::all_threads(&mut inner.listing, &mut inner.records)?;
        let listed = |record: &Record| {
            inner
                .listing
                .binary_search(&TaskId(record.tid().into()))
                .is_ok()
        };
        registry().retire(|record| !listed(record) && !thread_exists(record.tid()));
        inner.fresh = true;
        Ok(())
    }

    /// Completes the list of threads if that was not possible before.
    fn catch_up(inner: &mut Inner) -> Result<(), Error> {
        if !inner.complete && inner.target.is_some() {
            Self::scan(inner)?;
            inner.complete = true;
        }
        if let (true, Some(target)) = (inner.complete, inner.target) {
            registry().newborn = target;
        }
        Ok(())
    }
}

/// Lets the engine's visitor look at threads.
struct Visit<'a> {
    visitor: &'a dyn Visitor<Stopped>,
    ways: &'a WayCounts,
}

impl Visit<'_> {
    /// Has the visitor look at a thread that sleeps; `false`: it has to be stopped.
    fn look_at_sleeper(&self, index: usize, record: &'static Record, threads: &Threads) -> bool {
        // ORDER(probe): the thread sleeps after the probe has begun, and is looked at as long as it
        // does. Whatever it does when it wakes up, it asks for its state before it gets into an
        // affected function, and then either the probe is over or the state is set.
        let Some(probe) = record.probe() else {
            return false;
        };
        let Some(sleeper) = record.sleeper(threads) else {
            return false;
        };
        if !probe.is_plain() {
            return false;
        }
        let stopped = sleeper.stopped();
        let state = self.visitor.visit(index, &stopped);
        if !sleeper.confirms(&stopped) {
            return false;
        }
        let Some(state) = state else {
            // What was taken for a return address may be none, and what could not be read from here
            // may be readable there.
            return if self.visitor.wants_all() {
                !stopped.was_incomplete()
            } else {
                !stopped.was_inexact() || record.stays_at() == sleeper.sp()
            };
        };
        let moved = probe.commit(state);
        if moved {
            record.try_above(u64::MAX);
            self.ways.in_system_call.fetch_add(1, Ordering::Relaxed);
        }
        moved
    }
}

impl Look for Visit<'_> {
    fn look_from_outside(
        &self,
        index: usize,
        record: &'static Record,
        threads: &Threads,
    ) -> FromOutside {
        FromOutside::or_stop(self.look_at_sleeper(index, record, threads))
    }

    fn look(&self, index: usize, thread: &mut Interrupted<'_>, record: &Record) -> bool {
        if record.is_between() {
            return false;
        }
        if let Some(state) = self.visitor.visit(index, &thread.regs().into()) {
            record.set_state(state);
            record.try_above(u64::MAX);
            let way = if thread.in_system_call() {
                &self.ways.in_system_call
            } else {
                &self.ways.running
            };
            way.fetch_add(1, Ordering::Relaxed);
        } else if thread.in_system_call() {
            record.stay_at(arch::sp(&thread.regs()));
        }
        true
    }
}

// SAFETY:
// * No task is missed: `start` (or `pending`, if it was not possible before) makes a record for
//   every thread that exists, and newborn threads take the target only after that; see the top of
//   this file.
// * A task born in a transition starts in the initial state while the list is not complete, and in
//   the target state after that, which fits any stack: its calls of affected functions all went
//   through the handler.
// * What a context is in the middle of is known while it is suspended, and it is one of `pending`
//   then; while a thread runs on it, the thread is. Contexts that are not registered keep a
//   transition from its beginning, or, if they are made during one, from its end.
// * `current_state` makes a record, under the lock under which `pending` and `close` read them.
unsafe impl TaskSet for Tasks {
    type Error = Error;

    fn current_state(&self) -> TaskState {
        records::current().own_state()
    }

    fn init(&self, initial: TaskState, _: InTurn) -> Result<(), Error> {
        check_contexts()?;
        if !stop::is_in_place() {
            return Err(Error::SignalTaken {
                signal: stop::signal(),
            });
        }
        let mut inner = self.inner.lock();
        inner.complete = false;
        inner.fresh = false;
        inner.target = None;
        set_all(initial);
        Ok(())
    }

    fn start(&self, target: TaskState, _: InTurn) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        let before = inner.target.replace(target);
        inner.next_kick = Instant::now().checked_add(KICK_PAUSE);
        registry().records().for_each(|record| record.stay_at(0));
        match Self::catch_up(&mut inner) {
            // `pending` tries again.
            Ok(()) | Err(Error::Churn) => Ok(()),
            Err(error) => {
                inner.target = before;
                Err(error)
            }
        }
    }

    fn pending(&self, moves: &Moves, each: &mut dyn FnMut(TaskId)) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        Self::catch_up(&mut inner)?;
        let fresh = core::mem::take(&mut inner.fresh);
        let listing = &mut inner.listing;
        let is_pending = |record: &Record| record.state() != moves.target();
        {
            let mut registry = registry();
            // Who has ended since is found to be gone when it is to be stopped.
            if !fresh {
                registry.retire(|record| is_pending(record) && !thread_exists(record.tid()));
            }
            contexts::retire();
        }
        list_tasks(listing, moves.target())?;
        if check_contexts().is_err() {
            listing.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
            listing.push(contexts::UNREGISTERED);
        }
        listing.sort_unstable();
        listing.iter().copied().for_each(each);
        Ok(())
    }

    fn close(&self, moves: &Moves) -> Progress {
        let mut inner = self.inner.lock();
        if Self::catch_up(&mut inner).is_err() {
            return Progress::Waiting;
        }
        let mut registry = registry();
        registry.retire(|record| record.state() != moves.target() && !thread_exists(record.tid()));
        contexts::retire();
        // Contexts first; see `contexts.rs`.
        let done = contexts::all_are_in(moves.target())
            && registry
                .records()
                .all(|record| record.state() == moves.target());
        // Whoever makes a context says so before, in the state that it is in then.
        if done && ucontext::unregistered().is_none() {
            Progress::Done
        } else {
            Progress::Waiting
        }
    }

    unsafe fn force(&self, moves: &Moves) {
        let mut inner = self.inner.lock();
        inner.complete = true;
        inner.target = Some(moves.target());
        set_all(moves.target());
    }

    fn kick(&self, task: TaskId) {
        stop::interrupt(task);
    }

    /// By the clock: a process is polled much more often than once a second.
    fn kick_is_due(&self, _: u32) -> bool {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        let is_due = inner.next_kick.is_some_and(|due| now >= due);
        if is_due {
            inner.next_kick = now.checked_add(KICK_PAUSE);
            registry().records().for_each(|record| record.stay_at(0));
        }
        is_due
    }

    fn finish(&self, _: InTurn) {
        let mut inner = self.inner.lock();
        inner.target = None;
        inner.loan = None;
        set_all(TaskState::Idle);
    }

    fn exists(&self, task: TaskId) -> bool {
        match u32::try_from(task.0) {
            Ok(tid) => thread_exists(tid),
            Err(_) => contexts::exists(task),
        }
    }

    fn name(&self, task: TaskId) -> TaskName {
        if task == contexts::UNREGISTERED {
            let name = ucontext::unregistered().map_or("", |why| why.name());
            return TaskName::try_from(name).unwrap_or_default();
        }
        contexts::name(task).unwrap_or_else(|| scan::name(task))
    }
}

// SAFETY: a visited thread sets its own state, in the signal handler in which it was visited; a
// visited context cannot be entered.
unsafe impl Stopper for Tasks {
    type Context = Stopped;

    unsafe fn with_stopped(&self, _: &Moves, tasks: &[TaskId], visitor: &dyn Visitor<Stopped>) {
        // Threads may stand in objects that came since the last time. Without memory for their
        // tables, they wait.
        let _ = self.space.refresh();
        let mut inner = self.inner.lock();
        if ucontext::unregistered().is_some() {
            // Whoever moved now could go on in the midst of something that another one has begun in
            // the other state.
            (0..tasks.len()).for_each(|index| visitor.missed(index, Reason::Running));
            return;
        }
        let _round = self.space.stacks.round();
        let moved = contexts::visit(tasks, visitor);
        self.ways.suspended.fetch_add(moved, Ordering::Relaxed);
        let records = &mut inner.records;
        let Ok(round) = stop::stop(
            tasks,
            &Visit {
                visitor,
                ways: &self.ways,
            },
            records,
        ) else {
            (0..tasks.len()).for_each(|index| visitor.missed(index, Reason::Running));
            return;
        };
        for (index, (&task, record)) in tasks.iter().zip(records).enumerate() {
            let Some(record) = record else { continue };
            if round.reached(record) {
                continue;
            }
            match why_missed(task, Some(record)) {
                Missed::Gone => drop(registry().retire(|each| core::ptr::eq(each, *record))),
                Missed::Blocks => visitor.missed(index, Reason::Blocked),
                Missed::Running => visitor.missed(index, Reason::Running),
            }
        }
    }
}

// SAFETY: threads look in runs of the handler only, by `Lending`.
unsafe impl SelfSwitch for Tasks {
    fn moment(&self) -> Moment {
        Moment::Entry
    }

    unsafe fn lend(&self, moves: &Moves, check: &dyn EntryCheck) {
        let mut inner = self.inner.lock();
        let (space, switched) = (Arc::clone(&self.space), Arc::clone(&self.ways.entering));
        // SAFETY: the caller's promise. A loan before this one was withdrawn, and the tracer has
        // synchronised since.
        inner.loan = unsafe { entry::lend(check, moves.target(), space, switched) };
    }

    fn withdraw(&self) {
        entry::withdraw();
    }
}

/// Whether all contexts are registered, as far as can be said.
///
/// # Errors
///
/// [`Error::Contexts`].
pub(crate) fn check_contexts() -> Result<(), Error> {
    ucontext::look_at_objects();
    ucontext::unregistered().map_or(Ok(()), |why| Err(Error::Contexts(why)))
}

/// Lists the threads and suspended contexts that are not in `target`.
fn list_tasks(listing: &mut Vec<TaskId>, target: TaskState) -> Result<(), Error> {
    loop {
        listing.clear();
        let known = {
            let registry = registry();
            registry.records().count() + contexts::pending(target).count()
        };
        // Not with the registry locked: the allocator's lock may be held by a thread that waits for
        // the registry.
        listing
            .try_reserve(known + 16)
            .map_err(|_| Error::OutOfMemory)?;
        let registry = registry();
        let threads = registry.records().filter(|record| record.state() != target);
        let fit = threads
            .map(|record| TaskId(record.tid().into()))
            .chain(contexts::pending(target));
        let room = listing.capacity();
        listing.extend(fit.take(room));
        if listing.len() < room {
            return Ok(());
        }
    }
}

/// Puts every thread and every context into `state`, also those that nobody has seen yet.
fn set_all(state: TaskState) {
    let mut registry = registry();
    registry.newborn = state;
    contexts::set_all(state);
    registry.records().for_each(|record| record.set_own(state));
}
