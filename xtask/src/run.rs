//! Running other programs.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command to its end; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Runs a command that has to fail for the right reason: its output then has a line that begins
/// with `sign`.
pub(crate) fn expect_failure(command: &mut Command, sign: &str, or_else: &str) -> Result<()> {
    eprintln!("xtask: {command:?} (must fail)");
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if output.status.success() {
        bail!("{or_else}");
    }
    match out.lines().find(|line| line.starts_with(sign)) {
        Some(line) => eprintln!("xtask: it failed as it should: {line}"),
        None => bail!(
            "{command:?} failed for another reason: {}\n{out}{err}",
            output.status
        ),
    }
    Ok(())
}

/// Runs a command whose output is for a log file; on failure the error has the end of it.
pub(crate) fn quiet(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status();
    let status = status.with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(40)..].join("\n");
        bail!(
            "{command:?} failed: {status}; the end of {}:\n{end}",
            log.display()
        );
    }
    Ok(())
}
