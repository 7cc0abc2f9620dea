//! The orderings of the shadow table, model-checked: every interleaving of a lookup with those who
//! make and free variables, and every value that the memory model lets it read.
//!
//! ```text
//! RUSTFLAGS='--cfg loom' \
//!     cargo test -p klp-core --test shadow_loom --release
//! ```
//!
//! With an ordering weakened the models must fail:
//!
//! ```text
//! RUSTFLAGS='--cfg loom --cfg klp_weaken="shadow"' \
//!     cargo test -p klp-core --test shadow_loom --release
//! RUSTFLAGS='--cfg loom --cfg klp_weaken="shadow-reuse"' \
//!     cargo test -p klp-core --test shadow_loom --release
//! ```
//!
//! In a model a table begins with one line of three slots, and grows when it is to hold more than
//! four variables per line, by one line with each variable.

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

// SAFETY: who takes it has changed `TAKEN` to true, which works for one at a time; there is one
// table, so one lock is enough.
unsafe impl RawMutex for Lock {
    const INIT: Self = Self;
    type GuardMarker = GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            thread::yield_now();
        }
    }

    fn try_lock(&self) -> bool {
        TAKEN
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
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
    address(
        table
            .alloc(obj, ID, SMALL, zeroed)
            .expect("memory, and no other variable"),
    )
}

fn free(table: &Table, obj: usize) {
    // SAFETY: the models never look into a variable.
    assert!(unsafe { table.free(obj, ID, nothing) });
}

/// Looks `objects` up, one after the other, in another thread, beside `write`; the data that was
/// found for each, and what `write` returned.
///
/// It is the writer that is not spawned: loom lets it run first, and finds from there what a lookup
/// can come before. (The other way round it would not: the writer reads each word before it writes
/// it, which hides the lookup's read from loom.)
fn race<const N: usize, W>(
    table: Table,
    objects: [usize; N],
    write: impl FnOnce(&Table) -> W,
) -> ([Option<usize>; N], W) {
    let table = Arc::new(table);
    let reader = thread::spawn({
        let table = table.clone();
        move || objects.map(|obj| table.get(obj, ID).map(address))
    });
    let written = write(&table);
    (reader.join().expect("no panic"), written)
}

/// Checks `run`, and that it saw what it is about: one lookup that finds and one that does not.
fn model(run: impl Fn() -> bool + Sync + Send + 'static) {
    let seen =
        std::sync::Arc::new([false, true].map(|_| std::sync::atomic::AtomicBool::new(false)));
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    // Each atomic operation is one, also those before the race.
    builder.max_branches = 10_000;
    builder.check({
        let seen = seen.clone();
        move || seen[usize::from(run())].store(true, std::sync::atomic::Ordering::Relaxed)
    });
    let seen = [0, 1].map(|found| seen[found].load(std::sync::atomic::Ordering::Relaxed));
    assert_eq!(
        seen, [true; 2],
        "the model does not get to what it is about"
    );
}

/// Who finds a variable sees what its constructor wrote; the table, the id and the slot are all
/// new.
#[test]
fn found_is_constructed() {
    model(|| {
        let table = Arc::new(Table::new());
        let constructed = Arc::new(AtomicUsize::new(0));
        let reader = thread::spawn({
            let (table, constructed) = (table.clone(), constructed.clone());
            move || {
                let found = table.get(16, ID).is_some();
                assert!(
                    !found || constructed.load(Ordering::Relaxed) == 7,
                    "found, but not constructed"
                );
                found
            }
        });
        let ctor = |_, _| {
            constructed.store(7, Ordering::Relaxed);
            Ok(())
        };
        table.alloc(16, ID, SMALL, ctor).expect("memory");
        reader.join().expect("no panic")
    });
}

