//! Disabling a patch, and turning a transition round (kernel: `__klp_disable_patch`, `klp_reverse_transition`).

use super::{Engine, PatchId, Poll, Transition};
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
        let record = &mut inner.patches[index];
        let bound = match &record.bound {
            Some(bound) if record.enabled => bound,
            _ => return Err(Error::ApiMisuse(ApiMisuse::NotEnabled)),
        };
        let patch = record.patch.name();
        let affected = bound.affected(&record.patch)?;
        self.host.event(&Event::Initializing { patch, target: TaskState::Unpatched });
        let prepared = Prepared::init(&self.host, TaskState::Unpatched, affected).map_err(|error| {
            self.host.event(&Event::FailedToDisable { patch });
            error.into_error("initializing tasks", patch)
        })?;
        bound.set_transition(true);
        let started = match inner.sites.reroute(self.host.tracer(), bound.sites()) {
            Err(error) => Err((prepared, error.into_error(patch))),
            Ok(()) => prepared
                .start(&self.host)
                .map_err(|(prepared, error)| (prepared, Error::port("starting the transition", patch, &error))),
        };
        match started {
            Ok(running) => {
                self.host.event(&Event::Starting { patch, target: TaskState::Unpatched });
                record.enabled = false;
                inner.transition = Some(Transition { patch: id, running, pending: 0 });
                Ok(inner.poll(&self.host))
            }
            Err((prepared, error)) => {
                self.host.event(&Event::FailedToDisable { patch });
                bound.set_transition(false);
                if inner.sites.reroute(self.host.tracer(), bound.sites()).is_err() {
                    inner.sites.leave_unsettled();
                    self.host.event(&Event::NotSettled { patch });
                }
                let _: Synchronized = Synchronized::with(self.host.tracer());
                prepared.cancel(&self.host);
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
