//! For patch authors: patch objects that `klp_core::elf::load` and Linux understand.
//!
//! Out of two builds, the original and the repaired one: [`PatchBuilder`], or the program
//! `klp-build`. [`apply()`] makes the sources of the repaired one out of a diff.
//!
//! From functions that are written by hand:
//!
//! 1. Write the new functions in C with the headers `klp/patch.h` and, for shadow variables,
//!    `klp/shadow.h` of [`include_dir`].
//! 2. Compile with `-fPIC -ffunction-sections`, by GCC or clang.
//! 3. [`convert()`] the object file, or run the program `klp-convert` on it: a compiler cannot
//!    write livepatch symbols itself.

extern crate alloc;

mod apply;
mod bias;
mod calls;
mod check;
mod compare;
pub mod convert;
mod copies;
mod debug;
mod debug_sections;
mod debug_types;
mod diff;
mod error;
mod frames;
mod ignored;
mod info;
mod init;
mod layout;
mod lines;
mod matches;
pub mod module;
mod namespaces;
mod pieces;
mod select;
mod sites;
mod special;
mod statics;
mod target;
mod texts;
mod types;
mod unit;
mod warnings;
mod write;

pub use apply::{DiffError, apply};
pub use convert::{ConvertError, convert};
pub use diff::{Built, PatchBuilder};
pub use error::{BuildError, Refusal, Why};
pub use layout::LayoutChange;
pub use target::Target;
pub use warnings::Warning;

/// The folder to be given to a C compiler (`-I`), so that it finds `klp/patch.h` and
/// `klp/shadow.h`, for authors of patches, and `klp/notrace.h`, for authors of programs that can be
/// patched.
#[must_use]
pub fn include_dir() -> &'static std::path::Path {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/include"))
}
