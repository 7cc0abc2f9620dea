//! Locks: one word each, waited for in the kernel, usable in the child of a `fork`.
//!
//! A lock that keeps a table of waiting threads somewhere else would not do: another thread may be
//! at work on that table while the process forks.

use super::sys::{SignalsBlocked, futex_wait, futex_wake, gettid, nap};
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use lock_api::RawMutex;

const FREE: u32 = 0;
const HELD: u32 = 1;
const WANTED: u32 = 2;

/// The sleeping lock of a process.
pub struct FutexLock(AtomicU32);

// SAFETY: `HELD` or `WANTED` are set by the one thread that found `FREE`, and stay until it
// unlocks.
unsafe impl RawMutex for FutexLock {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "it is what the trait asks for"
    )]
    const INIT: Self = Self(AtomicU32::new(FREE));
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        if !self.try_lock() {
            while self.0.swap(WANTED, Ordering::Acquire) != FREE {
                futex_wait(&self.0, WANTED, None);
            }
        }
    }

    fn try_lock(&self) -> bool {
        self.0
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    unsafe fn unlock(&self) {
        if self.0.swap(FREE, Ordering::Release) == WANTED {
            futex_wake(&self.0, 1);
        }
    }
}

/// A value behind a [`FutexLock`].
pub(crate) type Mutex<T> = lock_api::Mutex<FutexLock, T>;

/// The engine's lock. Whoever asks for it gives way to a thread that is about to fork, which would
/// wait for long behind one that asks again and again.
pub struct EngineLock(FutexLock);

/// The thread that waits for the engine's locks in order to fork; 0 if none does.
static FORKER: AtomicU32 = AtomicU32::new(0);

/// From here on, the thread `tid` waits for the engine's locks in order to fork; 0: none does.
pub(crate) fn set_forker(tid: u32) {
    FORKER.store(tid, Ordering::Relaxed);
}

/// Waits for a moment if another thread wants to fork.
pub(crate) fn give_way() {
    /// How often others wait at most.
    const NAPS: u32 = 100;
    for _ in 0..NAPS {
        match FORKER.load(Ordering::Relaxed) {
            0 => break,
            forker if forker == gettid() => break,
            _ => nap(Duration::from_micros(50)),
        }
    }
}

// SAFETY: it is the lock inside.
unsafe impl RawMutex for EngineLock {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "it is what the trait asks for"
    )]
    const INIT: Self = Self(FutexLock::INIT);
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        give_way();
        self.0.lock();
    }

    fn try_lock(&self) -> bool {
        self.0.try_lock()
    }

    unsafe fn unlock(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.unlock() };
    }
}

/// A lock that may be taken in a signal handler and in an entry handler.
///
/// Every signal of the holder is blocked, so that no handler can ask for the lock on the thread
/// that holds it. The holder must not allocate: another thread may have been interrupted in the
/// allocator, and want this lock in its signal handler.
pub(crate) struct SignalLock<T>(Mutex<T>);

impl<T> SignalLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        let signals = SignalsBlocked::new();
        Guard {
            value: self.0.lock(),
            _signals: signals,
        }
    }

    /// Makes the lock free in the child of a `fork`, whoever held it in the parent.
    ///
    /// # Safety
    ///
    /// The calling thread is the only one, and does not hold the lock; the value is whole whenever
    /// its holder is interrupted.
    pub(crate) unsafe fn reset_in_child(&self) {
        // SAFETY: the caller's promise.
        unsafe { self.0.raw() }.0.store(FREE, Ordering::Relaxed);
    }
}

/// The right to use what a [`SignalLock`] holds. Its signals are unblocked after it has let go.
pub(crate) struct Guard<'a, T> {
    value: lock_api::MutexGuard<'a, FutexLock, T>,
    _signals: SignalsBlocked,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_many_threads_add_up() {
        static COUNT: SignalLock<u32> = SignalLock::new(0);
        let threads = [(); 4].map(|()| {
            std::thread::spawn(|| {
                for _ in 0..20_000 {
                    *COUNT.lock() += 1;
                }
            })
        });
        for thread in threads {
            thread.join().expect("the thread only counts");
        }
        assert_eq!(*COUNT.lock(), 80_000);
    }
}
