//! Shadow variables under many threads: readers run through, whatever writers do.
//!
//! `KLP_STRESS_SECONDS` sets how long each test runs; 1 if not set.

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use klp_core::shadow::{ShadowTable, nothing};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

type Table = ShadowTable<spin::Mutex<()>>;
/// What is in a variable: its own key, so that a lookup can see whose data it got.
type Data = [AtomicU64; 2];

const IDS: u64 = 2;

fn duration() -> Duration {
    let seconds = std::env::var("KLP_STRESS_SECONDS")
        .ok()
        .map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(1))
}

/// The constructor that writes the key.
fn sign(id: u64) -> impl FnOnce(usize, NonNull<u8>) -> Result<(), i32> {
    move |obj, data| {
        // SAFETY: the tests ask for so many bytes, zeroed, and nobody else has them yet.
        let data = unsafe { data.cast::<Data>().as_ref() };
        data[0].store(obj as u64, Ordering::Relaxed);
        data[1].store(id, Ordering::Relaxed);
        Ok(())
    }
}

fn alloc(table: &Table, obj: usize, id: u64) {
    table
        .alloc(obj, id, Layout::new::<Data>(), sign(id))
        .expect("memory, and no other variable");
}

fn check(data: NonNull<u8>, obj: usize, id: u64) {
    // SAFETY: only variables that stay are looked into.
    let data = unsafe { data.cast::<Data>().as_ref() };
    let key = [0, 1].map(|word| data[word].load(Ordering::Relaxed));
    assert_eq!(key, [obj as u64, id], "the data of another variable");
}

fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state as usize
}

/// Variables that stay are found by every lookup and have their own data, variables that do not
/// exist are not found, while others come, go and make the table grow around them.
#[test]
fn what_stays_is_always_found() {
    const STAYING: usize = 64;
    const CHANGING: usize = 4_000;
    let staying = |index: usize| 0x10_0000 + index * 64;
    let changing = |writer: usize, index: usize| 0x1000_0000 * (writer + 1) + index * 64;
    let absent = |index: usize| 0x80_0000 + index * 64;

    let end = Instant::now() + duration();
    let (lookups, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
    while Instant::now() < end {
        // A new table each time, so that it grows each time.
        let table = Table::new();
        for index in 0..STAYING {
            (0..IDS).for_each(|id| alloc(&table, staying(index), id));
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for reader in 0..2_u64 {
                let (table, done, lookups) = (&table, &done, &lookups);
                scope.spawn(move || {
                    let mut state = reader + 1;
                    let mut count = 0;
                    while !done.load(Ordering::Relaxed) {
                        for _ in 0..100 {
                            let index = random(&mut state) % STAYING;
                            let id = index as u64 % IDS;
                            let found = table
                                .get(staying(index), id)
                                .expect("a variable that stays was not found");
                            check(found, staying(index), id);
                            assert_eq!(
                                table.get(absent(index), id),
                                None,
                                "a variable that never was"
                            );
                            count += 2;
                        }
                    }
                    lookups.fetch_add(count, Ordering::Relaxed);
                });
            }
            let writers: Vec<_> = (0..2)
                .map(|writer| {
                    let table = &table;
                    scope.spawn(move || {
                        for id in 0..IDS {
                            (0..CHANGING)
                                .for_each(|index| alloc(table, changing(writer, index), id));
                            // Some go and come again, so that slots are used for one after the
                            // other.
                            for index in (0..CHANGING).chain(0..CHANGING) {
                                // SAFETY: nobody but this thread knows of the variable.
                                assert!(unsafe {
                                    table.free(changing(writer, index), id, nothing)
                                });
                                alloc(
                                    table,
                                    changing(writer, (index + 1) % CHANGING + CHANGING),
                                    id,
                                );
                                // SAFETY: as above.
                                assert!(unsafe {
                                    table.free(
                                        changing(writer, (index + 1) % CHANGING + CHANGING),
                                        id,
                                        nothing,
                                    )
                                });
                                alloc(table, changing(writer, index), id);
                            }
                            for index in 0..CHANGING {
                                let data = table
                                    .get(changing(writer, index), id)
                                    .expect("made by this thread");
                                check(data, changing(writer, index), id);
                            }
                        }
                    })
                })
                .collect();
            let panicked = writers
                .into_iter()
                .filter_map(|writer| writer.join().err())
                .count();
            done.store(true, Ordering::Relaxed);
            assert_eq!(panicked, 0, "a writer panicked");
        });
        assert_eq!(table.len(), (STAYING + 2 * CHANGING) * IDS as usize);
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    println!(
        "{} lookups in {} rounds",
        lookups.into_inner(),
        rounds.into_inner()
    );
}

/// Many tasks want the same variable: one constructs it, all get it.
#[test]
fn constructed_once() {
    const THREADS: usize = 8;
    let end = Instant::now() + duration() / 4;
    let mut obj = 0;
    while Instant::now() < end {
        let table = Table::new();
        let constructed = AtomicU32::new(0);
        let start = Barrier::new(THREADS);
        obj += 64;
        let got: Vec<usize> = thread::scope(|scope| {
            let ask = || {
                start.wait();
                let data = table.get_or_alloc(obj, 1, Layout::new::<Data>(), |of, data| {
                    constructed.fetch_add(1, Ordering::Relaxed);
                    sign(1)(of, data)
                });
                let data = data.expect("memory");
                check(data, obj, 1);
                data.addr().get()
            };
            let asking: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
            asking
                .into_iter()
                .map(|asked| asked.join().expect("it does not panic"))
                .collect()
        });
        assert!(
            got.iter().all(|&data| data == got[0]),
            "two variables: {got:x?}"
        );
        assert_eq!((constructed.into_inner(), table.len()), (1, 1));
    }
}
