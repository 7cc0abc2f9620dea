//! Addresses of code, and ranges of them.

use core::fmt;

/// The address of an instruction, or of a byte among instructions.
///
/// Always 64 bits wide, whatever the machine that compiles it: an address of the *patched* system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CodeAddr(u64);

impl CodeAddr {
    /// The address `addr`.
    #[must_use]
    pub const fn new(addr: u64) -> Self {
        Self(addr)
    }

    /// The address as a number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// `self + bytes`, or `None` where the address space ends.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// `self + bytes`, wrapping as the processor's own arithmetic does.
    #[must_use]
    pub const fn wrapping_add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// `self - bytes`, wrapping as the processor's own arithmetic does.
    #[must_use]
    pub const fn wrapping_sub(self, bytes: u64) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }

    /// How far it is from `self` to `to`; the sign says in which direction.
    #[must_use]
    #[allow(
        clippy::cast_possible_wrap,
        reason = "the difference of two addresses is a signed number"
    )]
    pub const fn distance_to(self, to: Self) -> i64 {
        to.0.wrapping_sub(self.0) as i64
    }
}

impl fmt::Debug for CodeAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for CodeAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A half-open range of code, `start..end`.
///
/// # Invariants
///
/// `start <= end`: the range cannot wrap around the end of the address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TextRange {
    start: CodeAddr,
    end: CodeAddr,
}

impl TextRange {
    /// The range of `len` bytes from `start`; `None` if it would wrap.
    #[must_use]
    pub const fn new(start: CodeAddr, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The first address.
    #[must_use]
    pub const fn start(self) -> CodeAddr {
        self.start
    }

    /// The first address behind the range.
    #[must_use]
    pub const fn end(self) -> CodeAddr {
        self.end
    }

    /// The length in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether no address is in the range.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether `addr` is in the range.
    #[must_use]
    pub const fn contains(self, addr: CodeAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end.0
    }
}

impl fmt::Debug for TextRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cannot_wrap() {
        assert!(TextRange::new(CodeAddr::new(u64::MAX - 3), 4).is_none());
        let range = TextRange::new(CodeAddr::new(u64::MAX - 3), 3).expect("fits");
        assert!(range.contains(CodeAddr::new(u64::MAX - 1)));
        assert!(!range.contains(CodeAddr::new(u64::MAX)));
    }

    #[test]
    fn empty_ranges_contain_nothing() {
        let range = TextRange::new(CodeAddr::new(8), 0).expect("fits");
        assert!(range.is_empty());
        assert!(!range.contains(CodeAddr::new(8)));
    }

    #[test]
    fn distances_have_a_sign() {
        let (low, high) = (CodeAddr::new(0x1000), CodeAddr::new(0x1010));
        assert_eq!(low.distance_to(high), 0x10);
        assert_eq!(high.distance_to(low), -0x10);
    }
}
