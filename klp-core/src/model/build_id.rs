//! Which build of an object a patch is for.

use crate::mem::{OutOfMemory, try_vec};
use alloc::vec::Vec;
use core::fmt;

/// What tells one build of an object from all others: the bytes that linkers make of its contents
/// (`--build-id`, section `.note.gnu.build-id`). Displays as tools show it, in hexadecimal.
#[derive(PartialEq, Eq, Debug)]
pub struct BuildId(Vec<u8>);

impl BuildId {
    /// Copies the bytes.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(bytes: &[u8]) -> Result<Self, OutOfMemory> {
        let mut copy = try_vec(bytes.len())?;
        copy.extend_from_slice(bytes);
        Ok(Self(copy))
    }

    /// A copy; the fallible `Clone`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        Self::new(&self.0)
    }

    /// Reads what is displayed; `None` if `text` is none, or empty.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, OutOfMemory> {
        let mut bytes = try_vec(text.len() / 2)?;
        let mut digits = text.chars().map(|digit| digit.to_digit(16));
        loop {
            match (digits.next(), digits.next()) {
                (Some(Some(high)), Some(Some(low))) => {
                    #[allow(clippy::cast_possible_truncation, reason = "two digits")]
                    bytes.push((high << 4 | low) as u8);
                }
                (None, _) if !bytes.is_empty() => return Ok(Some(Self(bytes))),
                _ => return Ok(None),
            }
        }
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn it_is_shown_as_tools_show_it() {
        for text in ["00", "0123456789abcdef"] {
            let id = BuildId::parse(text).expect("there is memory").expect(text);
            assert_eq!(id.to_string(), text);
            assert_eq!(BuildId::new(id.bytes()), Ok(id));
        }
        for text in ["", "0", "012", "0g", "+1", "0x12", "é"] {
            assert_eq!(BuildId::parse(text), Ok(None), "{text}");
        }
    }
}
