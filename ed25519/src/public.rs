//! Public keys.

use core::fmt;
use ed25519_compact as ed25519;
use klp_core::elf::signature::SIGNATURE;
use klp_core::port::KeyId;

/// The key that signatures are verified with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey(ed25519::PublicKey);

/// Why something is no key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadKey {
    /// The bytes are not those of a point of the curve.
    NoPoint,
    /// Everybody can make signatures that fit it.
    Weak,
    /// The text is not one ed25519 key as OpenSSL writes it.
    NotPem,
}

impl PublicKey {
    /// The key with these bytes (RFC 8032, section 5.1.5).
    ///
    /// # Errors
    ///
    /// [`BadKey`], if nothing can be verified with it, or anything.
    pub fn new(bytes: [u8; 32]) -> Result<Self, BadKey> {
        let key = ed25519::PublicKey::new(bytes);
        match key.validate() {
            Ok(()) => Ok(Self(key)),
            Err(ed25519::Error::WeakPublicKey) => Err(BadKey::Weak),
            Err(_) => Err(BadKey::NoPoint),
        }
    }

    /// What it is called by.
    #[must_use]
    pub fn id(&self) -> KeyId {
        KeyId(*self.0)
    }

    /// Whether `signature` is one of this key's for `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE]) -> bool {
        let signature = ed25519::Signature::new(*signature);
        self.0.verify(message, &signature).is_ok()
    }

    /// The key in the text of a file (RFC 8410, `-----BEGIN PUBLIC KEY-----`).
    ///
    /// # Errors
    ///
    /// [`BadKey`]; also if the text has more than one.
    #[cfg(feature = "std")]
    pub fn from_pem(text: &str) -> Result<Self, BadKey> {
        let key = only(text).and_then(|text| ed25519::PublicKey::from_pem(text).ok());
        Self::new(*key.ok_or(BadKey::NotPem)?)
    }

    /// The text of a file with the key.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn to_pem(&self) -> alloc::string::String {
        self.0.to_pem()
    }
}

/// The text of a file, if there is only one key in it.
#[cfg(feature = "std")]
pub(crate) fn only(text: &str) -> Option<&str> {
    (text.matches("-----BEGIN").count() == 1).then_some(text)
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoPoint => "it is no ed25519 key: its bytes are those of no point of the curve",
            Self::Weak => "it is a weak key: everybody can make signatures that fit it",
            Self::NotPem => "it is not one ed25519 key as OpenSSL writes it (PEM)",
        })
    }
}

impl core::error::Error for BadKey {}
