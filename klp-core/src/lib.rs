//! A livepatch engine: replaces functions of a running system, task by task, so that no task ever
//! sees half a patch.
//!
//! *You supply* a host: a handful of small traits ([`port`]) for your processor and your operating
//! system. *The engine does* the rest: which function runs for which task, when a task may be
//! switched, how a transition begins, turns round and ends. *It does not* own threads, sleep, or
//! know what a process is.
//!
//! # Example
//!
//! On the simulated operating system (`klp_core::sim`, feature `sim`):
//!
//! ```
//! use klp_core::sim::{self, Place, SimOs};
//! use klp_core::{Engine, Object, Patch, Poll};
//!
//! # fn main() -> Result<(), klp_core::Error> {
//! // A system with one function and a task that is inside it.
//! let os = SimOs::new();
//! let greet = os.function("vmlinux", "greet");
//! let task = os.spawn("worker");
//! assert!(os.call(task, greet));
//!
//! // What a patch author writes: which function, and the code that replaces it. In a real system
//! // that is `Func::with_range`, which is `unsafe`: the author answers for the code.
//! let new_code = os.replacement("fix", greet, Place::Near);
//! let object = Object::vmlinux().and_then(|object| object.func(sim::func("greet", new_code)?));
//! let patch = Patch::builder("fix").object(object).build()?;
//!
//! let engine = Engine::new(os);
//! let fix = engine.add(patch).map_err(|refused| refused.error)?;
//! // The task that is inside the old function keeps the transition waiting, and is named.
//! assert!(matches!(engine.enable(fix)?, Poll::Waiting { pending: 1, .. }));
//! let blocker = engine.blockers(fix)?[0].to_string();
//! assert!(blocker.starts_with("worker:1 is in function 'greet' of 'vmlinux'"));
//! // It returns; the next poll switches it. From now on its calls reach the new code.
//! engine.host().ret(task);
//! assert_eq!(engine.poll(), Poll::Complete { patch: fix, enabled: true });
//! assert_eq!(engine.host().version(task, greet), "fix_greet");
//! // And back.
//! assert_eq!(engine.disable(fix)?, Poll::Complete { patch: fix, enabled: false });
//! assert_eq!(engine.host().version(task, greet), "greet");
//! # Ok(())
//! # }
//! ```
//!
//! # Reading order
//!
//! 1. [`model`]: what a patch author writes.
//! 2. [`ops`]: the hot path, which function a call goes to.
//! 3. [`transition`]: the consistency model.
//! 4. [`engine`]: [`Engine`], which ties them together.
//! 5. [`port`]: what a porter implements.
//!
//! A reader of Linux's `kernel/livepatch` finds each concept in the file that bears its name; each
//! file's head says which kernel file it answers to.

#![no_std]
#![deny(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::alloc_instead_of_core
)]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

pub mod addr;
#[cfg(feature = "sim")]
pub mod audit;
mod builds;
pub mod config;
#[cfg(feature = "conformance")]
#[allow(unsafe_code, reason = "calls of unsafe ports")]
pub mod conformance;
pub mod control;
pub mod elf;
pub mod engine;
pub mod error;
pub mod event;
pub mod mem;
pub mod model;
#[allow(unsafe_code, reason = "lock-free stack of functions")]
pub mod ops;
#[allow(
    unsafe_code,
    reason = "unsafe traits, and the one tracer on top of them"
)]
pub mod port;
#[allow(unsafe_code, reason = "writes to patch images")]
pub mod relocs;
#[allow(unsafe_code, reason = "lock-free table, memory of variables")]
pub mod shadow;
#[cfg(feature = "sim")]
#[allow(unsafe_code, reason = "unsafe ports")]
pub mod sim;
pub mod state;
pub mod sympos;
mod sync;
pub mod transition;

pub use engine::{Engine, PatchId, Poll};
pub use error::Error;
pub use model::{Func, Object, Patch};
