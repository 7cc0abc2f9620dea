//! The smallest kernel that patches itself with klp, for people who write kernels: what embedding
//! the engine costs. `cargo xtask toy` builds it, and boots it in QEMU with one and with two
//! processors.
//!
//! The kernel is no example to follow, it is only short: one address space, no memory is ever
//! freed, whoever panics ends it.
//!
//! * `boot.s`: from QEMU to [`boot`], and the way in and out of every interrupt
//! * [`machine`]: ports, console, memory, the way out
//! * [`interrupt`]: preemption, and [`stop_machine`](interrupt::stop_machine)
//! * [`sched`]: tasks, in turn
//!
//! The rest is the embedding, one port of [`klp_core::port`] in each file:
//!
//! * [`text`]: changes code while no processor runs any
//! * [`entry`]: where calls are led to the handler
//! * [`tasks`]: which version each task runs, and stopping them
//! * [`unwind`]: what a stopped task may return to
//! * [`symbols`]: names to addresses
//! * [`host`]: ties them together
//!
//! `main.rs` patches the kernel, and `conformance.rs` proves the ports right.

#![no_std]

extern crate alloc;

pub mod boot;
pub mod entry;
pub mod host;
pub mod interrupt;
pub mod machine;
pub mod sched;
pub mod symbols;
pub mod tasks;
pub mod text;
pub mod unwind;
