//! The entries of `.modinfo`: what a patch object says of the patch as a whole.

use crate::error::BuildError;
use klp_core::config::ABOUT_LEN;

/// `KEY=VALUE`, each with a zero byte behind it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Info(String);

impl Info {
    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// [`BuildError::BadText`]: an entry ends at a zero byte, and people read it on terminals.
    pub(crate) fn add(&mut self, key: &'static str, value: &str) -> Result<(), BuildError> {
        if !(1..=ABOUT_LEN).contains(&value.len()) || value.chars().any(char::is_control) {
            let text = value.to_owned();
            return Err(BuildError::BadText { key, text });
        }
        self.0 += &format!("{key}={value}\0");
        Ok(())
    }

    /// Adds the entries of `other`.
    pub(crate) fn append(&mut self, other: &Self) {
        self.0 += &other.0;
    }

    /// The contents of the section.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }
}
