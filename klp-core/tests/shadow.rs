//! Shadow variables, one task at a time: what each operation does, what it refuses, and what it
//! leaves behind.

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use klp_core::event::Level;
use klp_core::shadow::{Shadow, ShadowError, ShadowTable, nothing, zeroed};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

type Lock = spin::Mutex<()>;
type Table = ShadowTable<Lock>;

const OBJ: usize = 0xffff_8880_0123_4500;
const ID: u64 = 0x1234;
const WORD: Layout = Layout::new::<u64>();

fn word(data: NonNull<u8>) -> u64 {
    // SAFETY: the tests that call this make variables of 8 bytes, and free them later.
    unsafe { data.cast::<u64>().read() }
}

/// The constructor that stores `value`.
fn store(value: u64) -> impl FnOnce(usize, NonNull<u8>) -> Result<(), i32> {
    move |_, data| {
        // SAFETY: the tests that use it ask for 8 bytes.
        unsafe { data.cast::<u64>().write(value) };
        Ok(())
    }
}

/// Frees a variable that the test no longer uses.
fn free(table: &Table, obj: usize, id: u64) -> bool {
    // SAFETY: the tests read variables only before they free them.
    unsafe { table.free(obj, id, nothing) }
}

/// The kernel's self-test of this name, in our words: two kinds of variables on three objects.
#[test]
fn basic_shadow_variable_api() -> Result<(), ShadowError> {
    const KINDS: [u64; 2] = [0x1234, 0x1235];
    let objects = [0x1000, 0x1040, 0x1080];
    let table = Table::new();
    let log = RefCell::new(Vec::new());
    let say = |line: String| log.borrow_mut().push(line);
    let name = |obj: usize| format!("obj{}", (obj - 0x1000) / 0x40);
    let get = |obj: usize, id: u64| {
        let value = table
            .get(obj, id)
            .map_or("none".into(), |data| word(data).to_string());
        say(format!("get <{}, {id:x}> = {value}", name(obj)));
    };
    let make = |obj: usize, id: u64, value: u64, or_get: bool| {
        let ctor = |of: usize, data: NonNull<u8>| {
            say(format!("  construct <{}, {id:x}>", name(of)));
            store(value)(of, data)
        };
        let (what, made) = if or_get {
            ("get_or_alloc", table.get_or_alloc(obj, id, WORD, ctor)?)
        } else {
            ("alloc", table.alloc(obj, id, WORD, ctor)?)
        };
        say(format!("{what} <{}, {id:x}> = {}", name(obj), word(made)));
        Ok::<_, ShadowError>(())
    };
    let dtor = |id: u64| {
        let say = &say;
        move |of: usize, data: NonNull<u8>| {
            say(format!("  destroy <{}, {id:x}> = {}", name(of), word(data)))
        }
    };

    // Nothing there yet.
    get(objects[0], KINDS[0]);
    // Both kinds for each.
    for (value, obj) in (1..).zip(objects) {
        make(obj, KINDS[0], value, false)?;
        make(obj, KINDS[1], 10 * value, false)?;
    }
    for obj in objects {
        get(obj, KINDS[0]);
        get(obj, KINDS[1]);
    }
    // What is there is found, and not constructed again.
    make(objects[2], KINDS[1], 99, true)?;
    // One kind goes object by object; the other stays.
    for obj in objects {
        // SAFETY: nobody uses the variable.
        assert!(unsafe { table.free(obj, KINDS[0], dtor(KINDS[0])) });
        get(obj, KINDS[0]);
        get(obj, KINDS[1]);
    }
    // The other one goes at once, in no particular order.
    let destroyed = RefCell::new(BTreeSet::new());
    // SAFETY: nobody uses the variables.
    let freed = unsafe {
        table.free_all(KINDS[1], |obj, _| {
            assert!(destroyed.borrow_mut().insert(obj), "twice")
        })
    };
    assert_eq!(
        (freed, destroyed.into_inner()),
        (3, BTreeSet::from(objects))
    );
    get(objects[1], KINDS[1]);

    let expected = "\
get <obj0, 1234> = none
  construct <obj0, 1234>
alloc <obj0, 1234> = 1
  construct <obj0, 1235>
alloc <obj0, 1235> = 10
  construct <obj1, 1234>
alloc <obj1, 1234> = 2
  construct <obj1, 1235>
alloc <obj1, 1235> = 20
  construct <obj2, 1234>
alloc <obj2, 1234> = 3
  construct <obj2, 1235>
alloc <obj2, 1235> = 30
get <obj0, 1234> = 1
get <obj0, 1235> = 10
get <obj1, 1234> = 2
get <obj1, 1235> = 20
get <obj2, 1234> = 3
get <obj2, 1235> = 30
get_or_alloc <obj2, 1235> = 30
  destroy <obj0, 1234> = 1
get <obj0, 1234> = none
get <obj0, 1235> = 10
  destroy <obj1, 1234> = 2
get <obj1, 1234> = none
get <obj1, 1235> = 20
  destroy <obj2, 1234> = 3
get <obj2, 1234> = none
get <obj2, 1235> = 30
get <obj1, 1235> = none";
    assert_eq!(log.into_inner().join("\n"), expected);
    assert!(table.is_empty());
    Ok(())
}

