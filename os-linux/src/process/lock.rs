//! Locks: one word each, waited for in the kernel, usable in the child of a `fork`.
//!
//! A lock that keeps a table of waiting threads somewhere else would not do: another thread may be
//! at work on that table while the process forks.

use super::sys::{SignalMask, futex_wait, futex_wake, gettid, nap};
use super::tls;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use lock_api::RawMutex;
use std::time::Instant;

/// Nobody holds the lock. Otherwise the word is the holder's thread id, by which a holder knows its
/// own lock again: a signal handler that forks cannot wait for what its thread holds.
const FREE: u32 = 0;
/// Set in addition if somebody waits. Thread ids are below (kernel: `PID_MAX_LIMIT`; `futex(2)` has
/// the same bit for this).
const WANTED: u32 = 1 << 31;

/// The calling thread's id. The kernel is asked once.
fn own_id() -> u32 {
    match tls::get::<{ tls::TID }>() {
        0 => {
            let id = gettid();
            tls::set::<{ tls::TID }>(id as usize);
            id
        }
        id => id as u32,
    }
}

/// In the child of a `fork`: the calling thread has another id.
pub(crate) fn forget_id() {
    tls::set::<{ tls::TID }>(0);
}

/// The sleeping lock of a process.
pub struct FutexLock(AtomicU32);

impl FutexLock {
    /// Takes the lock for `own`, the calling thread's id; waits until `end` at most.
    fn take(&self, own: u32, end: Option<Instant>) -> bool {
        let mut mark = 0;
        loop {
            let now = self.0.load(Ordering::Relaxed);
            if now == FREE {
                let taken =
                    self.0
                        .compare_exchange(FREE, own | mark, Ordering::Acquire, Ordering::Relaxed);
                if taken.is_ok() {
                    return true;
                }
                continue;
            }
            let left = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return false,
                left => left,
            };
            let wanted =
                self.0
                    .compare_exchange(now, now | WANTED, Ordering::Relaxed, Ordering::Relaxed);
            if wanted.is_ok() {
                futex_wait(&self.0, now | WANTED, left);
                // There may be others that wait.
                mark = WANTED;
            }
        }
    }

    /// Takes the lock if it is free by `end`. Says whether it was.
    pub(crate) fn take_until(&self, end: Instant) -> bool {
        self.take(own_id(), Some(end))
    }

    /// Whether the calling thread holds it.
    pub(crate) fn is_mine(&self) -> bool {
        self.0.load(Ordering::Relaxed) & !WANTED == own_id()
    }

    /// In the child of a `fork`: the calling thread, which holds the lock, has a new id
    /// ([`forget_id`] was called).
    pub(crate) fn keep_in_child(&self) {
        self.0.store(own_id(), Ordering::Relaxed);
    }
}

// SAFETY: only the one thread that found `FREE` puts its id there, and it stays until that unlocks.
unsafe impl RawMutex for FutexLock {
    #[allow(
        clippy::declare_interior_mutable_const,
        reason = "it is what the trait asks for"
    )]
    const INIT: Self = Self(AtomicU32::new(FREE));
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        self.take(own_id(), None);
    }

    fn try_lock(&self) -> bool {
        self.0
            .compare_exchange(FREE, own_id(), Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    unsafe fn unlock(&self) {
        if self.0.swap(FREE, Ordering::Release) & WANTED != 0 {
            futex_wake(&self.0, 1);
        }
    }
}

/// A value behind a [`FutexLock`].
pub(crate) type Mutex<T> = lock_api::Mutex<FutexLock, T>;

/// The lock in front of a value. Who unlocks it has locked it.
pub(crate) fn of<T>(mutex: &Mutex<T>) -> &FutexLock {
    // SAFETY: it is unlocked by who has locked it, as said.
    unsafe { mutex.raw() }
}

/// The lock of the process's engine, of which there is one. Whoever asks for it gives way to a
/// thread that is about to fork, which would wait for long behind one that asks again and again.
pub struct EngineLock(());

/// The lock of the process's shadow variables.
pub struct ShadowLock(());

pub(crate) static ENGINE: FutexLock = FutexLock::INIT;
pub(crate) static SHADOWS: FutexLock = FutexLock::INIT;

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

// SAFETY: it is `ENGINE`.
unsafe impl RawMutex for EngineLock {
    const INIT: Self = Self(());
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        give_way();
        ENGINE.lock();
    }

    fn try_lock(&self) -> bool {
        ENGINE.try_lock()
    }

    unsafe fn unlock(&self) {
        // SAFETY: the caller's promise.
        unsafe { ENGINE.unlock() };
    }
}

// SAFETY: it is `SHADOWS`.
unsafe impl RawMutex for ShadowLock {
    const INIT: Self = Self(());
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        SHADOWS.lock();
    }

    fn try_lock(&self) -> bool {
        SHADOWS.try_lock()
    }

    unsafe fn unlock(&self) {
        // SAFETY: the caller's promise.
        unsafe { SHADOWS.unlock() };
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
        let signals = SignalMask::all();
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
    _signals: SignalMask,
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
    fn a_holder_knows_its_own_lock_and_others_wait_as_long_as_they_say() {
        static LOCK: FutexLock = FutexLock::INIT;
        assert!(!LOCK.is_mine());
        LOCK.lock();
        assert!(LOCK.is_mine());
        std::thread::scope(|scope| {
            let waits = || {
                let end = Instant::now() + Duration::from_millis(20);
                (LOCK.is_mine(), LOCK.take_until(end), Instant::now() >= end)
            };
            let waiter = scope.spawn(waits);
            assert_eq!(waiter.join().expect("it only waits"), (false, false, true));
        });
        assert!(LOCK.is_mine(), "also if somebody has waited");
        // SAFETY: this thread holds it.
        unsafe { LOCK.unlock() };
        assert!(LOCK.take_until(Instant::now()));
    }

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
