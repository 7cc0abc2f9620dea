//! What a lookup of a shadow variable costs, in one table from one run, beside a plain `hashbrown`
//! map with a hash of the same kind and a chained table of 4,096 buckets, which is Linux's layout.
//!
//! Every table gets the same keys in the same random order, all of them present. Rounds of all
//! tables alternate, and the fastest round of each counts: what tables and readers cost is in every
//! round, what else runs on the machine only in some, and it disturbs two readers more than one.

use core::alloc::Layout;
use core::hash::{BuildHasherDefault, Hasher};
use core::hint::black_box;
use hashbrown::HashMap;
use klp_core::shadow::{ShadowError, ShadowTable, zeroed};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const SIZES: [usize; 5] = [10, 1_000, 10_000, 100_000, 1_000_000];
const ROUNDS: usize = 61;
/// Lookups of one round.
const LOOKUPS: usize = 200_000;
/// Chain nodes that a round of the chained table may visit, about: its lookups are fewer where they
/// are slow.
const CHAINED_VISITS: usize = 2_000_000;
/// Data of one variable.
const DATA: Layout = Layout::new::<[u64; 2]>();
/// Distance of two objects: those of a slab cache.
const OBJECT: usize = 192;
const ID: u64 = 0x1234;

/// The lock of those who make variables.
type Lock = spin::Mutex<()>;

type Key = (usize, u64);

fn main() -> Result<(), ShadowError> {
    println!(
        "{:>10} {:>10} {:>10} {:>7} {:>10} {:>7} {:>11} {:>12} {:>7}",
        "variables",
        "shadow ns",
        "hashbrown",
        "ratio",
        "2 readers",
        "ratio",
        "(hashbrown)",
        "chained ns",
        "ratio"
    );
    for size in SIZES {
        let row = measure(size)?;
        println!(
            "{size:>10} {:>10.2} {:>10.2} {:>7.2} {:>10.2} {:>7.2} {:>11.2} {:>12.2} {:>7.1}",
            row.shadow,
            row.hashbrown,
            row.shadow / row.hashbrown,
            row.two,
            row.two / row.one,
            row.two_map / row.one_map,
            row.chained,
            row.chained / row.shadow,
        );
    }
    println!(
        "\nratios: shadow / hashbrown; a lookup of two readers / of one (and that of hashbrown, which nobody writes to); chained / shadow"
    );
    Ok(())
}

/// Nanoseconds per lookup.
struct Row {
    shadow: f64,
    hashbrown: f64,
    chained: f64,
    /// In a thread of its own, alone.
    one: f64,
    /// In each of two threads.
    two: f64,
    /// As `one` and `two`, for the plain map: what the processors themselves cost each other.
    one_map: f64,
    two_map: f64,
}

fn measure(size: usize) -> Result<Row, ShadowError> {
    let base = 0x7f3a_0000_0000_usize;
    let keys: Vec<Key> = (0..size).map(|index| (base + index * OBJECT, ID)).collect();

    let shadows = ShadowTable::<Lock>::new();
    let mut map = HashMap::<Key, usize, BuildHasherDefault<SameHash>>::default();
    let mut chained = Chained::new();
    for &(obj, id) in &keys {
        let data = shadows.alloc(obj, id, DATA, zeroed)?;
        map.insert((obj, id), data.addr().get());
        chained.insert((obj, id));
    }
    drop(keys);
    let order = random_order(size);

    let key = |index: u32| (base + index as usize * OBJECT, ID);
    let find_shadow = |index| shadows.get(key(index).0, ID).is_some();
    let find_map = |index| map.get(&key(index)).is_some();
    let find_chained = |index| chained.get(key(index)).is_some();
    let chained_lookups = (CHAINED_VISITS / (size / Chained::BUCKETS).max(1)).clamp(2_000, LOOKUPS);

    let mut times: [Vec<f64>; 7] = core::array::from_fn(|_| Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        let order = |thread: usize| {
            &order[(round + thread * 2) % (order.len() / LOOKUPS) * LOOKUPS..][..LOOKUPS]
        };
        times[0].push(lookups(order(0), find_shadow));
        times[1].push(lookups(order(0), find_map));
        times[2].push(lookups(&order(0)[..chained_lookups], find_chained));
        times[3].push(readers(&[order(0)], &find_shadow));
        times[4].push(readers(&[order(0), order(1)], &find_shadow));
        times[5].push(readers(&[order(0)], &find_map));
        times[6].push(readers(&[order(0), order(1)], &find_map));
    }
    let [shadow, hashbrown, chained, one, two, one_map, two_map] = times.map(fastest);
    Ok(Row {
        shadow,
        hashbrown,
        chained,
        one,
        two,
        one_map,
        two_map,
    })
}

