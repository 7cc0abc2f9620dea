//! Stacks that can be trusted.
//!
//! [`walk`] follows a stack from registers to its end by a [`Table`] of rules per object.
//! [`compile`] (feature `eh-frame`) makes such a table out of the `.eh_frame` section that
//! compilers emit; another format needs another compiler to the same [`TableBuilder`]. Answers to
//! the kernel's `arch/x86/kernel/unwind_orc.c`.
//!
//! What makes it reliable (the kernel's document "Reliable Stacktrace" lists the dangers):
//!
//! * No table, no trust: code that no rule covers, and rules that are not understood, end the walk
//!   with an error.
//! * A stack ends only where unwind information says so (an undefined return address), never at a
//!   null pointer.
//! * Interrupted frames are looked up at their exact instruction, so prologues and epilogues are
//!   right too.
//! * Each frame lies strictly above the one it called; only a signal frame may lead to another
//!   stack.

mod table;
mod walk;

#[cfg(feature = "eh-frame")]
mod compile;

pub use table::{FrameRule, Place, Reg, Rule, Slot, Table, TableBuilder, TableError};
pub use walk::{Regs, walk, walk_call};

#[cfg(feature = "eh-frame")]
pub use compile::{EhFrame, compile};
