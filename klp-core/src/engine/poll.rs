//! Bringing a transition on, and to its end (kernel: `klp_transition_work_fn`,
//! `klp_complete_transition`).

use super::Engine;
use super::affected::switch_at_entries;
use super::batch::{bounds, names};
use super::callbacks::Moment;
use super::inner::{Inner, PatchId, Transition};
use super::objects::Bound;
use crate::error::{ApiMisuse, Error};
use crate::event::{Event, Obstacle};
use crate::port::{Platform, TaskSet, TaskState};
use crate::transition::{Attempt, Straggler, Switched};

/// What a poll found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Poll {
    /// No transition is under way.
    Idle,
    /// A transition is under way.
    Waiting {
        /// The patch; the first of several.
        patch: PatchId,
        /// Tasks that are not switched yet; 0 if tasks appear faster than they can be listed.
        pending: usize,
    },
    /// The transition ended just now.
    Complete {
        /// The patch; the first of several.
        patch: PatchId,
        /// Whether it is enabled now.
        enabled: bool,
    },
}

impl<P: Platform> Engine<P> {
    /// Tries to switch the tasks that are left, and completes the transition when none is. Call it
    /// about once per second or more often while [`Poll::Waiting`] comes back; without a transition
    /// it costs next to nothing. In a callback of a patch it does nothing, and says [`Poll::Idle`].
    pub fn poll(&self) -> Poll {
        self.lock()
            .map_or(Poll::Idle, |mut inner| inner.poll(&self.host))
    }

    /// Makes the stragglers of `id`'s transition leave interruptible sleeps. [`poll`](Engine::poll)
    /// does it by itself when [`TaskSet::kick_is_due`] says so.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::NoTransition`], or [`Error::Port`] if the tasks cannot be listed.
    pub fn kick(&self, id: PatchId) -> Result<(), Error> {
        let mut inner = self.lock()?;
        inner.check_moves(id)?;
        inner.kick(&self.host)
    }

