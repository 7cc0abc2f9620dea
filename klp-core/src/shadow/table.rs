//! A hash table of one size, from objects to data: lines, and overflow lines behind them.
//!
//! One writer at a time, readers at any time. A variable stays in its slot until it is removed, so
//! a reader that visits all lines of a chain once finds every variable that was there when it began
//! and is there when it ends.

use super::block::Handle;
use super::line::{Line, Variable};
use super::sync::{AtomicPtr, FIND, Ordering, PUBLISH, Writer};
use crate::mem::{OutOfMemory, try_box, try_vec};
use alloc::boxed::Box;
use core::iter;
use core::ptr;

/// Lines, as many as a power of two.
///
/// # Invariants
///
/// There is at least one line.
///
/// `next` of a line is null or leads to an overflow line that this table allocated. Overflow lines
/// are in a chain, or among the spares (linked by [`Line::spare`]); their memory goes only with the
/// table. Only the last line of a chain is taken out of it, and only when it is empty; its `next`
/// is null from then on until it is in a chain again.
#[derive(Debug)]
pub(super) struct Table {
    lines: Box<[Line]>,
    /// Overflow lines in no chain.
    spares: AtomicPtr<Line>,
    /// The table that was in use before this one, or null.
    pub(super) older: AtomicPtr<Table>,
}

/// A table in memory of its own.
pub(super) type BoxedTable = Box<[Table; 1]>;

/// A slot without a variable, in the chain where a variable belongs.
#[derive(Debug)]
pub(super) struct Vacancy<'a> {
    line: &'a Line,
    slot: usize,
}

impl Vacancy<'_> {
    /// Puts `variable`, for which the slot was looked for, into it.
    pub(super) fn fill(self, writer: &Writer, variable: Variable) {
        self.line.fill(writer, self.slot, variable);
    }
}

impl Table {
    /// An empty table of `lines` lines, a power of two.
    pub(super) fn new(lines: usize) -> Result<BoxedTable, OutOfMemory> {
        assert!(lines.is_power_of_two(), "the hash is cut by a mask");
        let mut empty = try_vec(lines)?;
        empty.extend(iter::repeat_with(Line::new).take(lines));
        try_box(Self {
            lines: empty.into_boxed_slice(),
            spares: AtomicPtr::new(ptr::null_mut()),
            older: AtomicPtr::new(ptr::null_mut()),
        })
    }

    /// Its size, without overflow lines.
    pub(super) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// The data of `obj`'s variable. For readers, at any time: no lock, no shared write, no second
    /// try.
    #[inline]
    pub(super) fn find(&self, obj: usize) -> Option<Handle> {
        let line = self.first(obj);
        if let found @ Some(_) = line.find(obj) {
            return found;
        }
        // Out of line, as few lines overflow.
        if let Some(next) = follow(&line.next) {
            find_behind(next, obj)
        } else {
            None
        }
    }

