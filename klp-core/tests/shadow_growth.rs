//! A table of shadow variables that grows: a few lines with each variable that is made, so that
//! nobody waits for all of it, with other operations in between.

#[path = "common/memory.rs"]
mod memory;

use core::alloc::Layout;
use core::ptr::NonNull;
use klp_core::mem::OutOfMemory;
use klp_core::shadow::{ShadowError, nothing};
use memory::{
    Table, alive, failing, is_overflow_line, is_table, nothing_fails, table_runs, tables_alive,
};

const ID: u64 = 1;

/// Lines of the table that grows in most tests.
const LINES: usize = 128;
/// Variables that it takes before.
const FULL: usize = full(LINES);
/// Operations that copy half of it.
const HALF: usize = half(LINES);

const fn full(lines: usize) -> usize {
    lines / 2 * 3
}

/// At 16 lines at a time.
const fn half(lines: usize) -> usize {
    lines / 16 / 2
}

fn obj(index: usize) -> usize {
    0x1000 + index * 192
}

/// Makes a variable that holds its index.
fn alloc(table: &Table, index: usize) -> Result<NonNull<u8>, ShadowError> {
    table.alloc(obj(index), ID, Layout::new::<usize>(), |_, data| {
        // SAFETY: there are 8 bytes, of nobody else.
        unsafe { data.cast::<usize>().write(index) };
        Ok(())
    })
}

fn make(table: &Table, index: usize) -> Result<NonNull<u8>, ShadowError> {
    table_runs(0, || alloc(table, index)).0
}

fn free(table: &Table, index: usize) -> bool {
    // SAFETY: the tests read variables only before they free them.
    let (freed, _) = table_runs(0, || unsafe { table.free(obj(index), ID, nothing) });
    freed
}

fn free_all(table: &Table) -> usize {
    // SAFETY: as in `free`.
    table_runs(0, || unsafe { table.free_all(ID, nothing) }).0
}

/// Whether there are two tables when those that are no longer in use are gone: one is in use, one
/// is being filled.
fn grows(table: &Table) -> bool {
    // SAFETY: no lookup is under way.
    table_runs(0, || unsafe { table.retire().free() });
    tables_alive() == 2
}

/// Lookups find the variables for which `exists` says so, of the first `count`, each with its
/// index.
fn check(table: &Table, count: usize, exists: impl Fn(usize) -> bool) {
    for index in 0..count {
        // SAFETY: it was made by `make`, and is not freed meanwhile.
        let found = table
            .get(obj(index), ID)
            .map(|data| unsafe { data.cast::<usize>().read() });
        assert_eq!(found, exists(index).then_some(index), "variable {index}");
    }
    assert_eq!(
        table.len(),
        (0..count).filter(|&index| exists(index)).count()
    );
}

/// A table in the middle of a growth out of so many lines, half of which were copied; and how many
/// variables there are.
fn growing(lines: usize) -> (Table, usize) {
    let table = Table::new();
    let (full, count) = (full(lines), full(lines) + half(lines));
    for index in 0..full {
        make(&table, index).expect("memory");
    }
    assert!(!grows(&table), "before it is full");
    for index in full..count {
        make(&table, index).expect("memory");
        assert!(grows(&table), "since it is full");
    }
    (table, count)
}

/// Makes the variables from `next` on until the growth is over; the number of the one behind.
fn finish(table: &Table, mut next: usize) -> usize {
    while grows(table) {
        make(table, next).expect("memory");
        next += 1;
    }
    next
}

/// After everything is freed no memory is left.
fn end(table: Table, before: i64) {
    free_all(&table);
    table_runs(0, || drop(table));
    assert_eq!(
        alive(),
        before,
        "memory is left, or freed twice or as something else"
    );
}

/// Growth begins when a table is full, and takes as many operations as there are sixteens of lines,
/// or some more as overflow lines count, too: in none of them much is copied. All the while
/// everything is found.
#[test]
fn growth_takes_many_operations() -> Result<(), ShadowError> {
    let before = alive();
    let table = Table::new();
    let mut made = 0;
    for lines in [16_usize, 32, 64, 128, 256, 512, 1024] {
        while made < full(lines) {
            make(&table, made)?;
            made += 1;
            assert!(!grows(&table), "{made} variables in {lines} lines");
        }
        let mut operations = 0;
        loop {
            make(&table, made)?;
            made += 1;
            operations += 1;
            check(&table, made, |_| true);
            let outgrown = table.take_outgrown();
            assert!(!table.take_outgrown(), "said twice");
            assert_eq!(outgrown, !grows(&table), "{operations} operations");
            if outgrown {
                break;
            }
        }
        let least = lines / 16;
        assert!(
            (least..=least * 5 / 4).contains(&operations),
            "{lines} lines copied in {operations} operations"
        );
    }
    end(table, before);
    Ok(())
}

