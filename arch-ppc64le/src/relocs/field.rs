//! Where a relocation's value stands, and how much of it (ELFv2 3.5.1, "Relocation Fields").

use crate::opcodes::primary;

/// Where a field holds its value, and how much of it. All but the first four stand in an
/// instruction, the rest of which stays.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// Hints for linkers.
    Nothing,
    Whole64,
    Signed32,
    /// 32 bits, of a number with or without a sign.
    Any32,
    /// `half16`: 16 bits.
    Half(Half),
    /// `half16ds`: the same without the lowest two bits, or without the lowest four if the
    /// instruction is one of form DQ.
    HalfDs(Half),
    /// `low24`, `low14`: a distance of that many bits and two more, which are zero.
    Branch {
        bits: u32,
    },
    /// `prefix34`: 18 bits of the first word and 16 of the second.
    Prefixed34,
}

/// Which 16 bits of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Half {
    shift: u32,
    /// Whether the bits below will be added with their sign: then these are one more if those are
    /// negative (`#ha`).
    adjusted: bool,
    limit: Limit,
}

/// What may be above these 16 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Anything,
    Sign,
    SignOrZero,
}
pub(super) const fn half(shift: u32, adjusted: bool, limit: Limit) -> Half {
    Half {
        shift,
        adjusted,
        limit,
    }
}

impl Half {
    /// These bits of `value`; `None` if those above are not as they may be.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is cut off was checked, or is not asked for"
    )]
    fn of(self, value: i64) -> Option<u16> {
        let value = if self.adjusted {
            value.wrapping_add(0x8000)
        } else {
            value
        };
        let bits = value >> self.shift;
        let highest = match self.limit {
            Limit::Anything => return Some(bits as u16),
            Limit::Sign => i64::from(i16::MAX),
            Limit::SignOrZero => i64::from(u16::MAX),
        };
        (i64::from(i16::MIN)..=highest)
            .contains(&bits)
            .then_some(bits as u16)
    }
}

impl Field {
    pub(super) fn len(self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::Half(_) => 2,
            Self::Any32 | Self::Signed32 | Self::HalfDs(_) | Self::Branch { .. } => 4,
            Self::Whole64 | Self::Prefixed34 => 8,
        }
    }

    /// The bits that hold the value, of [`len`](Self::len) bytes that are `now`, as one number. (A
    /// field of two words has the first in the lower half.)
    pub(super) fn mask(self, now: u64) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Half(_) => 0xffff,
            Self::HalfDs(_) => 0xffff & !lowest(now),
            Self::Any32 | Self::Signed32 => u32::MAX.into(),
            Self::Branch { bits } => ((1 << bits) - 1) << 2,
            Self::Whole64 => u64::MAX,
            Self::Prefixed34 => 0x0000_ffff_0003_ffff,
        }
    }

    /// The value in its place in bytes that are `now`; `None` if it does not fit.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "what is cut off was checked"
    )]
    pub(super) fn encode(self, now: u64, value: i64) -> Option<u64> {
        let fits = |bits: u32| (-(1_i64 << (bits - 1))..1 << (bits - 1)).contains(&value);
        match self {
            Self::Nothing => Some(0),
            Self::Whole64 => Some(value as u64),
            Self::Signed32 => fits(32).then_some(u64::from(value as u32)),
            Self::Any32 => {
                (fits(32) || value == i64::from(value as u32)).then_some(u64::from(value as u32))
            }
            Self::Half(half) => half.of(value).map(u64::from),
            Self::HalfDs(half) => half
                .of(value)
                .map(u64::from)
                .filter(|bits| bits & lowest(now) == 0),
            Self::Branch { bits } => {
                (fits(bits + 2) && value & 3 == 0).then_some(value as u64 & self.mask(now))
            }
            Self::Prefixed34 => fits(34).then_some({
                let value = value as u64;
                value >> 16 & 0x3_ffff | (value & 0xffff) << 32
            }),
        }
    }
}

/// The lowest bits of a field `half16ds`, which belong to the instruction: four of form DQ (`lq`;
/// `lxv`, `stxv`; `lxvp`, `stxvp`), otherwise two.
#[allow(clippy::cast_possible_truncation, reason = "one word of both")]
fn lowest(now: u64) -> u64 {
    let word = now as u32;
    match (primary(word), word & 3) {
        (6 | 56, _) | (61, 1) => 0b1111,
        _ => 0b11,
    }
}
/// The first `len` bytes as a number.
pub(super) fn number(bytes: &[u8], len: usize) -> u64 {
    let bytes = bytes.iter().take(len).rev();
    bytes.fold(0, |number, &byte| number << 8 | u64::from(byte))
}

pub(super) fn set_number(bytes: &mut [u8], len: usize, number: u64) {
    for (place, byte) in bytes.iter_mut().take(len).zip(number.to_le_bytes()) {
        *place = byte;
    }
}
