//! Unwind rules of one object, sorted by address.
#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::fmt;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::{OutOfMemory, try_push};

/// A register that a frame's address can be computed from, or that a function preserves for its
/// caller (psABI 3.2.3, figure 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reg {
    /// `rbp`
    Rbp = 0,
    /// `rbx`
    Rbx = 1,
    /// `r12`
    R12 = 2,
    /// `r13`
    R13 = 3,
    /// `r14`
    R14 = 4,
    /// `r15`
    R15 = 5,
    /// `rsp`, whose value in the caller is the CFA itself.
    Rsp = 6,
}

impl Reg {
    /// The registers that a rule says where to find, in the order of [`FrameRule::saved`].
    pub const SAVED: [Self; 6] = [
        Self::Rbp,
        Self::Rbx,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];
}

/// Where the caller's value of a register is: in the register still, or in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot(i8);

/// Where a [`Slot`] is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the register: it was not changed.
    Same,
    /// So far below the CFA.
    BelowCfa(u64),
    /// So far below where [`FrameRule::cfa_base`] points to.
    BelowBase(u64),
}

impl Slot {
    /// The register was not changed.
    pub const SAME: Self = Self(0);

    /// Saved `below` bytes below the CFA; `None` if that is not one of 8, 16, … 1016.
    #[must_use]
    pub const fn below_cfa(below: i64) -> Option<Self> {
        if below > 0 && below <= 8 * i8::MAX as i64 && below % 8 == 0 {
            Some(Self((below / 8) as i8))
        } else {
            None
        }
    }

    /// Saved `below` bytes below where the base register points to; `None` if that is not one of 0,
    /// 8, … 1016.
    #[must_use]
    pub const fn below_base(below: i64) -> Option<Self> {
        if below >= 0 && below <= 8 * i8::MAX as i64 && below % 8 == 0 {
            Some(Self(!((below / 8) as i8)))
        } else {
            None
        }
    }

    /// Where it is.
    #[must_use]
    pub const fn place(self) -> Place {
        match self.0 {
            0 => Place::Same,
            below @ 1.. => Place::BelowCfa(8 * below as u64),
            below => Place::BelowBase(8 * !below as u64),
        }
    }
}

/// How to get from an ordinary frame to its caller's.
///
/// The canonical frame address (CFA) is the value of `rsp` in the caller, before the call. The
/// return address is in the eight bytes below.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRule {
    /// The CFA is this register plus `cfa_offset`, or in memory there.
    pub cfa_base: Reg,
    /// Whether the CFA is what the eight bytes at `cfa_base` plus `cfa_offset` hold: so does a
    /// function find its caller's frame that aligns its own one more strictly (GCC's "dynamic
    /// realign argument pointer").
    pub cfa_in_memory: bool,
    /// In bytes.
    pub cfa_offset: i32,
    /// Where the caller's values of [`Reg::SAVED`] are.
    pub saved: [Slot; 6],
}

/// What is known about the stack at an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Nothing.
    Gap,
    /// There is information, but it cannot be expressed here.
    Unknown,
    /// The outermost frame: it has no return address.
    End,
    /// The kernel's frame of a signal handler: `rsp` points to the `ucontext` of what was
    /// interrupted.
    Signal,
    /// An ordinary frame.
    Frame(FrameRule),
}

/// `rule` holds from `start` to the start of the next row.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// In bytes from the start of the object's text.
    start: u32,
    rule: Rule,
}

static_assertions::assert_eq_size!(Row, [u8; 16]);

/// The rules of one object.
///
/// # Invariants
///
/// Rows are strictly sorted by `start`, and lie inside `text`.
#[derive(Debug)]
pub struct Table {
    text: TextRange,
    rows: Vec<Row>,
}

impl Table {
    /// The code it was made for.
    #[must_use]
    pub fn text(&self) -> TextRange {
        self.text
    }

    /// The rule at `pc`: [`Rule::Gap`] outside of [`text`](Self::text).
    ///
    /// Of a frame that is in the midst of a call, look up
    /// [`Frame::lookup`](klp_core::port::Frame::lookup), not the return address.
    #[must_use]
    pub fn find(&self, pc: CodeAddr) -> Rule {
        if !self.text.contains(pc) {
            return Rule::Gap;
        }
        let offset = pc.get() - self.text.start().get();
        let behind = self
            .rows
            .partition_point(|row| u64::from(row.start) <= offset);
        match behind.checked_sub(1).and_then(|last| self.rows.get(last)) {
            Some(row) => row.rule,
            None => Rule::Gap,
        }
    }

    /// How many rows there are; each takes 16 bytes.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }
}

/// Why a table could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// Memory ran out.
    OutOfMemory,
    /// The text is longer than 4 GiB, more than a table can describe.
    TooLarge,
    /// A rule lies outside of the text, or below an earlier one.
    Misplaced,
}

impl From<OutOfMemory> for TableError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "out of memory",
            Self::TooLarge => "text of more than 4 GiB cannot be unwound",
            Self::Misplaced => "an unwind rule is out of order",
        })
    }
}

impl core::error::Error for TableError {}

/// Makes a [`Table`] from rules in the order of their addresses.
#[derive(Debug)]
pub struct TableBuilder {
    table: Table,
}

impl TableBuilder {
    /// A table for `text` that knows nothing.
    ///
    /// # Errors
    ///
    /// [`TableError::TooLarge`].
    pub fn new(text: TextRange) -> Result<Self, TableError> {
        if text.len() > 1 << 32 {
            return Err(TableError::TooLarge);
        }
        Ok(Self {
            table: Table {
                text,
                rows: Vec::new(),
            },
        })
    }