/// A slot is used for one object after the other: neither is given the other's data.
#[test]
fn a_slot_used_again() {
    model(|| {
        let table = Table::new();
        let first = alloc(&table, 16);
        let ([old, new], second) = race(table, [16, 32], |table| {
            free(table, 16);
            // So big that it does not get the address of the one before.
            address(table.alloc(32, ID, BIG, zeroed).expect("memory"))
        });
        assert_ne!(first, second, "the model sees nothing if they are the same");
        assert!(
            old.is_none_or(|data| data == first),
            "the data of another object"
        );
        assert!(
            new.is_none_or(|data| data == second),
            "the data of another object"
        );
        new.is_some()
    });
}

/// An object whose variable was freed long ago, and comes again in the slot that it had, with
/// another one's life in between: a lookup during all of it gets the new data, or nothing.
#[test]
fn an_object_that_comes_again() {
    model(|| {
        let table = Table::new();
        alloc(&table, 16);
        free(&table, 16);
        let ([found], (other, again)) = race(table, [16], |table| {
            let other = address(table.alloc(32, ID, BIG, zeroed).expect("memory"));
            free(table, 32);
            // Takes the memory that was just freed, so that what comes next gets another address.
            let plug = table.alloc(0, !ID, BIG, zeroed).expect("memory");
            assert_eq!(address(plug), other, "the plug is of no use");
            (other, alloc(table, 16))
        });
        assert_ne!(other, again, "the model sees nothing if they are the same");
        assert!(
            found.is_none_or(|data| data == again),
            "the data of another object"
        );
        found.is_some()
    });
}

/// Variables that stay are found while an overflow line leaves the chain and comes back with
/// another variable.
#[test]
fn an_overflow_line_used_again() {
    model(|| {
        let table = Table::new();
        let staying = [16, 32, 48].map(|obj| alloc(&table, obj))[2];
        alloc(&table, 64);
        let ([found, new], data) = race(table, [48, 80], |table| {
            free(table, 64);
            alloc(table, 80)
        });
        assert_eq!(found, Some(staying), "a variable that stays was not found");
        assert!(
            new.is_none_or(|found| found == data),
            "the data of another object"
        );
        new.is_some()
    });
}

/// Variables that stay are found while the table grows: in the slots and in the overflow line.
#[test]
fn growth() {
    model(|| {
        let table = Table::new();
        let staying = [16, 32, 48, 64].map(|obj| alloc(&table, obj));
        let ([first, new, last], data) = race(table, [16, 80, 64], |table| alloc(table, 80));
        assert_eq!(
            [first, last],
            [0, 3].map(|index| Some(staying[index])),
            "a variable that stays was not found"
        );
        assert!(
            new.is_none_or(|found| found == data),
            "the data of another object"
        );
        new.is_some()
    });
}

/// In the middle of a growth a variable goes that is in both tables already, and one comes that
/// ends the growth. Those that stay are found.
#[test]
fn growth_step_by_step() {
    model(|| {
        let table = Table::new();
        // The ninth begins the growth from two lines to four: it is in the one that is copied, and
        // the others in an unhappy chain.
        let before: [usize; 9] = core::array::from_fn(|index| alloc(&table, 16 * (index + 1)));
        let ([gone, new, last], data) = race(table, [144, 160, 128], |table| {
            free(table, 144);
            let data = alloc(table, 160);
            assert_eq!(
                table.get(144, ID),
                None,
                "a variable that was freed long ago"
            );
            data
        });
        assert_eq!(last, Some(before[7]), "a variable that stays was not found");
        assert!(
            gone.is_none_or(|found| found == before[8]),
            "the data of another object"
        );
        assert!(
            new.is_none_or(|found| found == data),
            "the data of another object"
        );
        new.is_some()
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
                let mut mine = false;
                let ctor = |_, _| {
                    mine = true;
                    constructed.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                };
                (
                    address(table.get_or_alloc(16, ID, SMALL, ctor).expect("memory")),
                    mine,
                )
            }
        };
        let other = thread::spawn(ask.clone());
        let (data, mine) = ask();
        let (other, theirs) = other.join().expect("no panic");
        assert_eq!((data, constructed.load(Ordering::Relaxed)), (other, 1));
        assert_ne!(mine, theirs, "constructed by both or by none");
        mine
    });
}
