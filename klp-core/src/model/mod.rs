//! What a patch author writes: a patch names objects, an object names functions
//! (kernel: the "external" parts of `struct klp_patch`, `klp_object`, `klp_func`).

mod callbacks;
#[allow(unsafe_code, reason = "where code is, is a promise")]
mod func;
mod object;
mod patch;

pub use callbacks::{CallbackContext, Callbacks};
pub use func::Func;
pub use object::{Object, VMLINUX};
pub use patch::{Patch, PatchBuilder, Replace};
