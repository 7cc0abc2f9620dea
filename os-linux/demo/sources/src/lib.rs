//! Where cargo keeps the sources of crates: C libraries that the demos compile in their own way.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the crate `name`, in this version, which is among the dependencies.
///
/// # Errors
///
/// It is not among them; or this is not called by a build script.
pub fn folder_of(name: &str, version: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").context("no CARGO")?;
    let host = std::env::var("HOST")?;
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--filter-platform", &host])
        .output()?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == name && package["version"] == version)
        .and_then(|package| package["manifest_path"].as_str())
        .with_context(|| format!("{name} {version} is not among the dependencies"))?;
    let folder = Path::new(manifest).parent();
    Ok(folder.context("no folder")?.to_path_buf())
}
