//! Livepatching on Linux.
//!
//! [`process`] embeds the engine in an ordinary Linux process: its functions are replaced while its
//! threads run.
//!
//! You supply a program whose functions have entry pads (GCC `-fpatchable-function-entry=16`, on
//! AArch64 and ppc64le `=2` will do; or on x86-64 `-pg -mfentry -mnop-mcount -mrecord-mcount -fno-pic`) and patch
//! objects; [`process::Livepatch`]
//! does the rest:
//!
//! ```no_run
//! # #[cfg(all(target_os = "linux", any(target_arch = "aarch64", target_arch = "powerpc64", target_arch = "x86_64")))]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use klp_os_linux::process::{Livepatch, Options};
//! use std::time::Duration;
//!
//! let livepatch = Livepatch::init(Options::default())?;
//! let fix = livepatch.load_file("fix.ko")?;
//! livepatch.enable(fix)?;
//! if !livepatch.wait(Duration::from_secs(5)) {
//!     // It goes on: these are the threads that it waits for, and where they are.
//!     for blocker in livepatch.engine().blockers(fix)? {
//!         eprintln!("{blocker}");
//!     }
//! }
//! # Ok(())
//! # }
//! # #[cfg(not(all(target_os = "linux", any(target_arch = "aarch64", target_arch = "powerpc64", target_arch = "x86_64"))))]
//! # fn main() {}
//! ```
//!
//! With [`Livepatch::serve`](process::Livepatch::serve) the command `klp` does the same from
//! outside. What all this does to the process (signals, system calls, memory, threads) is in
//! `docs/in-a-process.md`.
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

#[cfg(all(
    target_os = "linux",
    any(
        target_arch = "aarch64",
        target_arch = "powerpc64",
        target_arch = "x86_64"
    ),
    feature = "control"
))]
pub mod control;
#[cfg(all(
    target_os = "linux",
    any(
        target_arch = "aarch64",
        target_arch = "powerpc64",
        target_arch = "x86_64"
    )
))]
pub mod process;
