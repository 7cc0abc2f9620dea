//! The property that matters: between entering and leaving the outermost of a patch's functions, a task runs one version.
//!
//! Every call is judged when it reaches a body, for each patch that replaces the function: it ran the patch's version (*new*), or
//! something the patch replaces (*old*), or something newer that hides the patch, which says nothing. Which patch hides which
//! is known from the engine's log alone.

use super::object::SimFunc;
use super::shared::World;
use crate::event::Event;
use crate::port::{TaskId, TaskState};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A stretch of a task's life inside functions of one patch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    /// Frames on the stack in its outermost function.
    pub(super) depth: usize,
    /// Whether it runs the new version.
    new: bool,
}

/// What is known about patches.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// Which patches replace a function.
    replaced_by: BTreeMap<SimFunc, Vec<String>>,
    /// Patches that are enabled or in transition, the newest last.
    order: Vec<String>,
    /// Tasks that ran parts of two versions.
    pub(super) mixes: Vec<String>,
}

impl Versions {
    pub(super) fn add(&mut self, func: SimFunc, patch: &str) {
        self.replaced_by.entry(func).or_default().push(patch.to_string());
    }

    fn position(&self, patch: &str) -> Option<usize> {
        self.order.iter().position(|other| other == patch)
    }

    /// Whether running `ran` tells that `patch` is in force for the task; `None`: `ran` hides it.
    fn side(&self, patch: &str, ran: Option<&str>) -> Option<bool> {
        if ran == Some(patch) {
            return Some(true);
        }
        let hides = match (ran.and_then(|ran| self.position(ran)), self.position(patch)) {
            (Some(ran), Some(patch)) => ran > patch,
            _ => false,
        };
        (!hides).then_some(false)
    }
}

impl World {
    /// Judges a call of `func` that ran the version of the patch `ran`, or the original.
    pub(super) fn check_versions(&mut self, id: TaskId, func: SimFunc, ran: Option<&str>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        for patch in self.versions.replaced_by.get(&func).into_iter().flatten() {
            let Some(new) = self.versions.side(patch, ran) else { continue };
            let depth = task.frames.len();
            let span = task.spans.entry(patch.clone()).or_insert(Span { depth, new });
            if span.new != new {
                let (mix, ran) =
                    (format!("task {} in both versions of '{patch}'", id.0), ran.unwrap_or("the original"));
                self.versions.mixes.push(format!("{mix}: it called {func:?} and ran '{ran}'"));
            }
        }
    }

    /// Follows the engine's log.
    pub(super) fn follow(&mut self, event: &Event<'_>) {
        match *event {
            Event::Enabling { patch } => {
                self.versions.order.retain(|other| other != patch);
                self.versions.order.push(patch.to_string());
            }
            Event::FailedToEnable { patch } | Event::Complete { patch, target: TaskState::Unpatched } => {
                self.versions.order.retain(|other| other != patch);
            }
            Event::Forcing => {
                for task in self.tasks.values_mut().filter(|task| !task.frames.is_empty()) {
                    task.excused = true;
                    task.spans.clear();
                }
            }
            Event::NotSettled { .. } => self.unsettled = true,
            _ => {}
        }
    }
}
