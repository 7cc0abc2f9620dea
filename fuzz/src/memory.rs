//! How much memory something takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that are allocated, and the most that were since [`bounded`] began. One thread fuzzes: no
/// order among them matters.
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, which counts.
pub struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn take(bytes: usize) {
    let now = NOW.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    MOST.fetch_max(now, Relaxed);
}

fn give_back(bytes: usize) {
    NOW.fetch_sub(bytes, Relaxed);
}

// SAFETY: the system's allocator does it all. What it refuses counts, too: it was asked for.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise.
        let memory = unsafe { System.alloc(layout) };
        if memory.is_null() {
            give_back(layout.size());
        }
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if memory.is_null() {
            give_back(layout.size());
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        take(size);
        // SAFETY: the caller's promise.
        let new = unsafe { System.realloc(memory, layout, size) };
        give_back(if new.is_null() { size } else { layout.size() });
        new
    }
}

/// Does `work`, which may have at most `most` bytes allocated at a time, besides those that were
/// before.
///
/// # Panics
///
/// If there were more.
pub fn bounded<T>(most: usize, work: impl FnOnce() -> T) -> T {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let done = work();
    let took = MOST.load(Relaxed).saturating_sub(before);
    assert!(
        took <= most,
        "{took} bytes were allocated, {most} are enough"
    );
    done
}
