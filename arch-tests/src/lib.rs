//! What the tests of the architecture crates have in common. Each crate brings its assembly, and
//! calls the tests from files of its own: `src/stub/tests.rs` fills registers (`stub::State`) and
//! calls `stub`. It is there on Linux only.

#[cfg(target_os = "linux")]
mod page;
#[cfg(target_os = "linux")]
pub mod stub;

#[cfg(target_os = "linux")]
pub use page::{Page, Stub};
