//! Whom a host trusts.

use crate::public::PublicKey;
use alloc::vec::Vec;
use klp_core::elf::signature;
use klp_core::mem::{OutOfMemory, try_push};
use klp_core::port::{Distrust, KeyId, Signed, Verifier};

/// The keys of those who may sign patch objects. With none in it, nothing is trusted.
#[derive(Default, Debug)]
pub struct Keys(Vec<PublicKey>);

impl Keys {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Trusts what is signed with `key`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn add(&mut self, key: PublicKey) -> Result<(), OutOfMemory> {
        try_push(&mut self.0, key)
    }

    /// What they are called by.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(PublicKey::id)
    }
}

impl Verifier for Keys {
    fn verify<'f>(&self, file: &'f [u8]) -> Result<Signed<'f>, Distrust> {
        let signature = signature::read(file)?;
        let id = signature.key;
        let key = self.0.iter().find(|key| key.id() == id);
        let key = key.ok_or(Distrust::UnknownKey(id))?;
        if !key.verifies(signature.message, signature.bytes) {
            return Err(Distrust::Changed(id));
        }
        Ok(Signed {
            key: id,
            object: signature.object,
        })
    }
}
