//! The engine's lock, and who holds it.
//!
//! Callbacks of patches and the host's log run with the lock held. If they call the engine, it refuses, instead of waiting for itself.

use super::{Engine, Inner};
use crate::error::{ApiMisuse, Error};
use crate::port::Platform;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};
use lock_api::MutexGuard;

/// What the lock protects, while it is held.
pub(super) struct Locked<'a, P: Platform> {
    inner: MutexGuard<'a, P::Lock, Inner<P>>,
    holder: &'a AtomicU64,
}

/// Holds the engine still, unless whoever asked for it does already.
pub(super) struct Frozen<'a, P: Platform>(Option<Locked<'a, P>>);

impl<P: Platform> Engine<P> {
    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::InCallback`]: the caller holds it.
    pub(super) fn lock(&self) -> Result<Locked<'_, P>, Error> {
        let caller = self.host.caller();
        // Only the caller itself can have written its own number, so no ordering is needed to see that.
        if caller != 0 && self.holder.load(Ordering::Relaxed) == caller {
            return Err(Error::ApiMisuse(ApiMisuse::InCallback));
        }
        let inner = self.inner.lock();
        self.holder.store(caller, Ordering::Relaxed);
        Ok(Locked { inner, holder: &self.holder })
    }

    /// Takes the lock, unless the caller holds it.
    pub(super) fn hold(&self) -> Frozen<'_, P> {
        Frozen(self.lock().ok())
    }
}

impl<P: Platform> Drop for Locked<'_, P> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Relaxed);
    }
}

impl<P: Platform> Drop for Frozen<'_, P> {
    fn drop(&mut self) {
        self.0 = None;
    }
}

impl<P: Platform> Deref for Locked<'_, P> {
    type Target = Inner<P>;
    fn deref(&self) -> &Inner<P> {
        &self.inner
    }
}

impl<P: Platform> DerefMut for Locked<'_, P> {
    fn deref_mut(&mut self) -> &mut Inner<P> {
        &mut self.inner
    }
}
