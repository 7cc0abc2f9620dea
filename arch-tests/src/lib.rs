//! What the tests of the architecture crates have in common. Each crate brings its registers and
//! its assembly, and calls the tests from files of its own:
//!
//! 1. `src/entry.rs`, `src/jumps.rs` and `src/calls.rs`, which are about bytes, call [`code`];
//! 2. `src/stub/tests.rs` fills registers (`stub::State`) and calls `stub`;
//! 3. `tests/common/mod.rs` reads the registers of a running process (`Running`);
//! 4. `tests/process.rs` and `tests/main_thread.rs` call `process`;
//! 5. `tests/contexts.rs` calls `contexts`;
//! 6. `tests/linked.rs` names compilers' options and calls [`linked`].
//!
//! All but the first and the last is there on Linux only.

pub mod code;
pub mod linked;

#[cfg(target_os = "linux")]
mod page;
#[cfg(target_os = "linux")]
pub mod stub;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub mod contexts;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod frames;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub mod process;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod running;

#[cfg(target_os = "linux")]
pub use page::{Page, Stub};

#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub use frames::Frames;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub use running::{Loaded, Regs, Running, find, read};
