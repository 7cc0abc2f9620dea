//! Patches that need others. Linux does not have this.
//!
//! What holds always: of an enabled patch, each patch that it depends on is enabled; and none of
//! these is in transition without it. So no task runs a patch without those that it needs.

use super::inner::{Inner, PatchId, Record};
use super::replace::gives_way;
use crate::error::{Error, PatchReason};
use crate::mem::{Name, OutOfMemory};
use crate::port::Platform;
use core::ops::Range;

/// Whether one of the patches depends on the other.
fn needs<P: Platform>(one: &Record<P>, other: &Record<P>) -> bool {
    one.patch.depends().contains(other.patch.name())
}

fn refuse<P: Platform>(
    record: &Record<P>,
    reason: impl FnOnce(Name) -> PatchReason,
    name: &Name,
) -> Result<Error, OutOfMemory> {
    let reason = reason(name.try_clone()?);
    Ok(Error::patch(record.patch.name(), None, None, reason))
}

impl<P: Platform> Inner<P> {
    /// Shows `refused` for which patches of `batch`, which are to be enabled as one, that must not
    /// be: one that it depends on is not enabled and not among them; or a patch that stays depends
    /// on one that it takes the place of.
    pub(super) fn unmet(
        &self,
        batch: Range<usize>,
        refused: &mut dyn FnMut(Error) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let all = || self.patches.iter().enumerate();
        let is_there = |at: usize| batch.contains(&at) || self.patches[at].enabled;
        for record in &self.patches[batch.clone()] {
            for on in record.patch.depends() {
                if !all().any(|(at, other)| is_there(at) && other.patch.name() == on) {
                    refused(refuse(record, |on| PatchReason::DependsOn { on }, on)?)?;
                }
            }
        }
        let goes = |at: usize| {
            let mut new = batch.clone();
            new.any(|new| gives_way(&self.patches, at, new))
        };
        for new in batch.clone() {
            for (_, old) in all().filter(|(old, _)| gives_way(&self.patches, *old, new)) {
                let stays = |at: usize| is_there(at) && !goes(at);
                let Some((_, by)) = all().find(|(at, by)| stays(*at) && needs(by, old)) else {
                    continue;
                };
                let by = by.patch.name().try_clone()?;
                let reason = |with| PatchReason::ReplacesNeeded { with, by };
                refused(refuse(&self.patches[new], reason, old.patch.name())?)?;
            }
        }
        Ok(())
    }

    /// Refuses to enable the patches of `batch` as one, for the first reason of
    /// [`unmet`](Self::unmet).
    pub(super) fn check_depends(&self, batch: Range<usize>) -> Result<(), Error> {
        let mut first = None;
        self.unmet(batch, &mut |error| {
            first.get_or_insert(error);
            Ok(())
        })?;
        first.map_or(Ok(()), Err)
    }

    /// Refuses to disable patches as one, if an enabled one that is not among them depends on one
    /// of them.
    pub(super) fn check_needed(&self, ids: &[PatchId]) -> Result<(), Error> {
        let goes = |record: &&Record<P>| ids.contains(&record.id);
        for record in self.patches.iter().filter(goes) {
            let mut others = self.patches.iter().filter(|other| !goes(other));
            if let Some(by) = others.find(|other| other.enabled && needs(other, record)) {
                return Err(refuse(
                    record,
                    |by| PatchReason::NeededBy { by },
                    by.patch.name(),
                )?);
            }
        }
        Ok(())
    }
}
