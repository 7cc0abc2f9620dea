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
//! The engine owns the stage and what goes with it; nothing here calls the engine.

#[allow(unsafe_code, reason = "the affected code is lent to tasks")]
mod lent;
mod stack_check;
mod stages;
mod straggler;
mod switch;

pub use stack_check::{Affected, AffectedFunc};
pub use stages::{Attempt, AttemptError, Prepared, Running, Straggler, Switched, TasksError};
pub use straggler::{Blocker, Hindrance};
