//! Limits, the ones of Linux livepatch where it has them.

/// Frames that are shown of a task that holds a transition back. How many a walk follows before it
/// calls the stack unreliable is the host's choice; Linux follows as many (kernel:
/// `MAX_STACK_ENTRIES`).
pub const MAX_STACK_ENTRIES: usize = 100;

/// Longest name of an object, in bytes (kernel: `MODULE_NAME_LEN` without its terminator).
pub const OBJECT_NAME_LEN: usize = 55;

/// Longest name of a symbol, in bytes (kernel: `KSYM_NAME_LEN` without its terminator), where the
/// host has no other limit ([`SymbolResolver::NAME_LEN`](crate::port::SymbolResolver::NAME_LEN)).
pub const SYMBOL_NAME_LEN: usize = 511;

/// Longest text that a patch says of itself, in bytes: a description, an author, a label.
pub const ABOUT_LEN: usize = 512;

/// Polls of one transition after which its stragglers are kicked, and again after as many
/// (kernel: `SIGNALS_TIMEOUT`).
pub const KICK_INTERVAL: u32 = 15;

/// Longest name of a task, in bytes (kernel: `TASK_COMM_LEN` without its terminator).
pub const TASK_NAME_LEN: usize = 15;
