//! What the engine knows: patches, entry sites, the transition under way.

use super::objects::{Bound, ObjectState};
use super::sites::Sites;
use crate::error::{ApiMisuse, Error};
use crate::model::Patch;
use crate::ops::Synchronized;
use crate::port::Platform;
use crate::transition::Running;
use alloc::vec::Vec;

/// A patch that the engine knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PatchId(pub(super) u64);

impl PatchId {
    /// The number of the patch, for where there are no types: never 0, and never used again.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    /// The patch with this number. The engine refuses what it does not know.
    #[must_use]
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// What the engine's lock protects.
#[derive(Debug)]
pub(super) struct Inner<P: Platform> {
    /// In the order of enabling; patches that are not enabled come behind in the order of their
    /// arrival.
    pub(super) patches: Vec<Record<P>>,
    pub(super) sites: Sites<P>,
    pub(super) transition: Option<Transition>,
    pub(super) next_id: u64,
}

/// The transition under way.
#[derive(Debug)]
pub(super) struct Transition {
    /// The first of the patches that [move](Record::moves).
    pub(super) leader: PatchId,
    pub(super) running: Running,
    pub(super) pending: usize,
    /// An object is gone, and its code is among the affected code still.
    pub(super) stale: bool,
    /// Whether it was worked out at which entries tasks may switch themselves.
    pub(super) judged: bool,
}

impl Transition {
    /// One that has just started. Most end at the first attempt: only if somebody is left it is
    /// worked out where tasks may switch themselves.
    pub(super) fn new(leader: PatchId, running: Running) -> Self {
        Self {
            leader,
            running,
            pending: 0,
            stale: false,
            judged: false,
        }
    }
}

/// One patch, and what the engine keeps about it.
#[derive(Debug)]
pub(super) struct Record<P: Platform> {
    pub(super) id: PatchId,
    pub(super) patch: Patch,
    /// One for each object of the patch.
    pub(super) objects: Vec<ObjectState<P>>,
    /// While it takes the place of others, or one does that is enabled as one with it and stands
    /// below: functions of these others that nobody has any more, going back to the original.
    pub(super) nops: Vec<Bound<P>>,
    /// Whether it is enabled, or will be when its transition ends (kernel: `patch->enabled`).
    pub(super) enabled: bool,
    /// It is in the transition under way, or in the one that is just being started.
    pub(super) moves: bool,
    /// A forced transition left tasks inside it (kernel: `patch->forced`).
    pub(super) forced: bool,
    /// It was bound to its objects once: tasks may have been in its code.
    pub(super) used: bool,
}

impl<P: Platform> Record<P> {
    /// Everything of it that is on function stacks, or about to be.
    pub(super) fn bounds(&self) -> impl Iterator<Item = &Bound<P>> + Clone {
        self.objects
            .iter()
            .filter_map(|object| object.bound.as_ref())
            .chain(&self.nops)
    }

    pub(super) fn bounds_mut(&mut self) -> impl Iterator<Item = &mut Bound<P>> {
        self.objects
            .iter_mut()
            .filter_map(|object| object.bound.as_mut())
            .chain(&mut self.nops)
    }

    /// Lets the memory go, with the bounds, of all that was on function stacks and is not any more.
    pub(super) fn release(&mut self, proof: &Synchronized<'_>) {
        self.bounds_mut().for_each(|bound| bound.release(proof));
    }

    /// Frees all that was on function stacks and is released.
    pub(super) fn drop_bounds(&mut self) {
        self.objects
            .iter_mut()
            .for_each(|object| object.bound = None);
        self.nops.clear();
    }
}

impl<P: Platform> Inner<P> {
    pub(super) fn index_of(&self, id: PatchId) -> Result<usize, Error> {
        self.patches
            .iter()
            .position(|record| record.id == id)
            .ok_or(Error::ApiMisuse(ApiMisuse::UnknownPatch))
    }

    /// Whether patch number `index` is enabled, or will be, or was until its transition ends.
    pub(super) fn in_force(&self, index: usize) -> bool {
        self.patches[index].enabled || self.patches[index].moves
    }

    /// The position of the object called `name` in patch number `index`.
    pub(super) fn object_of(&self, index: usize, name: &str) -> Option<usize> {
        self.patches[index]
            .patch
            .objects()
            .iter()
            .position(|object| object.name() == name)
    }

    /// Refuses while any transition is under way.
    pub(super) fn check_idle(&self) -> Result<(), Error> {
        match &self.transition {
            None => Ok(()),
            Some(transition) => {
                let record = &self.patches[self.index_of(transition.leader)?];
                Err(Error::Busy {
                    patch: record.patch.name().try_clone()?,
                })
            }
        }
    }
}
