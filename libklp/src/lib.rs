//! Livepatching for C and C++ programs, and for programs that know nothing of it: the functions of
//! `<klp.h>`, and what happens when the library is preloaded.
//!
//! Reading order: `error.rs` (what C gets when something fails) → `args.rs` (what C has given) →
//! `engine.rs`, `patches.rs`, `look.rs`, `libraries.rs` (the functions) → `preload.rs`.

mod args;
mod engine;
mod error;
mod libraries;
mod look;
mod patches;
mod preload;
