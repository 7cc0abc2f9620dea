//! Suites that prove a port right, for porters' tests: one function per port, called from a test of the porter's own.

pub mod arch;
pub mod relocator;
pub mod unwinder;
