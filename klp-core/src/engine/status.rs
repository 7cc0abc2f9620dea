//! What the engine tells about itself.

use super::objects::names;
use super::{Engine, PatchId};
use crate::error::{ApiMisuse, Error};
use crate::mem::{Name, try_vec};
use crate::port::{Platform, TaskState};
use crate::transition::Blocker;
use alloc::vec::Vec;

/// One patch, as it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct PatchStatus {
    /// The patch.
    pub id: PatchId,
    /// Its name.
    pub name: Name,
    /// Whether it is enabled, or will be when its transition ends.
    pub enabled: bool,
    /// Where its transition leads, if it is in one.
    pub transition: Option<TaskState>,
    /// Tasks that its transition still waits for, as of the last poll.
    pub pending: usize,
    /// Whether a forced transition pinned it.
    pub forced: bool,
}

impl<P: Platform> Engine<P> {
    /// Every patch that the engine knows: enabled ones first, in the order of enabling.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn status(&self) -> Result<Vec<PatchStatus>, Error> {
        let inner = self.inner.lock();
        let mut all = try_vec(inner.patches.len())?;
        for record in &inner.patches {
            let transition = inner.transition.as_ref().filter(|transition| transition.patch == record.id);
            all.push(PatchStatus {
                id: record.id,
                name: record.patch.name().try_clone()?,
                enabled: record.enabled,
                transition: transition.map(|transition| transition.running.target()),
                pending: transition.map_or(0, |transition| transition.pending),
                forced: record.forced,
            });
        }
        Ok(all)
    }

    /// Shows every patch, in the order of [`status`](Engine::status), to the audit.
    #[cfg(feature = "sim")]
    pub(crate) fn each_patch(&self, mut show: impl FnMut(&crate::model::Patch)) {
        self.inner.lock().patches.iter().for_each(|record| show(&record.patch));
    }

    /// Names each task that holds `id`'s transition back, and why, with its stack. Stops each of them for a moment.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::NoTransition`]; [`Error::Port`] if the tasks cannot be listed; [`Error::OutOfMemory`].
    pub fn blockers(&self, id: PatchId) -> Result<Vec<Blocker>, Error> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let index = inner.index_of(id)?;
        let patch = &inner.patches[index].patch;
        let Some(transition) = inner.transition.as_mut().filter(|transition| transition.patch == id) else {
            return Err(Error::ApiMisuse(ApiMisuse::NoTransition));
        };
        transition
            .running
            .blockers(&self.host, &mut |at| {
                let (object, func) = names(patch, at);
                Ok((Name::new(object)?, Name::new(func)?))
            })
            .map_err(|error| error.into_error("listing tasks", patch.name()))
    }
}
