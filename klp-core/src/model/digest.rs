//! What tells code from other code.

use super::build_id::BuildId;
use crate::mem::{Name, OutOfMemory};
use core::fmt;

/// A digest of code as it was built. Which algorithm it is of, and what that makes of the code, is
/// the business of who makes patches and of the host: the engine compares. Displays as
/// `ALGORITHM:HEX`.
#[derive(PartialEq, Eq, Debug)]
pub struct Digest {
    algorithm: Name,
    value: BuildId,
}

impl Digest {
    /// Copies what `algorithm` made of the code.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(algorithm: &str, value: &[u8]) -> Result<Self, OutOfMemory> {
        Ok(Self {
            algorithm: Name::new(algorithm)?,
            value: BuildId::new(value)?,
        })
    }

    /// Reads what is displayed; `None` if `text` is none.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, OutOfMemory> {
        let Some((algorithm, value)) = text.split_once(':') else {
            return Ok(None);
        };
        match BuildId::parse(value)? {
            Some(value) if !algorithm.is_empty() => Ok(Some(Self {
                algorithm: Name::new(algorithm)?,
                value,
            })),
            _ => Ok(None),
        }
    }

    /// A copy; the fallible `Clone`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        Self::new(&self.algorithm, self.value())
    }

    /// The name of the algorithm.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// What it made of the code.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        self.value.bytes()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm, self.value)
    }
}

/// The code that a function has in the build that a patch is for. Displays as
/// `LEN bytes, ALGORITHM:HEX`.
#[derive(PartialEq, Eq, Debug)]
pub struct OldCode {
    /// Its size in bytes.
    pub len: u64,
    /// Its digest.
    pub digest: Digest,
}

impl OldCode {
    /// A copy; the fallible `Clone`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        Ok(Self {
            len: self.len,
            digest: self.digest.try_clone()?,
        })
    }
}

impl fmt::Display for OldCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {}", self.len, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn it_is_read_as_it_is_shown() {
        let digest = Digest::parse("sha256:0abc").expect("there is memory");
        let digest = digest.expect("it is one");
        assert_eq!(
            (digest.algorithm(), digest.value()),
            ("sha256", &[0x0a, 0xbc][..])
        );
        assert_eq!(digest.to_string(), "sha256:0abc");
        for text in [
            "",
            "sha256",
            "sha256:",
            ":00",
            "sha256:0",
            "sha256:0g",
            "a:b:00",
        ] {
            assert_eq!(Digest::parse(text), Ok(None), "{text}");
        }
    }
}
