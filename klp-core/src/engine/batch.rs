//! The patches that are in transition: one, or several as one. Linux has one at a time.
//!
//! While they are enabled or disabled they are marked in their records ([`Record::moves`]), and
//! stand in the order of enabling.

use super::inner::{Inner, PatchId, Record, Transition};
use super::objects::{Bound, names_in};
use crate::error::{ApiMisuse, Error, PatchReason};
use crate::event::Event;
use crate::mem::{OutOfMemory, try_vec};
use crate::port::{Platform, TaskState};
use crate::transition::AffectedFunc;
use alloc::vec::Vec;
use core::ops::Range;

/// The patches in transition, in the order of enabling.
pub(super) fn moving<P: Platform>(
    patches: &[Record<P>],
) -> impl Iterator<Item = &Record<P>> + Clone {
    patches.iter().filter(|record| record.moves)
}

/// Everything of theirs that is on function stacks, or about to be.
pub(super) fn bounds<P: Platform>(
    patches: &[Record<P>],
) -> impl Iterator<Item = &Bound<P>> + Clone {
    moving(patches).flat_map(Record::bounds)
}

/// The names of the object and of the function that `at` means.
pub(super) fn names<P: Platform>(patches: &[Record<P>], at: AffectedFunc) -> (&str, &str) {
    let record = (0..)
        .zip(moving(patches))
        .find(|(number, _)| *number == at.patch);
    record.map_or(("?", "?"), |(_, record)| names_in(&record.patch, at))
}

impl<P: Platform> Inner<P> {
    /// Whether patch number `index` is in transition.
    pub(super) fn moves(&self, index: usize) -> bool {
        self.patches[index].moves
    }

    /// The name to report a failure of the whole under: that of the first patch.
    pub(super) fn leader(&self) -> &str {
        moving(&self.patches)
            .next()
            .map_or("?", |record| record.patch.name())
    }

    /// Logs a step of the transition, one line for each patch.
    pub(super) fn tell(&self, host: &P, step: impl for<'a> Fn(&'a str) -> Event<'a>) {
        moving(&self.patches).for_each(|record| host.event(&step(record.patch.name())));
    }

    /// Tasks move from here on. Says so.
    pub(super) fn begin(&mut self, host: &P, transition: Transition) {
        let target = transition.running.target();
        self.tell(host, |patch| Event::Starting { patch, target });
        let moving = self.patches.iter_mut().filter(|record| record.moves);
        moving.for_each(|record| record.enabled = target == TaskState::Patched);
        self.transition = Some(transition);
    }

    /// Refuses a list of patches that is empty, or names one that is not known, or one twice.
    pub(super) fn check_list(&self, ids: &[PatchId]) -> Result<(), Error> {
        if ids.is_empty() {
            return Err(Error::ApiMisuse(ApiMisuse::NoPatches));
        }
        for (number, id) in ids.iter().enumerate() {
            let patch = self.patches[self.index_of(*id)?].patch.name();
            if ids[..number].contains(id) {
                return Err(Error::patch(patch, None, None, PatchReason::ListedTwice));
            }
        }
        Ok(())
    }

    /// Marks the patches of `ids`, none of which is enabled, and puts them behind those that are,
    /// in that order.
    pub(super) fn gather(&mut self, ids: &[PatchId]) -> Result<Gathered, OutOfMemory> {
        let place = self.patches.iter().filter(|record| record.enabled).count();
        let mut from = try_vec(ids.len())?;
        for (to, id) in (place..).zip(ids) {
            let at = to
                + self.patches[to..]
                    .iter()
                    .position(|record| record.id == *id)
                    .unwrap_or(0);
            self.patches[to..=at].rotate_right(1);
            self.patches[to].moves = true;
            from.push(at);
        }
        Ok(Gathered { place, from })
    }

    /// Undoes [`gather`](Inner::gather).
    pub(super) fn scatter(&mut self, gathered: &Gathered) {
        for (to, at) in gathered.range().zip(&gathered.from).rev() {
            self.patches[to].moves = false;
            self.patches[to..=*at].rotate_left(1);
        }
    }
}

/// Patches that stand together now.
#[derive(Debug)]
pub(super) struct Gathered {
    place: usize,
    /// Where each was when its turn came.
    from: Vec<usize>,
}

impl Gathered {
    /// Where they are.
    pub(super) fn range(&self) -> Range<usize> {
        self.place..self.place + self.from.len()
    }
}
