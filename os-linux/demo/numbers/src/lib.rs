//! A library in Rust (`rust/numbers.rs`) that uses smallvec 0.6.10 as it was in 2019, compiled with
//! an entry pad in each function: something real to patch while it runs.
//!
//! `insert_many` writes behind its buffer (RUSTSEC-2021-0003) if there are more numbers than it was
//! told, until the patch object is enabled. The library has a copy of it that two functions call,
//! and one inside of a third function.

/// A build of the library.
#[derive(Debug)]
pub struct Library {
    /// Its path.
    pub path: &'static str,
    /// The path of the patch object that repairs it.
    pub patch: &'static str,
    /// The functions that this replaces, with blanks between.
    pub functions: &'static str,
}

/// With legacy names of functions, and with those of rustc's "v0".
pub const LIBRARIES: [Library; 2] = [
    Library {
        path: env!("KLP_DEMO_NUMBERS_LEGACY"),
        patch: env!("KLP_DEMO_NUMBERS_LEGACY_PATCH"),
        functions: env!("KLP_DEMO_NUMBERS_LEGACY_FUNCTIONS"),
    },
    Library {
        path: env!("KLP_DEMO_NUMBERS_V0"),
        patch: env!("KLP_DEMO_NUMBERS_V0_PATCH"),
        functions: env!("KLP_DEMO_NUMBERS_V0_FUNCTIONS"),
    },
];
