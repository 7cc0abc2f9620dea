//! The suite of [`TaskSet`].

use crate::port::{Progress, Reason, TaskId, TaskSet, TaskState, Visitor};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

/// What the suite wants from the porter.
pub struct Bench<'a, T: TaskSet> {
    /// The tasks; no transition is under way, and no engine uses them.
    pub tasks: &'a T,
    /// At least two tasks that live as long as the suite runs, and can be stopped.
    pub some: &'a [TaskId],
    /// Lets a task say its [`TaskSet::current_state`].
    pub state: &'a dyn Fn(TaskId) -> TaskState,
    /// Lets a task give birth to one that lives as long as the suite runs; who it is.
    pub birth: &'a dyn Fn(TaskId) -> TaskId,
    /// A task that has been, and is gone.
    pub gone: TaskId,
}

impl<T: TaskSet> core::fmt::Debug for Bench<'_, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Bench").field("some", &self.some).field("gone", &self.gone).finish_non_exhaustive()
    }
}

/// Attempts until tasks that are hard to stop count as not stoppable.
const ATTEMPTS: usize = 1_000;

/// Checks an implementation of [`TaskSet`]. Tasks that the porter does not name may be there too.
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
///
/// # Safety
///
/// No transition is under way, and no engine uses the tasks while the suite runs.
pub unsafe fn check<T: TaskSet>(bench: &Bench<'_, T>) {
    assert!(bench.some.len() >= 2, "one task must move while another does not");
    bench.expect(TaskState::Idle, "before anything");
    bench.cancelled();
    for target in [TaskState::Patched, TaskState::Unpatched] {
        bench.whole_transition(target);
        bench.reversed(target);
        bench.forced(target);
    }
}

