//! Calling what a patch author wants around patching, in Linux's symmetry (kernel: `klp_pre_patch_callback` and its like).

use super::{Inner, Record};
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
        let called =
            self.with_context(index, object, |callbacks, context| callbacks.pre_patch(context)).unwrap_or(Ok(()));
        let record = &mut self.patches[index];
        if let Err(errno) = called {
            let name = record.patch.objects()[object].name();
            host.event(&Event::Vetoed { object: name });
            return Err(Error::patch(record.patch.name(), Some(name), None, PatchReason::Vetoed { errno }));
        }
        record.objects[object].post_unpatch_due = true;
        Ok(())
    }

    /// Calls another callback of an object. `post_unpatch` only runs if `pre_patch` did.
    pub(super) fn callback(&mut self, index: usize, object: usize, moment: Moment) {
        if moment == Moment::PostUnpatch && !core::mem::take(&mut self.patches[index].objects[object].post_unpatch_due)
        {
            return;
        }
        self.with_context(index, object, |callbacks, context| match moment {
            Moment::PostPatch => callbacks.post_patch(context),
            Moment::PreUnpatch => callbacks.pre_unpatch(context),
            Moment::PostUnpatch => callbacks.post_unpatch(context),
        });
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
        Some(call(callbacks, &CallbackContext::new(patch, object.name(), &previous)))
    }
}

/// The state `id` of the newest enabled patch among `older`.
fn previous<P: Platform>(older: &[Record<P>], id: u64) -> Option<&State> {
    older.iter().rev().filter(|record| record.enabled).find_map(|record| record.patch.state(id))
}
