//! Bringing a transition on, and to its end (kernel: `klp_transition_work_fn`, `klp_complete_transition`).

use super::callbacks::Moment;
use super::objects::{Bound, names};
use super::replace::gives_way;
use super::{Engine, Inner, PatchId, Transition};
use crate::error::{ApiMisuse, Error};
use crate::event::{Event, Obstacle};
use crate::ops::Synchronized;
use crate::port::{Platform, TaskSet, TaskState};
use crate::transition::{Attempt, Straggler, Switched};

/// What a poll found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// No transition is under way.
    Idle,
    /// A transition is under way.
    Waiting {
        /// The patch.
        patch: PatchId,
        /// Tasks that are not switched yet; 0 if tasks appear faster than they can be listed.
        pending: usize,
    },
    /// The transition ended just now.
    Complete {
        /// The patch.
        patch: PatchId,
        /// Whether it is enabled now.
        enabled: bool,
    },
}

impl<P: Platform> Engine<P> {
    /// Tries to switch the tasks that are left, and completes the transition when none is. Call it about once per second
    /// or more often while [`Poll::Waiting`] comes back; without a transition it costs next to nothing.
    pub fn poll(&self) -> Poll {
        self.inner.lock().poll(&self.host)
    }

    /// Makes the stragglers of `id`'s transition leave interruptible sleeps. [`poll`](Engine::poll) does it by itself every
    /// [`KICK_INTERVAL`](crate::config::KICK_INTERVAL) attempts.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::NoTransition`], or [`Error::Port`] if the tasks cannot be listed.
    pub fn kick(&self, id: PatchId) -> Result<(), Error> {
        self.inner.lock().kick(&self.host, id)
    }

    /// Ends `id`'s transition now, whatever tasks are in the middle of. Whoever calls this vouches that no harm is done by
    /// tasks that run parts of both versions. A patch that is forced *away* can never be removed afterwards: tasks may still be
    /// inside it.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::NoTransition`].
    pub fn force(&self, id: PatchId) -> Result<Poll, Error> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let index = inner.index_of(id)?;
        let Some(transition) = inner.transition.take_if(|transition| transition.patch == id) else {
            return Err(Error::ApiMisuse(ApiMisuse::NoTransition));
        };
        self.host.event(&Event::Forcing);
        // Tasks may stay inside the functions of a patch that goes away (kernel: `patch->forced`).
        let patching = transition.running.target() == TaskState::Patched;
        for other in 0..inner.patches.len() {
            let goes = if patching { gives_way(&inner.patches, other, index) } else { other == index };
            inner.patches[other].forced |= goes;
        }
        let switched = transition.running.force(&self.host);
        Ok(inner.complete(&self.host, id, switched))
    }
}

impl<P: Platform> Inner<P> {
    pub(super) fn poll(&mut self, host: &P) -> Poll {
        let Some(Transition { patch: id, running, pending }) = self.transition.take() else {
            self.sites.settle(host.tracer());
            return Poll::Idle;
        };
        let patch = self.patches.iter().find(|record| record.id == id).map(|record| &record.patch);
        let attempt = running.try_complete(host, &mut |task, straggler| {
            let obstacle = match straggler {
                Straggler::Other(obstacle) => obstacle,
                Straggler::InFunction(at) => Obstacle::InFunction(patch.map_or("?", |patch| names(patch, at).1)),
            };
            host.event(&Event::NotSwitched { name: &host.tasks().name(task), task, obstacle });
        });
        let (running, pending) = match attempt {
            Attempt::Switched(switched) => return self.complete(host, id, switched),
            Attempt::Waiting { running, pending } => (running, pending),
            // Memory or the host's list of tasks: the next poll tries again.
            Attempt::Failed { running, .. } => {
                if let Some(patch) = patch {
                    host.event(&Event::NotTried { patch: patch.name() });
                }
                (running, pending)
            }
        };
        let kick = running.kick_is_due();
        self.transition = Some(Transition { patch: id, running, pending });
        if kick {
            // It helps or it does not; either way the next poll looks again.
            let _ = self.kick(host, id);
        }
        Poll::Waiting { patch: id, pending }
    }

