//! Signed patch objects: ed25519 keys (RFC 8032), what they sign, whom a host trusts.
//!
//! ```
//! use klp_core::port::{Distrust, Verifier};
//! use klp_ed25519::{Keys, PublicKey};
//!
//! # const KEY: [u8; 32] = [
//! #     0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
//! #     0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
//! # ];
//! let mut keys = Keys::new();
//! keys.add(PublicKey::new(KEY)?)?;
//! // `Platform::verifier` shows them to the engine.
//! assert_eq!(keys.verify(b"an ELF file"), Err(Distrust::NotSigned));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The format is klp-core's ([`klp_core::elf::signature`]), the arithmetic `ed25519-compact`'s.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

#[cfg(feature = "std")]
mod folder;
mod keys;
mod public;
#[cfg(feature = "std")]
mod secret;

#[cfg(feature = "std")]
pub use folder::KeysError;
pub use keys::Keys;
pub use public::{BadKey, PublicKey};
#[cfg(feature = "std")]
pub use secret::{SecretKey, SignedAlready};