/// Variables from lines that have been copied and from others go, and some come back, before the
/// growth ends.
#[test]
fn variables_freed_meanwhile_stay_away() {
    let before = alive();
    let (table, count) = growing(LINES);
    for index in (0..count).filter(|index| index % 3 != 0) {
        assert!(free(&table, index));
    }
    check(&table, count, |index| index % 3 == 0);
    assert!(grows(&table));
    let next = finish(&table, count);
    let exists = |index: usize| index >= count || index % 3 == 0;
    check(&table, next, exists);
    // Each is there once: nothing is left when it is freed.
    for index in 0..next {
        assert_eq!(free(&table, index), exists(index));
        assert_eq!(table.get(obj(index), ID), None);
    }
    end(table, before);
}

/// When all variables go there is nothing to grow for.
#[test]
fn free_all_ends_growth() {
    let before = alive();
    let (table, count) = growing(LINES);
    assert_eq!(free_all(&table), count);
    assert!(!grows(&table));
    check(&table, count, |_| false);
    // The table is as it was made, and grows when it is full again.
    for index in 0..FULL {
        make(&table, index).expect("memory");
        assert!(!grows(&table));
    }
    make(&table, FULL).expect("memory");
    assert!(grows(&table));
    check(&table, FULL + 1, |_| true);
    end(table, before);
}

/// Room is made by bringing the growth that is under way to its end, and growing again if that is
/// not enough.
#[test]
fn reserve_ends_growth() {
    for more in [0, 1, FULL - HALF, FULL, 2 * FULL, 10 * FULL] {
        let before = alive();
        let (table, count) = growing(LINES);
        assert_eq!(table_runs(0, || table.reserve(ID, more)).0, Ok(()));
        assert!(!grows(&table));
        check(&table, count, |_| true);
        // There is room indeed.
        failing(is_table);
        for index in count..count + more {
            assert!(make(&table, index).is_ok());
            assert!(!grows(&table));
        }
        failing(nothing_fails);
        check(&table, count + more, |_| true);
        end(table, before);
    }
}

/// Without memory for a bigger table none is made, and no variable is refused; with memory it is
/// made up for.
#[test]
fn no_variable_is_refused_for_want_of_a_bigger_table() {
    const MANY: usize = 5_000;
    let before = alive();
    let table = Table::new();
    make(&table, 0).expect("memory");
    failing(is_table);
    let mut attempts = 0;
    for index in 1..MANY {
        let (made, failed) = table_runs(0, || alloc(&table, index));
        assert!(made.is_ok());
        attempts += usize::from(failed);
    }
    assert!(
        (10..MANY / 20).contains(&attempts),
        "{attempts} attempts to get memory for a table"
    );
    assert_eq!(table_runs(0, || table.reserve(ID, 1)).0, Err(OutOfMemory));
    assert!(!table.take_outgrown());
    assert_eq!(tables_alive(), 1);
    check(&table, MANY, |_| true);
    failing(nothing_fails);
    assert_eq!(table_runs(0, || table.reserve(ID, 1)).0, Ok(()));
    assert!(table.take_outgrown());
    let retired = table.retire();
    assert!(!retired.is_empty() && table.retire().is_empty());
    // SAFETY: no lookup is under way.
    table_runs(0, || unsafe { retired.free() });
    check(&table, MANY, |_| true);
    assert!(!grows(&table));
    end(table, before);
}

/// Without memory for overflow lines growth is given up in the end, at once and not under the lock,
/// and no variable of a chain with room is refused. It is tried again later.
#[test]
fn growth_is_given_up_without_memory_for_overflow_lines() {
    let before = alive();
    // So many that there are long chains for sure.
    let (table, count) = growing(1024);
    failing(is_overflow_line);
    let mut next = count;
    let mut refused = Vec::new();
    while grows(&table) {
        if make(&table, next).is_err() {
            refused.push(next);
        }
        next += 1;
    }
    assert!(next - count < half(1024), "given up in the middle");
    assert_eq!(table_runs(0, || table.reserve(ID, 1)).0, Err(OutOfMemory));
    assert!(!grows(&table));
    failing(nothing_fails);
    check(&table, next, |index| !refused.contains(&index));
    // The next attempt is put off, by fewer variables than there are lines.
    let put_off = (next..)
        .take_while(|&index| make(&table, index).is_ok() && !grows(&table))
        .count();
    assert!((1..1024).contains(&put_off), "put off by {put_off}");
    let next = finish(&table, next + put_off + 1);
    check(&table, next, |index| !refused.contains(&index));
    end(table, before);
}

