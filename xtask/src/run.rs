//! Running other programs.

use anyhow::{Context, Result, bail};
use std::process::Command;

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command to its end; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Runs a command that has to fail in a controlled way: with exit code 1 or 101, not by a signal.
pub(crate) fn expect_failure(command: &mut Command, or_else: &str) -> Result<()> {
    eprintln!("xtask: {command:?} (must fail)");
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    match status.code() {
        Some(1 | 101) => Ok(()),
        Some(0) => bail!("{or_else}"),
        _ => bail!("{command:?} broke down instead of failing: {status}"),
    }
}
