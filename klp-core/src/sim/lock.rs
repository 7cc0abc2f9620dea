//! The engine's lock in the simulated system.

use core::sync::atomic::{AtomicBool, Ordering};
use lock_api::{GuardNoSend, RawMutex};

/// One thread at a time drives the system: if the engine finds its lock taken, it would wait for
/// itself, and panics instead.
#[derive(Debug)]
pub struct SimLock(AtomicBool);

// SAFETY: whoever finds `false` has it until `unlock`.
unsafe impl RawMutex for SimLock {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "it is what the trait asks for"
    )]
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        assert!(self.try_lock(), "the engine waits for itself");
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}
