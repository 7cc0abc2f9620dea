//! Enabling patches (kernel: `klp_enable_patch`, `__klp_enable_patch`).

use super::Engine;
use super::affected::Judge;
use super::batch::bounds;
use super::callbacks::Moment;
use super::inner::{Inner, PatchId, Transition};
use super::objects::Bound;
use super::poll::Poll;
use crate::error::{ApiMisuse, Error};
use crate::event::Event;
use crate::port::{Platform, SymbolResolver, TaskState};
use crate::transition::{Prepared, Running};
use core::ops::Range;

impl<P: Platform> Engine<P> {
    /// Starts to enable a patch: resolves what it names, routes its sites, lets tasks move. Tasks
    /// that can be switched at once are; [`poll`](Engine::poll) brings the rest. Enabled patches
    /// that it [replaces](crate::model::Patch::replaces) are disabled when it completes.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] during any transition, [`Error::Patch`] if the patch does not fit or a
    /// callback vetoed, [`Error::Port`] if the host fails, [`Error::OutOfMemory`], [`ApiMisuse`].
    /// Nothing has changed then.
    pub fn enable(&self, id: PatchId) -> Result<Poll, Error> {
        self.enable_all(&[id])
    }

    /// Starts to enable several patches as one: in the order given, later ones on top, in a single
    /// transition, so that no task ever runs with some of them and without the others. What is
    /// refused of one is refused of all. In the end it is as if they had been enabled one after the
    /// other, and each can be disabled or replaced by itself.
    ///
    /// Until then they are one: [`reverse`](Engine::reverse), [`force`](Engine::force),
    /// [`kick`](Engine::kick) and [`blockers`](Engine::blockers) of any of them are about all. The
    /// log has each line once for each patch, in their order. Callbacks run in that order too, and
    /// in the opposite one when they undo.
    ///
    /// # Errors
    ///
    /// As for [`enable`](Engine::enable); [`ApiMisuse::NoPatches`] if `ids` is empty;
    /// [`Error::Patch`] if one is named twice, does not fit an earlier one as if that were enabled
    /// already, or would take the place of it; if one [depends](crate::model::Patch::depends) on a
    /// patch that is neither enabled nor among them, or takes the place of one that others need.
    /// Nothing has changed then.
    pub fn enable_all(&self, ids: &[PatchId]) -> Result<Poll, Error> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        inner.check_list(ids)?;
        if inner
            .patches
            .iter()
            .any(|record| record.enabled && ids.contains(&record.id))
        {
            return Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled));
        }
        inner.check_idle()?;
        let gathered = inner.gather(ids)?;
        match inner.start_enabling(&self.host, gathered.range()) {
            Ok(running) => {
                inner.begin(&self.host, Transition::new(ids[0], running));
                Ok(inner.poll(&self.host))
            }
            Err(error) => {
                inner.scatter(&gathered);
                Err(error)
            }
        }
    }
}

impl<P: Platform> Inner<P> {
    /// Brings the patches of `batch` to where tasks move. On an error all of it is taken back.
    fn start_enabling(&mut self, host: &P, batch: Range<usize>) -> Result<Running, Error> {
        self.check_depends(batch.clone())?;
        for index in batch.clone() {
            self.check_companions(batch.start, index)?;
            self.check_states(host, batch.start, index)?;
            self.patches[index].used = true;
        }
        match self
            .bind(host, batch.clone())
            .and_then(|()| self.prepare(host))
        {
            Ok(prepared) => {
                self.patch_objects(host, batch, prepared)
                    .map_err(|(prepared, error)| {
                        self.unpatch_objects(host, prepared);
                        error
                    })
            }
            Err(error) => {
                // Nothing was on a stack yet.
                for record in &mut self.patches[batch] {
                    record
                        .objects
                        .iter_mut()
                        .for_each(|object| object.bound = None);
                    record.nops.clear();
                }
                Err(error)
            }
        }
    }

