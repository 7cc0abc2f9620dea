//! Enabling a patch (kernel: `klp_enable_patch`, `__klp_enable_patch`).

use super::callbacks::Moment;
use super::objects::Bound;
use super::{Engine, Inner, PatchId, Poll, Transition};
use crate::error::{ApiMisuse, Error};
use crate::event::Event;
use crate::ops::Synchronized;
use crate::port::{Platform, SymbolResolver, TaskState};
use crate::transition::{Prepared, Running};

impl<P: Platform> Engine<P> {
    /// Starts to enable a patch: resolves what it names, routes its sites, lets tasks move. Tasks that can be switched at once
    /// are; [`poll`](Engine::poll) brings the rest. Enabled patches that it [replaces](crate::model::Patch::replaces) are disabled when it completes.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] during any transition, [`Error::Patch`] if the patch does not fit or a callback vetoed, [`Error::Port`] if the
    /// host fails, [`Error::OutOfMemory`], [`ApiMisuse`]. Nothing has changed then.
    pub fn enable(&self, id: PatchId) -> Result<Poll, Error> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let index = inner.index_of(id)?;
        if inner.patches[index].enabled {
            return Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled));
        }
        inner.check_idle()?;
        inner.check_states(&self.host, index)?;
        match inner.bind(&self.host, index).and_then(|()| inner.prepare(&self.host, index)) {
            Ok(prepared) => inner.patch_and_start(&self.host, index, prepared)?,
            Err(error) => {
                // Nothing was on a stack yet.
                let record = &mut inner.patches[index];
                record.objects.iter_mut().for_each(|object| object.bound = None);
                record.nops.clear();
                return Err(error);
            }
        }
        Ok(inner.poll(&self.host))
    }
}

impl<P: Platform> Inner<P> {
    /// Binds a patch to the objects that are loaded. One of them may have come without a word yet
    /// ([`object_coming`](Engine::object_coming)): enabled patches are applied to it first, since they belong below.
    fn bind(&mut self, host: &P, index: usize) -> Result<(), Error> {
        for number in 0..self.patches[index].objects.len() {
            let object = self.patches[index].patch.objects()[number].name().try_clone()?;
            if !host.symbols().is_loaded(&object) {
                continue;
            }
            (0..index).try_for_each(|older| self.apply(host, older, &object))?;
            let record = &mut self.patches[index];
            let state = &mut record.objects[number];
            state.bound = Some(Bound::new(host, &mut self.sites, &record.patch, number, &mut state.relocated)?);
        }
        self.check_sets(index)?;
        Ok(self.add_nops(index)?)
    }

    fn prepare(&mut self, host: &P, index: usize) -> Result<Prepared, Error> {
        let record = &self.patches[index];
        let affected = record.affected()?;
        let patch = record.patch.name();
        host.event(&Event::Enabling { patch });
        host.event(&Event::Initializing { patch, target: TaskState::Patched });
        Prepared::init(host, TaskState::Patched, affected).map_err(|error| {
            host.event(&Event::FailedToEnable { patch });
            error.into_error("initializing tasks", patch)
        })
    }

    /// Calls the pre-patch callbacks, puts the functions on their stacks, routes the sites, starts. On an error all of it is
    /// taken back.
    fn patch_and_start(&mut self, host: &P, index: usize, prepared: Prepared) -> Result<(), Error> {
        let id = self.patches[index].id;
        match self.patch_objects(host, index, prepared) {
            Ok(running) => {
                let record = &mut self.patches[index];
                host.event(&Event::Starting { patch: record.patch.name(), target: TaskState::Patched });
                record.enabled = true;
                // Enabled patches come first, in the order of enabling (kernel: `klp_patches`, `stack_order`).
                let place = self.patches.iter().take_while(|other| other.enabled && other.id != id).count();
                self.patches[place..=index].rotate_right(1);
                self.transition = Some(Transition { patch: id, running, pending: 0 });
                Ok(())
            }
            Err((prepared, error)) => {
                self.unpatch_objects(host, index, prepared);
                Err(error)
            }
        }
    }

    #[allow(clippy::result_large_err, reason = "the stage comes back by value")]
    fn patch_objects(&mut self, host: &P, index: usize, prepared: Prepared) -> Result<Running, (Prepared, Error)> {
        for object in 0..self.patches[index].objects.len() {
            if self.patches[index].objects[object].bound.is_some() {
                if let Err(error) = self.pre_patch(host, index, object) {
                    return Err((prepared, error));
                }
            }
        }
        let record = &mut self.patches[index];
        for bound in record.bounds_mut() {
            bound.set_transition(true);
            bound.push();
        }
        let patch = record.patch.name();
        match self.sites.reroute(host.tracer(), record.bounds().flat_map(Bound::sites)) {
            Err(error) => Err((prepared, error.into_error(patch))),
            Ok(()) => prepared
                .start(host)
                .map_err(|(prepared, error)| (prepared, Error::port("starting the transition", patch, &error))),
        }
    }

    /// Takes back what [`patch_objects`](Inner::patch_objects) did, as far as it came.
    fn unpatch_objects(&mut self, host: &P, index: usize, prepared: Prepared) {
        let record = &mut self.patches[index];
        let patch = record.patch.name();
        host.event(&Event::FailedToEnable { patch });
        host.event(&Event::Canceling { patch });
        host.event(&Event::Completing { patch, target: TaskState::Unpatched });
        record.bounds_mut().for_each(Bound::remove);
        let record = &self.patches[index];
        if self.sites.reroute(host.tracer(), record.bounds().flat_map(Bound::sites)).is_err() {
            // The handler answers as the sites would: it is only slower.
            self.sites.leave_unsettled();
            host.event(&Event::NotSettled { patch: record.patch.name() });
        }
        let proof = Synchronized::with(host.tracer());
        prepared.cancel(host);
        self.patches[index].take_bounds(&proof);
        for object in 0..self.patches[index].objects.len() {
            self.callback(index, object, Moment::PostUnpatch);
        }
        host.event(&Event::Complete { patch: self.patches[index].patch.name(), target: TaskState::Unpatched });
    }
}
