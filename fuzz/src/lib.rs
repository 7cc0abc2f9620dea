//! What each fuzz target checks, beyond that nothing panics: each file says what it promises.
//!
//! | file | what is fed with bytes |
//! |---|---|
//! | `view.rs` | the ELF view |
//! | `names.rs` | the grammar of `.klp.*` names |
//! | `loader.rs` | the loader, on a host that executes nothing (`host.rs`) |
//! | `relocators.rs` | the relocators of all architectures |
//! | `code.rs` | their readers of instructions |
//! | `eh_frame.rs` | the compiler of unwind tables, and walks by them |
//! | `protocol.rs` | the lines that the control socket carries |
//! | `tree.rs` | the attribute tree |
//! | `pair.rs` | `klp-build`, with both builds of an object file |
//! | `convert.rs` | `klp-convert` |
//! | `diff.rs` | diffs of sources, as `klp-build` applies them |
//!
//! `mutate.rs` changes object files where a fuzzer that knows bytes alone would only break them;
//! `memory.rs` says how much memory a check takes.

pub mod code;
pub mod convert;
pub mod diff;
pub mod eh_frame;
mod host;
pub mod loader;
mod memory;
pub mod mutate;
pub mod names;
pub mod pair;
pub mod protocol;
pub mod relocators;
pub mod tree;
pub mod view;

/// The machines, by a byte of the input.
macro_rules! on_machine {
    ($byte:expr, $check:ident($($arg:expr),*)) => {
        match $byte % 3 {
            0 => $check::<klp_arch_x86_64::X86_64>($($arg),*),
            1 => $check::<klp_arch_aarch64::AArch64>($($arg),*),
            _ => $check::<klp_arch_ppc64le::Ppc64Le>($($arg),*),
        }
    };
}
pub(crate) use on_machine;
