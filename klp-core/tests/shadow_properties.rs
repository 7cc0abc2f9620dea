//! Random operations on shadow variables against a plain map, with constructors that refuse and an allocator that fails: after each
//! step every key is looked up, and at the end no memory is left.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ptr::NonNull;
use klp_core::mem::OutOfMemory;
use klp_core::shadow::{ShadowError, ShadowTable, nothing, zeroed};
use proptest::prelude::*;
use std::alloc::System;
use std::collections::{BTreeMap, BTreeSet};

/// Fails the `n`-th allocation of this thread, and counts what is alive, while the table runs.
struct Failing;

thread_local! {
    static TABLE_RUNS: Cell<bool> = const { Cell::new(false) };
    /// Allocations until one fails; 0: none does.
    static FAIL_IN: Cell<u32> = const { Cell::new(0) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
    static ALIVE: Cell<i64> = const { Cell::new(0) };
}

impl Failing {
    /// Counts one allocation; whether it fails.
    fn strikes() -> bool {
        if !TABLE_RUNS.get() {
            return false;
        }
        let left = FAIL_IN.get();
        FAIL_IN.set(left.saturating_sub(1));
        if left == 1 {
            FAILED.set(true);
        } else {
            ALIVE.set(ALIVE.get() + 1);
        }
        left == 1
    }
}

// SAFETY: everything is the system's allocator, but for null, which says that there is no memory.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        if Self::strikes() { core::ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        if Self::strikes() { core::ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if TABLE_RUNS.get() {
            ALIVE.set(ALIVE.get() - 1);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Lets the table do something, with the `fail_in`-th allocation failing; whether one did.
fn table_runs<R>(fail_in: u32, run: impl FnOnce() -> R) -> (R, bool) {
    FAIL_IN.set(fail_in);
    FAILED.set(false);
    TABLE_RUNS.set(true);
    let result = run();
    TABLE_RUNS.set(false);
    (result, FAILED.get())
}

type Table = ShadowTable<spin::Mutex<()>>;
type Key = (usize, u64);

#[derive(Clone, Debug)]
enum Step {
    Alloc(Key, bool),
    GetOrAlloc(Key, bool),
    Free(Key),
    FreeAll(u64),
    Reserve(u64, usize),
    Retire,
}

const OBJECTS: usize = 96;
const IDS: u64 = 3;

fn keys() -> impl Iterator<Item = Key> {
    (0..OBJECTS).flat_map(|obj| (0..IDS).map(move |id| (obj * 64, id * 256)))
}

fn step() -> impl Strategy<Value = Step> {
    let key = || (0..OBJECTS, 0..IDS).prop_map(|(obj, id)| (obj * 64, id * 256));
    let id = || (0..IDS).prop_map(|id| id * 256);
    prop_oneof![
        12 => (key(), prop::bool::weighted(0.1)).prop_map(|(key, refuse)| Step::Alloc(key, refuse)),
        12 => (key(), prop::bool::weighted(0.1)).prop_map(|(key, refuse)| Step::GetOrAlloc(key, refuse)),
        12 => key().prop_map(Step::Free),
        1 => id().prop_map(Step::FreeAll),
        1 => (id(), 0..200_usize).prop_map(|(id, more)| Step::Reserve(id, more)),
        1 => Just(Step::Retire),
    ]
}

/// What the table must hold: the value of each variable.
type Model = BTreeMap<Key, u64>;

fn word(data: NonNull<u8>) -> u64 {
    // SAFETY: every variable here has 8 bytes, and is freed by this thread only, later.
    unsafe { data.cast::<u64>().read() }
}

/// Takes one step on both sides, and compares what comes out of it.
fn take(table: &Table, model: &mut Model, step: &Step, fail_in: u32, value: u64) -> Result<(), TestCaseError> {
    match *step {
        Step::Alloc(key, refuse) | Step::GetOrAlloc(key, refuse) => {
            let (obj, id) = key;
            let or_get = matches!(step, Step::GetOrAlloc(..));
            let mut constructed = 0;
            let ctor = |of: usize, data: NonNull<u8>| {
                constructed += 1;
                assert_eq!((of, word(data), table.get(obj, id)), (obj, 0, None));
                // SAFETY: the variable has 8 bytes.
                unsafe { data.cast::<u64>().write(value) };
                if refuse { Err(-5) } else { Ok(()) }
            };
            let make = || {
                let layout = Layout::new::<u64>();
                if or_get { table.get_or_alloc(obj, id, layout, ctor) } else { table.alloc(obj, id, layout, ctor) }
            };
            let (made, failed) = table_runs(fail_in, make);
            let made = made.map(word);
            let expected = match model.get(&key) {
                Some(&there) if or_get => Ok(there),
                Some(_) => Err(ShadowError::Duplicate { obj, id }),
                None if refuse => Err(ShadowError::Constructor { obj, id, errno: -5 }),
                None => Ok(value),
            };
            if made == Err(ShadowError::OutOfMemory) {
                prop_assert!(failed, "out of memory without cause");
                prop_assert!(!model.contains_key(&key), "memory is needed for a variable that exists");
                prop_assert_eq!(constructed, 0, "constructed in vain");
            } else {
                // A failed attempt to grow does no harm.
                prop_assert_eq!(made, expected);
                prop_assert_eq!(constructed, u32::from(!model.contains_key(&key)));
                if made.is_ok() {
                    model.entry(key).or_insert(value);
                }
            }
        }
        Step::Free(key) => {
            let mut destroyed = None;
            let dtor = |obj: usize, data: NonNull<u8>| destroyed = Some((obj, word(data)));
            // SAFETY: nobody uses the variable.
            let (freed, _) = table_runs(fail_in, || unsafe { table.free(key.0, key.1, dtor) });
            let there = model.remove(&key);
            prop_assert_eq!((freed, destroyed), (there.is_some(), there.map(|value| (key.0, value))));
        }
        Step::FreeAll(id) => {
            let mut destroyed = BTreeSet::new();
            let expected: BTreeSet<_> =
                model.iter().filter(|((_, of), _)| *of == id).map(|(&(obj, _), &value)| (obj, value)).collect();
            // Its memory is the test's, not the table's.
            let dtor = |obj: usize, data: NonNull<u8>| {
                TABLE_RUNS.set(false);
                assert!(destroyed.insert((obj, word(data))), "destroyed twice");
                TABLE_RUNS.set(true);
            };
            // SAFETY: nobody uses the variables.
            let (freed, _) = table_runs(0, || unsafe { table.free_all(id, dtor) });
            prop_assert_eq!(freed, expected.len());
            prop_assert_eq!(destroyed, expected);
            model.retain(|&(_, of), _| of != id);
        }
        Step::Reserve(id, additional) => {
            let (reserved, failed) = table_runs(fail_in, || table.reserve(id, additional));
            prop_assert_eq!(reserved, if failed { Err(OutOfMemory) } else { Ok(()) });
        }
        // SAFETY: no lookup is under way.
        Step::Retire => table_runs(0, || unsafe { table.retire().free() }).0,
    }
    Ok(())
}

fn compare(table: &Table, model: &Model) -> Result<(), TestCaseError> {
    for (obj, id) in keys() {
        prop_assert_eq!(table.get(obj, id).map(word), model.get(&(obj, id)).copied(), "of <{:x}, {:x}>", obj, id);
    }
    prop_assert_eq!(table.len(), model.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn like_a_map(steps in prop::collection::vec((step(), prop_oneof![4 => Just(0_u32), 1 => 1..6_u32]), 1..300)) {
        let before = ALIVE.get();
        let table = Table::new();
        let mut model = Model::new();
        for (value, (step, fail_in)) in (1..).zip(&steps) {
            take(&table, &mut model, step, *fail_in, value)?;
            compare(&table, &model)?;
        }
        table_runs(0, || drop(table));
        prop_assert_eq!(ALIVE.get(), before, "memory is left, or freed twice");
    }
}

/// Each allocation of a series of operations, through growth and overflow lines, fails once; the operation succeeds when tried again.
#[test]
fn every_allocation_fails_once() {
    let mut failures = 0;
    for fail_in in 1.. {
        let before = ALIVE.get();
        let table = Table::new();
        let mut failed_once = false;
        let mut left = fail_in;
        for obj in (0..500).map(|index| index * 64) {
            let make = || table.alloc(obj, 1, Layout::new::<u64>(), zeroed);
            let (made, failed) = table_runs(left, make);
            left = FAIL_IN.get();
            failed_once |= failed;
            if made.is_err() {
                assert!(failed);
                assert_eq!((made, table.get(obj, 1)), (Err(ShadowError::OutOfMemory), None));
                assert!(table_runs(0, make).0.is_ok());
            }
        }
        assert_eq!(table.len(), 500);
        // SAFETY: nobody uses the variables.
        assert_eq!(table_runs(0, || unsafe { table.free_all(1, nothing) }).0, 500);
        table_runs(0, || drop(table));
        assert_eq!(ALIVE.get(), before, "memory is left, or freed twice");
        if !failed_once {
            break;
        }
        failures += 1;
    }
    assert!(failures > 500, "only {failures} allocations: the series does not reach growth");
}
