//! Disabling patches, and turning a transition round (kernel: `__klp_disable_patch`,
//! `klp_reverse_transition`).

use super::Engine;
use super::affected::Judge;
use super::batch::{bounds, moving};
use super::callbacks::Moment;
use super::inner::{Inner, PatchId, Transition};
use super::objects::Bound;
use super::poll::Poll;
use crate::error::{ApiMisuse, Error};
use crate::event::Event;
use crate::port::{Platform, TaskState};
use crate::transition::{Prepared, Running};

impl<P: Platform> Engine<P> {
    /// Starts to disable an enabled patch. Patches may be disabled in any order, but for those that
    /// others depend on.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] during any transition (see [`reverse`](Engine::reverse) for the patch's
    /// own), [`Error::Patch`] if an enabled patch [depends](crate::model::Patch::depends) on it,
    /// [`Error::Port`], [`Error::OutOfMemory`], [`ApiMisuse`]. Nothing has changed then.
    pub fn disable(&self, id: PatchId) -> Result<Poll, Error> {
        self.disable_all(&[id])
    }

    /// Starts to disable several enabled patches as one, in a single transition; see
    /// [`enable_all`](Engine::enable_all). The order of `ids` does not matter.
    ///
    /// # Errors
    ///
    /// As for [`disable`](Engine::disable); [`ApiMisuse::NoPatches`] if `ids` is empty,
    /// [`Error::Patch`] if one is named twice.
    pub fn disable_all(&self, ids: &[PatchId]) -> Result<Poll, Error> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        inner.check_list(ids)?;
        inner.check_idle()?;
        if inner
            .patches
            .iter()
            .any(|record| !record.enabled && ids.contains(&record.id))
        {
            return Err(Error::ApiMisuse(ApiMisuse::NotEnabled));
        }
        inner.check_needed(ids)?;
        inner
            .patches
            .iter_mut()
            .for_each(|record| record.moves = ids.contains(&record.id));
        match inner.start_disabling(&self.host) {
            Ok(running) => {
                let leader = moving(&inner.patches)
                    .next()
                    .map_or(ids[0], |record| record.id);
                inner.begin(&self.host, Transition::new(leader, running));
                Ok(inner.poll(&self.host))
            }
            Err(error) => {
                inner
                    .patches
                    .iter_mut()
                    .for_each(|record| record.moves = false);
                Err(error)
            }
        }
    }

    /// Turns the transition of `id` round: a patch that was being enabled goes away again, and the
    /// other way about. With it turn those that are in transition as one with it.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::NoTransition`] if the patch is not in transition; [`Error::Port`], and the
    /// transition goes on as before.
    pub fn reverse(&self, id: PatchId) -> Result<Poll, Error> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        inner.check_moves(id)?;
        let Some(transition) = inner.transition.take() else {
            return Err(Error::ApiMisuse(ApiMisuse::NoTransition));
        };
        let from = transition.running.target();
        inner.tell(&self.host, |patch| Event::Reversing { patch, from });
        match transition
            .running
            .reverse(&self.host, &mut inner.sites.writer)
        {
            Ok(running) => {
                inner.begin(
                    &self.host,
                    Transition {
                        running,
                        ..transition
                    },
                );
                Ok(inner.poll(&self.host))
            }
            Err((running, error)) => {
                inner.transition = Some(Transition {
                    running,
                    ..transition
                });
                Err(Error::port(
                    "reversing the transition",
                    inner.leader(),
                    &error,
                ))
            }
        }
    }
}

impl<P: Platform> Inner<P> {
    /// Brings the patches that move to where tasks do. On an error all of it is taken back.
    #[allow(unsafe_code, reason = "the order of a transition")]
    fn start_disabling(&mut self, host: &P) -> Result<Running, Error> {
        let affected = self.affected(host, Judge::Later)?;
        self.tell(host, |patch| Event::Initializing {
            patch,
            target: TaskState::Unpatched,
        });
        // SAFETY: no transition is under way.
        let prepared =
            unsafe { Prepared::init(host, TaskState::Unpatched, affected) }.map_err(|error| {
                self.tell(host, |patch| Event::FailedToDisable { patch });
                error.into_error("initializing tasks", self.leader())
            })?;
        bounds(&self.patches).for_each(|bound| bound.set_transition(&mut self.sites.writer, true));
        if let Err(error) = self
            .sites
            .reroute(host.tracer(), bounds(&self.patches).flat_map(Bound::sites))
        {
            let error = error.into_error(self.leader());
            self.stay_enabled(host, prepared);
            return Err(error);
        }
        self.callbacks(Moment::PreUnpatch);
        // SAFETY: sites are routed, as functions that are in transition want it.
        unsafe { prepared.start(host) }.map_err(|(prepared, error)| {
            let error = Error::port("starting the transition", self.leader(), &error);
            self.stay_enabled(host, prepared);
            // The objects stay patched, so what `pre_unpatch` took down is set up again.
            self.callbacks(Moment::PostPatch);
            error
        })
    }

    /// Takes back the beginning of a transition that was to disable patches.
    #[allow(unsafe_code, reason = "the order of a transition")]
    fn stay_enabled(&mut self, host: &P, prepared: Prepared) {
        self.tell(host, |patch| Event::FailedToDisable { patch });
        bounds(&self.patches).for_each(|bound| bound.set_transition(&mut self.sites.writer, false));
        self.settle_moving(host);
        let proof = self.sites.writer.synchronize(host.tracer());
        // SAFETY: none is in transition any more.
        unsafe { prepared.cancel(host, &proof) };
    }
}
