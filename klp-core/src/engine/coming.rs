//! Objects that come and go (kernel: `klp_module_coming`, `klp_module_going`).

use super::Engine;
use super::affected::Judge;
use super::callbacks::Moment;
use super::inner::Inner;
use super::objects::{Bound, Relocated};
use crate::error::Error;
use crate::event::Event;
use crate::mem::OutOfMemory;
use crate::port::Platform;
use crate::relocs;

impl<P: Platform> Engine<P> {
    /// Applies the enabled patches, and those in transition, to an object that has just been
    /// loaded. The host's symbol tables know it already.
    ///
    /// # Errors
    ///
    /// That of the first patch that does not fit, or whose callback vetoed. No patch is applied to
    /// the object then, and it must not run.
    ///
    /// # Safety
    ///
    /// No task is inside of the object, and none runs code of it before this returns: tasks go over
    /// to the patches at once, wherever they are. Otherwise the patches must bear any mixture of
    /// old and new functions, as for [`force`](Engine::force).
    #[allow(unsafe_code, reason = "a promise of the host")]
    pub unsafe fn object_coming(&self, object: &str) -> Result<(), Error> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        for index in 0..inner.patches.len() {
            if let Err(error) = inner.apply(&self.host, index, object) {
                let patch = inner.patches[index].patch.name();
                self.host.event(&Event::RefusingObject { patch, object });
                // That of `index` too: its relocations were applied perhaps. SAFETY: the caller
                // promises that tasks are kept out of it, so none is in what replaces its functions
                // either.
                (0..=index).for_each(|index| unsafe { inner.revert(&self.host, index, object) });
                // Not all hosts can keep tasks out of it while it comes.
                inner.sites.forget_object(self.host.tracer(), object);
                inner.renew_affected_later(&self.host);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes the patches back from an object that is about to be unloaded. What the engine keeps
    /// for each function of it serves others from here on.
    ///
    /// ```compile_fail,E0133
    /// # use klp_core::{Engine, sim::SimOs};
    /// fn unload(engine: &Engine<SimOs>) {
    ///     engine.object_going("m"); // who says that no task is in there?
    /// }
    /// ```
    ///
    /// What fails here, for want of memory or because the host does, is made up for when the object
    /// comes again, or costs a little memory for good. In a callback of a patch it does nothing: an
    /// object must not go there.
    ///
    /// # Safety
    ///
    /// No call of the object's functions is under way: no task is in code of it, or in what
    /// replaces its functions, or on its way there from an entry, through a thunk, the entry stub
    /// or a veneer. None begins before the object is gone, or has [come](Engine::object_coming)
    /// again.
    #[allow(unsafe_code, reason = "a promise of the host")]
    pub unsafe fn object_going(&self, object: &str) {
        let Ok(mut inner) = self.lock() else { return };
        let inner = &mut *inner;
        // SAFETY: the caller's promise.
        (0..inner.patches.len())
            .for_each(|index| unsafe { inner.revert(&self.host, index, object) });
        // SAFETY: the caller's promise.
        unsafe { inner.sites.reclaim_object(self.host.tracer(), object) };
        inner.renew_affected_later(&self.host);
    }
}

impl<P: Platform> Inner<P> {
    /// Applies patch number `index` to the object that is coming, if it is in force and has it.
    pub(super) fn apply(&mut self, host: &P, index: usize, name: &str) -> Result<(), Error> {
        if !self.in_force(index) {
            return Ok(());
        }
        let object = self.object_of(index, name);
        if let Some(object) = object {
            let record = &mut self.patches[index];
            if record.objects[object].bound.is_some() {
                return Ok(());
            }
            let relocated = &mut record.objects[object].relocated;
            let bound = Bound::new(host, &mut self.sites, &record.patch, object, relocated)
                .and_then(|bound| self.check_sets_again(index, &bound).map(|()| bound));
            let record = &mut self.patches[index];
            let patch = record.patch.name();
            record.objects[object].bound = Some(bound.inspect_err(|error| {
                host.event(&Event::FailedToInit {
                    patch,
                    object: name,
                    errno: error.errno(),
                });
            })?);
            host.event(&Event::Applying {
                patch,
                object: name,
            });
            if let Err(error) = self.pre_patch(host, index, object) {
                self.patches[index].objects[object].bound = None;
                return Err(error);
            }
        }
        if let Err(error) = self.patch_coming(host, index, object) {
            let patch = self.patches[index].patch.name();
            host.event(&Event::FailedToApply {
                patch,
                object: name,
                errno: error.errno(),
            });
            if let Some(object) = object {
                self.unpatch_object(host, index, object);
                self.callback(index, object, Moment::PostUnpatch);
            }
            return Err(error);
        }
        if let Some(object) = object.filter(|_| !self.moves(index)) {
            self.callback(index, object, Moment::PostPatch);
        }
        Ok(())
    }

    /// Puts the functions of an object that is coming on their stacks, and those of patches that
    /// give way back to the original.
    fn patch_coming(&mut self, host: &P, index: usize, object: Option<usize>) -> Result<(), Error> {
        let moves = self.moves(index);
        let nops = self.patches[index].nops.len();
        if moves && !self.patches[index + 1..].iter().any(|newer| newer.moves) {
            self.add_nops()?;
        }
        let record = &mut self.patches[index];
        let fresh = record
            .nops
            .iter_mut()
            .skip(nops)
            .chain(object.and_then(|object| record.objects[object].bound.as_mut()));
        for bound in fresh {
            bound.set_transition(&mut self.sites.writer, moves);
            bound.push(&mut self.sites.writer);
        }
        let record = &self.patches[index];
        let fresh = record.nops[nops..]
            .iter()
            .chain(object.and_then(|object| record.objects[object].bound.as_ref()));
        self.sites
            .reroute(host.tracer(), fresh.flat_map(Bound::sites))
            .map_err(|error| error.into_error(record.patch.name()))?;
        if moves {
            self.renew_affected(host).map_err(Error::from)
        } else {
            Ok(())
        }
    }

    /// Works out the code of both sides of the transition under way anew: an object has come, or is
    /// gone, or tasks are left that could switch themselves.
    pub(super) fn renew_affected(&mut self, host: &P) -> Result<(), OutOfMemory> {
        if self.transition.is_none() {
            return Ok(());
        }
        let affected = self.affected(host, Judge::Now)?;
        if let Some(transition) = &mut self.transition {
            let writer = &mut self.sites.writer;
            transition.running.extend(host, writer, affected)?;
            transition.judged = true;
        }
        Ok(())
    }

    /// The same. If there is no memory for it now, the next poll tries again.
    pub(super) fn renew_affected_later(&mut self, host: &P) {
        let renewed = self.renew_affected(host);
        if let Some(transition) = &mut self.transition {
            transition.stale = renewed.is_err();
        }
    }

    /// Takes patch number `index` back from an object that is going.
    ///
    /// # Safety
    ///
    /// No task runs code of the object, or what replaces its functions.
    #[allow(unsafe_code, reason = "relocations of the patch's own code")]
    unsafe fn revert(&mut self, host: &P, index: usize, name: &str) {
        let Some(object) = self.object_of(index, name) else {
            return;
        };
        if self.patches[index].objects[object].bound.is_some() {
            if !self.moves(index) {
                self.callback(index, object, Moment::PreUnpatch);
            }
            host.event(&Event::Reverting {
                patch: self.patches[index].patch.name(),
                object: name,
            });
            self.unpatch_object(host, index, object);
            self.callback(index, object, Moment::PostUnpatch);
        }
        let record = &mut self.patches[index];
        if record.objects[object].relocated != Relocated::No {
            // SAFETY: the caller's promise; code of the patch that refers to the object is run from
            // there only.
            let cleared = unsafe {
                relocs::clear(host, record.patch.name(), &record.patch.objects()[object])
            };
            // If it failed, it is done when the object comes again.
            record.objects[object].relocated = cleared.map_or(Relocated::Stale, |()| Relocated::No);
        }
    }

    /// Takes the functions of one object off their stacks, for good.
    fn unpatch_object(&mut self, host: &P, index: usize, object: usize) {
        let Some(mut bound) = self.patches[index].objects[object].bound.take() else {
            return;
        };
        bound.remove(&mut self.sites.writer);
        for nops in self.patches.iter_mut().flat_map(|record| &mut record.nops) {
            nops.forget_those_of(&mut self.sites.writer, &mut bound);
        }
        let patch = self.patches[index].patch.name();
        if self.sites.reroute(host.tracer(), bound.sites()).is_err() {
            self.sites.leave_unsettled();
            host.event(&Event::NotSettled { patch });
        }
        let proof = self.sites.writer.synchronize(host.tracer());
        bound.release(&proof);
        for nops in self.patches.iter_mut().map(|record| &mut record.nops) {
            nops.iter_mut().for_each(|bound| bound.release(&proof));
            while let Some(index) = nops.iter().position(Bound::is_empty) {
                nops.swap_remove(index);
            }
        }
    }
}
