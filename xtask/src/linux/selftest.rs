//! The kernel's own livepatch selftests, unmodified.

use super::guest::{self, IN_TURN, Job};
use super::which::Kernel;
use super::{kernel, modules};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many tests the seven scripts of Linux 6.12 have.
const TESTS: usize = 25;
const SCRIPT: &str = include_str!("guest/selftest.sh");

/// Runs all of them; an error unless all pass and the kernel reported no fault.
pub(super) fn run(which: Kernel) -> Result<()> {
    let build = kernel::build(which)?;
    let folder = modules::selftests(which)?;
    let mut files = Vec::new();
    for script in modules::with_ending(&folder, "sh")? {
        files.push((inside(&folder, &script)?, script));
    }
    for module in modules::with_ending(&folder.join("test_modules"), "ko")? {
        files.push((inside(&folder, &module)?, module));
    }
    let program = folder.join("test_klp-call_getpid");
    files.push((inside(&folder, &program)?, program));
    let limit = Duration::from_secs(if which.debug { 5400 } else { 1800 });
    let outcome = guest::run(
        which,
        &build,
        Job {
            name: "selftest",
            script: SCRIPT,
            files,
            limit,
            processors: IN_TURN,
        },
    )?;
    let passed = outcome
        .output
        .iter()
        .filter(|line| line.starts_with("TEST: ") && line.ends_with(" ... ok"))
        .count();
    outcome.log.check()?;
    if passed != TESTS {
        bail!("{passed} of {TESTS} selftests passed");
    }
    println!(
        "linux: kernel `{which}`: {passed} of {TESTS} ok, and no report of a fault in the kernel's log"
    );
    Ok(())
}

/// Where a file of `folder` is in the guest.
fn inside(folder: &Path, file: &Path) -> Result<String> {
    let path: PathBuf = file
        .strip_prefix(folder)
        .context("a file outside of its folder")?
        .into();
    Ok(format!("job/{}", path.display()))
}
