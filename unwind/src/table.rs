//! Unwind rules of one object, sorted by address.

use crate::machine::{Link, Machine};
use alloc::vec::Vec;
use core::fmt;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::{OutOfMemory, try_push};

/// Where the caller's value of a register is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the register: it was not changed.
    Same,
    /// So many bytes below the topmost place that there is ([`Machine::ABOVE_CFA`]).
    BelowTop(u64),
    /// So many bytes below where [`FrameRule::cfa_base`] points to.
    BelowBase(u64),
}

/// A [`Place`] in as many bits as an architecture's compilers need.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot<T>(T);

/// What a [`Slot`] is held in: `i8` or `i16`.
pub trait SlotNumber: Copy + Eq + fmt::Debug + Default + TryFrom<i64> + Into<i64> {}

impl SlotNumber for i8 {}
impl SlotNumber for i16 {}

impl<T: SlotNumber> Slot<T> {
    /// `None` if the place is not a multiple of 8 bytes away, or too far, or the topmost one.
    #[must_use]
    pub fn new(place: Place) -> Option<Self> {
        let (Place::BelowTop(below) | Place::BelowBase(below)) = place else {
            return Some(Self(T::default()));
        };
        let words = i64::try_from(below / 8).ok().filter(|_| below % 8 == 0)?;
        let number = match place {
            Place::BelowBase(_) => !words,
            _ if words == 0 => return None,
            _ => words,
        };
        T::try_from(number).ok().map(Self)
    }

    /// Where it is.
    #[must_use]
    pub fn place(self) -> Place {
        match self.0.into() {
            0 => Place::Same,
            below @ 1.. => Place::BelowTop(8 * below.unsigned_abs()),
            below => Place::BelowBase(8 * (!below).unsigned_abs()),
        }
    }
}

/// Slots for all of [`Machine::SAVED`], in that order: an array of [`Slot`]s.
pub trait Slots: Copy + Eq + fmt::Debug + Default {
    /// All of them.
    fn places(self) -> impl Iterator<Item = Place>;

    /// Sets the one with that index; `false` if it does not fit.
    #[must_use]
    fn set(&mut self, index: usize, place: Place) -> bool;
}

impl<T: SlotNumber, const N: usize> Slots for [Slot<T>; N]
where
    Self: Default,
{
    fn places(self) -> impl Iterator<Item = Place> {
        self.into_iter().map(Slot::place)
    }

    fn set(&mut self, index: usize, place: Place) -> bool {
        match (self.get_mut(index), Slot::new(place)) {
            (Some(slot), Some(new)) => {
                *slot = new;
                true
            }
            _ => false,
        }
    }
}

/// How to get from an ordinary frame to its caller's.
///
/// The canonical frame address (CFA) is the value of the stack pointer in the caller, before the
/// call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRule<M: Machine> {
    /// The CFA is this register plus `cfa_offset`, or in memory there.
    pub cfa_base: M::Reg,
    /// Whether the CFA is what the eight bytes at `cfa_base` plus `cfa_offset` hold: so does a
    /// function find its caller's frame that aligns its own one more strictly (GCC's "dynamic
    /// realign argument pointer").
    pub cfa_in_memory: bool,
    /// In bytes.
    pub cfa_offset: i32,
    /// Where the caller's values of [`Machine::SAVED`] are.
    pub saved: M::Slots,
}

/// What is known about the stack at an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule<M: Machine> {
    /// Nothing.
    Gap,
    /// There is information, but it cannot be expressed here.
    Unknown,
    /// The outermost frame: it has no return address.
    End,
    /// The kernel's frame of a signal handler: [`Machine::interrupted`] knows what was interrupted.
    Signal,
    /// An ordinary frame.
    Frame(FrameRule<M>),
}