impl<T: TaskSet> Bench<'_, T> {
    fn expect(&self, state: TaskState, when: &str) {
        for task in self.some {
            assert_eq!((self.state)(*task), state, "task {} {when}", task.0);
        }
    }

    fn begin(&self, target: TaskState) {
        // SAFETY: no transition is under way.
        unsafe { self.tasks.init(target.opposite()) }.unwrap_or_else(|error| panic!("init: {error}"));
        self.expect(target.opposite(), "after `init`");
        self.start(target);
    }

    fn start(&self, target: TaskState) {
        // SAFETY: after `init`; no site is affected.
        unsafe { self.tasks.start(target) }.unwrap_or_else(|error| panic!("start: {error}"));
    }

    fn pending(&self, target: TaskState) -> Vec<TaskId> {
        let mut pending = Vec::new();
        let listed = self.tasks.pending(target, &mut |task| pending.push(task));
        listed.unwrap_or_else(|error| panic!("pending: {error}"));
        assert!(pending.is_sorted_by(|one, next| one < next), "{pending:?} is not ascending");
        pending
    }

    /// Stops `tasks` and puts them into `state` (`None`: leaves them); says how many were visited.
    fn visit(&self, tasks: &[TaskId], state: Option<TaskState>) -> usize {
        let visits: Vec<_> = tasks.iter().map(|_| AtomicUsize::new(0)).collect();
        let visitor = Counter { visits: &visits, seen: AtomicUsize::new(0), state };
        // SAFETY: no function is patched, so tasks may have any state.
        unsafe { self.tasks.with_stopped(tasks, &visitor) };
        assert!(visits.iter().all(|visits| visits.load(Ordering::SeqCst) <= 1), "a task is visited once: {visits:?}");
        visitor.seen.load(Ordering::SeqCst)
    }

    /// Moves `task`, however often it takes to stop it.
    fn move_one(&self, task: TaskId, target: TaskState) {
        let moved = (0..ATTEMPTS).any(|_| self.visit(&[task], Some(target)) == 1);
        assert!(moved, "task {} cannot be stopped", task.0);
        assert_eq!((self.state)(task), target, "task {} after it moved", task.0);
    }

    /// Moves everybody, and closes the transition.
    fn move_all(&self, target: TaskState) {
        for _ in 0..ATTEMPTS {
            self.visit(&self.pending(target), Some(target));
            if self.close(target) == Progress::Done {
                assert_eq!(self.pending(target), [], "everybody has moved");
                return self.expect(target, "after the transition was closed");
            }
        }
        panic!("tasks cannot be moved: {:?}", self.pending(target));
    }

    fn close(&self, target: TaskState) -> Progress {
        // SAFETY: after `start`, for this target.
        unsafe { self.tasks.close(target) }
    }

    fn finish(&self) {
        // SAFETY: no handler reads states.
        unsafe { self.tasks.finish() };
        self.expect(TaskState::Idle, "after `finish`");
    }

    /// A transition that ends before it starts.
    fn cancelled(&self) {
        // SAFETY: no transition is under way.
        unsafe { self.tasks.init(TaskState::Unpatched) }.unwrap_or_else(|error| panic!("init: {error}"));
        self.expect(TaskState::Unpatched, "after `init`");
        self.finish();
    }

    fn whole_transition(&self, target: TaskState) {
        let (first, second) = (self.some[0], self.some[1]);
        self.begin(target);
        let pending = self.pending(target);
        assert!(self.some.iter().all(|task| pending.contains(task)), "{:?} are all in {pending:?}", self.some);
        assert_eq!(self.close(target), Progress::Waiting, "nobody has moved");

        // A look moves nobody; who is gone is passed over.
        assert!((0..ATTEMPTS).any(|_| self.visit(&[first], None) == 1), "task {} cannot be stopped", first.0);
        assert_eq!((self.state)(first), target.opposite(), "after a look");
        assert_eq!(self.visit(&[self.gone], Some(target)), 0, "task {} is gone", self.gone.0);
        assert!(self.tasks.exists(first), "task {} is there", first.0);
        assert!(!self.tasks.exists(self.gone), "task {} is gone", self.gone.0);
        assert!(self.tasks.name(self.gone).is_empty(), "a task that is gone has no name");
        self.tasks.kick(first);
        self.tasks.kick(self.gone);
        assert_eq!((self.state)(first), target.opposite(), "after a kick");

        self.move_one(first, target);
        assert!(!self.pending(target).contains(&first), "who has moved is not pending");
        assert!(self.pending(target).contains(&second), "who has not is");
        assert_eq!((self.state)(second), target.opposite(), "a task that nobody moved");
        assert_eq!(self.close(target), Progress::Waiting, "not everybody has moved");

        // Children of both kinds are known, and who is not in the target state is pending.
        for parent in [first, second] {
            let child = (self.birth)(parent);
            let state = (self.state)(child);
            assert_ne!(state, TaskState::Idle, "a task that is born during a transition");
            assert_eq!(self.pending(target).contains(&child), state != target, "a child in state {state:?}");
        }
        self.move_all(target);
        let late = (self.birth)(first);
        assert_eq!((self.state)(late), target, "a task that is born after the transition was closed");
        assert_eq!(self.pending(target), [], "a task that is born late changes nothing");
        self.finish();
        assert_eq!((self.state)(late), TaskState::Idle, "the latest task after `finish`");
    }

    /// Turned round after one task has moved.
    fn reversed(&self, target: TaskState) {
        let back = target.opposite();
        self.begin(target);
        self.move_one(self.some[0], target);
        self.start(back);
        let pending = self.pending(back);
        assert!(pending.contains(&self.some[0]), "who had moved must move back");
        assert!(!pending.contains(&self.some[1]), "who had not is where it should be");
        self.move_all(back);
        self.finish();
    }

    fn forced(&self, target: TaskState) {
        self.begin(target);
        // SAFETY: no function is patched, so there is nothing to mix.
        unsafe { self.tasks.force(target) };
        self.expect(target, "after it was forced");
        assert_eq!(self.pending(target), [], "nobody is left");
        assert_eq!(self.close(target), Progress::Done, "nobody is left to wait for");
        self.finish();
    }
}

/// Counts visits, and says the same of every task.
struct Counter<'a> {
    visits: &'a [AtomicUsize],
    seen: AtomicUsize,
    state: Option<TaskState>,
}

impl Counter<'_> {
    fn count(&self, index: usize) {
        self.visits[index].fetch_add(1, Ordering::SeqCst);
    }
}

impl<C: ?Sized> Visitor<C> for Counter<'_> {
    fn visit(&self, index: usize, _context: &C) -> Option<TaskState> {
        self.count(index);
        self.seen.fetch_add(1, Ordering::SeqCst);
        self.state
    }

    fn missed(&self, index: usize, _reason: Reason) {
        self.count(index);
    }
}
