//! A shadow table whose allocator fails on demand, counts what is alive, and sees whether the
//! table's lock is held.

#![allow(dead_code, reason = "every test uses a part of it")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use klp_core::shadow::ShadowTable;
use lock_api::RawMutex;
use std::alloc::System;

pub(crate) type Table = ShadowTable<Watched>;

/// The bytes of a line, and its alignment.
const LINE: usize = 64;
/// The bytes of an id's first table.
const FIRST_TABLE: usize = 16 * LINE;

thread_local! {
    static TABLE_RUNS: Cell<bool> = const { Cell::new(false) };
    static LOCK_IS_HELD: Cell<bool> = const { Cell::new(false) };
    /// Whether something big was allocated or freed with the lock held.
    static BIG_WITH_LOCK: Cell<bool> = const { Cell::new(false) };
    static FAILS: Cell<fn(Layout) -> bool> = const { Cell::new(nothing_fails) };
    /// Allocations until one fails; 0: none does.
    static FAIL_IN: Cell<u32> = const { Cell::new(0) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
    static ALIVE: Cell<i64> = const { Cell::new(0) };
    static TABLES_ALIVE: Cell<i64> = const { Cell::new(0) };
}

/// A lock of which the allocator knows whether this thread holds it.
pub(crate) struct Watched(spin::Mutex<()>);

// SAFETY: the lock inside excludes others.
unsafe impl RawMutex for Watched {
    #[allow(clippy::declare_interior_mutable_const, reason = "as in every lock")]
    const INIT: Self = Self(spin::Mutex::new(()));
    type GuardMarker = <spin::Mutex<()> as RawMutex>::GuardMarker;

    fn lock(&self) {
        RawMutex::lock(&self.0);
        LOCK_IS_HELD.set(true);
    }

    fn try_lock(&self) -> bool {
        let locked = RawMutex::try_lock(&self.0);
        LOCK_IS_HELD.set(LOCK_IS_HELD.get() || locked);
        locked
    }

    unsafe fn unlock(&self) {
        LOCK_IS_HELD.set(false);
        // SAFETY: the caller's promise.
        unsafe { RawMutex::unlock(&self.0) };
    }
}

/// The system's allocator, with what the table does to it on record.
struct Observed;

impl Observed {
    /// Notes an allocation; whether it fails.
    fn strikes(layout: Layout) -> bool {
        if !TABLE_RUNS.get() {
            return false;
        }
        let left = FAIL_IN.get();
        FAIL_IN.set(left.saturating_sub(1));
        let fails = left == 1 || FAILS.get()(layout);
        if fails {
            FAILED.set(true);
        } else {
            Self::note(layout, 1);
        }
        fails
    }

    fn note(layout: Layout, more: i64) {
        ALIVE.set(ALIVE.get() + more * weight(layout));
        if is_table(layout) {
            TABLES_ALIVE.set(TABLES_ALIVE.get() + more);
        }
        if LOCK_IS_HELD.get() && layout.size() > FIRST_TABLE {
            BIG_WITH_LOCK.set(true);
        }
    }
}

/// What the system is asked for: so much that as many bytes behind its begin as `layout` says there
/// is memory of `layout` that is not aligned to more.
fn around(layout: Layout) -> Layout {
    Layout::from_size_align(layout.size() + layout.align(), 2 * layout.align())
        .expect("a layout of this test")
}

// SAFETY: memory comes from the system's allocator, with enough around it, or is null, which says
// that there is none.
unsafe impl GlobalAlloc for Observed {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise, which is this function's, too.
        unsafe { self.alloc_zeroed(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if Self::strikes(layout) {
            return core::ptr::null_mut();
        }
        // SAFETY: the size is not 0.
        let whole = unsafe { System.alloc_zeroed(around(layout)) };
        if whole.is_null() {
            whole
        } else {
            // SAFETY: so many bytes are there.
            unsafe { whole.add(layout.align()) }
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if TABLE_RUNS.get() {
            Self::note(layout, -1);
        }
        // SAFETY: by the caller's promise it is from `alloc_zeroed`.
        unsafe { System.dealloc(at.sub(layout.align()), around(layout)) }
    }
}

#[global_allocator]
static ALLOCATOR: Observed = Observed;

/// Lets the table do something, with the `fail_in`-th allocation failing; whether one did.
pub(crate) fn table_runs<R>(fail_in: u32, run: impl FnOnce() -> R) -> (R, bool) {
    FAIL_IN.set(fail_in);
    FAILED.set(false);
    BIG_WITH_LOCK.set(false);
    TABLE_RUNS.set(true);
    let result = run();
    TABLE_RUNS.set(false);
    assert!(
        !BIG_WITH_LOCK.get(),
        "a big table allocated or freed with the lock held"
    );
    (result, FAILED.get())
}

/// Lets something else run while the table does: its memory is not the table's.
pub(crate) fn meanwhile<R>(run: impl FnOnce() -> R) -> R {
    TABLE_RUNS.set(false);
    let result = run();
    TABLE_RUNS.set(true);
    result
}

/// From now on, allocations for which `fails` says so fail.
pub(crate) fn failing(fails: fn(Layout) -> bool) {
    FAILS.set(fails);
}

pub(crate) fn nothing_fails(_: Layout) -> bool {
    false
}

/// Whether this is a hash table, without its overflow lines.
pub(crate) fn is_table(layout: Layout) -> bool {
    layout.align() == LINE && layout.size() > LINE
}

/// Whether this is an overflow line.
pub(crate) fn is_overflow_line(layout: Layout) -> bool {
    layout.align() == LINE && layout.size() == LINE
}

/// How many allocations until the next that fails are left.
pub(crate) fn left_to_fail() -> u32 {
    FAIL_IN.get()
}

/// What was allocated and not freed yet: the weights of all.
pub(crate) fn alive() -> i64 {
    ALIVE.get()
}

/// Different for different layouts, so that memory must be freed as what it was allocated.
fn weight(layout: Layout) -> i64 {
    i64::try_from(layout.size() << 16 | layout.align()).expect("a small layout")
}

/// Hash tables among them.
pub(crate) fn tables_alive() -> i64 {
    TABLES_ALIVE.get()
}
