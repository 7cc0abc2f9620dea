//! Patches that come, replace each other, turn round and go, under load; nothing may stall, mix,
//! leak or be reported.

use super::guest::{self, IN_TURN, Job};
use super::which::Kernel;
use super::{kernel, modules};
use anyhow::Result;
use std::time::Duration;

const SCRIPT: &str = include_str!("guest/stress.sh");

/// From as many cycles on a leak can be told from chance.
const MANY: u32 = 200;

/// Runs `cycles` cycles.
pub(super) fn run(which: Kernel, cycles: u32) -> Result<()> {
    let build = kernel::build(which)?;
    let mut files = modules::ours(which)?;
    // The program that calls getpid without pause is the selftests' own.
    files.push((
        "job/hammer".into(),
        modules::selftests(which)?.join("test_klp-call_getpid"),
    ));
    let script = format!("CYCLES={cycles} MANY={MANY}\n{SCRIPT}");
    let limit = Duration::from_secs(u64::from(cycles + 20) * if which.debug { 60 } else { 15 });
    let outcome = guest::run(
        which,
        &build,
        Job {
            name: "stress",
            script: &script,
            files,
            limit,
            processors: IN_TURN,
        },
    )?;
    outcome.log.check()?;
    let leak = if cycles < MANY { "" } else { "a leak, " };
    println!(
        "linux: kernel `{which}`: {cycles} cycles without a stall, a mix, {leak}or a report of a fault"
    );
    Ok(())
}
