//! A livepatch engine: replaces functions of a running system, task by task, so that no task ever sees half a patch.
//!
//! *You supply* a host: a handful of small traits ([`port`]) for your processor and your operating system.
//! *The engine does* the rest: which function runs for which task, when a task may be switched, how a transition begins,
//! turns round and ends. *It does not* own threads, sleep, or know what a process is.
//!
//! # Reading order
//!
//! 1. [`model`]: what a patch author writes.
//! 2. [`ops`]: the hot path, which function a call goes to.
//! 3. [`transition`]: the consistency model.
//! 4. [`engine`]: [`Engine`], which ties them together.
//! 5. [`port`]: what a porter implements.
//!
//! A reader of Linux's `kernel/livepatch` finds each concept in the file that bears its name; each file's head says which
//! kernel file it answers to.

#![no_std]
#![deny(clippy::std_instead_of_core, clippy::std_instead_of_alloc, clippy::alloc_instead_of_core)]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

pub mod addr;
#[cfg(feature = "sim")]
pub mod audit;
pub mod config;
#[cfg(feature = "conformance")]
#[allow(unsafe_code, reason = "calls of unsafe ports")]
pub mod conformance;
pub mod elf;
pub mod engine;
pub mod error;
pub mod event;
pub mod mem;
pub mod model;
#[allow(unsafe_code, reason = "lock-free stack of functions")]
pub mod ops;
#[allow(unsafe_code, reason = "unsafe traits, and the one tracer on top of them")]
pub mod port;
#[allow(unsafe_code, reason = "writes to patch images")]
pub mod relocs;
#[cfg(feature = "sim")]
#[allow(unsafe_code, reason = "unsafe ports")]
pub mod sim;
pub mod sympos;
mod sync;
pub mod transition;

pub use engine::{Engine, PatchId, Poll};
pub use error::Error;
pub use model::{Func, Object, Patch};
