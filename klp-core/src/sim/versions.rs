//! The property that matters: between entering and leaving the outermost of a patch's functions, a
//! task runs one version.
//!
//! Sibling calls belong to the call that began them.
//!
//! Every call is judged when it reaches a body, for each patch that replaces the function: it ran
//! the patch's version (*new*), or something the patch replaces (*old*), or something newer that
//! hides the patch, which says nothing. Which patch hides which is known from the engine's log
//! alone.

use super::object::SimFunc;
use super::shared::World;
use crate::event::Event;
use crate::model::Replace;
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
    /// Whether its outermost function is one that the patch only gives back.
    back: bool,
    /// Whether its outermost function was jumped to.
    jumped: bool,
}

/// What is known about patches.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// Which patches replace a function.
    replaced_by: BTreeMap<SimFunc, Vec<String>>,
    /// Which patches a patch takes the place of.
    replace: BTreeMap<String, Replace>,
    /// Patches that are enabled or in transition, the newest last.
    order: Vec<String>,
    /// Tasks that ran parts of two versions.
    pub(super) mixes: Vec<String>,
}

impl Versions {
    pub(super) fn add(&mut self, func: SimFunc, patch: &str) {
        self.replaced_by
            .entry(func)
            .or_default()
            .push(patch.to_string());
    }

    pub(super) fn know(&mut self, patch: &str, replace: Replace) {
        self.replace.insert(patch.to_string(), replace);
    }

    fn replace_of(&self, patch: &str) -> Replace {
        self.replace.get(patch).copied().unwrap_or_default()
    }

    /// The patches that give way to `patch`.
    fn give_way<'a>(&'a self, patch: &'a str) -> impl Iterator<Item = &'a str> {
        let older = self
            .order
            .iter()
            .take_while(move |other| *other != patch)
            .map(|other| &**other);
        older.filter(move |old| match self.replace_of(patch) {
            Replace::None => false,
            Replace::All => true,
            set @ Replace::Set(_) => self.replace_of(old) == set,
        })
    }

    /// The patches that have a version of `func`; and those that give it back, each with the patch
    /// below that it is given back to, `None`: to the original.
    fn judges(&self, func: SimFunc) -> (Vec<String>, Vec<(String, Option<String>)>) {
        let have = self.replaced_by.get(&func).cloned().unwrap_or_default();
        // Patches that are enabled as one give back as one; what gave way before is in the order no
        // longer.
        let newer = self.order.iter();
        let leaving: Vec<&str> = newer.flat_map(|patch| self.give_way(patch)).collect();
        let mut nops = Vec::new();
        for (place, patch) in self
            .order
            .iter()
            .enumerate()
            .filter(|(_, patch)| !have.contains(patch))
        {
            let goes: Vec<&str> = self.give_way(patch).map(AsRef::as_ref).collect();
            let mut below = self.order[..place]
                .iter()
                .rev()
                .filter(|other| have.contains(other));
            if below
                .clone()
                .next()
                .is_some_and(|top| goes.contains(&top.as_str()))
            {
                nops.push((
                    patch.clone(),
                    below
                        .find(|other| !leaving.contains(&other.as_str()))
                        .cloned(),
                ));
            }
        }
        (have, nops)
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
        let (have, nops) = self.versions.judges(func);
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        // The limit of what a stack can tell (docs/architecture.md): a function that was itself
        // jumped to, or called through a pointer, and jumps on to one that no patch has, is over.
        let depth = task.frames.len();
        let unseen = task
            .frames
            .last()
            .is_some_and(|(_, func)| self.functions[func.0].by_pointer);
        let judged =
            |patch: &String| have.contains(patch) || nops.iter().any(|(nop, _)| nop == patch);
        let over = |span: &Span| task.jumped && span.depth == depth && (span.jumped || unseen);
        task.spans
            .retain(|patch, span| !over(span) || judged(patch));
        let have = have.iter().map(|patch| (patch, None));
        for (patch, back) in have.chain(
            nops.iter()
                .map(|(patch, back)| (patch, Some(back.as_deref()))),
        ) {
            let side = if back == Some(ran) {
                Some(true)
            } else {
                self.versions.side(patch, ran)
            };
            let Some(new) = side else { continue };
            let (depth, jumped) = (task.frames.len(), task.jumped);
            let fresh = Span {
                depth,
                new,
                back: back.is_some(),
                jumped,
            };
            let span = task.spans.entry(patch.clone()).or_insert(fresh);
            if span.new != new {
                let (mix, ran) = (
                    format!("task {} in both versions of '{patch}'", id.0),
                    ran.unwrap_or("the original"),
                );
                self.versions
                    .mixes
                    .push(format!("{mix}: it called {func:?} and ran '{ran}'"));
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
            Event::FailedToEnable { patch }
            | Event::Complete {
                patch,
                target: TaskState::Unpatched,
            } => {
                self.versions.order.retain(|other| other != patch);
            }
            Event::Complete {
                patch,
                target: TaskState::Patched,
            } => {
                let gone: Vec<String> = self
                    .versions
                    .give_way(patch)
                    .map(ToString::to_string)
                    .collect();
                self.versions.order.retain(|other| !gone.contains(other));
                // What was given back belongs to the patch no longer.
                for task in self.tasks.values_mut() {
                    task.spans
                        .retain(|other, span| other != patch || !span.back);
                }
            }
            Event::Forcing => {
                for task in self
                    .tasks
                    .values_mut()
                    .filter(|task| !task.frames.is_empty())
                {
                    task.excused = true;
                    task.spans.clear();
                }
            }
            Event::NotSettled { .. } => self.unsettled = true,
            _ => {}
        }
    }
}
