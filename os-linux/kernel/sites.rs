// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! The table that says where calls at entry sites go: written by the tracer, read by `entry.S` and
//! by [`klp_engine_select`] at any time, without a lock.
//!
//! Keyed by the address behind the call of the site. Each key has one *near* entry, in an array of
//! fixed size and place that a call finds without a pointer. Keys whose near entry is taken are
//! *far*: in a table with open addressing that grows. A key stays in its entry until its module
//! goes. A task can be preempted while it reads, so a table that was grown out of stays until no
//! task is in the middle of that.

use crate::host;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use klp_core::mem::{OutOfMemory, try_vec};

/// Where calls at a site go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// On with the old function, which is at the key.
    Original,
    /// Where the engine's handler says, by the number of its
    /// [`HandlerArg`](klp_core::port::HandlerArg).
    Ask(u64),
    /// There.
    To(u64),
}

/// A place in the table: half a cache line. `entry.S` knows its layout.
#[repr(C, align(32))]
struct Entry {
    /// The address behind the call; [`FREE`] or [`GONE`].
    key: AtomicU64,
    /// Where the call goes: [`klp_entry_ask`] if that is as `arg` says.
    target: AtomicU64,
    /// For the handler.
    arg: AtomicU64,
}

/// No key is there, nor behind it. Keys are above both of these.
const FREE: u64 = 0;
/// No key is there, but perhaps behind it.
const GONE: u64 = 1;

unsafe extern "C" {
    /// In `entry.S`: where calls go that have to ask [`klp_engine_select`].
    fn klp_entry_ask();
}

/// The target of sites where the handler decides.
fn ask() -> u64 {
    klp_entry_ask as *const () as u64
}

/// How many near entries there are. `entry.S` knows it.
const NEAR: usize = 1024;

/// The near entries. A site's is its key's in units of 16 bytes, to which functions are aligned.
#[unsafe(no_mangle)]
static klp_sites_near: [Entry; NEAR] = [const {
    Entry {
        key: AtomicU64::new(FREE),
        target: AtomicU64::new(0),
        arg: AtomicU64::new(0),
    }
}; NEAR];

fn near(key: u64) -> &'static Entry {
    &klp_sites_near[(key >> 4) as usize % NEAR]
}

/// What `klp_sites_far` leads to. `entry.S` knows its layout.
#[repr(C, align(32))]
struct Header {
    /// Bytes of all entries, less one entry: cuts an offset in bytes, and rounds it down to an
    /// entry.
    mask: u64,
    /// Links tables that are to be freed (`klp_host_retire`).
    retired: u64,
}

const ENTRY: usize = size_of::<Entry>();
const _: () = assert!(ENTRY == 32 && size_of::<Header>() == ENTRY);

/// Entries of the first far table.
const FIRST: usize = 64;

/// The far table in use: a header, and entries behind it.
#[unsafe(no_mangle)]
static klp_sites_far: AtomicPtr<Header> = AtomicPtr::new(core::ptr::null_mut());

/// The writer's view of the table. There is one.
pub(crate) struct Sites {
    /// The far entries.
    entries: &'static [Entry],
    /// How many of them are not [`FREE`].
    used: usize,
}

