//! Which code a task must not be in when it is switched (kernel: `klp_check_stack`).
//!
//! The ranges are sorted once per transition, so a check costs frames × log(functions).

use crate::addr::{CodeAddr, TextRange};
use crate::mem::{OutOfMemory, try_push};
use crate::port::{Frame, TaskState};
use alloc::vec::Vec;

/// A function of a patch in transition, by positions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AffectedFunc {
    /// Position of the patch among those that are in transition together.
    pub(crate) patch: u32,
    /// Position of the object in the patch.
    pub(crate) object: u32,
    /// Position of the function in the object.
    pub(crate) func: u32,
}

impl AffectedFunc {
    /// Code of the patch that is none of its new functions.
    #[must_use]
    pub(crate) const fn other(patch: u32) -> Self {
        Self {
            patch,
            object: u32::MAX,
            func: u32::MAX,
        }
    }

    /// Code of an older patch, which gives way to the patch or stays below it.
    #[must_use]
    pub(crate) const fn older(patch: u32) -> Self {
        Self {
            patch,
            object: u32::MAX,
            func: u32::MAX - 2,
        }
    }

    /// A function of a replaced patch that goes back to the original.
    #[must_use]
    pub(crate) const fn nop(patch: u32) -> Self {
        Self {
            patch,
            object: u32::MAX,
            func: u32::MAX - 1,
        }
    }
}

/// The code of both sides of a transition.
#[derive(Debug, Default)]
pub(crate) struct Affected {
    unpatched: Side,
    patched: Side,
    /// Entries of functions, which are on both sides: a task that stands there may have been
    /// called, or have jumped there from the version of another function that it is to leave.
    entries: Ranges,
    /// Whether tasks may look at it to switch themselves at entries.
    lendable: bool,
}

/// The code that tasks in one state may be in.
#[derive(Debug, Default)]
struct Side {
    funcs: Ranges,
    /// Other code of patches, which may overlap with that of functions.
    code: Ranges,
}

impl Side {
    fn find(&self, addr: CodeAddr) -> Option<AffectedFunc> {
        self.funcs.find(addr).or_else(|| self.code.find(addr))
    }
}

impl Affected {
    fn side(&mut self, side: TaskState) -> &mut Side {
        match side {
            TaskState::Patched => &mut self.patched,
            TaskState::Unpatched | TaskState::Idle => &mut self.unpatched,
        }
    }

    /// Makes room for the entries of `count` functions and one range of each on each side.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), OutOfMemory> {
        self.unpatched.funcs.0.try_reserve(count)?;
        self.patched.funcs.0.try_reserve(count)?;
        Ok(self.entries.0.try_reserve(count)?)
    }

    /// Adds code that belongs to one side: that tasks in state `side` may be in because of `func`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(crate) fn add(
        &mut self,
        side: TaskState,
        range: TextRange,
        func: AffectedFunc,
    ) -> Result<(), OutOfMemory> {
        try_push(&mut self.side(side).funcs.0, (range, func))
    }

    /// Adds the entry of a function.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(crate) fn add_entry(
        &mut self,
        entry: TextRange,
        func: AffectedFunc,
    ) -> Result<(), OutOfMemory> {
        try_push(&mut self.entries.0, (entry, func))
    }

    /// Adds code of a patch to one side, whatever functions it belongs to.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(crate) fn add_code(
        &mut self,
        side: TaskState,
        code: TextRange,
        at: AffectedFunc,
    ) -> Result<(), OutOfMemory> {
        try_push(&mut self.side(side).code.0, (code, at))
    }

    /// Sorts what was added.
    #[must_use]
    pub(crate) fn sorted(mut self) -> Self {
        for side in [&mut self.unpatched, &mut self.patched] {
            side.funcs.sort();
            side.code.sort();
        }
        self.entries.sort();
        self
    }

    /// The affected function that keeps a task from being switched to `target`: it is in its code,
    /// or `called` it there and has not come back, though the function may have ended in a jump.
    #[must_use]
    pub(crate) fn find(
        &self,
        target: TaskState,
        frame: Frame,
        called: Option<CodeAddr>,
    ) -> Option<AffectedFunc> {
        let side = match target {
            TaskState::Patched => &self.unpatched,
            TaskState::Unpatched | TaskState::Idle => &self.patched,
        };
        let find = |addr| side.find(addr).or_else(|| self.entries.find(addr));
        find(frame.lookup()).or_else(|| find(called?))
    }

    /// All of it, some of it more than once.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = TextRange> + '_ {
        [&self.unpatched, &self.patched]
            .into_iter()
            .flat_map(|side| side.funcs.0.iter().chain(&side.code.0))
            .chain(&self.entries.0)
            .map(|(range, _)| *range)
    }

    /// Whether `addr` is in it.
    pub(crate) fn contains(&self, addr: CodeAddr) -> bool {
        self.unpatched
            .find(addr)
            .or_else(|| self.patched.find(addr))
            .or_else(|| self.entries.find(addr))
            .is_some()
    }

    /// Whether tasks may switch themselves at entries.
    pub(crate) fn is_lendable(&self) -> bool {
        self.lendable
    }

    /// Says whether they may, or, on a host where they switch themselves elsewhere, whether they
    /// may there; not until this is called.
    pub(crate) fn set_lendable(&mut self, on: bool) {
        self.lendable = on;
    }
}

