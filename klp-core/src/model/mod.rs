//! What a patch author writes: a patch names objects, an object names functions
//! (kernel: the "external" parts of `struct klp_patch`, `klp_object`, `klp_func`).

mod about;
mod build_id;
mod callbacks;
#[allow(unsafe_code, reason = "where code is, is a promise")]
mod func;
mod object;
mod patch;
#[allow(unsafe_code, reason = "fields that are written later")]
pub(crate) mod reloc;

pub use about::About;
pub use build_id::BuildId;
pub use callbacks::{CallbackContext, Callbacks};
pub use func::Func;
pub use object::{Object, VMLINUX};
pub use patch::{Patch, PatchBuilder, Replace};
