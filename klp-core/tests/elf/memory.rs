//! Every allocation is made to fail once: nothing is left behind.

use crate::file::{ALLOC, File};
use crate::host::{BRANCH32, Host, PC32, SLOT32, load};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use klp_core::error::Error;
use klp_core::relocs;
use std::alloc::System;

std::thread_local! {
    /// Allocations of this thread until one fails.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

struct Failing;

#[global_allocator]
static FAILING: Failing = Failing;

// SAFETY: whatever it hands out comes from `System`.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match LEFT.get() {
            Some(0) => {
                LEFT.set(None);
                return core::ptr::null_mut();
            }
            left => LEFT.set(left.map(|left| left - 1)),
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Runs `work` with the `n`-th allocation failing; `None` if there were fewer.
fn with_failure<R>(n: u32, work: impl FnOnce() -> R) -> Option<R> {
    LEFT.set(Some(n));
    let result = work();
    LEFT.replace(None).is_none().then_some(result)
}

/// Runs `work`, which is not what is tested, without failures.
pub(crate) fn exempt<R>(work: impl FnOnce() -> R) -> R {
    let left = LEFT.replace(None);
    let result = work();
    LEFT.set(left);
    result
}

fn file() -> Vec<u8> {
    let (mut file, text) = File::replacing_victim();
    file.section(".eh_frame", ALLOC, 8, &[0; 24]);
    let far = file.undefined("far");
    let local = file.livepatch(".klp.sym.vmlinux.victim,0");
    let waiting = file.livepatch(".klp.sym.libfoo.f,1");
    file.rela(text, 0, far, SLOT32, -4);
    file.rela_in(".klp.rela.vmlinux.text.fixed", text, 4, local, PC32, -4);
    file.rela_in(
        ".klp.rela.libfoo.text.fixed",
        text,
        8,
        waiting,
        BRANCH32,
        -4,
    );
    let other = file.function("other", text, 8, 8);
    file.replace(Some("libfoo"), &[("f", other, 1)]);
    file.add_callback(0, other);
    file.bytes()
}

fn host() -> Host {
    Host::new()
        .with("libfoo", "f", 0x7ffe_0000_0000)
        .exporting("far", 0x7fff_0000_0000)
}

#[test]
fn loading() {
    let (bytes, host) = (file(), host());
    for n in 0.. {
        let Some(result) = with_failure(n, || load(&host, &bytes, "p")) else {
            assert!(n > 20, "only {n} allocations?");
            return;
        };
        assert_eq!(result.err(), Some(Error::OutOfMemory), "allocation {n}");
        assert_eq!(host.images(), 0);
    }
}

#[test]
fn applying() {
    let host = host();
    let loaded = load(&host, &file(), "p").expect("loads");
    let object = &loaded.patch.objects()[1];
    for n in 0.. {
        let before = host.snapshot();
        // SAFETY: nothing executes in this test.
        let Some(result) = with_failure(n, || unsafe { relocs::apply(&host, "fix", object) })
        else {
            assert!(n > 1, "only {n} allocations?");
            return;
        };
        assert_eq!(result, Err(Error::OutOfMemory), "allocation {n}");
        assert_eq!(host.snapshot(), before);
    }
}
