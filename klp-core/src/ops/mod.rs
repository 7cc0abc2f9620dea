//! Which function runs: one [`Ops`] per entry site, its stack of replacements, and the handler that
//! chooses (kernel: `patch.c`, `struct klp_ops`).
//!
//! What is on stacks leaves memory only when no handler can be reading it: [`Writer`] and
//! [`Synchronized`] are the types for that. So nobody reads a stack, or changes one, without the
//! promises that handlers and engines make. They are the engine's alone but for tests (feature
//! `sim`):
//!
//! ```compile_fail,E0133
//! # use klp_core::{addr::CodeAddr, mem::try_box, ops::Ops, port::TaskState};
//! let ops = Ops::leak(try_box(Ops::new(CodeAddr::new(0))).unwrap());
//! ops.select(|| TaskState::Idle); // only inside of a run of the handler
//! ```
//! ```compile_fail,E0133
//! use klp_core::ops::Writer;
//! let writer = Writer::new(); // an engine has one
//! ```

mod handler;
// Tests of the memory model, and of the order that the types demand, change stacks themselves.
#[cfg_attr(
    not(any(loom, feature = "sim")),
    allow(unreachable_pub, reason = "public to those tests")
)]
mod stack;
#[cfg_attr(
    not(any(loom, feature = "sim")),
    allow(unreachable_pub, reason = "public to those tests")
)]
mod writer;

pub(crate) use handler::Switch;
pub use handler::{Ops, handler, may_switch, may_switch_at_all};
#[cfg(any(loom, feature = "sim"))]
pub use stack::{FuncNode, FuncStack, Nodes};
#[cfg(not(any(loom, feature = "sim")))]
pub(crate) use stack::{FuncNode, Nodes};
#[cfg(any(loom, feature = "sim"))]
pub use writer::{Synchronized, Writer};
#[cfg(not(any(loom, feature = "sim")))]
pub(crate) use writer::{Synchronized, Writer};
