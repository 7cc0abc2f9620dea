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
//! All but the last is pure, numbers in and numbers out, and runs on any machine. Instructions are
//! words of four bytes, the least significant one first. "ELFv2" stands for "64-Bit ELF V2 ABI
//! Specification: Power Architecture", version 1.5; "Power ISA" for its version 3.1, book I.
//!
//! # Register 2
//!
//! Functions find their object's data from register 2, the base of its *table of contents*. Who
//! calls a function of the same object counts on finding the register as it was, without doing
//! anything for that (ELFv2 2.2.1.3). So a function that replaces another must come back with the
//! register 2 of the *replaced* function's object. Three rules see to it:
//!
//! * An image has no table of its own. All that it refers to is reached from the base of the table
//!   of the object that it patches
//!   ([`SHARED_TOC`](klp_core::port::Relocator::SHARED_TOC)): the image lies near that object, and
//!   2 GiB are in reach. There is nothing to restore then. What depends on the base is written into
//!   the code when the object is there, and again when it comes back elsewhere. A patch of several
//!   objects is refused if its code uses register 2: there is one patch to be written for each.
//! * A new function is entered at its *global* entry, with its address in `r12`, which a veneer or
//!   the entry stub puts there ([`JUMP_ENTERS`](klp_core::port::Arch::JUMP_ENTERS)). It works out
//!   register 2 from that, and for callers of the same object this is what it was before. The local
//!   entry would save two instructions, but register 2 is not always right there: a function
//!   without a local entry of its own is called from other objects with theirs.
//! * Calls out of the image save and restore it, as a linker has them do (see `relocs`).
//!
//! Code for Power10 that is relative to itself leaves register 2 alone, and does not promise to
//! keep it. It may be replaced by its like. **It must not replace a function whose callers use
//! register 2**: they have nothing that restores it (2.2.1.4). A patch is compiled with the
//! target's `-mcpu` and `-mno-pcrel`.
//!
//! A function with another table of contents, say one written in Rust within the executable, cannot
//! replace one of a library: who calls it there would go on with the wrong register 2.
//!
//! Symbols tell both (the highest three bits of `st_other`, 3.4.1), so a host refuses such a patch
//! ([`SymbolResolver::misfit`](klp_core::port::SymbolResolver::misfit)). Of code that no symbol
//! covers, `Func::with_range` asks its caller to promise it ("may be called wherever the old one
//! may").
//!
//! # What would lift that: parking
//!
//! Not built. The way to such a function would keep register 2 and the return address in a place of
//! the task's own, not in the caller's frame, where arguments are, and would have it return to a
//! *way back* that puts both into place again. What that takes:
//!
//! * A stack for each task, of entries of `r1`, return address and register 2, found through `r13`.
//!   An entry is written before the stack's end moves, so a signal handler may be patched, too.
//! * Recursion is a stack's own. A function that ends in a jump to another such one is entered with
//!   the way back for its return address: the entry that is there serves both.
//! * `longjmp` and exceptions leave entries behind. They are known by an `r1` below the current
//!   one, and go at the next push or way back. That holds on one stack only: tasks that change
//!   stacks (`makecontext`, `sigaltstack`) would have to be refused.
//! * Our walks would look the way back up by its frame's `r1`. The compiler's unwinders would need
//!   rules that search the stack of entries; until there are such, a function that may be unwound
//!   through would have to be refused.
//! * A thread that ends takes its entries with it.

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