impl Sites {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        let sites = Self {
            entries: new_table(FIRST)?,
            used: 0,
        };
        sites.publish();
        Ok(sites)
    }

    /// Makes sure that `additional` keys find room, if all of them were far.
    pub(crate) fn reserve(&mut self, additional: usize) -> Result<(), OutOfMemory> {
        if self
            .used
            .checked_add(additional)
            .is_some_and(|wanted| wanted <= self.entries.len() / 2)
        {
            return Ok(());
        }
        // Only keys that are still there come along, so modules that come and go do not make it
        // grow.
        let live = self
            .entries
            .iter()
            .filter(|entry| entry.key.load(Ordering::Relaxed) > GONE)
            .count();
        let wanted = live
            .checked_add(additional)
            .and_then(|wanted| wanted.checked_mul(4))
            .ok_or(OutOfMemory)?;
        let mut bigger = Self {
            entries: new_table(wanted.max(FIRST).next_power_of_two())?,
            used: 0,
        };
        for entry in self.entries {
            let key = entry.key.load(Ordering::Relaxed);
            if key > GONE {
                let (place, _) = bigger.far(key);
                place
                    .arg
                    .store(entry.arg.load(Ordering::Relaxed), Ordering::Relaxed);
                place
                    .target
                    .store(entry.target.load(Ordering::Relaxed), Ordering::Relaxed);
                place.key.store(key, Ordering::Relaxed);
                bigger.used += 1;
            }
        }
        bigger.publish();
        let old = core::mem::replace(self, bigger);
        // SAFETY: it came from `new_table` and is not `klp_sites_far` any more; the writer has let
        // go of it.
        unsafe { host::klp_host_retire(old.header().cast()) };
        Ok(())
    }

    /// Where calls with `key` go.
    pub(crate) fn get(&self, key: u64) -> Way {
        let (entry, found) = self.place(key);
        match entry.target.load(Ordering::Relaxed) {
            _ if !found => Way::Original,
            target if target == ask() => Way::Ask(entry.arg.load(Ordering::Relaxed)),
            target if target == key => Way::Original,
            target => Way::To(target),
        }
    }

    /// Sends calls with `key` `way`. Room was reserved.
    pub(crate) fn set(&mut self, key: u64, way: Way) {
        let (entry, found) = self.place(key);
        let target = match way {
            Way::Original => key,
            Way::To(target) => target,
            Way::Ask(arg) => {
                entry.arg.store(arg, Ordering::Relaxed);
                ask()
            }
        };
        // ORDER(sites): release; the partner is the reader's load of the target.
        entry.target.store(target, Ordering::Release);
        if !found {
            let far = !core::ptr::eq(entry, near(key));
            self.used += usize::from(far && entry.key.load(Ordering::Relaxed) == FREE);
            // ORDER(sites): release; the partner is the reader's load of the key.
            entry.key.store(key, Ordering::Release);
        }
    }

    /// Forgets `key`: no task can come with it any more.
    pub(crate) fn forget(&mut self, key: u64) {
        let (entry, found) = self.place(key);
        if found {
            entry.key.store(GONE, Ordering::Relaxed);
        }
    }

    /// Where `key` is (`true`), or would be put.
    fn place(&self, key: u64) -> (&'static Entry, bool) {
        let near = near(key);
        let there = near.key.load(Ordering::Relaxed);
        if there == key {
            return (near, true);
        }
        match self.far(key) {
            (_, false) if there <= GONE => (near, false),
            far => far,
        }
    }

    /// The same among the far entries.
    fn far(&self, key: u64) -> (&'static Entry, bool) {
        let mut gone = None;
        for entry in probe(self.entries, key) {
            match entry.key.load(Ordering::Relaxed) {
                FREE => return (gone.unwrap_or(entry), false),
                GONE => gone = gone.or(Some(entry)),
                other if other == key => return (entry, true),
                _ => {}
            }
        }
        // At least half of the table is free: this is never reached.
        (&self.entries[0], false)
    }

    fn publish(&self) {
        // ORDER(sites): release; the partner is the reader's load of the table.
        klp_sites_far.store(self.header(), Ordering::Release);
    }

    fn header(&self) -> *mut Header {
        self.entries
            .as_ptr()
            .cast::<Header>()
            .wrapping_sub(1)
            .cast_mut()
    }
}

/// A table of `len` free entries, a power of two; it stays until it is retired.
fn new_table(len: usize) -> Result<&'static [Entry], OutOfMemory> {
    /// What a header or an entry is made of.
    #[derive(Clone)]
    #[repr(C, align(32))]
    struct Words([u64; 4]);

    let mut words: Vec<Words> = try_vec(len + 1)?;
    words.push(Words([((len - 1) * ENTRY) as u64, 0, 0, 0]));
    words.resize(len + 1, Words([0; 4]));
    let table = words.leak();
    // SAFETY: entries are of the size and alignment of `Words`, and any words make one; the memory
    // is nobody else's, apart from the header before them, and stays as long as somebody may read
    // it.
    Ok(unsafe { core::slice::from_raw_parts(table.as_ptr().add(1).cast::<Entry>(), len) })
}

/// All entries, in the order in which `key` is looked for. `entry.S` does the same.
fn probe(entries: &'static [Entry], key: u64) -> impl Iterator<Item = &'static Entry> {
    let first = key.wrapping_mul(2) as usize / ENTRY;
    (0..entries.len()).map(move |step| &entries[first.wrapping_add(step) & (entries.len() - 1)])
}

/// Where a call goes that has to ask.
///
/// Called with preemption off; [`klp_host_synchronize`](crate::host::klp_host_synchronize) waits
/// for its end. Takes no lock, cannot panic.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn klp_engine_select(behind: u64) -> u64 {
    let near = near(behind);
    // ORDER(sites): acquire; the partner is in `set`.
    if near.key.load(Ordering::Acquire) == behind {
        return goes(near);
    }
    // ORDER(sites): acquire; the partner is in `publish`.
    let header = klp_sites_far.load(Ordering::Acquire);
    // SAFETY: a site leads here only after the first table was published; a table stays while
    // somebody reads it, with its entries behind the header, the offset of the last of which is in
    // the header.
    let entries = unsafe {
        core::slice::from_raw_parts(
            header.add(1).cast::<Entry>().cast_const(),
            (*header).mask as usize / ENTRY + 1,
        )
    };
    for entry in probe(entries, behind) {
        // ORDER(sites): acquire; the partner is in `set`.
        match entry.key.load(Ordering::Acquire) {
            FREE => break,
            key if key == behind => return goes(entry),
            _ => {}
        }
    }
    behind
}

/// Where a call goes whose entry this is.
fn goes(entry: &Entry) -> u64 {
    // ORDER(sites): acquire; the partner is in `set`.
    match entry.target.load(Ordering::Acquire) {
        // SAFETY: the engine made the argument, which is set before the target says to ask; this
        // run counts as one of the handler's.
        target if target == ask() => unsafe {
            klp_core::ops::handler(
                entry.arg.load(Ordering::Relaxed),
                crate::tasks::current_state,
            )
            .get()
        },
        target => target,
    }
}
