//! Which files are taken at all: those that the host's [`Verifier`](crate::port::Verifier) vouches
//! for, if it has one.

use crate::error::{Error, PatchReason};
use crate::port::{KeyId, Platform};

/// A patch object that the host takes, as [`load`](super::load) wants it.
///
/// # Invariants
///
/// If the host verifies signatures, the bytes are those that a key vouches for. They are borrowed:
/// whatever happens to the file meanwhile, what was verified is what is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Admitted<'f> {
    object: &'f [u8],
    key: Option<KeyId>,
}

impl<'f> Admitted<'f> {
    /// The patch object's bytes.
    pub(super) fn object(self) -> &'f [u8] {
        self.object
    }

    /// The key that vouches for them.
    #[must_use]
    pub fn key(self) -> Option<KeyId> {
        self.key
    }
}

/// Asks the host whether it takes the patch object in the bytes `file`. `name` is what it is called
/// in the error: what a file that is not trusted says of itself counts for nothing.
///
/// # Errors
///
/// [`PatchReason::Untrusted`] says why not.
pub fn admit<'f, P: Platform>(
    platform: &P,
    file: &'f [u8],
    name: &str,
) -> Result<Admitted<'f>, Error> {
    let Some(verifier) = platform.verifier() else {
        return Ok(Admitted {
            object: file,
            key: None,
        });
    };
    match verifier.verify(file) {
        Ok(signed) => Ok(Admitted {
            object: signed.object,
            key: Some(signed.key),
        }),
        Err(why) => Err(Error::patch(
            name,
            None,
            None,
            PatchReason::Untrusted { why },
        )),
    }
}
