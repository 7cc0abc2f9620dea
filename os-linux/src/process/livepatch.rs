//! The engine of this process. What is done with it is in `mod.rs`.

use super::host::Process;
use super::libraries::Known;
use super::lock::Mutex;
use super::space::Space;
use core::fmt;
use core::ops::Deref;
use klp_core::Engine;
use klp_core::Error;
use klp_core::engine::{PatchId, Poll};
use std::sync::OnceLock;

/// The livepatch engine of this process. There is one.
pub struct Livepatch {
    pub(super) engine: OwnersEngine,
    pub(super) libraries: Mutex<Known>,
    /// See [`Options`](super::Options).
    pub(super) keep_removed: bool,
}

static LIVEPATCH: OnceLock<Livepatch> = OnceLock::new();

impl Livepatch {
    /// Makes the engine on `process`, the only one.
    pub(super) fn new(process: Process, keep_removed: bool) -> &'static Self {
        LIVEPATCH.get_or_init(|| Self {
            engine: OwnersEngine(Engine::new(process)),
            libraries: Mutex::default(),
            keep_removed,
        })
    }

    /// The engine, once [`init`](Self::init) has made it.
    pub fn get() -> Option<&'static Self> {
        LIVEPATCH.get()
    }

    /// The engine itself: status, blockers, reversal, force, and patches made in Rust.
    pub fn engine(&self) -> &OwnersEngine {
        &self.engine
    }

    pub(super) fn space(&self) -> &Space {
        &self.engine.host().space
    }
}

/// The engine in the hands of the process's owner: all that [`Engine`] can do, and what there is a
/// promise (`unsafe`) and here a decision.
pub struct OwnersEngine(Engine<Process>);

impl OwnersEngine {
    /// Ends the transition of `patch` now, whatever the threads are in the middle of; see
    /// [`Engine::force`].
    ///
    /// Threads may then run any mixture of old and new functions. Whether these patches bear it
    /// only their author knows; as with [`Livepatch::load`], it is the process's owner who decides
    /// what code runs in it, and so this is no `unsafe` function. `docs/safety.md` says where that
    /// line is drawn.
    ///
    /// # Errors
    ///
    /// Those of [`Engine::force`].
    pub fn force(&self, patch: PatchId) -> Result<Poll, Error> {
        // SAFETY: the owner of the process decided on it, as said above.
        unsafe { self.0.force(patch) }
    }
}

impl Deref for OwnersEngine {
    type Target = Engine<Process>;

    fn deref(&self) -> &Engine<Process> {
        &self.0
    }
}

impl fmt::Debug for Livepatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Livepatch").finish_non_exhaustive()
    }
}
