//! AArch64 for the livepatch engine `klp-core`.
//!
//! The files have the names that those of `klp-arch-x86_64` have:
//!
//! 1. `entry`: [`AArch64`], the words of patchable entries, branches, thunks and veneers
//!    ([`Arch`](klp_core::port::Arch));
//! 2. `jumps` and [`calls`]: where code goes, read off its words;
//! 3. [`entry_stub!`]: the piece of assembly between a thunk and the handler, the only one in this
//!    crate;
//! 4. `relocs`: the relocations of patch objects ([`Relocator`](klp_core::port::Relocator));
//! 5. [`unwind`]: the registers that stacks are walked with, and signal frames.
//!
//! All but the stub is pure, numbers in and numbers out, and runs on any machine. Instructions are
//! words of four bytes, the least significant one first, whatever the order of data (Arm ARM,
//! B2.8.1).
//!
//! # What code must keep to
//!
//! A patched call enters the function through the thunk and the stub, which preserve every register
//! that the AAPCS64 lets a caller pass something in, or rely on, and clobber the others ([the
//! stub](entry_stub!) has the list). Code whose callers rely on more, as GCC's `-fipa-ra` lets them,
//! cannot be patched: build with `-fno-ipa-ra` (or `-flive-patching`, or an entry pad that switches
//! it off).

#![no_std]
#![deny(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::alloc_instead_of_core
)]

#[cfg(test)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod calls;
mod entry;
mod jumps;
mod opcodes;
mod relocs;
pub mod stub;
pub mod unwind;

pub use entry::AArch64;
