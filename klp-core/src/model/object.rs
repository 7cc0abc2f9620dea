//! The functions of one object (kernel: `struct klp_object`).

use super::build_id::BuildId;
use super::callbacks::Callbacks;
use super::digest::Digest;
use super::func::Func;
use super::reloc::Relocs;
use crate::mem::{Name, OutOfMemory, try_push};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// The name of the base image: the kernel itself, the executable of a process.
pub const VMLINUX: &str = "vmlinux";

/// An object of the target, and what of it is replaced.
pub struct Object {
    name: Name,
    funcs: Vec<Func>,
    relocs: Relocs,
    callbacks: Option<Box<dyn Callbacks>>,
    build: Option<BuildId>,
    text: Option<Digest>,
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
        Ok(Self {
            name: Name::new(name)?,
            funcs: Vec::new(),
            relocs: Relocs::default(),
            callbacks: None,
            build: None,
            text: None,
        })
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
    pub fn funcs_from(
        mut self,
        funcs: impl IntoIterator<Item = Func>,
    ) -> Result<Self, OutOfMemory> {
        for func in funcs {
            try_push(&mut self.funcs, func)?;
        }
        Ok(self)
    }

    /// Sets what is to happen around patching and unpatching.
    #[must_use]
    pub fn with_callbacks(mut self, callbacks: Box<dyn Callbacks>) -> Self {
        self.callbacks = Some(callbacks);
        self
    }

    /// Sets the livepatch relocations that wait for this object.
    #[must_use]
    pub fn with_relocs(mut self, relocs: Relocs) -> Self {
        self.relocs = relocs;
        self
    }

    /// Sets for which build of the object this is: for any other, the patch is refused.
    #[must_use]
    pub fn for_build(mut self, build: BuildId) -> Self {
        self.build = Some(build);
        self
    }

    /// Sets which code the object has all in all, in the build that this is for: for any other, the
    /// patch is refused.
    #[must_use]
    pub fn for_text(mut self, text: Digest) -> Self {
        self.text = Some(text);
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

    /// What is to happen around patching and unpatching.
    #[must_use]
    pub fn callbacks(&self) -> Option<&dyn Callbacks> {
        self.callbacks.as_deref()
    }

    /// For which build of the object this is; `None`: for any.
    #[must_use]
    pub fn build(&self) -> Option<&BuildId> {
        self.build.as_ref()
    }

    /// Which code the object has in the build that this is for; `None`: any.
    #[must_use]
    pub fn text(&self) -> Option<&Digest> {
        self.text.as_ref()
    }

    /// The livepatch relocations that wait for this object.
    #[must_use]
    pub const fn relocs(&self) -> &Relocs {
        &self.relocs
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("name", &self.name)
            .field("funcs", &self.funcs)
            .field("relocs", &self.relocs)
            .field("callbacks", &self.callbacks.is_some())
            .field("build", &self.build)
            .field("text", &self.text)
            .finish()
    }
}
