//! The functions of one object (kernel: `struct klp_object`).

use super::func::Func;
use crate::mem::{Name, OutOfMemory, try_push};
use crate::relocs::Reloc;
use alloc::vec::Vec;

/// The name of the base image: the kernel itself, the executable of a process.
pub const VMLINUX: &str = "vmlinux";

/// An object of the target, and what of it is replaced.
#[derive(Debug, PartialEq, Eq)]
pub struct Object {
    name: Name,
    funcs: Vec<Func>,
    relocs: Vec<Reloc>,
}

impl Object {
    /// The base image.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn vmlinux() -> Result<Self, OutOfMemory> {
        Self::module(VMLINUX)
    }

    /// The module (kernel) or shared object (process) called `name`.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn module(name: &str) -> Result<Self, OutOfMemory> {
        Ok(Self { name: Name::new(name)?, funcs: Vec::new(), relocs: Vec::new() })
    }

    /// Adds a function.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn func(mut self, func: Func) -> Result<Self, OutOfMemory> {
        try_push(&mut self.funcs, func)?;
        Ok(self)
    }

    /// Adds functions.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    pub fn funcs_from(mut self, funcs: impl IntoIterator<Item = Func>) -> Result<Self, OutOfMemory> {
        for func in funcs {
            try_push(&mut self.funcs, func)?;
        }
        Ok(self)
    }

    /// Sets the livepatch relocations that wait for this object.
    #[must_use]
    pub fn with_relocs(mut self, relocs: Vec<Reloc>) -> Self {
        self.relocs = relocs;
        self
    }

    /// The name; [`VMLINUX`] for the base image.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The functions.
    #[must_use]
    pub fn funcs(&self) -> &[Func] {
        &self.funcs
    }

    /// The livepatch relocations that wait for this object.
    #[must_use]
    pub fn relocs(&self) -> &[Reloc] {
        &self.relocs
    }
}
