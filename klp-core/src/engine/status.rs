//! What the engine tells about itself.

use super::Engine;
use super::batch::names;
use super::inner::{Inner, PatchId};
#[cfg(feature = "sim")]
use crate::addr::TextRange;
use crate::error::{ApiMisuse, Error};
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::model::{Patch, Replace};
use crate::port::{Platform, TaskId, TaskSet, TaskState};
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
    /// Which enabled patches it takes the place of.
    pub replace: Replace,
    /// Its place among the patches in force, counted from 1 in the order of enabling; 0 if it is
    /// not in force. One that is being disabled still is (kernel: `stack_order`).
    pub stack_order: usize,
}

impl<P: Platform> Engine<P> {
    /// Every patch that the engine knows: enabled ones first, in the order of enabling.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn status(&self) -> Result<Vec<PatchStatus>, Error> {
        let inner = self.lock()?;
        let mut all = try_vec(inner.patches.len())?;
        let mut in_force = 0;
        for record in &inner.patches {
            let transition = inner.transition.as_ref().filter(|_| record.moves);
            let counts = record.enabled || transition.is_some();
            in_force += usize::from(counts);
            all.push(PatchStatus {
                id: record.id,
                name: record.patch.name().try_clone()?,
                enabled: record.enabled,
                transition: transition.map(|transition| transition.running.target()),
                pending: transition.map_or(0, |transition| transition.pending),
                forced: record.forced,
                replace: record.patch.replace(),
                stack_order: if counts { in_force } else { 0 },
            });
        }
        Ok(all)
    }

    /// Shows the patch itself to `look`. The engine refuses to be called from there.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::UnknownPatch`].
    pub fn with_patch<R>(&self, id: PatchId, look: impl FnOnce(&Patch) -> R) -> Result<R, Error> {
        let inner = self.lock()?;
        Ok(look(&inner.patches[inner.index_of(id)?].patch))
    }

    /// Whether a patch in force has an object called `object`: one that comes would be patched. A
    /// callback of a patch is told that one has.
    pub fn patches_object(&self, object: &str) -> bool {
        let Ok(inner) = self.lock() else { return true };
        (0..inner.patches.len())
            .any(|index| inner.in_force(index) && inner.object_of(index, object).is_some())
    }

    /// Whether the patch's functions in the object called `object` are redirected now; `None` if it
    /// has no such object (kernel: `obj->patched`).
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::UnknownPatch`].
    pub fn object_patched(&self, id: PatchId, object: &str) -> Result<Option<bool>, Error> {
        let inner = self.lock()?;
        let record = &inner.patches[inner.index_of(id)?];
        let mut objects = record.patch.objects().iter().zip(&record.objects);
        Ok(objects
            .find(|(known, _)| known.name() == object)
            .map(|(_, state)| state.bound.is_some()))
    }

    /// Whether somebody has tried to enable the patch since it was added. If not, nobody has ever
    /// been in its code.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::UnknownPatch`].
    pub fn was_used(&self, id: PatchId) -> Result<bool, Error> {
        let inner = self.lock()?;
        Ok(inner.patches[inner.index_of(id)?].used)
    }

    /// The objects of the patch that are not patched: while it is enabled, those that it waits for.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::UnknownPatch`]; [`Error::OutOfMemory`].
    pub fn waiting(&self, id: PatchId) -> Result<Vec<Name>, Error> {
        let inner = self.lock()?;
        let record = &inner.patches[inner.index_of(id)?];
        let mut waiting = Vec::new();
        for (object, state) in record.patch.objects().iter().zip(&record.objects) {
            if state.bound.is_none() {
                try_push(&mut waiting, object.name().try_clone()?)?;
            }
        }
        Ok(waiting)
    }

    /// Which version `task` runs; `None` if it is gone (kernel: `/proc/PID/patch_state`). Outside
    /// of transitions every task is [`TaskState::Idle`].
    ///
    /// # Errors
    ///
    /// [`Error::Port`] if the tasks cannot be listed; [`Error::OutOfMemory`].
    pub fn task_state(&self, task: TaskId) -> Result<Option<TaskState>, Error> {
        let inner = self.lock()?;
        let state = match &inner.transition {
            None => TaskState::Idle,
            Some(transition) => {
                let target = transition.running.target();
                let mut pending = false;
                inner.each_pending(&self.host, &mut |other| pending |= other == task)?;
                if pending { target.opposite() } else { target }
            }
        };
        Ok(self.host.tasks().exists(task).then_some(state))
    }

    /// The tasks that the transition under way waits for, in ascending order; none outside of
    /// transitions.
    ///
    /// # Errors
    ///
    /// As for [`task_state`](Engine::task_state).
    pub fn pending_tasks(&self) -> Result<Vec<TaskId>, Error> {
        let (mut tasks, mut full) = (Vec::new(), Ok(()));
        self.lock()?.each_pending(&self.host, &mut |task| {
            if full.is_ok() {
                full = try_push(&mut tasks, task);
            }
        })?;
        full.map(|()| tasks)
            .map_err(|OutOfMemory| Error::OutOfMemory)
    }

    /// Shows every patch, in the order of [`status`](Engine::status), to the audit.
    #[cfg(feature = "sim")]
    pub(crate) fn each_patch(&self, mut show: impl FnMut(&crate::model::Patch)) {
        self.lock()
            .into_iter()
            .for_each(|inner| inner.patches.iter().for_each(|record| show(&record.patch)));
    }

    /// Shows all code that keeps tasks from moving, to the audit; none if it waits for memory to be
    /// worked out anew.
    #[cfg(feature = "sim")]
    pub(crate) fn each_affected(&self, show: impl FnMut(TextRange)) {
        if let Ok(inner) = self.lock() {
            let transition = inner.transition.iter();
            transition
                .filter(|transition| !transition.stale)
                .flat_map(|transition| transition.running.affected())
                .for_each(show);
        }
    }

    /// Names each task that holds `id`'s transition back, and why, with its stack; `id` is any of
    /// the patches in it. Stops each of them for a moment.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::NoTransition`]; [`Error::Port`] if the tasks cannot be listed;
    /// [`Error::OutOfMemory`].
    pub fn blockers(&self, id: PatchId) -> Result<Vec<Blocker>, Error> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        let index = inner.index_of(id)?;
        let Inner {
            patches,
            transition,
            ..
        } = inner;
        let Some(transition) = transition.as_mut().filter(|_| patches[index].moves) else {
            return Err(Error::ApiMisuse(ApiMisuse::NoTransition));
        };
        transition
            .running
            .blockers(&self.host, &mut |at| {
                let (object, func) = names(patches, at);
                Ok((Name::new(object)?, Name::new(func)?))
            })
            .map_err(|error| error.into_error("listing tasks", patches[index].patch.name()))
    }
}

impl<P: Platform> Inner<P> {
    fn each_pending(&self, host: &P, each: &mut dyn FnMut(TaskId)) -> Result<(), Error> {
        let Some(transition) = &self.transition else {
            return Ok(());
        };
        let listed = transition.running.pending(host, each);
        listed.map_err(|error| Error::port("listing tasks", self.leader(), &error))
    }
}
