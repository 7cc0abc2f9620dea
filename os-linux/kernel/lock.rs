// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! The kernel's locks as `lock_api` wants them. Each type is one lock of `shims.c`: use it once.
//!
//! Order: [`PatchesLock`], [`EngineLock`], [`SitesLock`], then the kernel's own. [`ShadowLock`]
//! spins and stands by itself.

use crate::host;
use core::ffi::c_uint;
use lock_api::{GuardNoSend, RawMutex};

/// A mutex of `shims.c`, by its number in `enum klp_host_mutex`.
pub(crate) struct KernelMutex<const NUMBER: c_uint>;

/// Of the patches that are known (kernel: `klp_mutex`).
pub(crate) type PatchesLock = KernelMutex<0>;
/// The engine's.
pub(crate) type EngineLock = KernelMutex<1>;
/// Of the table of entry sites.
pub(crate) type SitesLock = KernelMutex<2>;

impl<const NUMBER: c_uint> KernelMutex<NUMBER> {
    /// Whether the current task holds it.
    pub(crate) fn is_mine() -> bool {
        host::klp_host_mutex_is_mine(NUMBER)
    }
}

// SAFETY: `struct mutex` excludes others from `lock` until `unlock`.
unsafe impl<const NUMBER: c_uint> RawMutex for KernelMutex<NUMBER> {
    #[allow(clippy::declare_interior_mutable_const, reason = "the mutex is not in here")]
    const INIT: Self = Self;
    // The kernel wants a mutex to be unlocked by its owner.
    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        host::klp_host_mutex_lock(NUMBER);
    }

    fn try_lock(&self) -> bool {
        host::klp_host_mutex_trylock(NUMBER)
    }

    unsafe fn unlock(&self) {
        // SAFETY: the caller holds it.
        unsafe { host::klp_host_mutex_unlock(NUMBER) }
    }
}

/// Of those who make and free shadow variables (kernel: `klp_shadow_lock`). Interrupts are off
/// while it is held.
pub(crate) struct ShadowLock;

// SAFETY: a spinlock excludes others from `lock` until `unlock`.
unsafe impl RawMutex for ShadowLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "the spinlock is not in here")]
    const INIT: Self = Self;
    type GuardMarker = GuardNoSend;

    #[inline]
    fn lock(&self) {
        host::klp_host_shadow_lock();
    }

    #[inline]
    fn try_lock(&self) -> bool {
        host::klp_host_shadow_trylock()
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: the caller holds it.
        unsafe { host::klp_host_shadow_unlock() }
    }
}
