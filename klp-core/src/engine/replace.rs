//! Patches that take the place of others, and what may be enabled together (kernel: `klp_add_nops`,
//! `klp_unpatch_replaced_patches`, `klp_is_patch_compatible`).

use super::batch::bounds;
use super::inner::{Inner, Record};
use super::objects::{Bound, FuncSet};
use crate::error::{Error, PatchReason};
use crate::event::Event;
use crate::mem::{OutOfMemory, try_push};
use crate::port::Platform;
use crate::state;

/// Whether patch number `old` gives way to patch number `new` when that is enabled. Patches that
/// were enabled after `new` stand behind it, and stay.
pub(super) fn gives_way<P: Platform>(patches: &[Record<P>], old: usize, new: usize) -> bool {
    old < new && patches[old].enabled && patches[new].patch.replaces(&patches[old].patch)
}

impl<P: Platform> Inner<P> {
    /// Whether patch number `old` gives way to one of those in transition.
    pub(super) fn gives_way_now(&self, old: usize) -> bool {
        (old + 1..self.patches.len())
            .any(|new| self.moves(new) && gives_way(&self.patches, old, new))
    }

    /// The patches that patch number `index` is enabled on top of, if those from `batch` on are
    /// enabled as one: the enabled ones but for those that give way to one of the batch before it,
    /// and these.
    pub(super) fn beside(
        &self,
        batch: usize,
        index: usize,
    ) -> impl Iterator<Item = (usize, &Record<P>)> {
        let stays = move |old: usize| !(batch..index).any(|new| gives_way(&self.patches, old, new));
        let below = self.patches[..index].iter().enumerate();
        below.filter(move |(old, _)| *old >= batch || self.patches[*old].enabled && stays(*old))
    }

    /// Refuses a patch that takes the place of one that is enabled as one with it, and stands
    /// below. Those are numbered from `batch` on.
    pub(super) fn check_companions(&self, batch: usize, index: usize) -> Result<(), Error> {
        let patch = &self.patches[index].patch;
        match self.patches[batch..index]
            .iter()
            .find(|record| patch.replaces(&record.patch))
        {
            None => Ok(()),
            Some(record) => {
                let with = record.patch.name().try_clone()?;
                Err(Error::patch(
                    patch.name(),
                    None,
                    None,
                    PatchReason::ReplacesCompanion { with },
                ))
            }
        }
    }

    /// Refuses a patch whose states do not fit those of the ones that it is enabled on top of.
    pub(super) fn check_states(&self, host: &P, batch: usize, index: usize) -> Result<(), Error> {
        let patch = &self.patches[index].patch;
        for (other, record) in self.beside(batch, index) {
            if !state::compatible(
                patch.states(),
                record.patch.states(),
                gives_way(&self.patches, other, index),
            ) {
                host.event(&Event::Incompatible {
                    patch: patch.name(),
                });
                let with = record.patch.name().try_clone()?;
                return Err(Error::patch(
                    patch.name(),
                    None,
                    None,
                    PatchReason::IncompatibleStates { with },
                ));
            }
        }
        Ok(())
    }

    /// Adds to the newest of the patches in transition what those that give way have and none of
    /// the former has: these functions go back to the original.
    pub(super) fn add_nops(&mut self) -> Result<(), OutOfMemory> {
        let old = (0..self.patches.len()).filter(|old| self.gives_way_now(*old));
        if old.clone().next().is_none() {
            return Ok(());
        }
        let own = FuncSet::new(bounds(&self.patches))?;
        let nops = Bound::nops(
            old.flat_map(|old| self.patches[old].bounds()),
            &own,
            &self.sites.writer,
        )?;
        let newest = self.patches.iter_mut().rfind(|record| record.moves);
        if let Some(newest) = newest.filter(|_| !nops.is_empty()) {
            try_push(&mut newest.nops, nops)?;
        }
        Ok(())
    }
}
