//! Objects that come and go (kernel: `klp_module_coming`, `klp_module_going`).

use super::Engine;
use super::affected::Judge;
use super::callbacks::Moment;
use super::inner::{Inner, Record};
use super::objects::{Bound, Relocated};
use crate::error::Error;
use crate::event::Event;
use crate::mem::{OutOfMemory, try_push};
use crate::port::Platform;
use crate::relocs;
use alloc::vec::Vec;

impl<P: Platform> Engine<P> {
    /// Applies the enabled patches, and those in transition, to an object that has just been
    /// loaded. The host's symbol tables know it already.
    ///
    /// # Errors
    ///
    /// That of the first patch that does not fit, or whose callback vetoed. No patch is applied to
    /// the object then, and no task has been in new code because of it: everything that may say no
    /// is asked before the first call is led there. So `pre_patch` of all patches comes before
    /// `post_patch` of any; Linux, where nobody can be inside, takes one patch after the other.
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
        let count = inner.patches.len();
        inner.apply(&self.host, count, object, |patch| {
            self.host.event(&Event::RefusingObject { patch, object });
        })
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
            .for_each(|index| unsafe { inner.going(&self.host, index, object) });
        // SAFETY: the caller's promise.
        unsafe { inner.sites.reclaim_object(self.host.tracer(), object) };
        inner.renew_affected_later(&self.host);
    }
}

/// The patches that are about to be applied to an object that is coming, by their numbers, each
/// with the object's number in it.
#[derive(Default)]
struct Coming(Vec<(usize, usize)>);

impl Coming {
    fn first(&self) -> usize {
        self.0.first().map_or(0, |(index, _)| *index)
    }

    fn first_of<'a, P: Platform>(&self, patches: &'a [Record<P>]) -> &'a str {
        patches
            .get(self.first())
            .map_or("?", |record| record.patch.name())
    }
}

impl<P: Platform> Inner<P> {
    /// Applies those of the first `count` patches that are in force to the object called `name`,
    /// all or none. `refusing` hears of the one that stands in the way.
    pub(super) fn apply(
        &mut self,
        host: &P,
        count: usize,
        name: &str,
        refusing: impl FnOnce(&str),
    ) -> Result<(), Error> {
        let mut coming = Coming::default();
        let applied = (0..count)
            .try_for_each(|index| self.admit(host, index, name, &mut coming))
            .and_then(|()| self.patch_coming(host, count, name, &coming));
        if let Err((index, error)) = applied {
            refusing(self.patches[index].patch.name());
            for &(index, object) in &coming.0 {
                self.revert(host, index, object);
                // SAFETY: no call was led into code of the patch for this object.
                #[allow(unsafe_code, reason = "relocations of the patch's own code")]
                unsafe {
                    self.clear_relocs(host, index, object);
                };
            }
            self.sites.forget_object(host.tracer(), name);
            self.renew_affected_later(host);
            return Err(error);
        }
        for (index, object) in coming.0 {
            if !self.moves(index) {
                self.callback(index, object, Moment::PostPatch);
            }
        }
        Ok(())
    }

    /// Asks patch number `index`, if it is in force and has the object that is coming, whether it
    /// fits. Nothing outside of the patch is changed.
    fn admit(
        &mut self,
        host: &P,
        index: usize,
        name: &str,
        coming: &mut Coming,
    ) -> Result<(), (usize, Error)> {
        let Some(object) = self.object_of(index, name).filter(|_| self.in_force(index)) else {
            return Ok(());
        };
        if self.patches[index].objects[object].bound.is_some() {
            return Ok(());
        }
        try_push(&mut coming.0, (index, object)).map_err(|full| (index, full.into()))?;
        let record = &mut self.patches[index];
        let relocated = &mut record.objects[object].relocated;
        let bound = Bound::new(host, &mut self.sites, &record.patch, object, relocated)
            .and_then(|bound| self.check_sets_again(index, &bound).map(|()| bound));
        let record = &mut self.patches[index];
        let patch = record.patch.name();
        record.objects[object].bound = Some(bound.map_err(|error| {
            host.event(&Event::FailedToInit {
                patch,
                object: name,
                errno: error.errno(),
            });
            (index, error)
        })?);
        host.event(&Event::Applying {
            patch,
            object: name,
        });
        self.pre_patch(host, index, object).map_err(|error| {
            self.patches[index].objects[object].bound = None;
            (index, error)
        })
    }