/// While a task makes the bigger table, others make so many variables that one of them makes it,
/// too: its own is used, the other's freed.
#[test]
fn two_tasks_make_the_bigger_table() {
    static TABLE: Table = Table::new();
    fn others_come(layout: Layout) -> bool {
        if is_table(layout) {
            failing(nothing_fails);
            // The limit is put off by 17 variables.
            for index in FULL..FULL + 18 {
                alloc(&TABLE, index).expect("memory");
            }
        }
        false
    }

    for index in 0..FULL {
        make(&TABLE, index).expect("memory");
    }
    assert!(!grows(&TABLE));
    failing(others_come);
    make(&TABLE, FULL + 18).expect("memory");
    assert!(grows(&TABLE), "three tables would not do");
    let next = finish(&TABLE, FULL + 19);
    check(&TABLE, next, |_| true);
    assert_eq!(tables_alive(), 1);
}

/// Four variables that share a line of a table of `2 * LINES` lines: without memory for an overflow
/// line the fourth is refused. They are looked for from `first` on.
fn crowd(first: usize) -> [usize; 4] {
    let table = Table::new();
    assert_eq!(
        table_runs(0, || table.reserve(ID, full(2 * LINES))).0,
        Ok(())
    );
    failing(is_overflow_line);
    let fourth = (first..)
        .find(|&index| make(&table, index).is_err())
        .expect("a full line");
    let is_in_the_way = |index: &usize| {
        assert!(free(&table, *index));
        let fits = make(&table, fourth).is_ok() && free(&table, fourth);
        assert!(make(&table, *index).is_ok());
        fits
    };
    let in_the_way: Vec<usize> = (first..fourth).filter(is_in_the_way).collect();
    failing(nothing_fails);
    table_runs(0, || drop(table));
    [in_the_way[0], in_the_way[1], in_the_way[2], fourth]
}

/// A variable that fits into the table in use, but not into the bigger one, is made, and growth is
/// given up: whenever it comes.
#[test]
fn growth_is_given_up_for_a_variable_that_fits_only_where_it_must() {
    let mut given_up = 0;
    for (crowd, operations) in [1, 2, 3]
        .map(|n| crowd(n * 1000))
        .into_iter()
        .flat_map(|crowd| (1..2 * HALF).map(move |n| (crowd, n)))
    {
        // After its own memory, and a line in the table in use if that needs one, it is the bigger
        // table's that fails.
        for fail_in in [2, 3] {
            let before = alive();
            let table = Table::new();
            let others = FULL - 3 + operations;
            for index in crowd[..3].iter().copied().chain(0..others) {
                make(&table, index).expect("memory");
            }
            assert!(grows(&table));
            let (made, failed) = table_runs(fail_in, || alloc(&table, crowd[3]));
            if made.is_ok() && failed {
                assert!(!grows(&table));
                given_up += 1;
            }
            let next = finish(&table, others);
            for index in crowd[..3].iter().copied().chain(0..next) {
                assert!(
                    table.get(obj(index), ID).is_some(),
                    "variable {index} after {operations} operations"
                );
            }
            assert_eq!(
                table.get(obj(crowd[3]), ID),
                made.ok(),
                "after {operations} operations"
            );
            end(table, before);
        }
    }
    assert!(given_up > HALF, "{given_up} times only");
}

/// Who cannot wait for a bigger table makes the one in use crowded; who can makes room.
#[test]
fn crowded_tables_get_room() -> Result<(), ShadowError> {
    let before = alive();
    let table = Table::new();
    let full = full(LINES);
    for index in 0..full {
        make(&table, index)?;
    }
    assert!(!table.is_crowded(ID));
    failing(is_table);
    let many = 5 * full;
    for index in full..many {
        make(&table, index)?;
    }
    assert!(table.is_crowded(ID) && !table.is_crowded(ID + 1));
    table_runs(0, || table.make_room());
    assert!(table.is_crowded(ID), "without memory it stays as it is");
    failing(nothing_fails);
    check(&table, many, |_| true);
    table_runs(0, || table.make_room());
    assert!(!table.is_crowded(ID));
    assert!(!grows(&table), "it has grown");
    check(&table, many, |_| true);
    end(table, before);
    Ok(())
}
