//! Disabling a patch, and turning a transition round (kernel: `__klp_disable_patch`, `klp_reverse_transition`).

use super::callbacks::Moment;
use super::objects::Bound;
use super::{Engine, Inner, PatchId, Poll, Transition};
use crate::error::{ApiMisuse, Error};
use crate::event::Event;
use crate::ops::Synchronized;
use crate::port::{Platform, TaskState};
use crate::transition::Prepared;

impl<P: Platform> Engine<P> {
    /// Starts to disable an enabled patch. Patches may be disabled in any order.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] during any transition (see [`reverse`](Engine::reverse) for the patch's own), [`Error::Port`],
    /// [`Error::OutOfMemory`], [`ApiMisuse`]. Nothing has changed then.
    pub fn disable(&self, id: PatchId) -> Result<Poll, Error> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let index = inner.index_of(id)?;
        inner.check_idle()?;
        let record = &inner.patches[index];
        if !record.enabled {
            return Err(Error::ApiMisuse(ApiMisuse::NotEnabled));
        }
        let affected = record.affected()?;
        let patch = record.patch.name();
        self.host.event(&Event::Initializing { patch, target: TaskState::Unpatched });
        let prepared = Prepared::init(&self.host, TaskState::Unpatched, affected).map_err(|error| {
            self.host.event(&Event::FailedToDisable { patch });
            error.into_error("initializing tasks", patch)
        })?;
        for bound in record.bounds() {
            bound.set_transition(true);
        }
        match inner.sites.reroute(self.host.tracer(), record.bounds().flat_map(Bound::sites)) {
            Ok(()) => {}
            Err(error) => {
                let error = error.into_error(patch);
                inner.stay_enabled(&self.host, index, prepared);
                return Err(error);
            }
        }
        for object in 0..record.objects.len() {
            if inner.patches[index].objects[object].bound.is_some() {
                inner.callback(index, object, Moment::PreUnpatch);
            }
        }
        match prepared.start(&self.host) {
            Ok(running) => {
                let record = &mut inner.patches[index];
                let patch = record.patch.name();
                self.host.event(&Event::Starting { patch, target: TaskState::Unpatched });
                record.enabled = false;
                inner.transition = Some(Transition { patch: id, running, pending: 0 });
                Ok(inner.poll(&self.host))
            }
            Err((prepared, error)) => {
                let error = Error::port("starting the transition", inner.patches[index].patch.name(), &error);
                inner.stay_enabled(&self.host, index, prepared);
                // The objects stay patched, so what `pre_unpatch` took down is set up again.
                for object in 0..inner.patches[index].objects.len() {
                    if inner.patches[index].objects[object].bound.is_some() {
                        inner.callback(index, object, Moment::PostPatch);
                    }
                }
                Err(error)
            }
        }
    }

    /// Turns the transition of `id` round: a patch that was being enabled goes away again, and the other way about.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::NoTransition`] if the patch is not in transition; [`Error::Port`], and the transition goes on as before.
    pub fn reverse(&self, id: PatchId) -> Result<Poll, Error> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let index = inner.index_of(id)?;
        let Some(transition) = inner.transition.take_if(|transition| transition.patch == id) else {
            return Err(Error::ApiMisuse(ApiMisuse::NoTransition));
        };
        let record = &mut inner.patches[index];
        let patch = record.patch.name();
        let from = transition.running.target();
        self.host.event(&Event::Reversing { patch, from });
        match transition.running.reverse(&self.host) {
            Ok(running) => {
                let target = running.target();
                self.host.event(&Event::Starting { patch, target });
                record.enabled = target == TaskState::Patched;
                inner.transition = Some(Transition { running, ..transition });
                Ok(inner.poll(&self.host))
            }
            Err((running, error)) => {
                let error = Error::port("reversing the transition", patch, &error);
                inner.transition = Some(Transition { running, ..transition });
                Err(error)
            }
        }
    }
}

impl<P: Platform> Inner<P> {
    /// Takes back the beginning of a transition that was to disable a patch.
    fn stay_enabled(&mut self, host: &P, index: usize, prepared: Prepared) {
        let record = &self.patches[index];
        let patch = record.patch.name();
        host.event(&Event::FailedToDisable { patch });
        for bound in record.bounds() {
            bound.set_transition(false);
        }
        if self.sites.reroute(host.tracer(), record.bounds().flat_map(Bound::sites)).is_err() {
            // The handler answers as the sites would: it is only slower.
            self.sites.leave_unsettled();
            host.event(&Event::NotSettled { patch });
        }
        let _: Synchronized = Synchronized::with(host.tracer());
        prepared.cancel(host);
    }
}
