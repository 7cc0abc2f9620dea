//! Preflight: everything that enabling a patch would check, with all findings at once. Linux does
//! not have this.

use super::Engine;
use super::inner::{Inner, PatchId};
use super::objects::{Finder, FuncSet, Relocated};
use super::replace::gives_way;
use super::sets::Claims;
use super::sites::SiteOf;
use crate::builds;
use crate::error::{ApiMisuse, Error, PatchReason};
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::model::Object;
use crate::port::{Platform, SymbolResolver};
use crate::relocs;
use crate::state;
use alloc::vec::Vec;
use core::fmt;
use hashbrown::HashSet;

/// What [`Engine::preflight`] found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Preflight {
    /// Everything for which enabling would be refused now.
    pub findings: Vec<Error>,
    /// How many functions were looked at.
    pub functions: usize,
    /// Objects that are not loaded: what they need is checked when they come.
    pub waiting: Vec<Name>,
    /// Enabled patches that would be replaced.
    pub replaces: Vec<Name>,
    /// Functions that the compiler made of ones that are replaced, and that are not.
    pub clones: Vec<FuncClone>,
}

/// A function that the compiler made of one that a patch replaces, for some of its callers, and
/// that the patch does not replace: these callers do not come to the new version.
#[derive(Debug, PartialEq, Eq)]
pub struct FuncClone {
    /// The object that has both.
    pub object: Name,
    /// The function that is replaced.
    pub func: Name,
    /// The other.
    pub clone: Name,
}

impl fmt::Display for FuncClone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            object,
            func,
            clone,
        } = self;
        write!(
            f,
            "callers of '{clone}' in object '{object}' do not call '{func}': the compiler made it \
             for them; replace it, too, or them"
        )
    }
}

impl Preflight {
    /// Whether nothing speaks against enabling the patch now. What cannot be foreseen is memory,
    /// and what callbacks will say.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.findings.is_empty()
    }
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        for object in &self.waiting {
            writeln!(
                f,
                "object '{object}' is not loaded; it is checked when it comes"
            )?;
        }
        for clone in &self.clones {
            writeln!(f, "{clone}")?;
        }
        for patch in &self.replaces {
            writeln!(f, "the enabled patch '{patch}' will be replaced")?;
        }
        let verdict = if self.is_ready() {
            "the patch can be enabled"
        } else {
            "the patch would be refused"
        };
        write!(f, "{} functions checked: {verdict}", self.functions)
    }
}

impl<P: Platform> Engine<P> {
    /// Checks what [`enable`](Engine::enable) would check, and reports everything that it would
    /// refuse, not only the first. Nothing is changed, no task is stopped, nothing is logged.
    ///
    /// Two things cannot be foreseen: what `pre_patch` callbacks will say, for calling them is not
    /// for nothing, and whether there will be memory, and a host that does what it is asked.
    /// Objects that are not loaded are checked when they come.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse`] (no such patch, or enabled already), or [`Error::OutOfMemory`].
    pub fn preflight(&self, id: PatchId) -> Result<Preflight, Error> {
        let inner = self.lock()?;
        let index = inner.index_of(id)?;
        if inner.patches[index].enabled {
            return Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled));
        }
        let mut report = Preflight::default();
        if let Err(busy) = inner.check_idle() {
            try_push(&mut report.findings, busy)?;
        }
        inner.preflight_others(index, &mut report)?;
        inner.unmet(index..index + 1, &mut |refused| {
            try_push(&mut report.findings, refused)
        })?;
        let mut sites = HashSet::new();
        let done = inner
            .preflight_objects(&self.host, index, &mut sites, &mut report)
            .and_then(|()| inner.preflight_sets(index, &sites, &mut report));
        sites
            .into_iter()
            .for_each(|site| inner.sites.overlook(self.host.tracer(), site));
        Ok(done.map(|()| report)?)
    }
}

impl<P: Platform> Inner<P> {
    /// Looks at the states of enabled patches, and which of them would go.
    fn preflight_others(&self, index: usize, report: &mut Preflight) -> Result<(), OutOfMemory> {
        let patch = &self.patches[index].patch;
        for (other, record) in self
            .patches
            .iter()
            .enumerate()
            .filter(|(_, record)| record.enabled)
        {
            let goes = gives_way(&self.patches, other, index);
            if goes {
                try_push(&mut report.replaces, record.patch.name().try_clone()?)?;
            }
            if !state::compatible(patch.states(), record.patch.states(), goes) {
                let with = record.patch.name().try_clone()?;
                let refused = Error::patch(
                    patch.name(),
                    None,
                    None,
                    PatchReason::IncompatibleStates { with },
                );
                try_push(&mut report.findings, refused)?;
            }
        }
        Ok(())
    }

