//! Suites that prove a port right: one function `check` per port, called from one test file of the
//! porter's own.
//!
//! Each says what it wants from the porter, panics with a sentence if the contract is broken, and
//! leaves the system as it was. `klp-core`'s own `tests/conformance.rs` runs them on the simulated OS
//! and is the example to copy; that OS has no keys, so the suite of the verifier is run by
//! `tests/elf/signed.rs`.

pub mod arch;
pub mod relocator;
pub mod symbol_resolver;
pub mod task_set;
pub mod text;
pub mod tracer;
pub mod unwinder;
pub mod verifier;
