//! Random operations on shadow variables against a plain map, with constructors that refuse and an
//! allocator that fails: after each step every key is looked up, and at the end no memory is left.
//! Many of them happen while a table grows.

#[path = "common/memory.rs"]
mod memory;

use core::alloc::Layout;
use core::ptr::NonNull;
use klp_core::mem::OutOfMemory;
use klp_core::shadow::{ShadowError, nothing, zeroed};
use memory::{Table, alive, left_to_fail, meanwhile, table_runs};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

type Key = (usize, u64);

#[derive(Clone, Debug)]
enum Step {
    Alloc(Key, bool),
    GetOrAlloc(Key, bool),
    Free(Key),
    FreeAll(u64),
    Reserve(u64, usize),
    Retire,
    /// So many more variables of this id, each of the first object that has none.
    Crowd(u64, usize),
}

/// How many objects may have a variable of each id: of the first so many that growing takes many
/// steps.
const OBJECTS: [usize; 3] = [256, 48, 48];

fn id(index: usize) -> u64 {
    // They share a list.
    index as u64 * 256
}

fn keys() -> impl Iterator<Item = Key> {
    (0..OBJECTS.len()).flat_map(|of| (0..OBJECTS[of]).map(move |obj| (obj * 64, id(of))))
}

fn step() -> impl Strategy<Value = Step> {
    let key = || {
        (0..OBJECTS.len())
            .prop_flat_map(|of| (0..OBJECTS[of]).prop_map(move |obj| (obj * 64, id(of))))
    };
    let id = || (0..OBJECTS.len()).prop_map(id);
    prop_oneof![
        12 => (key(), prop::bool::weighted(0.1)).prop_map(|(key, refuse)| Step::Alloc(key, refuse)),
        12 => (key(), prop::bool::weighted(0.1)).prop_map(|(key, refuse)| Step::GetOrAlloc(key, refuse)),
        12 => key().prop_map(Step::Free),
        1 => id().prop_map(Step::FreeAll),
        1 => (id(), 0..100_usize).prop_map(|(id, more)| Step::Reserve(id, more)),
        1 => Just(Step::Retire),
        2 => (id(), 1..50_usize).prop_map(|(id, more)| Step::Crowd(id, more)),
    ]
}

/// What the table must hold: the value of each variable.
type Model = BTreeMap<Key, u64>;

/// Of the variable with this value: small or not, and aligned to more or less.
fn layout(value: u64) -> Layout {
    let layouts = [
        (8, 8),
        (8, 1),
        (9, 1),
        (8, 16),
        (17, 1),
        (32, 16),
        (8, 32),
        (33, 1),
        (100, 4),
        (100, 64),
    ];
    let (size, align) = layouts[value as usize % layouts.len()];
    Layout::from_size_align(size, align).expect("a layout")
}

fn word(data: NonNull<u8>) -> u64 {
    // SAFETY: every variable here has 8 bytes at least, and is freed by this thread only, later.
    unsafe { data.cast::<u64>().read() }
}

