//! The patch-object format: an ELF relocatable file that says what it replaces and which symbols of
//! the patched system it uses (kernel document: livepatch module ELF format;
//! `include/linux/livepatch_external.h`).
//!
//! | file | what it does |
//! |---|---|
//! | `signature.rs` | the signature behind the file |
//! | `admit.rs` | [`admit`]: whether the host takes the file |
//! | `names.rs` | the grammar of `.klp.*` names |
//! | `view.rs` | bytes → checked sections, symbols, relocations |
//! | `manifest.rs` | which functions the file replaces |
//! | `whole.rs` | what the file says of the patch as a whole: states, which patches it replaces |
//! | `patch_file.rs` | all of that together: what the file says |
//! | `layout.rs` | which section goes where in memory |
//! | `linker.rs` | contents of the memory: sections copied, references bound |
//! | `callbacks.rs` | callbacks in C, called by the engine |
//! | `code.rs` | not of patch objects: what of a program is code |
//! | `loader.rs` | [`load`]: all of it together |
//!
//! What a file must hold:
//!
//! * `livepatch=Y` in `.modinfo`; `name=` there is the patch's name, `klp_replace=`,
//!   `klp_state=` and `klp_build=` (ours, not Linux's) say what other patches must know of it, and
//!   for which builds it is, `klp_text=` and `klp_func=` for which code, `klp_depends=` which
//!   patches it needs, `klp_label=` what people want to know;
//! * `.init.klp_objects`, an array of `struct klp_object_ext`, one for each object, with its array
//!   of `struct klp_func_ext` and its callbacks, which are functions of the file
//!   (`post_unpatch_enabled` is the engine's business: it is not read);
//! * symbols of the patched system named `.klp.sym.OBJECT.NAME,POSITION`, with section index
//!   [`SHN_LIVEPATCH`], and the relocations that use them in sections `.klp.rela.OBJECT.SECTION`,
//!   flagged [`SHF_RELA_LIVEPATCH`].

mod admit;
#[allow(unsafe_code, reason = "calls callbacks in C")]
mod callbacks;
pub mod code;
mod layout;
#[allow(unsafe_code, reason = "fills the memory of patch images")]
mod linker;
#[allow(unsafe_code, reason = "frees the memory of patch images")]
mod loader;
pub mod manifest;
pub mod names;
mod patch_file;
pub mod signature;
pub mod view;
mod whole;

pub use admit::{Admitted, admit};
pub use loader::{Loaded, LoadedImage, load};
pub use patch_file::PatchFile;

use crate::error::{Error, PatchReason};
use crate::mem::{Name, OutOfMemory};
use core::fmt;

/// The section index of livepatch symbols: neither undefined nor in any section, so that no linker
/// touches them.
pub const SHN_LIVEPATCH: u16 = 0xff20;

/// The flag of livepatch relocation sections.
pub const SHF_RELA_LIVEPATCH: u64 = 0x0010_0000;

/// Why a file is refused, before it is known for which patch and object.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The file is at fault.
    Reason(PatchReason),
    /// Memory ran out.
    OutOfMemory,
}

impl Refusal {
    /// `what` is wrong, as `place` shows.
    fn malformed(what: &'static str, place: impl fmt::Display) -> Self {
        Self::about(&place, |place| PatchReason::Malformed { what, place })
    }

    /// `what` is legal, but not done here.
    fn unsupported(what: &'static str, place: impl fmt::Display) -> Self {
        Self::about(&place, |place| PatchReason::Unsupported { what, place })
    }

    fn about(place: &dyn fmt::Display, reason: impl FnOnce(Name) -> PatchReason) -> Self {
        Name::display(place).map_or(Self::OutOfMemory, |place| Self::Reason(reason(place)))
    }

    /// As an error of `patch`.
    fn of(self, patch: &str) -> Error {
        self.of_object(patch, None)
    }

    /// As an error of `patch`, in what it says of `object`.
    fn of_object(self, patch: &str, object: Option<&str>) -> Error {
        match self {
            Self::Reason(reason) => Error::patch(patch, object, None, reason),
            Self::OutOfMemory => Error::OutOfMemory,
        }
    }
}

impl From<OutOfMemory> for Refusal {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}
