//! The suite of [`TaskSet`] and [`Stopper`].

use crate::port::{
    Closed, Moves, Progress, Reason, Stated, Stopper, TaskId, TaskSet, TaskState, Visitor,
};
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
        f.debug_struct("Bench")
            .field("some", &self.some)
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

/// Attempts until tasks that are hard to stop count as not stoppable.
const ATTEMPTS: usize = 1_000;

/// Checks an implementation of [`TaskSet`]. Tasks that the porter does not name may be there too.
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
pub fn check<T: TaskSet + Stopper>(bench: &Bench<'_, T>) {
    assert!(
        bench.some.len() >= 2,
        "one task must move while another does not"
    );
    bench.expect(TaskState::Idle, "before anything");
    bench.cancelled();
    for target in [TaskState::Patched, TaskState::Unpatched] {
        bench.whole_transition(target);
        bench.reversed(target);
        bench.forced(target);
    }
}

impl<T: TaskSet + Stopper> Bench<'_, T> {
    fn expect(&self, state: TaskState, when: &str) {
        for task in self.some {
            assert_eq!((self.state)(*task), state, "task {} {when}", task.0);
        }
    }

    fn init(&self, target: TaskState) -> Stated {
        // SAFETY: as the bench says, nobody else has a transition.
        let stated = unsafe { Stated::init(self.tasks, target) }
            .unwrap_or_else(|error| panic!("init: {error}"));
        self.expect(target.opposite(), "after `init`");
        stated
    }

    fn begin(&self, target: TaskState) -> Moves {
        // SAFETY: nothing is patched.
        unsafe { self.init(target).start(self.tasks) }
            .unwrap_or_else(|(_, error)| panic!("start: {error}"))
    }

    fn pending(&self, moves: &Moves) -> Vec<TaskId> {
        let mut pending = Vec::new();
        let listed = self.tasks.pending(moves, &mut |task| pending.push(task));
        listed.unwrap_or_else(|error| panic!("pending: {error}"));
        assert!(
            pending.is_sorted_by(|one, next| one < next),
            "{pending:?} is not ascending"
        );
        pending
    }

    /// Stops `tasks` and puts them into `state` (`None`: leaves them); says how many were visited.
    fn visit(&self, moves: &Moves, tasks: &[TaskId], state: Option<TaskState>) -> usize {
        let visits: Vec<_> = tasks.iter().map(|_| AtomicUsize::new(0)).collect();
        let visitor = Counter {
            visits: &visits,
            seen: AtomicUsize::new(0),
            state,
        };
        // SAFETY: nothing is patched, so tasks may be in any state.
        unsafe { self.tasks.with_stopped(moves, tasks, &visitor) };
        assert!(
            visits
                .iter()
                .all(|visits| visits.load(Ordering::SeqCst) <= 1),
            "a task is visited once: {visits:?}"
        );
        visitor.seen.load(Ordering::SeqCst)
    }

    /// Moves `task`, however often it takes to stop it.
    fn move_one(&self, moves: &Moves, task: TaskId) {
        let target = moves.target();
        let moved = (0..ATTEMPTS).any(|_| self.visit(moves, &[task], Some(target)) == 1);
        assert!(moved, "task {} cannot be stopped", task.0);
        assert_eq!((self.state)(task), target, "task {} after it moved", task.0);
    }

    /// Moves everybody, and closes the transition.
    fn move_all(&self, moves: &Moves) {
        let target = moves.target();
        for _ in 0..ATTEMPTS {
            self.visit(moves, &self.pending(moves), Some(target));
            if self.tasks.close(moves) == Progress::Done {
                assert_eq!(self.pending(moves), [], "everybody has moved");
                return self.expect(target, "after the transition was closed");
            }
        }
        panic!("tasks cannot be moved: {:?}", self.pending(moves));
    }

    /// The next stage of what was closed already.
    fn closed(&self, moves: Moves) -> Closed {
        moves
            .close(self.tasks)
            .unwrap_or_else(|_| panic!("`Progress::Done` does not stay true"))
    }

    fn finish(&self, closed: Closed) {
        // SAFETY: nothing is patched, so no handler runs.
        unsafe { closed.finish(self.tasks) };
        self.expect(TaskState::Idle, "after `finish`");
    }

    /// A transition that ends before it starts.
    fn cancelled(&self) {
        // SAFETY: nothing is patched, so no handler runs.
        unsafe { self.init(TaskState::Patched).cancel(self.tasks) };
        self.expect(TaskState::Idle, "after a transition was cancelled");
    }

    fn whole_transition(&self, target: TaskState) {
        let (first, second) = (self.some[0], self.some[1]);
        let started = self.begin(target);
        let moves = &started;
        let pending = self.pending(moves);
        assert!(
            self.some.iter().all(|task| pending.contains(task)),
            "{:?} are all in {pending:?}",
            self.some
        );
        assert_eq!(
            self.tasks.close(moves),
            Progress::Waiting,
            "nobody has moved"
        );

        // A look moves nobody; who is gone is passed over.
        assert!(
            (0..ATTEMPTS).any(|_| self.visit(moves, &[first], None) == 1),
            "task {} cannot be stopped",
            first.0
        );
        assert_eq!((self.state)(first), target.opposite(), "after a look");
        assert_eq!(
            self.visit(moves, &[self.gone], Some(target)),
            0,
            "task {} is gone",
            self.gone.0
        );
        assert!(self.tasks.exists(first), "task {} is there", first.0);
        assert!(
            !self.tasks.exists(self.gone),
            "task {} is gone",
            self.gone.0
        );
        assert!(
            self.tasks.name(self.gone).is_empty(),
            "a task that is gone has no name"
        );
        self.tasks.kick(first);
        self.tasks.kick(self.gone);
        assert_eq!((self.state)(first), target.opposite(), "after a kick");

        self.move_one(moves, first);
        assert!(
            !self.pending(moves).contains(&first),
            "who has moved is not pending"
        );
        assert!(self.pending(moves).contains(&second), "who has not is");
        assert_eq!(
            (self.state)(second),
            target.opposite(),
            "a task that nobody moved"
        );
        assert_eq!(
            self.tasks.close(moves),
            Progress::Waiting,
            "not everybody has moved"
        );

        // Children of both kinds are known, and who is not in the target state is pending.
        for parent in [first, second] {
            let child = (self.birth)(parent);
            let state = (self.state)(child);
            assert_ne!(
                state,
                TaskState::Idle,
                "a task that is born during a transition"
            );
            assert_eq!(
                self.pending(moves).contains(&child),
                state != target,
                "a child in state {state:?}"
            );
        }
        self.move_all(moves);
        let late = (self.birth)(first);
        assert_eq!(
            (self.state)(late),
            target,
            "a task that is born after the transition was closed"
        );
        assert_eq!(
            self.pending(moves),
            [],
            "a task that is born late changes nothing"
        );
        self.finish(self.closed(started));
        assert_eq!(
            (self.state)(late),
            TaskState::Idle,
            "the latest task after `finish`"
        );
    }

    /// Turned round after one task has moved.
    fn reversed(&self, target: TaskState) {
        let back = target.opposite();
        let mut moves = self.begin(target);
        self.move_one(&moves, self.some[0]);
        // SAFETY: no check was lent.
        unsafe { moves.turn(self.tasks) }.unwrap_or_else(|error| panic!("start: {error}"));
        assert_eq!(moves.target(), back, "after the turn");
        let pending = self.pending(&moves);
        assert!(
            pending.contains(&self.some[0]),
            "who had moved must move back"
        );
        assert!(
            !pending.contains(&self.some[1]),
            "who had not is where it should be"
        );
        self.move_all(&moves);
        self.finish(self.closed(moves));
    }

    fn forced(&self, target: TaskState) {
        let moves = self.begin(target);
        // SAFETY: nothing is patched.
        unsafe { self.tasks.force(&moves) };
        self.expect(target, "after it was forced");
        assert_eq!(self.pending(&moves), [], "nobody is left");
        assert_eq!(
            self.tasks.close(&moves),
            Progress::Done,
            "nobody is left to wait for"
        );
        self.finish(self.closed(moves));
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