    fn kick(&mut self, host: &P, id: PatchId) -> Result<(), Error> {
        let index = self.index_of(id)?;
        let Some(transition) = self.transition.as_mut().filter(|transition| transition.patch == id) else {
            return Err(Error::ApiMisuse(ApiMisuse::NoTransition));
        };
        let patch = self.patches[index].patch.name();
        if transition.running.kick(host).map_err(|error| error.into_error("listing tasks", patch))? {
            host.event(&Event::Signaling);
        }
        Ok(())
    }

    /// Makes the outcome permanent: every task has moved.
    fn complete(&mut self, host: &P, id: PatchId, switched: Switched) -> Poll {
        let target = switched.target();
        let enabled = target == TaskState::Patched;
        let complete = Poll::Complete { patch: id, enabled };
        let Ok(index) = self.index_of(id) else { return complete };
        host.event(&Event::Completing { patch: self.patches[index].patch.name(), target });
        if enabled {
            self.patches[index].bounds().for_each(|bound| bound.set_transition(false));
            for old in 0..self.patches.len() {
                if gives_way(&self.patches, old, index) {
                    self.patches[old].bounds_mut().for_each(Bound::remove);
                }
            }
            self.patches[index].nops.iter_mut().for_each(Bound::remove);
        } else {
            self.patches[index].bounds_mut().for_each(Bound::remove);
        }
        // Every function of a patch that gives way is among its own or among its nops.
        let sites = self.patches[index].bounds().flat_map(Bound::sites);
        if self.sites.reroute(host.tracer(), sites).is_err() {
            // The handler chooses as the sites would: it is only slower.
            self.sites.leave_unsettled();
            host.event(&Event::NotSettled { patch: self.patches[index].patch.name() });
        }
        // No handler may still believe that the func is in transition when tasks become idle, nor see a removed node when
        // its memory goes.
        let proof = Synchronized::with(host.tracer());
        switched.finish(host, &proof);
        let moment = if enabled { Moment::PostPatch } else { Moment::PostUnpatch };
        let loaded = |inner: &Self, object: usize| inner.patches[index].objects[object].bound.is_some();
        for object in 0..self.patches[index].objects.len() {
            if loaded(self, object) {
                self.callback(index, object, moment);
            }
        }
        host.event(&Event::Complete { patch: self.patches[index].patch.name(), target });
        self.clean_up(index, enabled, &proof);
        complete
    }

    /// Frees what is on no stack any more, and puts patches that are not enabled any more behind those that are.
    fn clean_up(&mut self, index: usize, enabled: bool, proof: &Synchronized) {
        if !enabled {
            self.patches[index].take_bounds(proof);
            self.move_behind_enabled(index);
            return;
        }
        self.patches[index].nops.drain(..).for_each(|nops| nops.free(proof));
        let id = self.patches[index].id;
        // From behind, so that those that move do not change the places of those that are looked at.
        for old in (0..self.patches.len()).rev() {
            let Ok(new) = self.index_of(id) else { return };
            if gives_way(&self.patches, old, new) {
                let record = &mut self.patches[old];
                record.enabled = false;
                record.take_bounds(proof);
                // Only the new patch's callbacks are called.
                record.objects.iter_mut().for_each(|object| object.post_unpatch_due = false);
                self.move_behind_enabled(old);
            }
        }
    }

    /// Enabled patches come first; this one is not enabled any more.
    fn move_behind_enabled(&mut self, index: usize) {
        let behind = self.patches[index..].iter().rposition(|record| record.enabled).unwrap_or(0);
        self.patches[index..=index + behind].rotate_left(1);
    }
}
