//! Tasks that hold a transition back, and why.

use super::stack_check::{Affected, AffectedFunc};
use super::switch::{Outcome, Slot, check};
use crate::addr::CodeAddr;
use crate::config::MAX_STACK_ENTRIES;
use crate::mem::{Name, OutOfMemory, try_vec};
use crate::port::{
    Doubt, FrameKind, Reason, TaskId, TaskName, TaskState, Unreliable, Unwinder, Visitor,
};
use alloc::vec::Vec;
use core::fmt;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A task that holds the transition back.
#[derive(Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The task.
    pub task: TaskId,
    /// Its name.
    pub name: TaskName,
    /// What keeps it from being switched.
    pub hindrance: Hindrance,
    /// Its stack as far as it could be walked, innermost function first, each as the host describes
    /// it.
    pub stack: Vec<Name>,
}

/// What keeps a task from being switched.
#[derive(Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// Nothing any more: the next poll switches it.
    None,
    /// It could not be stopped.
    NotStopped(Reason),
    /// Its stack cannot be trusted.
    UnreliableStack(Unreliable),
    /// It is inside a function that the transition changes.
    InFunction {
        /// The object.
        object: Name,
        /// The function, by the name of the original.
        func: Name,
    },
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} ", self.name, self.task.0)?;
        match &self.hindrance {
            Hindrance::None => f.write_str("will be switched by the next poll")?,
            Hindrance::NotStopped(reason) => reason.fmt(f)?,
            Hindrance::UnreliableStack(doubt) => write!(f, "has an {doubt}")?,
            Hindrance::InFunction { object, func } => {
                write!(f, "is in function '{func}' of '{object}'")?
            }
        }
        for frame in &self.stack {
            write!(f, "\n    {frame}")?;
        }
        Ok(())
    }
}

/// What a look at a task found.
pub(super) struct Look {
    outcome: Slot,
    len: AtomicUsize,
    frames: [AtomicU64; MAX_STACK_ENTRIES],
}

impl Look {
    pub(super) fn new() -> Self {
        Self {
            outcome: Slot::default(),
            len: AtomicUsize::new(0),
            frames: [const { AtomicU64::new(0) }; MAX_STACK_ENTRIES],
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        self.outcome.get()
    }

    /// The addresses on the stack, innermost first.
    pub(super) fn stack(&self) -> Result<Vec<CodeAddr>, OutOfMemory> {
        // ORDER(slot): `outcome` was read with acquire before.
        let len = self.len.load(Ordering::Relaxed).min(self.frames.len());
        let mut stack = try_vec(len)?;
        stack.extend(
            self.frames[..len]
                .iter()
                .map(|frame| CodeAddr::new(frame.load(Ordering::Relaxed))),
        );
        Ok(stack)
    }
}

/// Looks at stopped tasks and changes nothing.
pub(super) struct Looker<'a, U> {
    pub(super) unwinder: &'a U,
    pub(super) affected: &'a Affected,
    pub(super) target: TaskState,
    pub(super) looks: &'a [Look],
}

impl<U: Unwinder> Visitor<U::Context> for Looker<'_, U> {
    fn visit(&self, index: usize, context: &U::Context) -> Option<TaskState> {
        let look = self.looks.get(index)?;
        let mut len = 0;
        // Only the walk below says whether the stack is reliable; here every frame that can be had
        // counts.
        let walked = self
            .unwinder
            .walk(context, &mut |frame| match look.frames.get(len) {
                Some(_) if frame.kind == FrameKind::PerhapsCall => ControlFlow::Continue(()),
                Some(slot) => {
                    slot.store(frame.lookup().get(), Ordering::Relaxed);
                    len += 1;
                    ControlFlow::Continue(())
                }
                None => ControlFlow::Break(()),
            });
        // Where unknown code begins (a return probe's, say), an address inside of the call would be
        // in front of it.
        if let (
            Err(Unreliable {
                at,
                why: Doubt::NoTable,
            }),
            Some(last),
        ) = (walked, len.checked_sub(1))
        {
            look.frames[last].store(at.get(), Ordering::Relaxed);
        }
        look.len.store(len, Ordering::Relaxed);
        look.outcome
            .set(check(self.unwinder, self.affected, self.target, context));
        None
    }

    /// Somebody wants to know the whole stack.
    fn wants_all(&self) -> bool {
        true
    }

    fn missed(&self, index: usize, reason: Reason) {
        // What was seen of one that would not be stopped afterwards is better than nothing.
        if let Some(look) = self.looks.get(index) {
            if matches!(look.outcome.get(), Outcome::NotSeen) {
                look.outcome.set(Outcome::Missed(reason));
            }
        }
    }
}

/// Says what an outcome means, with names that `name_of` tells.
pub(super) fn hindrance(
    outcome: Outcome,
    name_of: &mut dyn FnMut(AffectedFunc) -> Result<(Name, Name), OutOfMemory>,
) -> Result<Hindrance, OutOfMemory> {
    Ok(match outcome {
        Outcome::NotSeen | Outcome::Switched => Hindrance::None,
        Outcome::Missed(reason) => Hindrance::NotStopped(reason),
        Outcome::Unreliable(doubt) => Hindrance::UnreliableStack(doubt),
        Outcome::InFunction(at) => {
            let (object, func) = name_of(at)?;
            Hindrance::InFunction { object, func }
        }
    })
}