    /// Puts the functions of an object that is coming on their stacks, and those of patches that
    /// give way back to the original. Calls are led there in the end, all or none.
    fn patch_coming(
        &mut self,
        host: &P,
        count: usize,
        name: &str,
        coming: &Coming,
    ) -> Result<(), (usize, Error)> {
        self.push_coming(host, count, coming)
            .map_err(Error::from)
            .and_then(|()| {
                let records = &self.patches;
                let bounds = coming.0.iter().filter_map(|&(index, object)| {
                    let bound = &records[index].objects[object].bound;
                    bound.as_ref()
                });
                let nops = records.iter().flat_map(|record| &record.nops);
                let sites = bounds.chain(nops).flat_map(Bound::sites);
                self.sites
                    .reroute(host.tracer(), sites)
                    .map_err(|error| error.into_error(coming.first_of(records)))
            })
            .map_err(|error| {
                // They are refused as a whole: the first stands for all.
                host.event(&Event::FailedToApply {
                    patch: coming.first_of(&self.patches),
                    object: name,
                    errno: error.errno(),
                });
                (coming.first(), error)
            })
    }

    /// As far as nobody notices.
    fn push_coming(&mut self, host: &P, count: usize, coming: &Coming) -> Result<(), OutOfMemory> {
        for index in 0..count {
            let moves = self.moves(index);
            let nops = self.patches[index].nops.len();
            if moves && !self.patches[index + 1..].iter().any(|newer| newer.moves) {
                self.add_nops()?;
            }
            let record = &mut self.patches[index];
            let object = coming.0.iter().find(|(patch, _)| *patch == index);
            let bound = object.and_then(|(_, object)| record.objects[*object].bound.as_mut());
            for bound in record.nops.iter_mut().skip(nops).chain(bound) {
                bound.set_transition(&mut self.sites.writer, moves);
                bound.push(&mut self.sites.writer);
            }
        }
        self.renew_affected(host)
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
    unsafe fn going(&mut self, host: &P, index: usize, name: &str) {
        let Some(object) = self.object_of(index, name) else {
            return;
        };
        if self.patches[index].objects[object].bound.is_some() && !self.moves(index) {
            self.callback(index, object, Moment::PreUnpatch);
        }
        self.revert(host, index, object);
        // SAFETY: the caller's promise; code of the patch that refers to the object is run from
        // there only.
        unsafe { self.clear_relocs(host, index, object) };
    }

    /// Takes the functions of one object off their stacks, if they are there.
    fn revert(&mut self, host: &P, index: usize, object: usize) {
        let record = &self.patches[index];
        if record.objects[object].bound.is_some() {
            host.event(&Event::Reverting {
                patch: record.patch.name(),
                object: record.patch.objects()[object].name(),
            });
            self.unpatch_object(host, index, object);
            self.callback(index, object, Moment::PostUnpatch);
        }
    }

    /// Makes the patch's code what it was before it was completed for an object.
    ///
    /// # Safety
    ///
    /// No task runs code of the patch that refers to the object.
    #[allow(unsafe_code, reason = "relocations of the patch's own code")]
    unsafe fn clear_relocs(&mut self, host: &P, index: usize, object: usize) {
        let record = &mut self.patches[index];
        if record.objects[object].relocated != Relocated::No {
            // SAFETY: the caller's promise.
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