/// # Invariants
///
/// After `sort`, sorted by address and disjoint.
#[derive(Debug, Default)]
struct Ranges(Vec<(TextRange, AffectedFunc)>);

impl Ranges {
    fn sort(&mut self) {
        // Aliases and shared cold parts overlap: the union counts, under the name of the first,
        // which is that of a function if there is one.
        self.0
            .sort_unstable_by_key(|(range, at)| (range.start(), range.end(), at.object));
        self.0.dedup_by(|(next, _), (kept, _)| {
            let overlaps = next.start() < kept.end();
            if overlaps && next.end() > kept.end() {
                let len = next.end().get() - kept.start().get();
                *kept = TextRange::new(kept.start(), len).unwrap_or(*kept);
            }
            overlaps
        });
    }

    fn find(&self, addr: CodeAddr) -> Option<AffectedFunc> {
        let behind = self.0.partition_point(|(range, _)| range.start() <= addr);
        let (range, func) = self.0.get(behind.checked_sub(1)?)?;
        range.contains(addr).then_some(*func)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::FrameKind;

    fn range(start: u64, len: u64) -> TextRange {
        TextRange::new(CodeAddr::new(start), len).expect("fits")
    }

    fn func(func: u32) -> AffectedFunc {
        AffectedFunc {
            patch: 0,
            object: 0,
            func,
        }
    }

    fn call(pc: u64) -> Frame {
        Frame {
            pc: CodeAddr::new(pc),
            kind: FrameKind::Call,
        }
    }

    #[test]
    fn overlapping_ranges_count_as_their_union() {
        let mut affected = Affected::default();
        for (start, len, index) in [
            (0x100, 0x100, 0),
            (0x110, 0x10, 1),
            (0x180, 0x100, 2),
            (0x300, 8, 3),
        ] {
            affected
                .add(TaskState::Unpatched, range(start, len), func(index))
                .expect("memory");
        }
        let affected = affected.sorted();
        let find = |pc| {
            affected
                .find(TaskState::Patched, call(pc), None)
                .map(|found| found.func)
        };
        assert_eq!(find(0x100), None);
        assert_eq!(find(0x101), Some(0));
        assert_eq!(find(0x150), Some(0));
        assert_eq!(find(0x280), Some(0));
        assert_eq!(find(0x281), None);
        assert_eq!(find(0x308), Some(3));
        assert_eq!(affected.find(TaskState::Unpatched, call(0x150), None), None);
    }

    #[test]
    fn a_call_at_the_end_of_a_function_is_inside_it() {
        let mut affected = Affected::default();
        affected
            .add(TaskState::Unpatched, range(0x100, 0x10), func(0))
            .expect("memory");
        let affected = affected.sorted();
        assert!(
            affected
                .find(TaskState::Patched, call(0x110), None)
                .is_some()
        );
        let interrupted = Frame {
            pc: CodeAddr::new(0x110),
            kind: FrameKind::Interrupted,
        };
        assert!(
            affected
                .find(TaskState::Patched, interrupted, None)
                .is_none()
        );
    }
}
