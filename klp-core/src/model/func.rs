//! One replaced function (kernel: `struct klp_func`).

use crate::addr::{CodeAddr, TextRange};
use crate::mem::{Name, OutOfMemory};

/// A function to be replaced, and what replaces it.
#[derive(Debug, PartialEq, Eq)]
pub struct Func {
    old_name: Name,
    sympos: u32,
    new: CodeAddr,
    new_len: Option<u64>,
}

impl Func {
    /// Replaces the function called `old_name` by the one at `new`, whose size the host's symbol tables tell.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn new(old_name: &str, new: CodeAddr) -> Result<Self, OutOfMemory> {
        Ok(Self { old_name: Name::new(old_name)?, sympos: 0, new, new_len: None })
    }

    /// Replaces the function called `old_name` by the one that occupies `new`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn with_range(old_name: &str, new: TextRange) -> Result<Self, OutOfMemory> {
        Ok(Self { new_len: Some(new.len()), ..Self::new(old_name, new.start())? })
    }

    /// Says which symbol of that name is meant, counted from 1 in the object's symbol table; 0 (the default) demands that
    /// there is only one.
    #[must_use]
    pub fn sympos(mut self, sympos: u32) -> Self {
        self.sympos = sympos;
        self
    }

    /// The name of the function that is replaced.
    #[must_use]
    pub fn old_name(&self) -> &Name {
        &self.old_name
    }

    /// The position among symbols of that name, as it was given.
    #[must_use]
    pub fn position(&self) -> u32 {
        self.sympos
    }

    /// The address of the new function.
    #[must_use]
    pub fn new_addr(&self) -> CodeAddr {
        self.new
    }

    /// The size of the new function in bytes, if the author knew it.
    #[must_use]
    pub fn new_len(&self) -> Option<u64> {
        self.new_len
    }

    /// Whether both name the same function: positions 0 and 1 are equal here, as in the kernel.
    #[must_use]
    pub fn same_target(&self, other: &Self) -> bool {
        self.old_name == other.old_name && self.sympos.max(1) == other.sympos.max(1)
    }
}
