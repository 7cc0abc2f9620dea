//! ppc64le, the little-endian OpenPOWER with its ABI "ELFv2", for the livepatch engine `klp-core`.
//!
//! The files have the names that those of `klp-arch-x86_64` have:
//!
//! 1. `entry`: [`Ppc64Le`], the words of patchable entries, branches, thunks and veneers
//!    ([`Arch`](klp_core::port::Arch));
//! 2. `jumps` and [`calls`]: where code goes, read off its words;
//! 3. `relocs`: the relocations of patch objects ([`Relocator`](klp_core::port::Relocator));
//! 4. [`unwind`]: the registers that stacks are walked with, and signal frames;
//! 5. [`stub`]: the only assembly, [`entry_stub!`].
//!
//! All but the last is pure, numbers in and numbers out, and runs on any machine. Instructions are words of four bytes, the least significant one first. "ELFv2" stands
//! for "64-Bit ELF V2 ABI Specification: Power Architecture", version 1.5; "Power ISA" for its
//! version 3.1, book I.

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

pub use entry::Ppc64Le;
