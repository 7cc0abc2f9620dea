//! Livepatching on Linux.
//!
//! [`process`] embeds the engine in an ordinary Linux process: its functions are replaced while its threads run.
//!
//! You supply a program whose functions have entry pads (GCC `-fpatchable-function-entry=16`, or
//! `-pg -mfentry -mnop-mcount -mrecord-mcount -fno-pic`) and patch objects; [`process::Livepatch`] does the rest.
//!
//! Reading order, from bottom to top: `process/sys.rs` (system calls) → `lock.rs` → `records.rs` (what is known of each
//! thread) → `scan.rs` → `stop.rs` (stopping threads) → `tasks.rs` (the port `TaskSet`) → `trap.rs`, `text.rs`, `memory.rs`
//! (the port `Text`) → `objects.rs`, `symbols.rs`, `sites.rs`, `unwind.rs` → `fork.rs` → `mod.rs` (it all together).

extern crate alloc;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod process;
