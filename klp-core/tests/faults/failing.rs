//! The test's allocator: it fails on demand, and knows what the engine has and has not given back.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;

/// Fails the engine's `n`-th allocation of this thread, and counts what the engine has and has not
/// given back.
struct Failing;

thread_local! {
    /// Allocations until one fails; 0: none does.
    pub(crate) static FAIL_IN: Cell<u64> = const { Cell::new(0) };
    pub(crate) static FAILED: Cell<bool> = const { Cell::new(false) };
    /// More than 0 while the simulated OS, or the test, runs.
    static NOT_ENGINE: Cell<u32> = const { Cell::new(1) };
    pub(crate) static LIVE: Cell<i64> = const { Cell::new(0) };
    /// Bytes of these.
    pub(crate) static BYTES: Cell<i64> = const { Cell::new(0) };
}

impl Failing {
    fn engine() -> bool {
        NOT_ENGINE.get() == 0
    }

    /// Counts one allocation; whether it fails.
    fn strikes() -> bool {
        let left = FAIL_IN.get();
        if !Self::engine() || left == 0 {
            return false;
        }
        FAIL_IN.set(left - 1);
        if left == 1 {
            FAILED.set(true);
        }
        left == 1
    }

    /// Notes `by` allocations more, which hold `bytes` more.
    fn live(by: i64, bytes: i64) {
        if Self::engine() {
            LIVE.set(LIVE.get() + by);
            BYTES.set(BYTES.get() + bytes);
        }
    }
}

// SAFETY: everything is the system's allocator, but for null, which says that there is no memory.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if Self::strikes() {
            return core::ptr::null_mut();
        }
        Self::live(1, layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Self::live(-1, -(layout.size() as i64));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if Self::strikes() {
            return core::ptr::null_mut();
        }
        Self::live(0, new_size as i64 - layout.size() as i64);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// The simulated OS begins (`true`) or ends (`false`) to run.
pub(crate) fn border(inside: bool) {
    NOT_ENGINE.set(if inside {
        NOT_ENGINE.get() + 1
    } else {
        NOT_ENGINE.get() - 1
    });
}

/// Lets the engine do something; its allocations count.
pub(crate) fn engine_runs<R>(run: impl FnOnce() -> R) -> R {
    border(false);
    let result = run();
    border(true);
    result
}