    /// From `start` on, `rule` holds; it replaces an earlier one with the same start.
    ///
    /// # Errors
    ///
    /// [`TableError::Misplaced`] or [`TableError::OutOfMemory`]; the table is as before.
    pub fn push(&mut self, start: CodeAddr, rule: Rule) -> Result<(), TableError> {
        let Table { text, rows } = &mut self.table;
        if !text.contains(start) {
            return Err(TableError::Misplaced);
        }
        let start =
            u32::try_from(start.get() - text.start().get()).map_err(|_| TableError::TooLarge)?;
        match rows.last_mut() {
            Some(last) if start < last.start => return Err(TableError::Misplaced),
            Some(last) if start == last.start => last.rule = rule,
            Some(last) if rule == last.rule => {}
            None if rule == Rule::Gap => {}
            _ => try_push(rows, Row { start, rule })?,
        }
        Ok(())
    }

    /// The rules from `start` on, as far as there are any yet, give way to `rule`.
    ///
    /// # Errors
    ///
    /// As [`push`](Self::push), except that rules from `start` on are gone.
    pub fn replace_from(&mut self, start: CodeAddr, rule: Rule) -> Result<(), TableError> {
        let offset = start.get().wrapping_sub(self.table.text.start().get());
        let keep = self
            .table
            .rows
            .partition_point(|row| u64::from(row.start) < offset);
        self.table.rows.truncate(keep);
        self.push(start, rule)
    }

    /// The table.
    #[must_use]
    pub fn build(self) -> Table {
        self.table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u64 = 0x1000;

    fn at(offset: u64) -> CodeAddr {
        CodeAddr::new(TEXT + offset)
    }

    fn builder() -> TableBuilder {
        TableBuilder::new(TextRange::new(at(0), 0x100).expect("fits")).expect("small")
    }

    fn frame(cfa_offset: i32) -> Rule {
        Rule::Frame(FrameRule {
            cfa_base: Reg::Rsp,
            cfa_in_memory: false,
            cfa_offset,
            saved: [Slot::SAME; 6],
        })
    }

    #[test]
    fn rules_hold_until_the_next_one() {
        let mut builder = builder();
        for (start, rule) in [
            (0x10, frame(8)),
            (0x11, frame(16)),
            (0x20, Rule::Gap),
            (0x30, Rule::End),
        ] {
            builder.push(at(start), rule).expect("in order");
        }
        let table = builder.build();
        let expected = [
            (0x0f, Rule::Gap),
            (0x10, frame(8)),
            (0x11, frame(16)),
            (0x1f, frame(16)),
            (0x20, Rule::Gap),
            (0x2f, Rule::Gap),
        ];
        for (offset, rule) in expected {
            assert_eq!(table.find(at(offset)), rule, "at {offset:#x}");
        }
        assert_eq!(table.find(at(0xff)), Rule::End);
        assert_eq!(table.find(at(0x100)), Rule::Gap, "behind the text");
        assert_eq!(table.find(CodeAddr::new(0)), Rule::Gap, "before it");
    }

    #[test]
    fn equal_neighbours_are_one_row() {
        let mut builder = builder();
        for (start, rule) in [
            (0, Rule::Gap),
            (1, frame(8)),
            (2, frame(8)),
            (3, frame(16)),
            (3, frame(24)),
        ] {
            builder.push(at(start), rule).expect("in order");
        }
        let table = builder.build();
        assert_eq!(table.rows(), 2);
        assert_eq!(table.find(at(2)), frame(8));
        assert_eq!(table.find(at(3)), frame(24));
    }

    #[test]
    fn replacing_leaves_what_is_below() {
        let mut builder = builder();
        for (start, rule) in [(1, frame(8)), (4, frame(16)), (8, frame(24))] {
            builder.push(at(start), rule).expect("in order");
        }
        builder
            .replace_from(at(4), Rule::Unknown)
            .expect("in the text");
        let table = builder.build();
        assert_eq!(table.find(at(3)), frame(8));
        assert_eq!(table.find(at(4)), Rule::Unknown);
        assert_eq!(table.find(at(9)), Rule::Unknown);
    }

    #[test]
    fn misplaced_rules_are_refused() {
        let mut builder = builder();
        builder.push(at(8), frame(8)).expect("in order");
        assert_eq!(builder.push(at(7), frame(16)), Err(TableError::Misplaced));
        assert_eq!(
            builder.push(at(0x100), frame(16)),
            Err(TableError::Misplaced)
        );
        assert_eq!(
            builder.push(CodeAddr::new(TEXT - 1), frame(16)),
            Err(TableError::Misplaced)
        );
        assert_eq!(builder.build().rows(), 1);
        let whole = TextRange::new(CodeAddr::new(0), (1 << 32) + 1).expect("fits");
        assert_eq!(TableBuilder::new(whole).err(), Some(TableError::TooLarge));
    }

    #[test]
    fn slots_hold_what_fits() {
        assert_eq!(Slot::SAME.place(), Place::Same);
        for below in [8, 16, 1016] {
            assert_eq!(
                Slot::below_cfa(below).map(Slot::place),
                Some(Place::BelowCfa(below.unsigned_abs()))
            );
        }
        for below in [0, 8, 16, 1016] {
            assert_eq!(
                Slot::below_base(below).map(Slot::place),
                Some(Place::BelowBase(below.unsigned_abs()))
            );
        }
        for below in [-8, 4, 12, 1024, i64::MIN, i64::MAX] {
            assert_eq!(
                (Slot::below_cfa(below), Slot::below_base(below)),
                (None, None),
                "{below}"
            );
        }
        assert_eq!(Slot::below_cfa(0), None);
    }
}
