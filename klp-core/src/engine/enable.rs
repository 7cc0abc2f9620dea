//! Enabling a patch (kernel: `klp_enable_patch`, `__klp_enable_patch`).

use super::objects::Bound;
use super::{Engine, Inner, PatchId, Poll, Transition};
use crate::error::{ApiMisuse, Error};
use crate::event::Event;
use crate::ops::Synchronized;
use crate::port::{Platform, TaskState};
use crate::transition::Prepared;

impl<P: Platform> Engine<P> {
    /// Starts to enable a patch: resolves what it names, routes its sites, lets tasks move. Tasks that can be switched at once
    /// are; [`poll`](Engine::poll) brings the rest.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] during any transition, [`Error::Patch`] if the patch does not fit, [`Error::Port`] if the host fails,
    /// [`Error::OutOfMemory`], [`ApiMisuse`]. Nothing has changed then.
    pub fn enable(&self, id: PatchId) -> Result<Poll, Error> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let index = inner.index_of(id)?;
        if inner.patches[index].enabled {
            return Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled));
        }
        inner.check_idle()?;
        let record = &mut inner.patches[index];
        let bound = Bound::new(&self.host, &mut inner.sites, &record.patch, &mut record.relocated)?;
        let affected = bound.affected(&inner.patches[index].patch)?;

        let patch = inner.patches[index].patch.name();
        self.host.event(&Event::Enabling { patch });
        self.host.event(&Event::Initializing { patch, target: TaskState::Patched });
        let prepared = Prepared::init(&self.host, TaskState::Patched, affected).map_err(|error| {
            self.host.event(&Event::FailedToEnable { patch });
            error.into_error("initializing tasks", patch)
        })?;
        inner.patch_and_start(&self.host, index, bound, prepared)?;
        Ok(inner.poll(&self.host))
    }
}

impl<P: Platform> Inner<P> {
    /// Puts the functions on their stacks, routes the sites, starts. On an error all of it is taken back.
    fn patch_and_start(
        &mut self,
        host: &P,
        index: usize,
        mut bound: Bound<P>,
        prepared: Prepared,
    ) -> Result<(), Error> {
        let record = &mut self.patches[index];
        let patch = record.patch.name();
        bound.set_transition(true);
        bound.push();
        let started = match self.sites.reroute(host.tracer(), bound.sites()) {
            Err(error) => Err((prepared, error.into_error(patch))),
            Ok(()) => prepared
                .start(host)
                .map_err(|(prepared, error)| (prepared, Error::port("starting the transition", patch, &error))),
        };
        match started {
            Ok(running) => {
                host.event(&Event::Starting { patch, target: TaskState::Patched });
                let id = record.id;
                record.bound = Some(bound);
                record.enabled = true;
                // Enabled patches come first, in the order of enabling (kernel: `klp_patches`, `stack_order`).
                let place = self.patches.iter().take_while(|other| other.enabled && other.id != id).count();
                self.patches[place..=index].rotate_right(1);
                self.transition = Some(Transition { patch: id, running, pending: 0 });
                Ok(())
            }
            Err((prepared, error)) => {
                host.event(&Event::FailedToEnable { patch });
                host.event(&Event::Canceling { patch });
                host.event(&Event::Completing { patch, target: TaskState::Unpatched });
                bound.remove();
                if self.sites.reroute(host.tracer(), bound.sites()).is_err() {
                    // The handler answers as the sites would: it is only slower.
                    self.sites.leave_unsettled();
                    host.event(&Event::NotSettled { patch });
                }
                let proof = Synchronized::with(host.tracer());
                prepared.cancel(host);
                bound.free(&proof);
                host.event(&Event::Complete { patch, target: TaskState::Unpatched });
                Err(error)
            }
        }
    }
}
