//! The symmetry of callbacks, checked as they are called.

use super::common::Sim;
use klp_core::error::{ApiMisuse, Error};
use klp_core::model::{CallbackContext, Callbacks};
use klp_core::port::TaskId;
use klp_core::{PatchId, Poll, sim};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// How far the callbacks of one object of one patch are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Stage {
    /// None was called, or all that was done has been undone.
    #[default]
    Off,
    /// `pre_patch`.
    Prepared,
    /// `post_patch`.
    On,
    /// `pre_unpatch`.
    Leaving,
}

/// What was called so far.
#[derive(Debug, Default)]
struct Book {
    stages: BTreeMap<(String, String), Stage>,
    /// Calls of `pre_patch` until one says no; 0: none does.
    veto_in: u32,
    vetoed: bool,
    /// The engine, which callbacks call though they must not, and a patch of it.
    engine: Option<(Weak<Sim>, PatchId)>,
    /// How often they have called it.
    calls: usize,
    wrong: Vec<String>,
}

/// The callbacks of every object of every patch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Book>>);

impl Ledger {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().expect("nobody panics with it")
    }

    /// The `n`-th call of `pre_patch` from now on says no; 0: none.
    pub(crate) fn veto_in(&self, n: u32) {
        let mut book = self.book();
        book.veto_in = n;
        book.vetoed = false;
    }

    /// From now on, callbacks call `engine`, about `patch`.
    pub(crate) fn call(&self, engine: &Arc<Sim>, patch: PatchId) {
        self.book().engine = Some((Arc::downgrade(engine), patch));
    }

    /// Whether a call said no since then.
    pub(crate) fn vetoed(&self) -> bool {
        self.book().vetoed
    }

    pub(crate) fn stage(&self, patch: &str, object: &str) -> Stage {
        self.book()
            .stages
            .get(&(patch.to_string(), object.to_string()))
            .copied()
            .unwrap_or_default()
    }

    /// The patch was replaced: none of its callbacks is called, and none is due.
    pub(crate) fn replaced(&self, patch: &str) {
        self.book().stages.retain(|(other, _), _| other != patch);
    }

    /// Calls that were out of order.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.book().wrong.clone()
    }

    /// Calls the engine, which must refuse: its next function each time.
    fn call_engine(&self) {
        let (engine, patch, number) = {
            let mut book = self.book();
            book.calls += 1;
            let Some((engine, patch)) = &book.engine else {
                return;
            };
            (engine.upgrade(), *patch, book.calls)
        };
        let Some(engine) = engine else { return };
        let refused = |error: Result<(), Error>| {
            matches!(error, Err(Error::ApiMisuse(ApiMisuse::InCallback)))
        };
        let (name, right) = match number % 16 {
            0 => ("enable", refused(engine.enable(patch).map(drop))),
            1 => ("enable_all", refused(engine.enable_all(&[patch]).map(drop))),
            2 => ("disable", refused(engine.disable(patch).map(drop))),
            3 => (
                "disable_all",
                refused(engine.disable_all(&[patch]).map(drop)),
            ),
            4 => ("reverse", refused(engine.reverse(patch).map(drop))),
            5 => ("force", refused(sim::force(&engine, patch).map(drop))),
            6 => ("kick", refused(engine.kick(patch))),
            7 => ("remove", refused(engine.remove(patch).map(drop))),
            8 => ("blockers", refused(engine.blockers(patch).map(drop))),
            9 => ("preflight", refused(engine.preflight(patch).map(drop))),
            10 => ("status", refused(engine.status().map(drop))),
            11 => ("with_patch", refused(engine.with_patch(patch, |_| ()))),
            12 => (
                "task_state",
                refused(engine.task_state(TaskId(1)).map(drop)),
            ),
            13 => ("pending_tasks", refused(engine.pending_tasks().map(drop))),
            14 => ("poll", engine.poll() == Poll::Idle),
            _ => ("find", engine.find("a").is_none()),
        };
        if !right {
            self.book()
                .wrong
                .push(format!("a callback may call {name}"));
        }
    }

    fn called(&self, callback: &str, context: &CallbackContext<'_>, from: &[Stage], to: Stage) {
        self.call_engine();
        let mut book = self.book();
        let key = (context.patch().to_string(), context.object().to_string());
        let stage = book.stages.insert(key.clone(), to).unwrap_or_default();
        if !from.contains(&stage) {
            book.wrong
                .push(format!("{callback} of {key:?} in stage {stage:?}"));
        }
    }
}

impl Callbacks for Ledger {
    fn pre_patch(&self, context: &CallbackContext<'_>) -> Result<(), i32> {
        let vetoes = {
            let mut book = self.book();
            let vetoes = book.veto_in == 1;
            book.veto_in = book.veto_in.saturating_sub(1);
            book.vetoed |= vetoes;
            vetoes
        };
        self.called(
            "pre_patch",
            context,
            &[Stage::Off],
            if vetoes { Stage::Off } else { Stage::Prepared },
        );
        if vetoes { Err(-19) } else { Ok(()) }
    }

    fn post_patch(&self, context: &CallbackContext<'_>) {
        self.called(
            "post_patch",
            context,
            &[Stage::Prepared, Stage::Leaving],
            Stage::On,
        );
    }

    fn pre_unpatch(&self, context: &CallbackContext<'_>) {
        self.called("pre_unpatch", context, &[Stage::On], Stage::Leaving);
    }

    fn post_unpatch(&self, context: &CallbackContext<'_>) {
        self.called(
            "post_unpatch",
            context,
            &[Stage::Prepared, Stage::Leaving],
            Stage::Off,
        );
    }
}
