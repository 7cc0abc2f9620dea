//! The consistency model: how tasks move from one version to the other (kernel: `transition.c`).
//!
//! ```text
//!                 start                  try_complete             finish
//!   Prepared ───────────────► Running ───────────────► Switched ─────────► (idle)
//!      │                       │   ▲ ▲                     ▲
//!      │ cancel        reverse └───┘ └ some tasks wait     │
//!      ▼                             force ────────────────┘
//!    (idle)
//! ```
//!
//! The engine owns the stage and what goes with it; nothing here calls the engine. What makes no
//! sense in a stage does not compile, and nobody else can make one.
//!
//! ```compile_fail
//! use klp_core::transition::Switched; // "every task has moved" is for the engine to say
//! ```

#[allow(unsafe_code, reason = "the affected code is lent to tasks")]
mod lent;
mod stack_check;
#[allow(unsafe_code, reason = "states of tasks change")]
mod stages;
mod straggler;
mod switch;

pub(crate) use stack_check::{Affected, AffectedFunc};
pub(crate) use stages::{Attempt, Prepared, Running, Straggler, Switched};
pub use straggler::{Blocker, Hindrance};
