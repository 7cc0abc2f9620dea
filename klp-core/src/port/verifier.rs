//! Signatures of patch objects (kernel: `kernel/module/signing.c`).

use core::fmt;

/// What tells a key from others: for an ed25519 key, the public key itself. Shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 32]);

/// A file that was signed with a key that the host trusts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signed<'f> {
    /// The key.
    pub key: KeyId,
    /// The patch object: that part of the file for which the signature vouches. The engine looks at
    /// nothing else of the file.
    pub object: &'f [u8],
}

/// Why a file is not trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Distrust {
    /// It has no signature: `ENODATA`.
    NotSigned,
    /// It was signed with a key that is none of the host's: `ENOKEY`.
    UnknownKey(KeyId),
    /// The signature is not one of this key's for these bytes: `EKEYREJECTED`.
    Changed(KeyId),
    /// The signature cannot be read; what is wrong with it: `EBADMSG`.
    Damaged(&'static str),
}

/// Who may sign patch objects.
///
/// A host that has one ([`Platform::verifier`](super::Platform::verifier)) takes no patch object that
/// it does not vouch for; a host that has none takes every one.
///
/// # For OS porters
///
/// The crate `klp-ed25519` has one for ed25519 keys, `no_std`, which reads what `klp-build sign`
/// writes ([`elf::signature`](crate::elf::signature)). A host whose files are signed in another way,
/// or whose own loader verifies them, brings its own. `klp_core::conformance::verifier` (feature
/// `conformance`) is the test to call.
///
/// The file is somebody else's: believe nothing of it, and never panic. What cannot be decided is a
/// refusal.
///
/// One that trusts files which are built into the system, and no other:
///
/// ```
/// use klp_core::port::{Distrust, KeyId, Signed, Verifier};
///
/// struct BuiltIn(&'static [&'static [u8]]);
///
/// impl Verifier for BuiltIn {
///     fn verify<'f>(&self, file: &'f [u8]) -> Result<Signed<'f>, Distrust> {
///         if self.0.contains(&file) {
///             return Ok(Signed { key: KeyId([0; 32]), object: file });
///         }
///         Err(Distrust::NotSigned)
///     }
/// }
/// # let built_in = BuiltIn(&[b"fix"]);
/// # assert!(built_in.verify(b"fix").is_ok_and(|signed| signed.object == b"fix"));
/// # assert_eq!(built_in.verify(b"fox"), Err(Distrust::NotSigned));
/// ```
pub trait Verifier: Send + Sync {
    /// Says which key vouches for the bytes of a file, and for which of them.
    ///
    /// # Errors
    ///
    /// Why none does.
    fn verify<'f>(&self, file: &'f [u8]) -> Result<Signed<'f>, Distrust>;
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSigned => f.write_str("it is not signed, and only signed patches are taken"),
            Self::UnknownKey(key) => {
                write!(f, "it is signed with key {key}, which is not trusted here")
            }
            Self::Changed(key) => write!(
                f,
                "its signature with key {key} does not fit: it was changed after it was signed"
            ),
            Self::Damaged(what) => write!(f, "its signature is damaged: {what}"),
        }
    }
}

impl core::error::Error for Distrust {}
