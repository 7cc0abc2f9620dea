//! Livepatching on Linux.
//!
//! [`process`] embeds the engine in an ordinary Linux process: its functions are replaced while its
//! threads run.
//!
//! You supply a program whose functions have entry pads (GCC `-fpatchable-function-entry=16`, or
//! `-pg -mfentry -mnop-mcount -mrecord-mcount -fno-pic`) and patch objects; [`process::Livepatch`]
//! does the rest.
//!
//! Reading order, from bottom to top: `process/sys.rs` (system calls) → `lock.rs` → `slots.rs`,
//! `records.rs` (what is known of each context and thread) → `scan.rs` → `stop.rs` (stopping
//! threads) → `contexts.rs`, `ucontext.rs` (stacks that no thread runs on) → `elf_file.rs`,
//! `objects.rs`, `peek.rs`, `unwind.rs`, `unwinders.rs`, `retired.rs`, `patches.rs`, `space.rs` (what
//! is in memory) → `entry.rs`, `asleep.rs`, `tasks.rs` (the port `TaskSet`) → `pads.rs`,
//! `memory.rs`, `text.rs` (the port `Text`) → `sweep.rs` (memory of removed patches) → `events.rs`,
//! `shadow.rs`, `symbols.rs`, `sites.rs`, `notrace.rs` → `handler.rs` (the way of a
//! redirected call) → `host.rs` (all ports together) → `libraries.rs`, `livepatch.rs` (the engine)
//! → `linker.rs`, `adopt.rs`, `library.rs` (shared libraries) → `fork.rs` → `mod.rs` (it all
//! together).
//!
//! # Entry pads that linkers drop
//!
//! Nothing refers to the tables of entry pads, so a linker that collects garbage (`--gc-sections`,
//! which rustc asks for) may drop them, and the functions count as having no pad.
//! `__patchable_function_entries` is kept with its functions, but GCC before version 13 ties the
//! table of a whole file to its *first* function: compile with `-fno-function-sections` there.
//! `__mcount_loc` is kept if a symbol in it is referred to (GNU ld: `__start___mcount_loc` will do;
//! LLD: with `-z nostart-stop-gc`).

extern crate alloc;

#[cfg(all(target_os = "linux", target_arch = "x86_64", feature = "control"))]
pub mod control;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod process;
