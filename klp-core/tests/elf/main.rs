//! Patch objects, loaded into a toy host: files built here field by field, good ones, wrong ones,
//! broken ones.

extern crate alloc;

mod around;
mod broken;
mod callbacks;
mod file;
mod host;
mod loading;
mod memory;
mod refusals;
mod signed;
mod thread_locals;
mod waiting;
