//! x86-64 for the livepatch engine `klp-core`.
//!
//! Read in this order:
//!
//! 1. `entry`: [`X86_64`], the bytes of patchable entries, jumps, thunks and veneers
//!    ([`Arch`](klp_core::port::Arch));
//! 2. `jumps` and [`calls`]: where code goes, read off its bytes;
//! 3. [`entry_stub!`]: the piece of assembly between a thunk and the handler, the only one in this
//!    crate;
//! 4. `relocs`: the relocations of patch objects ([`Relocator`](klp_core::port::Relocator));
//! 5. [`unwind`]: stacks that can be trusted, from tables compiled out of `.eh_frame`.
//!
//! All but the stub is pure, numbers in and numbers out, and runs on any machine.
//!
//! # What code must keep to
//!
//! A patched call enters the function through the thunk and the stub, which preserve every register
//! that the psABI lets a caller pass something in, and clobber the others (`r11`, `xmm8` and up,
//! flags). Code whose callers rely on more, as GCC's `-fipa-ra` lets them, cannot be patched: build
//! with `-fno-ipa-ra` (or `-flive-patching`, or an entry pad that switches it off).

#![no_std]
#![deny(
    clippy::std_instead_of_core,
    clippy::std_instead_of_alloc,
    clippy::alloc_instead_of_core
)]

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

pub use entry::X86_64;
