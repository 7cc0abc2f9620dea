//! Patches that take the place of others, and what may be enabled together (kernel: `klp_add_nops`, `klp_unpatch_replaced_patches`,
//! `klp_is_patch_compatible`).

use super::objects::{Bound, FuncSet};
use super::{Inner, Record};
use crate::error::{Error, PatchReason};
use crate::event::Event;
use crate::mem::{OutOfMemory, try_push};
use crate::model::Replace;
use crate::port::Platform;
use crate::state;

/// Whether patch number `old` gives way to patch number `new` when that is enabled. Patches that were enabled after `new` stand
/// behind it, and stay.
pub(super) fn gives_way<P: Platform>(patches: &[Record<P>], old: usize, new: usize) -> bool {
    old < new && patches[old].enabled && patches[new].patch.replaces(&patches[old].patch)
}

impl<P: Platform> Inner<P> {
    /// Refuses a patch whose states do not fit those of the enabled ones.
    pub(super) fn check_states(&self, host: &P, index: usize) -> Result<(), Error> {
        let patch = &self.patches[index].patch;
        for (other, record) in self.patches.iter().enumerate().filter(|(_, record)| record.enabled) {
            if !state::compatible(patch, &record.patch, gives_way(&self.patches, other, index)) {
                host.event(&Event::Incompatible { patch: patch.name() });
                let with = record.patch.name().try_clone()?;
                return Err(Error::patch(patch.name(), None, None, PatchReason::IncompatibleStates { with }));
            }
        }
        Ok(())
    }

    /// Refuses a patch that shares functions or states with an enabled one of another set. Its functions are bound.
    pub(super) fn check_sets(&self, index: usize) -> Result<(), Error> {
        let patch = &self.patches[index].patch;
        let Replace::Set(own) = patch.replace() else { return Ok(()) };
        let funcs = FuncSet::new(self.patches[index].bounds())?;
        let foreign = |record: &&Record<P>| match record.patch.replace() {
            Replace::Set(set) => record.enabled && set != own,
            Replace::None | Replace::All => false,
        };
        for record in self.patches.iter().filter(foreign) {
            let shares_state = patch.states().iter().any(|state| record.patch.state(state.id()).is_some());
            if shares_state || record.bounds().any(|bound| bound.shares_function_with(&funcs)) {
                let with = record.patch.name().try_clone()?;
                return Err(Error::patch(patch.name(), None, None, PatchReason::SharedWithOtherSet { with }));
            }
        }
        Ok(())
    }

    /// Adds to patch number `index` what those that give way to it have and it has not: these functions go back to the original.
    pub(super) fn add_nops(&mut self, index: usize) -> Result<(), OutOfMemory> {
        let own = FuncSet::new(self.patches[index].bounds())?;
        let old = (0..self.patches.len()).filter(|old| gives_way(&self.patches, *old, index));
        let nops = Bound::nops(old.flat_map(|old| self.patches[old].bounds()), &own)?;
        if !nops.is_empty() {
            try_push(&mut self.patches[index].nops, nops)?;
        }
        Ok(())
    }
}
