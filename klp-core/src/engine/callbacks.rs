//! Calling what a patch author wants around patching, in Linux's symmetry (kernel:
//! `klp_pre_patch_callback` and its like).

use super::inner::{Inner, Record};
use crate::error::{Error, PatchReason};
use crate::event::Event;
use crate::model::CallbackContext;
use crate::port::Platform;
use crate::state::State;

/// Which callback.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    PostPatch,
    PreUnpatch,
    PostUnpatch,
}

impl<P: Platform> Inner<P> {
    /// Calls the `pre_patch` of an object, which may veto.
    pub(super) fn pre_patch(&mut self, host: &P, index: usize, object: usize) -> Result<(), Error> {
        let called = self
            .with_context(index, object, |callbacks, context| {
                callbacks.pre_patch(context)
            })
            .unwrap_or(Ok(()));
        let record = &mut self.patches[index];
        if let Err(errno) = called {
            let name = record.patch.objects()[object].name();
            host.event(&Event::Vetoed { object: name });
            return Err(Error::patch(
                record.patch.name(),
                Some(name),
                None,
                PatchReason::Vetoed { errno },
            ));
        }
        record.objects[object].post_unpatch_due = true;
        Ok(())
    }

    /// Calls another callback of an object. `post_unpatch` only runs if `pre_patch` did.
    pub(super) fn callback(&mut self, index: usize, object: usize, moment: Moment) {
        if moment == Moment::PostUnpatch
            && !core::mem::take(&mut self.patches[index].objects[object].post_unpatch_due)
        {
            return;
        }
        self.with_context(index, object, |callbacks, context| match moment {
            Moment::PostPatch => callbacks.post_patch(context),
            Moment::PreUnpatch => callbacks.pre_unpatch(context),
            Moment::PostUnpatch => callbacks.post_unpatch(context),
        });
    }

    /// Calls a callback of every loaded object of the patches in transition. What was set up last
    /// is taken down first.
    pub(super) fn callbacks(&mut self, moment: Moment) {
        let count = self.patches.len();
        for number in 0..count {
            let index = if moment == Moment::PostPatch {
                number
            } else {
                count - 1 - number
            };
            if !self.moves(index) {
                continue;
            }
            for object in 0..self.patches[index].objects.len() {
                if moment == Moment::PostUnpatch
                    || self.patches[index].objects[object].bound.is_some()
                {
                    self.callback(index, object, moment);
                }
            }
        }
    }

    fn with_context<R>(
        &self,
        index: usize,
        object: usize,
        call: impl FnOnce(&dyn crate::model::Callbacks, &CallbackContext<'_>) -> R,
    ) -> Option<R> {
        let patch = &self.patches[index].patch;
        let object = &patch.objects()[object];
        let callbacks = object.callbacks()?;
        let previous = |id| previous(&self.patches[..index], id);
        Some(call(
            callbacks,
            &CallbackContext::new(patch.name(), object.name(), patch.states(), &previous),
        ))
    }
}

/// The state `id` of the newest patch in force among `older`.
fn previous<P: Platform>(older: &[Record<P>], id: u64) -> Option<&State> {
    older
        .iter()
        .rev()
        .filter(|record| record.enabled || record.moves)
        .find_map(|record| record.patch.state(id))
}
