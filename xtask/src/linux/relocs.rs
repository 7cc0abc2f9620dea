//! The livepatch sample of the kernel's tree, a patch with livepatch relocations whose target
//! comes, goes and comes again, and patches that klp-build has made.

use super::guest::{self, Job, PARALLEL};
use super::which::Kernel;
use super::{built, kernel, modules};
use anyhow::Result;
use std::time::Duration;

const SCRIPT: &str = include_str!("guest/relocs.sh");

/// Loads them; an error if an answer is not the expected one.
pub(super) fn run(which: Kernel) -> Result<()> {
    let build = kernel::build(which)?;
    let mut files = modules::relocs(which)?;
    files.extend(built::patches(which, &build)?);
    let outcome = guest::run(
        which,
        &build,
        Job {
            name: "relocs",
            script: SCRIPT,
            files,
            limit: Duration::from_secs(600),
            processors: PARALLEL,
        },
    )?;
    outcome.log.check()?;
    println!("linux: kernel `{which}`: sample and livepatch relocations work");
    Ok(())
}
