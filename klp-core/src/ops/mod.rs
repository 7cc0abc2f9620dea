//! Which function runs: one [`Ops`] per entry site, its stack of replacements, and the handler that chooses
//! (kernel: `patch.c`, `struct klp_ops`).
//!
//! Only the engine changes stacks: nodes that are freed too early would be read by handlers.
//!
//! ```compile_fail
//! use klp_core::ops::Nodes; // not for safe code
//! ```
//! ```compile_fail
//! use klp_core::ops::Synchronized; // a proof that only the engine makes
//! ```
//! ```compile_fail
//! # use klp_core::{addr::CodeAddr, mem::try_box, ops::Ops};
//! let ops = Ops::leak(try_box(Ops::new(CodeAddr::new(0))).unwrap());
//! ops.stack(); // what is on it belongs to the engine
//! ```

mod handler;
// Tests of the memory model change stacks themselves.
#[cfg_attr(not(loom), allow(unreachable_pub, reason = "public to those tests"))]
mod stack;

pub(crate) use handler::Switch;
pub use handler::{Ops, handler, may_switch, may_switch_at_all};
#[cfg(not(loom))]
pub(crate) use stack::{FuncNode, Nodes, Synchronized};
#[cfg(loom)]
pub use stack::{FuncNode, Nodes, Synchronized};
