//! Which code a task must not be in when it is switched (kernel: `klp_check_stack`).
//!
//! The ranges are sorted once per transition, so a check costs frames × log(functions).

use crate::addr::{CodeAddr, TextRange};
use crate::mem::{OutOfMemory, try_push};
use crate::port::{Frame, TaskState};
use alloc::vec::Vec;

/// A function of a patch in transition, by positions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffectedFunc {
    /// Position of the patch among those that are in transition together.
    pub patch: u32,
    /// Position of the object in the patch.
    pub object: u32,
    /// Position of the function in the object.
    pub func: u32,
}

impl AffectedFunc {
    /// Code of the patch that is none of its new functions.
    #[must_use]
    pub const fn other(patch: u32) -> Self {
        Self { patch, object: u32::MAX, func: u32::MAX }
    }

    /// A function of a replaced patch that goes back to the original.
    #[must_use]
    pub const fn nop(patch: u32) -> Self {
        Self { patch, object: u32::MAX, func: u32::MAX - 1 }
    }
}

/// The code of both sides of a transition.
#[derive(Debug, Default)]
pub struct Affected {
    unpatched: Ranges,
    patched: Ranges,
    code: Ranges,
}

impl Affected {
    /// Adds code that belongs to one side: that tasks in state `side` may be in because of `func`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn add(&mut self, side: TaskState, range: TextRange, func: AffectedFunc) -> Result<(), OutOfMemory> {
        let ranges = match side {
            TaskState::Patched => &mut self.patched,
            TaskState::Unpatched | TaskState::Idle => &mut self.unpatched,
        };
        try_push(&mut ranges.0, (range, func))
    }

    /// Adds all code of a patch to the patched side.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn add_code(&mut self, patch: u32, code: TextRange) -> Result<(), OutOfMemory> {
        try_push(&mut self.code.0, (code, AffectedFunc::other(patch)))
    }

    /// Sorts what was added.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        self.unpatched.sort();
        self.patched.sort();
        self.code.sort();
        self
    }

    /// The affected function that `frame` keeps a task in which is to be switched to `target`.
    #[must_use]
    pub fn find(&self, target: TaskState, frame: Frame) -> Option<AffectedFunc> {
        match target {
            TaskState::Patched => self.unpatched.find(frame.lookup()),
            TaskState::Unpatched | TaskState::Idle => {
                self.patched.find(frame.lookup()).or_else(|| self.code.find(frame.lookup()))
            }
        }
    }
}

/// # Invariants
///
/// After `sort`, sorted by address and disjoint.
#[derive(Debug, Default)]
struct Ranges(Vec<(TextRange, AffectedFunc)>);

impl Ranges {
    fn sort(&mut self) {
        self.0.sort_unstable_by_key(|(range, _)| (range.start(), range.end()));
        // Aliases and shared cold parts overlap: the union counts, under the name of the first.
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
        AffectedFunc { patch: 0, object: 0, func }
    }

    fn call(pc: u64) -> Frame {
        Frame { pc: CodeAddr::new(pc), kind: FrameKind::Call }
    }

    #[test]
    fn overlapping_ranges_count_as_their_union() {
        let mut affected = Affected::default();
        for (start, len, index) in [(0x100, 0x100, 0), (0x110, 0x10, 1), (0x180, 0x100, 2), (0x300, 8, 3)] {
            affected.add(TaskState::Unpatched, range(start, len), func(index)).expect("memory");
        }
        let affected = affected.sorted();
        let find = |pc| affected.find(TaskState::Patched, call(pc)).map(|found| found.func);
        assert_eq!(find(0x100), None);
        assert_eq!(find(0x101), Some(0));
        assert_eq!(find(0x150), Some(0));
        assert_eq!(find(0x280), Some(0));
        assert_eq!(find(0x281), None);
        assert_eq!(find(0x308), Some(3));
        assert_eq!(affected.find(TaskState::Unpatched, call(0x150)), None);
    }

    #[test]
    fn a_call_at_the_end_of_a_function_is_inside_it() {
        let mut affected = Affected::default();
        affected.add(TaskState::Unpatched, range(0x100, 0x10), func(0)).expect("memory");
        let affected = affected.sorted();
        assert!(affected.find(TaskState::Patched, call(0x110)).is_some());
        let interrupted = Frame { pc: CodeAddr::new(0x110), kind: FrameKind::Interrupted };
        assert!(affected.find(TaskState::Patched, interrupted).is_none());
    }
}
