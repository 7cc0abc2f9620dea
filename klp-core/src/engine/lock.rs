//! The engine's lock, and who holds it.
//!
//! Callbacks of patches and the host's log run with the lock held. If they call the engine, it
//! refuses, instead of waiting for itself.

use crate::error::{ApiMisuse, Error};
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};
use lock_api::{Mutex, MutexGuard, RawMutex};

/// The lock.
#[derive(Debug)]
pub(super) struct Lock<R: RawMutex, T> {
    inner: Mutex<R, T>,
    /// Who holds it, by [`Platform::caller`](crate::port::Platform::caller); 0: nobody, or nobody
    /// knows.
    holder: AtomicU64,
}

/// What the lock protects, while it is held.
pub(super) struct Locked<'a, R: RawMutex, T> {
    inner: MutexGuard<'a, R, T>,
    holder: &'a AtomicU64,
}

/// Holds the engine still, unless whoever asked for it does already.
pub(super) struct Frozen<'a, R: RawMutex, T>(Option<Locked<'a, R, T>>);

impl<R: RawMutex, T> Lock<R, T> {
    /// Protects `inner`; nobody holds it.
    pub(super) fn new(inner: T) -> Self {
        Self {
            inner: Mutex::from_raw(R::INIT, inner),
            holder: AtomicU64::new(0),
        }
    }

    /// Takes it for `caller`.
    ///
    /// # Errors
    ///
    /// [`ApiMisuse::InCallback`]: the caller holds it.
    pub(super) fn take(&self, caller: u64) -> Result<Locked<'_, R, T>, Error> {
        // Only the caller itself can have written its own number, so no ordering is needed to see
        // that.
        if caller != 0 && self.holder.load(Ordering::Relaxed) == caller {
            return Err(Error::ApiMisuse(ApiMisuse::InCallback));
        }
        let inner = self.inner.lock();
        self.holder.store(caller, Ordering::Relaxed);
        Ok(Locked {
            inner,
            holder: &self.holder,
        })
    }

    /// Takes it, unless the caller holds it.
    pub(super) fn hold(&self, caller: u64) -> Frozen<'_, R, T> {
        Frozen(self.take(caller).ok())
    }
}

impl<R: RawMutex, T> Drop for Locked<'_, R, T> {
    fn drop(&mut self) {
        self.holder.store(0, Ordering::Relaxed);
    }
}

impl<R: RawMutex, T> Drop for Frozen<'_, R, T> {
    fn drop(&mut self) {
        self.0 = None;
    }
}

impl<R: RawMutex, T> Deref for Locked<'_, R, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<R: RawMutex, T> DerefMut for Locked<'_, R, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}
