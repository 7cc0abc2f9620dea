//! What the process host must know of a processor. Nowhere else in this crate is one named.
//!
//! A folder for each, with the same names in it:
//!
//! * `mod.rs`: the types of its crate (`klp-arch-…`), and bytes that the kernel and C libraries
//!   have;
//! * `calls.rs`: what calls lead to, unless `arch/calls.rs` serves;
//! * `registers.rs`: registers of interrupted and sleeping threads, and of suspended contexts;
//! * `text.rs`: how instructions are changed under running threads;
//! * `thread.rs`: words of each thread's own;
//! * `station.rs`: the way station of `makecontext`;
//! * `linkage.rs`: for tests, a call by the procedure linkage table.
//!
//! What several of them have in common is beside: `calls.rs`, `word.rs`.

#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
pub(crate) mod calls;
#[cfg(any(target_arch = "aarch64", target_arch = "powerpc64"))]
mod word;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "powerpc64")]
mod ppc64le;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;
#[cfg(target_arch = "powerpc64")]
pub(crate) use ppc64le::*;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

use unwind::Machine;

/// Of two functions' `st_other` and whether their objects have one table of contents: why the second
/// must not run in the place of the first.
type Misfit = fn(u8, u8, bool) -> Option<&'static str>;

/// Memory below the stack pointer that an interrupted function may still use.
pub(crate) const RED_ZONE: u64 = Processor::RED_ZONE;

/// The stack pointer.
pub(crate) fn sp(regs: &Regs) -> u64 {
    Processor::get(regs, Processor::STACK_POINTER)
}

/// The next instruction.
pub(crate) fn pc(regs: &Regs) -> u64 {
    Processor::pc(regs)
}