/// The time of one lookup, in nanoseconds, when the same lookups were done just before.
#[inline(never)]
fn lookups(order: &[u32], find: impl Fn(u32) -> bool) -> f64 {
    let run = || {
        order
            .iter()
            .map(|&index| usize::from(find(black_box(index))))
            .sum::<usize>()
    };
    let warm = run();
    let begin = Instant::now();
    let found = run();
    let time = begin.elapsed();
    assert_eq!(warm, order.len(), "every key is present");
    assert_eq!(found, order.len(), "every key is present");
    nanoseconds(time) / order.len() as f64
}

/// The same in as many threads at a time as there are orders; the mean of the threads.
fn readers(orders: &[&[u32]], find: &(impl Fn(u32) -> bool + Sync)) -> f64 {
    let start = Barrier::new(orders.len());
    let run = |order: &[u32]| {
        start.wait();
        lookups(order, find)
    };
    let times: Vec<f64> = std::thread::scope(|scope| {
        let running: Vec<_> = orders
            .iter()
            .map(|order| scope.spawn(|| run(order)))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("lookups do not panic"))
            .collect()
    });
    times.iter().sum::<f64>() / orders.len() as f64
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

fn fastest(times: Vec<f64>) -> f64 {
    times.into_iter().fold(f64::INFINITY, f64::min)
}

/// The numbers of all keys in random order, the same in every run; over and over until there are
/// enough of them for some rounds.
///
/// Numbers, not keys: they are read along with the table, and should take as little of the caches
/// as can be.
fn random_order(size: usize) -> Vec<u32> {
    let mut state = 1_u64;
    let mut order = Vec::new();
    while order.len() < 5 * LOOKUPS {
        let again = order.len();
        order.extend(0..size as u32);
        for last in (again + 1..order.len()).rev() {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            order.swap(last, again + (state >> 33) as usize % (last - again + 1));
        }
    }
    order
}

/// The hash that `klp_core::shadow` uses, one multiplication and both halves of its product, with
/// the id mixed in, which has no table of its own here: what is compared is the tables, not their
/// hashes.
#[derive(Default)]
struct SameHash(u64);

impl Hasher for SameHash {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a key is two numbers");
    }

    fn write_usize(&mut self, obj: usize) {
        self.0 = obj as u64;
    }

    fn write_u64(&mut self, id: u64) {
        let sum = self.0.wrapping_add(id.wrapping_mul(0xbb67_ae85_84ca_a73b));
        let product = u128::from(sum) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A variable in Linux's layout: linked, with its data behind its key.
struct Node {
    next: Option<Box<Node>>,
    key: Key,
    data: [u64; 2],
}

/// 4,096 chains, chosen by the object's address, newest variable first.
struct Chained(Vec<Option<Box<Node>>>);

impl Chained {
    const BUCKETS: usize = 4_096;

    fn new() -> Self {
        Self((0..Self::BUCKETS).map(|_| None).collect())
    }

    fn bucket(obj: usize) -> usize {
        ((obj as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize
    }

    fn insert(&mut self, key: Key) {
        let bucket = &mut self.0[Self::bucket(key.0)];
        *bucket = Some(Box::new(Node {
            next: bucket.take(),
            key,
            data: [0; 2],
        }));
    }

    fn get(&self, key: Key) -> Option<&[u64; 2]> {
        let mut at = self.0[Self::bucket(key.0)].as_deref();
        while let Some(node) = at {
            if node.key == key {
                return Some(&node.data);
            }
            at = node.next.as_deref();
        }
        None
    }
}

impl Drop for Chained {
    fn drop(&mut self) {
        // One by one: a chain of boxes drops itself recursively.
        for bucket in &mut self.0 {
            let mut at = bucket.take();
            while let Some(mut node) = at {
                at = node.next.take();
            }
        }
    }
}