    /// Looks at every function and every reference to the objects that are loaded. Collects the
    /// sites.
    fn preflight_objects(
        &self,
        host: &P,
        index: usize,
        sites: &mut HashSet<SiteOf<P>>,
        report: &mut Preflight,
    ) -> Result<(), OutOfMemory> {
        let record = &self.patches[index];
        for (object, state) in record.patch.objects().iter().zip(&record.objects) {
            if !host.symbols().is_loaded(object.name()) {
                try_push(&mut report.waiting, object.name().try_clone()?)?;
                continue;
            }
            let name = record.patch.name();
            let build = (object.build(), object.text());
            match builds::check(host.symbols(), name, object.name(), build) {
                Ok(()) => {}
                Err(Error::OutOfMemory) => return Err(OutOfMemory),
                Err(refused) => try_push(&mut report.findings, refused)?,
            }
            self.preflight_funcs(host, index, object, sites, report)?;
            if state.relocated == Relocated::No {
                let mut full = Ok(());
                relocs::check(host, record.patch.name(), object, &mut |refused| {
                    if full.is_ok() {
                        full = try_push(&mut report.findings, refused);
                    }
                });
                full?;
            }
        }
        Ok(())
    }

    fn preflight_funcs(
        &self,
        host: &P,
        index: usize,
        object: &Object,
        sites: &mut HashSet<SiteOf<P>>,
        report: &mut Preflight,
    ) -> Result<(), OutOfMemory> {
        let patch = &self.patches[index].patch;
        let mut olds = try_vec(object.funcs().len())?;
        for (number, func) in object.funcs().iter().enumerate() {
            report.functions += 1;
            let finder = Finder {
                host,
                patch,
                object,
                func,
                quiet: true,
            };
            sites.try_reserve(1)?;
            let (old, new) = (finder.old(), finder.replacement());
            let fit = match (&old, &new) {
                (Ok(old), Ok(new)) => finder.fit(*old, *new),
                _ => Ok(()),
            };
            if let Ok(old) = &old {
                olds.push((number, *old));
            }
            let site = old.and_then(|old| finder.site(old));
            let refused = match site {
                Ok(site) if sites.insert(site) => None,
                Ok(_) => Some(finder.refuse(PatchReason::ListedTwice)),
                Err(error) => Some(error),
            };
            for refused in refused.into_iter().chain(new.err()).chain(fit.err()) {
                try_push(&mut report.findings, refused)?;
            }
            let note = &mut |clone: &str| {
                let clone = FuncClone {
                    object: object.name().try_clone()?,
                    func: func.old_name().try_clone()?,
                    clone: Name::new(clone)?,
                };
                try_push(&mut report.clones, clone)
            };
            // What else is wrong with the symbols is among the findings.
            if let Err(Error::OutOfMemory) = finder.clones(note) {
                return Err(OutOfMemory);
            }
        }
        let found = &mut |refused| try_push(&mut report.findings, refused);
        let symbols = host.symbols();
        match builds::check_functions(symbols, patch.name(), object, olds.into_iter(), found) {
            Ok(()) => Ok(()),
            Err(Error::OutOfMemory) => Err(OutOfMemory),
            Err(refused) => try_push(&mut report.findings, refused),
        }
    }

    /// Looks for functions and states shared with an enabled patch of another set.
    fn preflight_sets(
        &self,
        index: usize,
        sites: &HashSet<SiteOf<P>>,
        report: &mut Preflight,
    ) -> Result<(), OutOfMemory> {
        let sites = FuncSet::of_ops(sites.iter().filter_map(|site| self.sites.known(*site)))?;
        let Some(claims) = Claims::new(&self.patches[index].patch, sites)? else {
            return Ok(());
        };
        for (_, other) in self
            .beside(index, index)
            .filter(|(_, other)| claims.collide_with(other))
        {
            try_push(&mut report.findings, claims.refuse(other)?)?;
        }
        Ok(())
    }
}
