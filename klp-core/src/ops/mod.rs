//! Which function runs: one [`Ops`] per entry site, its stack of replacements, and the handler that chooses
//! (kernel: `patch.c`, `struct klp_ops`).

mod handler;
mod stack;

pub use handler::{Ops, handler, may_switch};
pub use stack::{FuncNode, FuncStack, Nodes, Synchronized};
