//! One replaced function (kernel: `struct klp_func`).

use super::digest::OldCode;
use crate::addr::{CodeAddr, TextRange};
use crate::mem::{Name, OutOfMemory};

/// A function to be replaced, and what replaces it.
#[derive(Debug, PartialEq, Eq)]
pub struct Func {
    old_name: Name,
    sympos: u32,
    new: CodeAddr,
    new_len: Option<u64>,
    new_other: Option<u8>,
    old_code: Option<OldCode>,
    /// The code is in a simulated system.
    #[cfg(feature = "sim")]
    pub(crate) simulated: bool,
}

impl Func {
    /// Replaces the function called `old_name` by the one at `new`, whose size the host's symbol
    /// tables tell.
    ///
    /// ```compile_fail,E0133
    /// # use klp_core::{Func, addr::CodeAddr};
    /// let func = Func::new("greet", CodeAddr::new(0x1000)); // who says that there is a function?
    /// ```
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    ///
    /// # Safety
    ///
    /// Calls of the old function end up at `new`: of the function of that name in every
    /// [`Object`](super::Object) that this is added to, at the [position](Func::sympos) that is set
    /// in the end. So, on the host whose engine gets it:
    ///
    /// * A function begins at `new` that may be called wherever the old one may, with the same
    ///   arguments: it has the same calling convention, takes its arguments and gives its result in
    ///   the same form, and means the same by them.
    /// * It may run from the moment at which the patch is enabled, in one task while another still
    ///   runs the old function, and the old one may run again after it, when the patch is disabled
    ///   or its transition turns round. What both touch must bear that. One task has only old or
    ///   only new functions of the patch on its stack, unless [forced](crate::Engine::force).
    /// * The code stays there, as it is, as long as an engine knows the patch: from
    ///   [`Engine::add`](crate::Engine::add) until [`Engine::remove`](crate::Engine::remove) has
    ///   given it back, and again if it is added again.
    /// * What the symbol tables of the host say of its size is true.
    pub unsafe fn new(old_name: &str, new: CodeAddr) -> Result<Self, OutOfMemory> {
        Ok(Self {
            old_name: Name::new(old_name)?,
            sympos: 0,
            new,
            new_len: None,
            new_other: None,
            old_code: None,
            #[cfg(feature = "sim")]
            simulated: false,
        })
    }

    /// Replaces the function called `old_name` by the one that occupies `new`.
    ///
    /// ```compile_fail,E0133
    /// # use klp_core::{Func, addr::{CodeAddr, TextRange}};
    /// let code = TextRange::new(CodeAddr::new(0x1000), 64).unwrap();
    /// // Who says that this is the function, and all of it?
    /// let func = Func::with_range("greet", code);
    /// ```
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    ///
    /// # Safety
    ///
    /// As for [`new`](Func::new), and `new` is all of the function and nothing else, but for parts
    /// that were split off it: a task that is in none of that, and in no part that
    /// [`SymbolResolver::parts`](crate::port::SymbolResolver::parts) finds, is not in the function.
    pub unsafe fn with_range(old_name: &str, new: TextRange) -> Result<Self, OutOfMemory> {
        // SAFETY: the caller's promise; the size is not looked up.
        Ok(Self {
            new_len: Some(new.len()),
            ..unsafe { Self::new(old_name, new.start()) }?
        })
    }

    /// Says what the new function's symbol has for `st_other`.
    pub(crate) fn with_other(mut self, other: u8) -> Self {
        self.new_other = Some(other);
        self
    }

    /// Says which symbol of that name is meant, counted from 1 in the object's symbol table; 0 (the
    /// default) demands that there is only one.
    #[must_use]
    pub fn sympos(mut self, sympos: u32) -> Self {
        self.sympos = sympos;
        self
    }

    /// Sets which code the old function has in the build that this is for: if it has another, the
    /// patch is refused.
    #[must_use]
    pub fn expecting(mut self, old: OldCode) -> Self {
        self.old_code = Some(old);
        self
    }

    /// Which code the old function has in the build that this is for; `None`: any.
    #[must_use]
    pub fn old_code(&self) -> Option<&OldCode> {
        self.old_code.as_ref()
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

    /// `st_other` of the new function's symbol, if it comes from a patch object: what some ABIs say
    /// there of a function's entry.
    #[must_use]
    pub fn new_other(&self) -> Option<u8> {
        self.new_other
    }

    /// Whether both name the same function: positions 0 and 1 are equal here, as in the kernel.
    #[must_use]
    pub fn same_target(&self, other: &Self) -> bool {
        self.old_name == other.old_name && self.sympos.max(1) == other.sympos.max(1)
    }
}
