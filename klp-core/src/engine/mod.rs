//! The engine: patches that are known, and the one transition that may be under way (kernel:
//! `core.c`).
//!
//! The host calls [`Engine::poll`] from time to time while a transition runs; the engine never
//! sleeps and owns no thread.

mod affected;
mod batch;
mod callbacks;
mod coming;
mod depends;
mod disable;
mod enable;
mod inner;
mod lock;
mod objects;
mod poll;
mod preflight;
mod replace;
mod sets;
mod sites;
mod status;

pub use inner::PatchId;
pub use poll::Poll;
pub use preflight::{FuncClone, Preflight};
pub use status::PatchStatus;

use crate::error::{ApiMisuse, Error, PatchReason};
use crate::mem::try_vec;
use crate::model::Patch;
use crate::ops::Writer;
use crate::port::{Platform, SymbolResolver};
use crate::relocs;
use alloc::vec::Vec;
use inner::{Inner, Record};
use lock::{Lock, Locked};
use objects::{ObjectState, Relocated};
use sites::Sites;

/// A patch that [`Engine::add`] refused, and why.
#[derive(Debug)]
pub struct Refused {
    /// The patch, as it was.
    pub patch: Patch,
    /// Why.
    pub error: Error,
}

/// The livepatch engine on host `P`.
///
/// Dropping it leaves patched functions patched: what the handler needs stays in memory.
#[derive(Debug)]
pub struct Engine<P: Platform> {
    host: P,
    lock: Lock<P::Lock, Inner<P>>,
}

impl<P: Platform> Engine<P> {
    /// An engine on `host` that knows no patch.
    #[allow(unsafe_code, reason = "the engine's one writer")]
    pub fn new(host: P) -> Self {
        // SAFETY: stacks, nodes and what is lent are in `inner`, which this writer is in, too; the
        // tracer and the tasks are this host's.
        let writer = unsafe { Writer::new() };
        let inner = Inner {
            patches: Vec::new(),
            sites: Sites::new(writer),
            transition: None,
            next_id: 1,
        };
        Self {
            host,
            lock: Lock::new(inner),
        }
    }

    /// The host.
    pub fn host(&self) -> &P {
        &self.host
    }

    /// Makes a patch known; nothing is patched yet.
    ///
    /// # Errors
    ///
    /// [`Refused`] gives the patch back: [`ApiMisuse::NameTaken`] or [`Error::OutOfMemory`];
    /// [`PatchReason::LongName`]; with the feature `sim`, [`Error::Patch`] too if the patch has code
    /// of a simulated system and this is none.
    #[allow(clippy::result_large_err, reason = "the patch comes back by value")]
    pub fn add(&self, patch: Patch) -> Result<PatchId, Refused> {
        let mut inner = match self.lock() {
            Ok(inner) => inner,
            Err(error) => return Err(Refused { patch, error }),
        };
        if inner
            .patches
            .iter()
            .any(|record| record.patch.name() == patch.name())
        {
            return Err(Refused {
                patch,
                error: Error::ApiMisuse(ApiMisuse::NameTaken),
            });
        }
        if let Err(error) = check_names::<P>(&patch) {
            return Err(Refused { patch, error });
        }
        #[cfg(feature = "sim")]
        if let Err(error) = crate::sim::check::<P>(&patch) {
            return Err(Refused { patch, error });
        }
        let (Ok(mut objects), Ok(())) =
            (try_vec(patch.objects().len()), inner.patches.try_reserve(1))
        else {
            return Err(Refused {
                patch,
                error: Error::OutOfMemory,
            });
        };
        objects.resize_with(patch.objects().len(), ObjectState::new);
        let id = PatchId(inner.next_id);
        inner.next_id += 1;
        inner.patches.push(Record {
            id,
            patch,
            objects,
            nops: Vec::new(),
            enabled: false,
            moves: false,
            forced: false,
            used: false,
        });
        Ok(id)
    }

    /// Forgets a disabled patch and gives it back. No task is inside its functions any more: their
    /// memory may go.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse`]: it is enabled ([`AlreadyEnabled`](ApiMisuse::AlreadyEnabled)), unknown, or
    /// was pinned by a forced transition; [`Error::Busy`]: it is in transition; [`Error::Port`]:
    /// its code could not be made what it was. It stays known then.
    #[allow(unsafe_code, reason = "relocations of the patch's own code")]
    pub fn remove(&self, id: PatchId) -> Result<Patch, Error> {
        let mut inner = self.lock()?;
        let inner = &mut *inner;
        let index = inner.index_of(id)?;
        let record = &inner.patches[index];
        if record.forced {
            return Err(Error::ApiMisuse(ApiMisuse::Forced));
        }
        if record.moves {
            return Err(Error::Busy {
                patch: record.patch.name().try_clone()?,
            });
        }
        if record.enabled {
            return Err(Error::ApiMisuse(ApiMisuse::AlreadyEnabled));
        }
        let Record { patch, objects, .. } = &mut inner.patches[index];
        for (object, state) in patch
            .objects()
            .iter()
            .zip(objects)
            .filter(|(_, state)| state.relocated != Relocated::No)
        {
            // SAFETY: the patch is disabled and was not forced: no task executes its code.
            unsafe { relocs::clear(&self.host, patch.name(), object) }?;
            state.relocated = Relocated::No;
        }
        Ok(inner.patches.remove(index).patch)
    }

    /// The patch called `name`. A callback of a patch is told of none.
    pub fn find(&self, name: &str) -> Option<PatchId> {
        let inner = self.lock().ok()?;
        inner
            .patches
            .iter()
            .find(|record| record.patch.name() == name)
            .map(|record| record.id)
    }

    /// Holds the engine still, for a host that must not be changed under its feet (a process about
    /// to `fork`). Every other call waits until the guard is dropped.
    pub fn freeze(&self) -> impl Drop + '_ {
        self.lock.hold(self.host.caller())
    }

    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::InCallback`]: the caller holds it.
    fn lock(&self) -> Result<Locked<'_, P::Lock, Inner<P>>, Error> {
        self.lock.take(self.host.caller())
    }
}

/// Refuses functions with names that no symbol of the host has, whether their object is loaded or
/// not (kernel: `klp_init_func`).
fn check_names<P: Platform>(patch: &Patch) -> Result<(), Error> {
    let limit = <P::Symbols as SymbolResolver>::NAME_LEN;
    for object in patch.objects() {
        let mut names = object.funcs().iter().map(|func| &**func.old_name());
        if let Some(long) = names.find(|name| name.len() > limit) {
            let why = PatchReason::LongName { limit };
            return Err(Error::patch(
                patch.name(),
                Some(object.name()),
                Some(long),
                why,
            ));
        }
    }
    Ok(())
}
