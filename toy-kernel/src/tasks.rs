//! [`TaskSet`] and [`Stopper`]: which version each task runs.
//!
//! No task is missed: the scheduler's list has every task from before its first instruction until
//! after its last one; it is looked at, and tasks are born, with its lock only. One that is born has
//! nothing on its stack yet, so any state fits: it begins in its parent's. There are no stacks but
//! those of tasks.

use crate::interrupt::{Frame, stop_machine};
use crate::sched::{self, Task, with_tasks};
use core::sync::atomic::Ordering;
use klp_core::port::{
    InTurn, Moves, PortErrorKind, Progress, Stopper, TaskId, TaskName, TaskSet, TaskState, Visitor,
};

/// The engine's view of the tasks.
pub struct Tasks {
    /// The scheduler's list.
    pub list: fn(&mut dyn FnMut(&Task)),
}

/// Shows every task.
pub fn all(each: &mut dyn FnMut(&Task)) {
    with_tasks(|tasks| tasks.iter().for_each(|task| each(task)));
}

/// Which version `task` runs.
#[inline(always)]
pub fn state_of(task: &Task) -> TaskState {
    match task.patch_state.load(Ordering::Relaxed) {
        0 => TaskState::Unpatched,
        1 => TaskState::Patched,
        _ => TaskState::Idle,
    }
}

fn set_state(task: &Task, state: TaskState) {
    task.patch_state.store(state as i8, Ordering::Relaxed);
}

/// Called by the scheduler, with its lock held.
pub fn born(parent: &Task, child: &Task) {
    set_state(child, state_of(parent));
}

impl Tasks {
    fn set_all(&self, state: TaskState) {
        (self.list)(&mut |task| set_state(task, state));
    }
}

// SAFETY: as the head of this file says.
unsafe impl TaskSet for Tasks {
    type Error = PortErrorKind;

    fn current_state(&self) -> TaskState {
        state_of(sched::current())
    }

    fn init(&self, initial: TaskState, _: InTurn) -> Result<(), PortErrorKind> {
        self.set_all(initial);
        Ok(())
    }

    fn start(&self, _: TaskState, _: InTurn) -> Result<(), PortErrorKind> {
        Ok(())
    }

    fn pending(&self, moves: &Moves, each: &mut dyn FnMut(TaskId)) -> Result<(), PortErrorKind> {
        (self.list)(&mut |task| {
            if state_of(task) != moves.target() {
                each(TaskId(task.id));
            }
        });
        Ok(())
    }

    fn close(&self, moves: &Moves) -> Progress {
        let mut progress = Progress::Done;
        // It does not fail.
        let _ = self.pending(moves, &mut |_| progress = Progress::Waiting);
        progress
    }

    unsafe fn force(&self, moves: &Moves) {
        self.set_all(moves.target());
    }

    /// Nobody sleeps in a way that ends early.
    fn kick(&self, _: TaskId) {}

    fn kick_is_due(&self, _: u32) -> bool {
        false
    }

    fn finish(&self, _: InTurn) {
        self.set_all(TaskState::Idle);
    }

    fn exists(&self, id: TaskId) -> bool {
        !self.name(id).is_empty()
    }

    fn name(&self, id: TaskId) -> TaskName {
        let mut name = TaskName::new();
        (self.list)(&mut |task| {
            if task.id == id.0 {
                name = task.name.try_into().unwrap_or_default();
            }
        });
        name
    }
}

// SAFETY: tasks are visited while the machine is stopped.
unsafe impl Stopper for Tasks {
    type Context = Frame;

    unsafe fn with_stopped(&self, _: &Moves, ids: &[TaskId], visitor: &dyn Visitor<Frame>) {
        stop_machine(&mut || {
            (self.list)(&mut |task| {
                let Ok(index) = ids.binary_search(&TaskId(task.id)) else {
                    return;
                };
                // SAFETY: it is stopped, the frame is there.
                if let Some(state) =
                    visitor.visit(index, unsafe { &*task.frame.load(Ordering::Acquire) })
                {
                    set_state(task, state);
                }
            });
        });
    }
}