#[test]
fn a_duplicate_is_refused_and_the_first_stays() -> Result<(), ShadowError> {
    let table = Table::new();
    let first = table.alloc(OBJ, ID, WORD, store(1))?;
    let error = table
        .alloc(OBJ, ID, WORD, |_, _| {
            panic!("constructed although it exists")
        })
        .expect_err("a duplicate");
    assert_eq!(error, ShadowError::Duplicate { obj: OBJ, id: ID });
    let event = error.event().expect("Linux warns");
    assert_eq!(
        event.to_string(),
        "Duplicate shadow variable <ffff888001234500, 1234>"
    );
    assert_eq!(
        (event.to_string(), event.level()),
        (error.to_string(), Level::Warning)
    );
    assert_eq!(
        (table.get(OBJ, ID), word(first), table.len()),
        (Some(first), 1, 1)
    );
    Ok(())
}

#[test]
fn a_refusing_constructor_leaves_nothing() -> Result<(), ShadowError> {
    let table = Table::new();
    for make in [Table::alloc, Table::get_or_alloc] {
        let refuse: fn(usize, NonNull<u8>) -> Result<(), i32> = |_, _| Err(-22);
        let error = make(&table, OBJ, ID, WORD, refuse).expect_err("the constructor's refusal");
        assert_eq!(
            error,
            ShadowError::Constructor {
                obj: OBJ,
                id: ID,
                errno: -22
            }
        );
        let event = error.event().expect("Linux complains");
        assert_eq!(
            event.to_string(),
            "Failed to construct shadow variable <ffff888001234500, 1234> (-22)"
        );
        assert_eq!(event.level(), Level::Error);
        assert_eq!((table.get(OBJ, ID), table.len()), (None, 0));
    }
    // And it can be made later.
    let made = table.alloc(OBJ, ID, WORD, store(7))?;
    assert_eq!(table.get(OBJ, ID).map(word), Some(word(made)));
    Ok(())
}

