//! What the example `across` patches: see `c/target.c`.

/// The library whose functions are patched, and the third object that they call.
pub const LIBRARIES: [&str; 2] = [env!("KLP_ACROSS_THIRD"), env!("KLP_ACROSS_TARGET")];

/// The patch object.
pub const FIX: &str = env!("KLP_ACROSS_FIX");
