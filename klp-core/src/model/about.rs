//! What a patch is for, in its author's words.

use crate::mem::{Name, OutOfMemory, try_vec};
use alloc::vec::Vec;

/// What a patch says of itself to people. The engine only keeps it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct About {
    /// What it does (kernel: `MODULE_DESCRIPTION`).
    pub descriptions: Vec<Name>,
    /// Who made it (kernel: `MODULE_AUTHOR`).
    pub authors: Vec<Name>,
    /// What it is known by elsewhere: `CVE-2024-1234`.
    pub labels: Vec<Name>,
}

impl About {
    /// A copy; the fallible `Clone`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn try_clone(&self) -> Result<Self, OutOfMemory> {
        let copy = |texts: &[Name]| -> Result<Vec<Name>, OutOfMemory> {
            let mut copies = try_vec(texts.len())?;
            for text in texts {
                copies.push(text.try_clone()?);
            }
            Ok(copies)
        };
        Ok(Self {
            descriptions: copy(&self.descriptions)?,
            authors: copy(&self.authors)?,
            labels: copy(&self.labels)?,
        })
    }
}