#[test]
fn data_is_zeroed_and_aligned() -> Result<(), ShadowError> {
    let table = Table::new();
    for (id, (size, align)) in (0_u64..).zip([
        (0, 1),
        (1, 1),
        (8, 8),
        (9, 1),
        (1, 16),
        (24, 16),
        (33, 1),
        (1, 32),
        (100, 4),
        (64, 64),
        (4096, 4096),
    ]) {
        for round in 0..3 {
            let layout = Layout::from_size_align(size, align).expect("a layout");
            let data = table.alloc(OBJ, id, layout, zeroed)?;
            let least = size.next_power_of_two().min(16).max(align_of::<usize>());
            assert_eq!(
                data.addr().get() % align.max(least),
                0,
                "{size} bytes aligned to {align}"
            );
            // SAFETY: so many bytes were asked for, and they are freed below.
            let bytes = unsafe { core::slice::from_raw_parts_mut(data.as_ptr(), size) };
            assert!(
                bytes.iter().all(|&byte| byte == 0),
                "not zeroed: {size} bytes in round {round}"
            );
            // Dirt for the next one who gets this memory.
            bytes.fill(0xa5);
            assert!(free(&table, OBJ, id));
        }
    }
    let too_big = Layout::from_size_align(isize::MAX as usize, 1).expect("a layout");
    assert_eq!(
        table.alloc(OBJ, ID, too_big, zeroed),
        Err(ShadowError::OutOfMemory)
    );
    Ok(())
}

#[test]
fn every_address_but_the_last_may_be_an_object() -> Result<(), ShadowError> {
    let table = Table::new();
    for obj in [0, 1, usize::MAX - 1] {
        assert_eq!(table.get(obj, ID), None);
        let data = table.alloc(obj, ID, WORD, zeroed)?;
        assert_eq!(table.get(obj, ID), Some(data));
        assert!(free(&table, obj, ID));
        assert_eq!((table.get(obj, ID), free(&table, obj, ID)), (None, false));
    }
    assert_eq!(
        table.alloc(usize::MAX, ID, WORD, zeroed),
        Err(ShadowError::NoObject)
    );
    assert_eq!(
        (table.get(usize::MAX, ID), free(&table, usize::MAX, ID)),
        (None, false)
    );
    Ok(())
}

/// A constructor may look up, and so may a destructor; neither finds its own variable.
#[test]
fn lookups_while_the_lock_is_held() -> Result<(), ShadowError> {
    let table = Table::new();
    table.alloc(OBJ, 1, WORD, store(5))?;
    table.alloc(OBJ, 2, WORD, |obj, _| {
        assert_eq!(
            (table.get(obj, 1).map(word), table.get(obj, 2)),
            (Some(5), None)
        );
        Ok(())
    })?;
    let dtor = |obj: usize, _| {
        assert_eq!(
            (table.get(obj, 1).map(word), table.get(obj, 2)),
            (Some(5), None)
        )
    };
    // SAFETY: nobody uses the variable.
    assert!(unsafe { table.free(OBJ, 2, dtor) });
    Ok(())
}

/// Through several sizes of the table and back, at distances of objects that are unkind to hashes:
/// each finds its own, and only that.
#[test]
fn many_variables_at_unkind_distances() -> Result<(), ShadowError> {
    const MANY: usize = 20_000;
    for distance in [1, 16, 64, 144, 192, 4096, 46_368, 1 << 21, 1 << 44] {
        let table = Table::new();
        let obj = |index: usize| OBJ.wrapping_add(index.wrapping_mul(distance));
        // Fewer objects fit in where they lie far apart.
        let many = MANY.min(usize::MAX / distance);
        for index in 0..many {
            table.alloc(obj(index), ID, WORD, store(index as u64))?;
        }
        assert_eq!(table.len(), many);
        for index in 0..many {
            assert_eq!(
                table.get(obj(index), ID).map(word),
                Some(index as u64),
                "at distance {distance}"
            );
            assert_eq!(table.get(obj(index), ID + 1), None);
        }
        // SAFETY: no lookup is under way.
        unsafe { table.retire().free() };
        for index in (0..many).step_by(2) {
            assert!(free(&table, obj(index), ID));
        }
        for index in 0..many {
            let expected = (index % 2 == 1).then_some(index as u64);
            assert_eq!(
                table.get(obj(index), ID).map(word),
                expected,
                "at distance {distance}"
            );
        }
        // SAFETY: nobody uses the variables.
        assert_eq!(unsafe { table.free_all(ID, nothing) }, many / 2);
        assert_eq!((table.len(), table.get(obj(1), ID)), (0, None));
    }
    Ok(())
}

