//! Which function runs: one [`Ops`] per entry site, its stack of replacements, and the handler that chooses
//! (kernel: `patch.c`, `struct klp_ops`).
//!
//! What is on stacks leaves memory only when no handler can be reading it: [`Writer`] and [`Synchronized`] are the types for that. So
//! nobody reads a stack, or changes one, without the promises that handlers and engines make:
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
mod stack;
mod writer;

pub(crate) use handler::Switch;
pub use handler::{Ops, handler, may_switch, may_switch_at_all};
pub use stack::{FuncNode, FuncStack, Nodes};
pub use writer::{Synchronized, Writer};