    /// Binds patches to the objects that are loaded. One of them may have come without a word yet
    /// ([`object_coming`](Engine::object_coming)): enabled patches are applied to it first, since
    /// they belong below.
    fn bind(&mut self, host: &P, batch: Range<usize>) -> Result<(), Error> {
        for index in batch.clone() {
            for number in 0..self.patches[index].objects.len() {
                let object = self.patches[index].patch.objects()[number]
                    .name()
                    .try_clone()?;
                if !host.symbols().is_loaded(&object) {
                    continue;
                }
                self.apply(host, batch.start, &object, |_| ())?;
                let record = &mut self.patches[index];
                let state = &mut record.objects[number];
                state.bound = Some(Bound::new(
                    host,
                    &mut self.sites,
                    &record.patch,
                    number,
                    &mut state.relocated,
                )?);
            }
            self.check_sets(batch.start, index)?;
        }
        Ok(self.add_nops()?)
    }

    #[allow(unsafe_code, reason = "the order of a transition")]
    fn prepare(&mut self, host: &P) -> Result<Prepared, Error> {
        let affected = self.affected(host, Judge::Later)?;
        self.tell(host, |patch| Event::Enabling { patch });
        self.tell(host, |patch| Event::Initializing {
            patch,
            target: TaskState::Patched,
        });
        // SAFETY: no transition is under way.
        unsafe { Prepared::init(host, TaskState::Patched, affected) }.map_err(|error| {
            self.tell(host, |patch| Event::FailedToEnable { patch });
            error.into_error("initializing tasks", self.leader())
        })
    }

    /// Calls the pre-patch callbacks, puts the functions on their stacks, routes the sites, starts.
    #[allow(clippy::result_large_err, reason = "the stage comes back by value")]
    #[allow(unsafe_code, reason = "the order of a transition")]
    fn patch_objects(
        &mut self,
        host: &P,
        batch: Range<usize>,
        prepared: Prepared,
    ) -> Result<Running, (Prepared, Error)> {
        for index in batch.clone() {
            for object in 0..self.patches[index].objects.len() {
                if self.patches[index].objects[object].bound.is_some() {
                    if let Err(error) = self.pre_patch(host, index, object) {
                        return Err((prepared, error));
                    }
                }
            }
        }
        for bound in self.patches[batch]
            .iter_mut()
            .flat_map(super::Record::bounds_mut)
        {
            bound.set_transition(&mut self.sites.writer, true);
            bound.push(&mut self.sites.writer);
        }
        match self
            .sites
            .reroute(host.tracer(), bounds(&self.patches).flat_map(Bound::sites))
        {
            Err(error) => {
                // A batch is refused as a whole: its first object stands for all.
                let object = self
                    .patches
                    .iter()
                    .filter(|record| record.moves)
                    .find_map(|record| {
                        let bound = record
                            .objects
                            .iter()
                            .position(|object| object.bound.is_some())?;
                        record.patch.objects().get(bound)
                    });
                if let Some(object) = object {
                    host.event(&Event::FailedToPatch {
                        object: object.name(),
                    });
                }
                Err((prepared, error.into_error(self.leader())))
            }
            // SAFETY: they have just been.
            Ok(()) => unsafe { prepared.start(host) }.map_err(|(prepared, error)| {
                (
                    prepared,
                    Error::port("starting the transition", self.leader(), &error),
                )
            }),
        }
    }

    /// Takes back what [`patch_objects`](Inner::patch_objects) did, as far as it came.
    #[allow(unsafe_code, reason = "the order of a transition")]
    fn unpatch_objects(&mut self, host: &P, prepared: Prepared) {
        self.tell(host, |patch| Event::FailedToEnable { patch });
        self.tell(host, |patch| Event::Canceling { patch });
        self.tell(host, |patch| Event::Completing {
            patch,
            target: TaskState::Unpatched,
        });
        let moving = self.patches.iter_mut().filter(|record| record.moves);
        moving
            .flat_map(super::Record::bounds_mut)
            .for_each(|bound| bound.remove(&mut self.sites.writer));
        self.settle_moving(host);
        let proof = self.sites.writer.synchronize(host.tracer());
        // SAFETY: none is on a stack any more.
        unsafe { prepared.cancel(host, &proof) };
        for record in self.patches.iter_mut().filter(|record| record.moves) {
            record.release(&proof);
            record.drop_bounds();
        }
        self.callbacks(Moment::PostUnpatch);
        self.tell(host, |patch| Event::Complete {
            patch,
            target: TaskState::Unpatched,
        });
    }
}
