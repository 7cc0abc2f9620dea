//! Stacks that can be trusted, on any processor.
//!
//! [`walk`] follows a stack from registers to its end by a [`Table`] of rules per object.
//! [`compile`] (feature `eh-frame`) makes such a table out of the `.eh_frame` section that
//! compilers emit; another format needs another compiler to the same [`TableBuilder`]. What differs
//! from processor to processor is a [`Machine`], which a crate per architecture implements. Answers
//! to the kernel's `arch/x86/kernel/unwind_orc.c`.
//!
//! What makes it reliable (the kernel's document "Reliable Stacktrace" lists the dangers):
//!
//! * No table, no trust: code that no rule covers, and rules that are not understood, end the walk
//!   with an error.
//! * A stack ends only where unwind information says so (an undefined return address), or the back
//!   chain of an ABI that has one ([`Machine::BACK_CHAIN`]), never at a null return address.
//! * Interrupted frames are looked up at their exact instruction, so prologues and epilogues are
//!   right too.
//! * Each frame lies strictly above the one it called; only a signal frame may lead to another
//!   stack. An interrupted function without a frame of its own may stand where its caller does, if
//!   calls leave the return address in a register; nobody else may.
//! * Where an ABI has a back chain, it must say of every frame what the rule says.

#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::alloc_instead_of_core
)]

extern crate alloc;

mod machine;
mod table;
mod walk;

#[cfg(feature = "eh-frame")]
mod eh_frame;
#[cfg(test)]
mod toy;

pub use machine::{Link, Machine};
pub use table::{FrameRule, Place, Rule, Slot, SlotNumber, Slots, Table, TableBuilder, TableError};
pub use walk::{walk, walk_call};

#[cfg(feature = "eh-frame")]
pub use eh_frame::{EhFrame, compile};