/// Ids that share a list, and more of them than there are lists.
#[test]
fn many_ids() -> Result<(), ShadowError> {
    let table = Table::new();
    let ids = || (0..2_000).map(|id| id * 128).chain([u64::MAX]);
    for id in ids() {
        table.alloc(OBJ, id, WORD, store(id))?;
    }
    for id in ids() {
        assert_eq!(table.get(OBJ, id).map(word), Some(id));
        assert_eq!(
            (table.get(OBJ, id ^ 1), table.get(OBJ + 64, id)),
            (None, None)
        );
    }
    // SAFETY: nobody uses the variables.
    assert!(ids().all(|id| unsafe { table.free_all(id, nothing) } == 1));
    assert!(table.is_empty());
    Ok(())
}

static SHADOWS: Table = Table::new();

/// Values are dropped once, by whatever way they go, and never when they were not made.
#[test]
fn the_typed_layer_drops_its_values() -> Result<(), ShadowError> {
    // SAFETY: these ids are used here only.
    let names = unsafe { Shadow::<(Arc<()>, String), Lock>::new(&SHADOWS, 1) };
    // SAFETY: as above.
    let counts = unsafe { Shadow::<AtomicU32, Lock>::new(&SHADOWS, 2) };
    let alive = Arc::new(());
    let objects = [0_u32; 3];

    let value = |name: &str| (alive.clone(), name.to_string());
    assert_eq!(
        names.alloc(&raw const objects[0], || value("zero"))?.1,
        "zero"
    );
    assert_eq!(
        names
            .get_or_alloc(&raw const objects[1], || value("one"))?
            .1,
        "one"
    );
    assert_eq!(
        names
            .get_or_alloc(&raw const objects[1], || value("not one"))?
            .1,
        "one"
    );
    assert_eq!(
        names
            .get_or_try_alloc(&raw const objects[2], || Ok(value("two")))?
            .1,
        "two"
    );
    assert_eq!(Arc::strong_count(&alive), 4);
    assert!(matches!(
        names.alloc(&raw const objects[0], || value("")),
        Err(ShadowError::Duplicate { id: 1, .. })
    ));
    let refused = counts.get_or_try_alloc(&raw const objects[0], || Err(-12));
    assert!(matches!(
        refused,
        Err(ShadowError::Constructor {
            errno: -12,
            id: 2,
            ..
        })
    ));
    assert!(counts.get(&raw const objects[0]).is_none());
    counts
        .alloc(&raw const objects[0], || AtomicU32::new(1))?
        .fetch_add(1, Ordering::Relaxed);
    assert_eq!(
        counts
            .get(&raw const objects[0])
            .map(|count| count.load(Ordering::Relaxed)),
        Some(2)
    );

    // SAFETY: no reference is used any more.
    assert!(unsafe { names.free(&raw const objects[1]) });
    // SAFETY: as above.
    assert!(!unsafe { names.free(&raw const objects[1]) });
    assert_eq!(
        (Arc::strong_count(&alive), names.get(&raw const objects[1])),
        (3, None)
    );
    // SAFETY: as above.
    assert_eq!(unsafe { names.free_all() }, 2);
    assert_eq!(Arc::strong_count(&alive), 1);
    // SAFETY: as above.
    assert_eq!(unsafe { counts.free_all() }, 1);
    Ok(())
}

/// A constructor that panics gives the lock and the memory back, and leaves no variable.
#[test]
fn a_panicking_constructor() {
    let table = Table::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        table.alloc(OBJ, ID, WORD, |_, _| panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    assert_eq!((table.get(OBJ, ID), table.len()), (None, 0));
    assert!(table.alloc(OBJ, ID, WORD, zeroed).is_ok());
}