/// Takes one step on both sides, and compares what comes out of it.
fn take(
    table: &Table,
    model: &mut Model,
    step: &Step,
    fail_in: u32,
    value: u64,
) -> Result<(), TestCaseError> {
    match *step {
        Step::Alloc(key, refuse) | Step::GetOrAlloc(key, refuse) => {
            let (obj, id) = key;
            let or_get = matches!(step, Step::GetOrAlloc(..));
            let mut constructed = 0;
            let layout = layout(value);
            let ctor = |of: usize, data: NonNull<u8>| {
                constructed += 1;
                assert_eq!((of, word(data), table.get(obj, id)), (obj, 0, None));
                let least = layout
                    .size()
                    .next_power_of_two()
                    .clamp(align_of::<usize>(), 16)
                    .max(layout.align());
                assert_eq!(data.addr().get() % least, 0, "{layout:?}");
                // SAFETY: the variable has 8 bytes.
                unsafe { data.cast::<u64>().write(value) };
                if refuse { Err(-5) } else { Ok(()) }
            };
            let make = || {
                if or_get {
                    table.get_or_alloc(obj, id, layout, ctor)
                } else {
                    table.alloc(obj, id, layout, ctor)
                }
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
                prop_assert!(
                    !model.contains_key(&key),
                    "memory is needed for a variable that exists"
                );
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
            let (freed, failed) = table_runs(fail_in, || unsafe { table.free(key.0, key.1, dtor) });
            prop_assert!(!failed, "it takes memory to free");
            let there = model.remove(&key);
            prop_assert_eq!(
                (freed, destroyed),
                (there.is_some(), there.map(|value| (key.0, value)))
            );
        }
        Step::FreeAll(id) => {
            let mut destroyed = BTreeSet::new();
            let expected: BTreeSet<_> = model
                .iter()
                .filter(|((_, of), _)| *of == id)
                .map(|(&(obj, _), &value)| (obj, value))
                .collect();
            let dtor = |obj: usize, data: NonNull<u8>| {
                meanwhile(|| assert!(destroyed.insert((obj, word(data))), "destroyed twice"));
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
        Step::Crowd(id, more) => {
            let all = || keys().filter(|&(_, of)| of == id);
            let missing: Vec<Key> = all()
                .filter(|key| !model.contains_key(key))
                .take(more)
                .collect();
            for key in missing {
                take(table, model, &Step::Alloc(key, false), 0, value)?;
            }
        }
    }
    Ok(())
}

fn compare(table: &Table, model: &Model) -> Result<(), TestCaseError> {
    for (obj, id) in keys() {
        prop_assert_eq!(
            table.get(obj, id).map(word),
            model.get(&(obj, id)).copied(),
            "of <{:x}, {:x}>",
            obj,
            id
        );
    }
    prop_assert_eq!(table.len(), model.len());
    Ok(())
}

/// At the beginning: nothing, or as many variables of the first id as a table takes before it
/// grows, nearly.
fn crowd() -> impl Strategy<Value = usize> {
    prop_oneof![Just(0), Just(46), Just(94), Just(190)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn like_a_map(
        crowd in crowd(),
        steps in prop::collection::vec((step(), prop_oneof![4 => Just(0_u32), 1 => 1..6_u32]), 1..300),
    ) {
        let before = alive();
        let table = Table::new();
        let mut model = Model::new();
        take(&table, &mut model, &Step::Crowd(0, crowd), 0, 0)?;
        for (value, (step, fail_in)) in (1..).zip(&steps) {
            take(&table, &mut model, step, *fail_in, value)?;
            compare(&table, &model)?;
        }
        table_runs(0, || drop(table));
        prop_assert_eq!(alive(), before, "memory is left, or freed twice or as something else");
    }
}

/// Each allocation of a series of operations, through growth and overflow lines, fails once; the
/// operation succeeds when tried again.
#[test]
fn every_allocation_fails_once() {
    let mut failures = 0;
    for fail_in in 1.. {
        let before = alive();
        let table = Table::new();
        let mut failed_once = false;
        let mut left = fail_in;
        for obj in (0..500).map(|index| index * 64) {
            let make = || table.alloc(obj, 1, Layout::new::<u64>(), zeroed);
            let (made, failed) = table_runs(left, make);
            left = left_to_fail();
            failed_once |= failed;
            if made.is_err() {
                assert!(failed);
                assert_eq!(
                    (made, table.get(obj, 1)),
                    (Err(ShadowError::OutOfMemory), None)
                );
                assert!(table_runs(0, make).0.is_ok());
            }
        }
        assert_eq!(table.len(), 500);
        assert_eq!(
            // SAFETY: nobody uses the variables.
            table_runs(0, || unsafe { table.free_all(1, nothing) }).0,
            500
        );
        table_runs(0, || drop(table));
        assert_eq!(
            alive(),
            before,
            "memory is left, or freed twice or as something else"
        );
        if !failed_once {
            break;
        }
        failures += 1;
    }
    assert!(
        failures > 500,
        "only {failures} allocations: the series does not reach growth"
    );
}
