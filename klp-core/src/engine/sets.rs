//! Replace sets: patches of different sets have no function and no state in common. Linux does not
//! have this.
//!
//! A function is the same if it has the same name in the same object, which need not be loaded, or
//! the same site, whatever its name: the first is found when a patch is enabled, the second when
//! its object is there.

use super::inner::{Inner, Record};
use super::objects::{Bound, FuncSet};
use crate::error::{Error, PatchReason};
use crate::mem::{OutOfMemory, try_vec};
use crate::model::{Func, Object, Patch, Replace};
use crate::port::Platform;
use alloc::vec::Vec;

/// What a patch of a set has for itself.
pub(super) struct Claims<'a> {
    patch: &'a Patch,
    set: u32,
    /// Functions by their names. Sorted.
    names: Vec<(&'a str, &'a str, u32)>,
    /// Functions by their sites.
    sites: FuncSet,
}

/// A function by its name.
fn name<'a>(object: &'a Object, func: &'a Func) -> (&'a str, &'a str, u32) {
    (object.name(), func.old_name(), func.position().max(1))
}

impl<'a> Claims<'a> {
    /// Those of `patch`, whose functions that are bound have `sites`; `None`: it belongs to no set.
    pub(super) fn new(patch: &'a Patch, sites: FuncSet) -> Result<Option<Self>, OutOfMemory> {
        let Replace::Set(set) = patch.replace() else {
            return Ok(None);
        };
        let mut names = try_vec(
            patch
                .objects()
                .iter()
                .map(|object| object.funcs().len())
                .sum(),
        )?;
        names.extend(
            patch
                .objects()
                .iter()
                .flat_map(|object| object.funcs().iter().map(|func| name(object, func))),
        );
        names.sort_unstable();
        Ok(Some(Self {
            patch,
            set,
            names,
            sites,
        }))
    }

    /// Whether `other` has some of it, and is of another set.
    pub(super) fn collide_with<P: Platform>(&self, other: &Record<P>) -> bool {
        let has = |object: &Object| {
            object
                .funcs()
                .iter()
                .any(|func| self.names.binary_search(&name(object, func)).is_ok())
        };
        self.foreign(other)
            && (self
                .patch
                .states()
                .iter()
                .any(|state| other.patch.state(state.id()).is_some())
                || other.patch.objects().iter().any(has)
                || other
                    .bounds()
                    .any(|bound| bound.shares_function_with(&self.sites)))
    }

    fn foreign<P: Platform>(&self, other: &Record<P>) -> bool {
        matches!(other.patch.replace(), Replace::Set(set) if set != self.set)
    }

    /// The refusal that names `other`.
    pub(super) fn refuse<P: Platform>(&self, other: &Record<P>) -> Result<Error, OutOfMemory> {
        let with = other.patch.name().try_clone()?;
        Ok(Error::patch(
            self.patch.name(),
            None,
            None,
            PatchReason::SharedWithOtherSet { with },
        ))
    }
}

impl<P: Platform> Inner<P> {
    /// Refuses a patch that shares functions or states with one of another set that it is enabled
    /// on top of. Its functions are bound.
    pub(super) fn check_sets(&self, batch: usize, index: usize) -> Result<(), Error> {
        let record = &self.patches[index];
        let Some(claims) = Claims::new(&record.patch, FuncSet::new(record.bounds())?)? else {
            return Ok(());
        };
        match self
            .beside(batch, index)
            .find(|(_, other)| claims.collide_with(other))
        {
            None => Ok(()),
            Some((_, other)) => Err(claims.refuse(other)?),
        }
    }

    /// Refuses an object that is coming if it shows that patch number `index` has a function in
    /// common with one in force of another set: under another name, or they would not both be
    /// enabled. `bound` are the patch's functions in the object.
    pub(super) fn check_sets_again(&self, index: usize, bound: &Bound<P>) -> Result<(), Error> {
        let record = &self.patches[index];
        let Some(claims) = Claims::new(&record.patch, FuncSet::new(core::iter::once(bound))?)?
        else {
            return Ok(());
        };
        let in_force = |old: &usize| self.in_force(*old) && !self.gives_way_now(*old);
        match (0..index)
            .filter(in_force)
            .map(|old| &self.patches[old])
            .find(|other| claims.collide_with(other))
        {
            None => Ok(()),
            Some(other) => Err(claims.refuse(other)?),
        }
    }
}
