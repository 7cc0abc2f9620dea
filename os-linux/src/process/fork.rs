//! `fork`: the child has one thread, and the engine goes on there.
//!
//! The engine is held still while the process forks. In the child, the forking thread keeps its state under its new id, and
//! all others are gone. A transition under way goes on in both processes: in the child, the next polls finish it.
//!
//! This covers `fork(3)`. A child made with the bare system call must not call patched functions; one made by `vfork` or
//! `posix_spawn` runs in the parent's memory for a moment, as the thread that made it.

use super::Livepatch;
use super::error::Error;
use super::lock::FutexLock;
use super::sys::{Errno, gettid, nap};
use super::{records, shadows, stop, trap};
use core::cell::RefCell;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use lock_api::RawMutex;

thread_local! {
    /// What the forking thread holds during the fork: the engine and the shadow variables, at rest.
    static FROZEN: RefCell<Option<Box<dyn Frozen>>> = const { RefCell::new(None) };
}

trait Frozen {}
impl<T> Frozen for T {}

/// Has the functions below called at every `fork`.
pub(crate) fn install() -> Result<(), Error> {
    // SAFETY: the functions take no arguments and stay for ever.
    match unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) } {
        0 => Ok(()),
        errno => Err(Error::Os { call: "pthread_atfork", errno: Errno(errno) }),
    }
}

/// The engine's lock. Whoever asks for it gives way to a thread that is about to fork, which would wait for long behind one that
/// asks again and again.
pub struct EngineLock(FutexLock);

/// The thread that waits for the engine's lock in order to fork; 0 if none does.
static FORKER: AtomicU32 = AtomicU32::new(0);

// SAFETY: it is the lock inside.
unsafe impl RawMutex for EngineLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "it is what the trait asks for")]
    const INIT: Self = Self(FutexLock::INIT);
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        /// How often others wait at most.
        const NAPS: u32 = 100;
        for _ in 0..NAPS {
            match FORKER.load(Ordering::Relaxed) {
                0 => break,
                forker if forker == gettid() => break,
                _ => nap(Duration::from_micros(50)),
            }
        }
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

extern "C" fn prepare() {
    if let Some(livepatch) = Livepatch::get() {
        FORKER.store(gettid(), Ordering::Relaxed);
        let frozen = livepatch.engine().freeze();
        FORKER.store(0, Ordering::Relaxed);
        // In this order: callbacks of the engine take the lock of the variables.
        let frozen = (shadows().freeze(), frozen);
        FROZEN.with(|slot| *slot.borrow_mut() = Some(Box::new(frozen)));
    }
}

extern "C" fn in_parent() {
    FROZEN.with(|slot| slot.borrow_mut().take());
}

extern "C" fn in_child() {
    stop::reset_in_child();
    trap::reset_in_child();
    if let Some(livepatch) = Livepatch::get() {
        livepatch.space().stacks.reset_in_child();
    }
    // SAFETY: this is the child's only thread, and it is not in the registry; what another one was changing there was its own
    // record, or, under the engine's lock, which is held here, anything else.
    unsafe { records::reset_in_child() };
    in_parent();
}