    /// Room for a variable of `obj`.
    pub(super) fn vacancy(&self, writer: &Writer, obj: usize) -> Result<Vacancy<'_>, OutOfMemory> {
        let mut last = self.first(obj);
        for line in self.chain(obj) {
            if let Some(slot) = line.vacant(writer) {
                return Ok(Vacancy { line, slot });
            }
            last = line;
        }
        let line = self.spare_line(writer)?;
        // ORDER(shadow): release; the partner is the read in `follow`.
        last.next.store(ptr::from_ref(line).cast_mut(), PUBLISH);
        Ok(Vacancy { line, slot: 0 })
    }

    /// Takes `obj`'s variable out.
    pub(super) fn remove(&self, writer: &Writer, obj: usize) -> Option<Handle> {
        let first = self.first(obj);
        let (line, slot, block) = chain_from(first).find_map(|line| {
            let (slot, found) = line.variables(writer).find(|(_, found)| found.obj == obj)?;
            Some((line, slot, found.block))
        })?;
        line.clear(writer, slot);
        self.trim(writer, first);
        Some(block)
    }

    /// Takes all variables out, and shows each to `removed` when it is out.
    pub(super) fn remove_all(&self, writer: &Writer, mut removed: impl FnMut(Variable)) {
        for first in &self.lines {
            for line in chain_from(first) {
                for (slot, variable) in line.variables(writer) {
                    line.clear(writer, slot);
                    removed(variable);
                }
            }
            self.trim(writer, first);
        }
    }

    /// All variables.
    pub(super) fn variables<'a>(
        &'a self,
        writer: &'a Writer,
    ) -> impl Iterator<Item = Variable> + 'a {
        self.lines
            .iter()
            .flat_map(chain_from)
            .flat_map(|line| line.variables(writer))
            .map(|(_, variable)| variable)
    }

    /// The number of the line at which `obj`'s chain begins: less than [`lines`](Table::lines).
    #[inline]
    pub(super) fn line_of(&self, obj: usize) -> usize {
        hash(obj) as usize & self.lines.len().wrapping_sub(1)
    }

    /// The lines of the chain that begins with that number, if there are so many.
    pub(super) fn chain_at(&self, line: usize) -> Option<impl Iterator<Item = &Line>> {
        self.lines.get(line).map(chain_from)
    }

    #[inline]
    fn first(&self, obj: usize) -> &Line {
        // SAFETY: there is at least one line, and what is cut to their number less one is less than
        // their number.
        unsafe { self.lines.get_unchecked(self.line_of(obj)) }
    }

    /// The lines in which `obj`'s variable can be.
    #[inline]
    fn chain(&self, obj: usize) -> impl Iterator<Item = &Line> {
        chain_from(self.first(obj))
    }

    /// Takes empty lines off the end of the chain that begins with `first`.
    fn trim(&self, writer: &Writer, first: &Line) {
        while let Some((before, last)) = chain_from(first).zip(chain_from(first).skip(1)).last() {
            if !last.is_empty(writer) {
                return;
            }
            before.next.store(ptr::null_mut(), Ordering::Relaxed);
            last.spare
                .store(self.spares.load(Ordering::Relaxed), Ordering::Relaxed);
            self.spares
                .store(ptr::from_ref(last).cast_mut(), Ordering::Relaxed);
        }
    }

    /// An empty overflow line in no chain.
    fn spare_line(&self, _: &Writer) -> Result<&Line, OutOfMemory> {
        let spare = self.spares.load(Ordering::Relaxed);
        // SAFETY: by the invariant, null or an overflow line of this table; readers and the writer
        // only ever share it.
        if let Some(line) = unsafe { spare.as_ref() } {
            self.spares
                .store(line.spare.load(Ordering::Relaxed), Ordering::Relaxed);
            return Ok(line);
        }
        let line = Box::into_raw(try_box(Line::new())?).cast::<Line>();
        // SAFETY: just allocated; from here on it belongs to the table, and goes with it.
        Ok(unsafe { &*line })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let free = |line: *mut Line| {
            // SAFETY: the overflow lines came out of a box in `spare_line`; each is in one chain or
            // among the spares, and is met once. Nobody reads any more: the table is owned here.
            drop(unsafe { Box::from_raw(line.cast::<[Line; 1]>()) });
        };
        for first in &self.lines {
            let mut at = first.next.load(Ordering::Relaxed);
            // SAFETY: by the invariant, null or an overflow line, not freed yet.
            while let Some(line) = unsafe { at.as_ref() } {
                let next = line.next.load(Ordering::Relaxed);
                free(at);
                at = next;
            }
        }
        let mut at = self.spares.load(Ordering::Relaxed);
        // SAFETY: as above.
        while let Some(line) = unsafe { at.as_ref() } {
            let next = line.spare.load(Ordering::Relaxed);
            free(at);
            at = next;
        }
    }
}

/// The data of `obj`'s variable, if it is in this overflow line or one behind it.
#[inline(never)]
fn find_behind(line: &Line, obj: usize) -> Option<Handle> {
    chain_from(line).find_map(|line| line.find(obj))
}

/// `first` and the lines behind it.
#[inline]
fn chain_from(first: &Line) -> impl Iterator<Item = &Line> {
    iter::successors(Some(first), |line| follow(&line.next))
}

/// The overflow line that `next` leads to.
#[inline]
fn follow(next: &AtomicPtr<Line>) -> Option<&Line> {
    // ORDER(shadow): acquire; the partner is in `vacancy`. SAFETY: by `Table`'s invariant, null or
    // an overflow line whose memory goes only with the table, which outlives the line whose `next`
    // this is, or ends together with it.
    unsafe { next.load(FIND).as_ref() }
}

/// Mixes an address: addresses are aligned and clustered.
///
/// Not one half of the product alone: for some distances of objects that would put them all on few
/// lines.
#[inline]
fn hash(obj: usize) -> u64 {
    // Digits of the golden ratio: odd, with about as many ones as zeros, without a pattern.
    let product = (obj as u128) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}
