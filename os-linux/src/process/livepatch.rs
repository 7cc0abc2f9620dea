//! The engine of this process. What is done with it is in `mod.rs`.

use super::host::Process;
use super::libraries::Known;
use super::lock::Mutex;
use super::space::Space;
use core::fmt;
use klp_core::Engine;
use std::sync::OnceLock;

/// The livepatch engine of this process. There is one.
pub struct Livepatch {
    pub(super) engine: Engine<Process>,
    pub(super) libraries: Mutex<Known>,
}

static LIVEPATCH: OnceLock<Livepatch> = OnceLock::new();

impl Livepatch {
    /// Makes the engine on `process`, the only one.
    pub(super) fn new(process: Process) -> &'static Self {
        LIVEPATCH.get_or_init(|| Self {
            engine: Engine::new(process),
            libraries: Mutex::default(),
        })
    }

    /// The engine, once [`init`](Self::init) has made it.
    pub fn get() -> Option<&'static Self> {
        LIVEPATCH.get()
    }

    /// The engine itself: status, blockers, reversal, force, and patches made in Rust.
    pub fn engine(&self) -> &Engine<Process> {
        &self.engine
    }

    pub(super) fn space(&self) -> &Space {
        &self.engine.host().space
    }
}

impl fmt::Debug for Livepatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Livepatch").finish_non_exhaustive()
    }
}
