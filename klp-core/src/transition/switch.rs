//! Switching one stopped task (kernel: `klp_try_switch_task`).
//!
//! Runs while the task is stopped, perhaps on the task itself in a signal handler: no lock, no
//! allocation, no panic.

use super::stack_check::{Affected, AffectedFunc};
use crate::port::{Doubt, Reason, TaskState, Unreliable, Unwinder, Visitor};
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// What came of the attempt to switch a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The task is gone, or was not looked at.
    NotSeen,
    /// It is in the target state now.
    Switched,
    /// It is inside an affected function.
    InFunction(AffectedFunc),
    /// Its stack cannot be trusted.
    Unreliable(Unreliable),
    /// It could not be stopped.
    Missed(Reason),
}

/// Where a visit leaves its [`Outcome`]: written by whoever runs the visit, read when all visits
/// have ended.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    tag: AtomicU8,
    small: AtomicU32,
    large: AtomicU64,
}

impl Slot {
    pub(super) fn set(&self, outcome: Outcome) {
        let (tag, small, large) = match outcome {
            Outcome::NotSeen => (0, 0, 0),
            Outcome::Switched => (1, 0, 0),
            Outcome::InFunction(at) => {
                (2, at.patch, u64::from(at.object) << 32 | u64::from(at.func))
            }
            Outcome::Unreliable(doubt) => (3, doubt.why as u32, doubt.at.get()),
            Outcome::Missed(reason) => (4, reason as u32, 0),
        };
        self.small.store(small, Ordering::Relaxed);
        self.large.store(large, Ordering::Relaxed);
        // ORDER(slot): release; the partner is the load in `get`.
        self.tag.store(tag, Ordering::Release);
    }

    pub(crate) fn get(&self) -> Outcome {
        // ORDER(slot): acquire; the partner is the store in `set`.
        let tag = self.tag.load(Ordering::Acquire);
        let (small, large) = (
            self.small.load(Ordering::Relaxed),
            self.large.load(Ordering::Relaxed),
        );
        #[allow(
            clippy::cast_possible_truncation,
            reason = "the halves of the word, and numbers of enums"
        )]
        match tag {
            1 => Outcome::Switched,
            2 => Outcome::InFunction(AffectedFunc {
                patch: small,
                object: (large >> 32) as u32,
                func: large as u32,
            }),
            3 => Outcome::Unreliable(Unreliable {
                at: crate::addr::CodeAddr::new(large),
                why: Doubt::from_u8(small as u8).unwrap_or(Doubt::Corrupt),
            }),
            4 => Outcome::Missed(if small == Reason::Blocked as u32 {
                Reason::Blocked
            } else {
                Reason::Running
            }),
            _ => Outcome::NotSeen,
        }
    }
}

/// Checks a stopped task's stack, and switches the task if nothing affected is on it.
pub(crate) struct Switcher<'a, U> {
    pub(crate) unwinder: &'a U,
    pub(crate) affected: &'a Affected,
    pub(crate) target: TaskState,
    pub(crate) slots: &'a [Slot],
}

impl<U: Unwinder> Visitor<U::Context> for Switcher<'_, U> {
    fn visit(&self, index: usize, context: &U::Context) -> Option<TaskState> {
        let outcome = check(self.unwinder, self.affected, self.target, context);
        if let Some(slot) = self.slots.get(index) {
            slot.set(outcome);
        }
        (outcome == Outcome::Switched).then_some(self.target)
    }

    fn missed(&self, index: usize, reason: Reason) {
        if let Some(slot) = self.slots.get(index) {
            slot.set(Outcome::Missed(reason));
        }
    }
}

/// Walks the stack and looks for affected functions.
pub(crate) fn check<U: Unwinder>(
    unwinder: &U,
    affected: &Affected,
    target: TaskState,
    context: &U::Context,
) -> Outcome {
    let (mut found, mut index) = (None, 0);
    let walked = unwinder.walk(context, &mut |frame| {
        found = affected.find(target, frame, unwinder.called(context, index, frame));
        index += 1;
        if found.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    match (found, walked) {
        (Some(func), _) => Outcome::InFunction(func),
        (None, Ok(())) => Outcome::Switched,
        (None, Err(doubt)) => Outcome::Unreliable(doubt),
    }
}