    /// Ends `id`'s transition now, whatever tasks are in the middle of. A patch that is forced
    /// *away* can never be removed afterwards: tasks may still be inside it.
    ///
    /// ```compile_fail,E0133
    /// # use klp_core::{Engine, Error, PatchId, Poll, sim::SimOs};
    /// fn hurry(engine: &Engine<SimOs>, id: PatchId) -> Result<Poll, Error> {
    ///     engine.force(id) // who says that the patch bears it?
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::NoTransition`].
    ///
    /// # Safety
    ///
    /// The patches in transition bear what the consistency model keeps from them otherwise: from
    /// here on, a task may return from a new function to old code, or from an old one to new code,
    /// and may have run any mixture of both in one call.
    #[allow(unsafe_code, reason = "a promise about the patch")]
    pub unsafe fn force(&self, id: PatchId) -> Result<Poll, Error> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        inner.check_moves(id)?;
        let Some(transition) = inner.transition.take() else {
            return Err(Error::ApiMisuse(ApiMisuse::NoTransition));
        };
        self.host.event(&Event::Forcing);
        // Tasks may stay inside the functions of a patch that goes away (kernel: `patch->forced`).
        let patching = transition.running.target() == TaskState::Patched;
        for index in 0..inner.patches.len() {
            let goes = if patching {
                inner.gives_way_now(index)
            } else {
                inner.moves(index)
            };
            inner.patches[index].forced |= goes;
        }
        // SAFETY: the caller's promise.
        let switched = unsafe {
            transition
                .running
                .force(&self.host, &mut inner.sites.writer)
        };
        Ok(inner.complete(&self.host, transition.leader, switched))
    }
}

impl<P: Platform> Inner<P> {
    pub(super) fn poll(&mut self, host: &P) -> Poll {
        let stale = self
            .transition
            .as_ref()
            .is_some_and(|transition| transition.stale);
        let stale = stale && self.renew_affected(host).is_err();
        let Some(Transition {
            leader,
            running,
            pending,
            judged,
            ..
        }) = self.transition.take()
        else {
            self.sites.settle(host.tracer());
            return Poll::Idle;
        };
        let attempt = running.try_complete(host, &mut self.sites.writer, &mut |task, straggler| {
            if !host.is_heard() {
                return;
            }
            let obstacle = match straggler {
                Straggler::Other(obstacle) => obstacle,
                Straggler::InFunction(at) => Obstacle::InFunction(names(&self.patches, at).1),
            };
            host.event(&Event::NotSwitched {
                name: &host.tasks().name(task),
                task,
                obstacle,
            });
        });
        let (running, pending) = match attempt {
            Attempt::Switched(switched) => return self.complete(host, leader, switched),
            Attempt::Waiting { running, pending } => (running, pending),
            // Memory or the host's list of tasks: the next poll tries again.
            Attempt::Failed(running) => {
                self.tell(host, |patch| Event::NotTried { patch });
                (running, pending)
            }
        };
        let kick = running.kick_is_due(host);
        self.transition = Some(Transition {
            leader,
            running,
            pending,
            stale,
            judged,
        });
        if pending > 0 && !judged && switch_at_entries(host) {
            self.renew_affected_later(host);
        }
        if kick {
            // It helps or it does not; either way the next poll looks again.
            let _ = self.kick(host);
        }
        Poll::Waiting {
            patch: leader,
            pending,
        }
    }

    fn kick(&mut self, host: &P) -> Result<(), Error> {
        let Some(transition) = &mut self.transition else {
            return Err(Error::ApiMisuse(ApiMisuse::NoTransition));
        };
        match transition.running.kick(host) {
            Ok(first) if first => host.event(&Event::Signaling),
            Ok(_) => {}
            Err(error) => return Err(error.into_error("listing tasks", self.leader())),
        }
        Ok(())
    }

    /// Refuses if the patch is not in transition.
    pub(super) fn check_moves(&self, id: PatchId) -> Result<(), Error> {
        let moves = self.moves(self.index_of(id)?);
        if moves {
            Ok(())
        } else {
            Err(Error::ApiMisuse(ApiMisuse::NoTransition))
        }
    }

    /// Makes the outcome permanent: every task has moved.
    #[allow(
        unsafe_code,
        reason = "the order of a transition, veneers that nobody is in"
    )]
    fn complete(&mut self, host: &P, leader: PatchId, switched: Switched) -> Poll {
        let target = switched.target();
        let enabled = target == TaskState::Patched;
        self.tell(host, |patch| Event::Completing { patch, target });
        if enabled {
            bounds(&self.patches)
                .for_each(|bound| bound.set_transition(&mut self.sites.writer, false));
        }
        for index in 0..self.patches.len() {
            let goes = if enabled {
                self.gives_way_now(index)
            } else {
                self.moves(index)
            };
            if goes {
                self.patches[index]
                    .bounds_mut()
                    .for_each(|bound| bound.remove(&mut self.sites.writer));
            }
        }
        bounds(&self.patches)
            .flat_map(Bound::funcs)
            .for_each(|func| func.ops.forbid_switch());
        let nops = self.patches.iter_mut().flat_map(|record| &mut record.nops);
        nops.for_each(|bound| bound.remove(&mut self.sites.writer));
        // What earlier transitions left. Then their own: every function of a patch that gives way is
        // among theirs or among the nops.
        self.sites.settle(host.tracer());
        self.settle_moving(host);
        // No handler may still believe that the func is in transition when tasks become idle, nor
        // see a removed node when its memory goes.
        let proof = self.sites.writer.synchronize(host.tracer());
        if switched.all_were_seen() {
            // SAFETY: a task in a veneer has no reliable stack.
            unsafe {
                self.sites
                    .retire(host.tracer(), bounds(&self.patches).flat_map(Bound::sites))
            };
        }
        // SAFETY: those that stay are in transition no more, and the others are on no stack.
        unsafe { switched.finish(host, &proof) };
        self.patches
            .iter_mut()
            .for_each(|record| record.release(&proof));
        self.callbacks(if enabled {
            Moment::PostPatch
        } else {
            Moment::PostUnpatch
        });
        self.tell(host, |patch| Event::Complete { patch, target });
        self.clean_up(enabled);
        Poll::Complete {
            patch: leader,
            enabled,
        }
    }

    /// Routes the sites of the patches in transition to where their stacks say. If that fails,
    /// calls go through the handler for now, which answers as the sites would: it is only slower.
    pub(super) fn settle_moving(&mut self, host: &P) {
        if self
            .sites
            .reroute(host.tracer(), bounds(&self.patches).flat_map(Bound::sites))
            .is_err()
        {
            self.sites.leave_unsettled();
            self.tell(host, |patch| Event::NotSettled { patch });
        }
    }

    /// Frees what is on no stack any more, and puts patches that are not enabled any more behind
    /// those that are.
    fn clean_up(&mut self, enabled: bool) {
        // From behind, so that those that move do not change the places of those that are looked
        // at.
        for index in (0..self.patches.len()).rev() {
            let goes = if enabled {
                self.gives_way_now(index)
            } else {
                self.moves(index)
            };
            let record = &mut self.patches[index];
            record.nops.clear();
            if goes {
                record.enabled = false;
                record.drop_bounds();
                // Of patches that gave way no callbacks are called.
                record
                    .objects
                    .iter_mut()
                    .for_each(|object| object.post_unpatch_due = false);
                self.move_behind_enabled(index);
            }
        }
        self.patches
            .iter_mut()
            .for_each(|record| record.moves = false);
    }

    /// Enabled patches come first; this one is not enabled any more.
    fn move_behind_enabled(&mut self, index: usize) {
        let behind = self.patches[index..]
            .iter()
            .rposition(|record| record.enabled)
            .unwrap_or(0);
        self.patches[index..=index + behind].rotate_left(1);
    }
}
