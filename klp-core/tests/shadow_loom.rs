//! The orderings of the shadow table, model-checked: every interleaving of a lookup with those who make and free variables, and every
//! value that the memory model lets it read.
//!
//! ```text
//! RUSTFLAGS='--cfg loom' cargo test -p klp-core --test shadow_loom --release
//! ```
//!
//! With an ordering weakened the models must fail:
//!
//! ```text
//! RUSTFLAGS='--cfg loom --cfg klp_weaken="shadow"' cargo test -p klp-core --test shadow_loom --release
//! RUSTFLAGS='--cfg loom --cfg klp_weaken="shadow-reuse"' cargo test -p klp-core --test shadow_loom --release
//! ```
//!
//! In a model a table begins with one line of three slots, and grows when it is to hold more than four variables.

#![cfg(loom)]

use core::alloc::Layout;
use core::ptr::NonNull;
use klp_core::shadow::{ShadowTable, nothing, zeroed};
use lock_api::{GuardSend, RawMutex};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

/// The one lock of a model, which has one table.
struct Lock;

loom::lazy_static! {
    static ref TAKEN: AtomicBool = AtomicBool::new(false);
}

// SAFETY: who takes it has changed `TAKEN` to true, which works for one at a time; there is one table, so one lock is enough.
unsafe impl RawMutex for Lock {
    const INIT: Self = Self;
    type GuardMarker = GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            thread::yield_now();
        }
    }

    fn try_lock(&self) -> bool {
        TAKEN.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn unlock(&self) {
        TAKEN.store(false, Ordering::Release);
    }
}

type Table = ShadowTable<Lock>;

const ID: u64 = 1;
const SMALL: Layout = Layout::new::<u64>();
const BIG: Layout = Layout::new::<[u64; 1024]>();

fn address(data: NonNull<u8>) -> usize {
    data.addr().get()
}

fn alloc(table: &Table, obj: usize) -> usize {
    address(table.alloc(obj, ID, SMALL, zeroed).expect("memory, and no other variable"))
}

fn free(table: &Table, obj: usize) {
    // SAFETY: the models never look into a variable.
    assert!(unsafe { table.free(obj, ID, nothing) });
}

/// Runs the model with as many changes of thread at arbitrary points as tell apart right and wrong here.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

/// Who finds a variable sees what its constructor wrote; the table, the id and the slot are all new.
#[test]
fn found_is_constructed() {
    model(|| {
        let table = Arc::new(Table::new());
        let written = Arc::new(AtomicUsize::new(0));
        let writer = thread::spawn({
            let (table, written) = (table.clone(), written.clone());
            move || {
                let ctor = |_, _| {
                    written.store(7, Ordering::Relaxed);
                    Ok(())
                };
                table.alloc(16, ID, SMALL, ctor).expect("memory");
            }
        });
        if table.get(16, ID).is_some() {
            assert_eq!(written.load(Ordering::Relaxed), 7, "found, but not constructed");
        }
        writer.join().expect("no panic");
        assert!(table.get(16, ID).is_some());
    });
}

/// A slot is used for one object after the other: neither is given the other's data.
#[test]
fn a_slot_used_again() {
    model(|| {
        let table = Arc::new(Table::new());
        let first = alloc(&table, 16);
        let writer = thread::spawn({
            let table = table.clone();
            move || {
                free(&table, 16);
                // So big that it does not get the address of the one before.
                address(table.alloc(32, ID, BIG, zeroed).expect("memory"))
            }
        });
        let found = [16, 32].map(|obj| table.get(obj, ID).map(address));
        let second = writer.join().expect("no panic");
        assert_ne!(first, second, "the model sees nothing if they are the same");
        assert!(found[0].is_none_or(|data| data == first), "the data of another object");
        assert!(found[1].is_none_or(|data| data == second), "the data of another object");
    });
}

/// An object whose variable was freed long ago, and comes again in the slot that it had, with another one's life in between: a lookup during
/// all of it gets the new data, or nothing.
#[test]
fn an_object_that_comes_again() {
    model(|| {
        let table = Arc::new(Table::new());
        alloc(&table, 16);
        free(&table, 16);
        let writer = thread::spawn({
            let table = table.clone();
            move || {
                let other = address(table.alloc(32, ID, BIG, zeroed).expect("memory"));
                free(&table, 32);
                // Takes the memory that was just freed, so that what comes next gets another address.
                let plug = table.alloc(0, !ID, BIG, zeroed).expect("memory");
                assert_eq!(address(plug), other, "the plug is of no use");
                (other, alloc(&table, 16))
            }
        });
        let found = table.get(16, ID).map(address);
        let (other, again) = writer.join().expect("no panic");
        assert_ne!(other, again, "the model sees nothing if they are the same");
        assert!(found.is_none_or(|data| data == again), "the data of another object");
    });
}

/// Variables that stay are found while an overflow line leaves the chain and comes back with another variable.
#[test]
fn an_overflow_line_used_again() {
    model(|| {
        let table = Arc::new(Table::new());
        let staying = [16, 32, 48].map(|obj| (obj, alloc(&table, obj)));
        alloc(&table, 64);
        let writer = thread::spawn({
            let table = table.clone();
            move || {
                free(&table, 64);
                alloc(&table, 80)
            }
        });
        let (obj, data) = staying[2];
        assert_eq!(table.get(obj, ID).map(address), Some(data), "a variable that stays was not found");
        let found = table.get(80, ID).map(address);
        let new = writer.join().expect("no panic");
        assert!(found.is_none_or(|data| data == new), "the data of another object");
        assert_eq!(table.get(80, ID).map(address), Some(new));
    });
}

/// Variables that stay are found while the table grows: in the slots and in the overflow line.
#[test]
fn growth() {
    model(|| {
        let table = Arc::new(Table::new());
        let staying = [16, 32, 48, 64].map(|obj| (obj, alloc(&table, obj)));
        let writer = thread::spawn({
            let table = table.clone();
            move || alloc(&table, 80)
        });
        for (obj, data) in [staying[0], staying[3]] {
            assert_eq!(table.get(obj, ID).map(address), Some(data), "a variable that stays was not found");
        }
        let found = table.get(80, ID).map(address);
        let new = writer.join().expect("no panic");
        assert!(found.is_none_or(|data| data == new), "the data of another object");
    });
}

/// Two tasks want the same variable: one constructs it, both get it.
#[test]
fn constructed_once() {
    model(|| {
        let table = Arc::new(Table::new());
        let constructed = Arc::new(AtomicUsize::new(0));
        let ask = {
            let (table, constructed) = (table.clone(), constructed.clone());
            move || {
                let ctor = |_, _| {
                    constructed.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                };
                address(table.get_or_alloc(16, ID, SMALL, ctor).expect("memory"))
            }
        };
        let other = thread::spawn(ask.clone());
        let mine = ask();
        assert_eq!(other.join().expect("no panic"), mine);
        assert_eq!(constructed.load(Ordering::Relaxed), 1);
    });
}
