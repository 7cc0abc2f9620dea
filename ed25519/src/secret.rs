//! Secret keys, and signing.

use crate::public::{BadKey, PublicKey, only};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use ed25519_compact as ed25519;
use klp_core::elf::signature::{self, LEN};
use klp_core::port::Distrust;

/// The key that patch objects are signed with. Its bytes are wiped when it is dropped.
pub struct SecretKey(ed25519::KeyPair);

/// Why an object is not signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignedAlready;

impl SecretKey {
    /// The key with these bytes (RFC 8032, section 5.1.5), which must come from a generator of
    /// random numbers for secrets.
    ///
    /// # Errors
    ///
    /// If they are all zero.
    pub fn new(bytes: [u8; 32]) -> Result<Self, BadKey> {
        let pair = ed25519::KeyPair::try_from_seed(ed25519::Seed::new(bytes));
        pair.map(Self).map_err(|_| BadKey::Weak)
    }

    /// The key in the text of a file (RFC 8410, `-----BEGIN PRIVATE KEY-----`).
    ///
    /// # Errors
    ///
    /// [`BadKey::NotPem`]; also if the text has more than one.
    pub fn from_pem(text: &str) -> Result<Self, BadKey> {
        let pair = only(text).and_then(|text| ed25519::KeyPair::from_pem(text).ok());
        pair.map(Self).ok_or(BadKey::NotPem)
    }

    /// The text of a file with the key: for its owner's eyes only.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.sk.to_pem()
    }

    /// The key that verifies what this one signs.
    ///
    /// # Errors
    ///
    /// None, unless `ed25519-compact` makes weak keys.
    pub fn public(&self) -> Result<PublicKey, BadKey> {
        PublicKey::new(*self.0.pk)
    }

    /// The signature of a patch object, to be put behind it ([`signature`]).
    ///
    /// # Errors
    ///
    /// If it has one.
    pub fn sign(&self, object: &[u8]) -> Result<[u8; LEN], SignedAlready> {
        if signature::read(object) != Err(Distrust::NotSigned) {
            return Err(SignedAlready);
        }
        let key = klp_core::port::KeyId(*self.0.pk);
        Ok(signature::trailer(key, |opening| {
            let mut message = Vec::from(object);
            message.extend_from_slice(opening);
            self.sign_bytes(&message)
        }))
    }

    fn sign_bytes(&self, message: &[u8]) -> [u8; signature::SIGNATURE] {
        *self.0.sk.sign(message, None)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").finish_non_exhaustive()
    }
}

impl fmt::Display for SignedAlready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is signed already, or has a damaged signature at its end")
    }
}

impl core::error::Error for SignedAlready {}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const LEN: usize>(hex: &str) -> [u8; LEN] {
        let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        core::array::from_fn(|byte| digits(2 * byte))
    }

    /// RFC 8032, section 7.1: secret key, public key, message, signature.
    const VECTORS: [(&str, &str, &[u8], &str); 3] = [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            &[],
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e3970\
             1cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            &[0x72],
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613\
             d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            &[0xaf, 0x82],
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760\
             984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ];

    #[test]
    fn the_vectors_of_the_rfc() {
        for (secret, public, message, signature) in VECTORS {
            let key = SecretKey::new(bytes(secret)).expect("a key");
            let public = PublicKey::new(bytes(public)).expect("a key");
            assert_eq!(key.public(), Ok(public));
            let signature = bytes(signature);
            assert_eq!(key.sign_bytes(message), signature);
            assert!(public.verifies(message, &signature));
            assert!(!public.verifies(&[message, &[0]].concat(), &signature));
        }
    }

    #[test]
    fn keys_in_files() {
        let key = SecretKey::new([7; 32]).expect("a key");
        let public = key.public().expect("a key");
        let (secret_file, public_file) = (key.to_pem(), public.to_pem());
        let again = SecretKey::from_pem(&secret_file).expect("a key");
        assert_eq!(again.public(), Ok(public));
        assert_eq!(PublicKey::from_pem(&public_file), Ok(public));
        let twice = public_file.repeat(2);
        for bad in ["", "no key", &secret_file, &twice, &public_file[..60]] {
            assert_eq!(PublicKey::from_pem(bad), Err(BadKey::NotPem), "{bad}");
        }
        for bad in ["", &public_file, &secret_file[..60]] {
            assert!(SecretKey::from_pem(bad).is_err(), "{bad}");
        }
        assert!(!alloc::format!("{key:?}").contains('7'), "it is secret");
        assert!(SecretKey::new([0; 32]).is_err(), "no generator made that");
    }
}
