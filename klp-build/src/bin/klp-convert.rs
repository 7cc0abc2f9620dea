//! `klp-convert IN.o OUT`: a compiler's object file becomes a patch object.

use anyhow::{Context, Result};
use clap::Parser;
use std::path::PathBuf;

/// Turns a compiler's object file into a patch object.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The object file, compiled with -fPIC -ffunction-sections.
    object: PathBuf,
    /// Where to write the patch object.
    patch: PathBuf,
}

fn main() -> Result<()> {
    let Args { object, patch } = Args::parse();
    let bytes =
        std::fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    let converted = klp_build::convert(&bytes)
        .with_context(|| format!("cannot convert {}", object.display()))?;
    std::fs::write(&patch, converted).with_context(|| format!("cannot write {}", patch.display()))
}
