//! Where everything is kept, and the steps of the work.

use anyhow::{Context, Result};
use std::path::PathBuf;
use std::time::Instant;

/// A path below the folder that holds everything that is fetched and built.
pub(super) fn dir(name: &str) -> Result<PathBuf> {
    let root = std::env::var_os("KLP_LINUX_DIR").unwrap_or_else(|| "target/linux".into());
    let root = std::path::absolute(root)?;
    std::fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    Ok(root.join(name))
}

/// Says what is being done, does it, and says how long it took.
pub(super) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("linux: {what}");
    let begin = Instant::now();
    let done = work().with_context(|| format!("linux: {what}"))?;
    eprintln!("linux: {what}: {:.0} s", begin.elapsed().as_secs_f32());
    Ok(done)
}