impl<M: Machine> Rule<M> {
    /// Whether the return address is in memory there, and not in a register.
    #[must_use]
    pub fn returns_by_memory(&self) -> bool {
        match (self, M::LINK) {
            (Self::Frame(_), Link::BelowCfa(_)) => true,
            (Self::Frame(rule), Link::Register(index)) => {
                matches!(rule.saved.places().nth(index), Some(place) if place != Place::Same)
            }
            _ => false,
        }
    }
}

/// `rule` holds from `start` to the start of the next row.
#[derive(Clone, Copy, Debug)]
struct Row<M: Machine> {
    /// In bytes from the start of the object's text.
    start: u32,
    rule: Rule<M>,
}

/// The rules of one object.
///
/// # Invariants
///
/// Rows are strictly sorted by `start`, and lie inside `text`.
#[derive(Debug)]
pub struct Table<M: Machine> {
    text: TextRange,
    rows: Vec<Row<M>>,
}

impl<M: Machine> Table<M> {
    /// Bytes that a row takes.
    pub const ROW: usize = size_of::<Row<M>>();

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
    pub fn find(&self, pc: CodeAddr) -> Rule<M> {
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

    /// How many rows there are; each takes [`ROW`](Self::ROW) bytes.
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
pub struct TableBuilder<M: Machine> {
    table: Table<M>,
}

impl<M: Machine> TableBuilder<M> {
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
    pub fn push(&mut self, start: CodeAddr, rule: Rule<M>) -> Result<(), TableError> {
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
    pub fn replace_from(&mut self, start: CodeAddr, rule: Rule<M>) -> Result<(), TableError> {
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
    pub fn build(self) -> Table<M> {
        self.table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy::{Reg, Toy};

    const TEXT: u64 = 0x1000;

    fn at(offset: u64) -> CodeAddr {
        CodeAddr::new(TEXT + offset)
    }

    fn builder() -> TableBuilder<Toy> {
        TableBuilder::new(TextRange::new(at(0), 0x100).expect("fits")).expect("small")
    }

    fn frame(cfa_offset: i32) -> Rule<Toy> {
        Rule::Frame(FrameRule {
            cfa_base: Reg::Sp,
            cfa_in_memory: false,
            cfa_offset,
            saved: [Slot::default(); 2],
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
        assert_eq!(
            TableBuilder::<Toy>::new(whole).err(),
            Some(TableError::TooLarge)
        );
    }

    #[test]
    fn slots_hold_what_fits() {
        fn holds<T: SlotNumber>(place: Place) -> bool {
            let slot = Slot::<T>::new(place);
            slot.is_some_and(|slot| slot.place() == place)
        }
        assert!(holds::<i8>(Place::Same));
        for below in [8, 16, 1016] {
            assert!(holds::<i8>(Place::BelowTop(below)));
        }
        for below in [0, 8, 16, 1016] {
            assert!(holds::<i8>(Place::BelowBase(below)));
        }
        for below in [4, 12, 1024, u64::MAX] {
            let places = [Place::BelowTop(below), Place::BelowBase(below)];
            assert!(!places.into_iter().any(holds::<i8>), "{below}");
        }
        assert!(!holds::<i8>(Place::BelowTop(0)), "that is none");
        assert!(holds::<i16>(Place::BelowTop(1 << 17)));
        let mut slots = [Slot::<i16>::default(); 2];
        assert!(slots.set(1, Place::BelowBase(0)) && !slots.set(2, Place::Same));
        assert!(slots.places().eq([Place::Same, Place::BelowBase(0)]));
    }

    #[test]
    fn a_return_address_is_in_memory_or_in_the_link_register() {
        let rule = |link| {
            Rule::<Toy>::Frame(FrameRule {
                cfa_base: Reg::Sp,
                cfa_in_memory: false,
                cfa_offset: 16,
                saved: [Slot::default(), Slot::new(link).expect("it fits")],
            })
        };
        assert!(rule(Place::BelowTop(8)).returns_by_memory());
        assert!(!rule(Place::Same).returns_by_memory());
        assert!(!Rule::<Toy>::Gap.returns_by_memory() && !Rule::<Toy>::End.returns_by_memory());
    }
}
