//! Measurements on both kernels, side by side, with the same module binaries.

use super::guest::{self, Job, PARALLEL};
use super::which::{Engine, Kernel};
use super::{kernel, modules};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::time::Duration;

const SCRIPT: &str = include_str!("guest/bench.sh");

/// A row of the table: what `guest/bench.sh` calls it, what a person calls it, and how much of C's
/// cost is allowed.
struct Row {
    name: &'static str,
    title: &'static str,
    limit: Option<f64>,
}

const fn row(name: &'static str, title: &'static str, limit: Option<f64>) -> Row {
    Row { name, title, limit }
}

const ROWS: [Row; 15] = [
    row("call_unpatched", "call, unpatched", None),
    row("call_settled", "call, patched and settled", None),
    row(
        "call_overhead",
        "what a settled patch adds to a call",
        Some(0.5),
    ),
    row("enable_1", "klp_enable_patch, 1 function", None),
    row("disable_1", "disable, 1 function", None),
    row(
        "enable_1000",
        "klp_enable_patch, 1,000 functions",
        Some(0.1),
    ),
    row("disable_1000", "disable, 1,000 functions", Some(0.02)),
    row(
        "enable_over",
        "klp_enable_patch, 1,000 functions over another patch",
        None,
    ),
    row(
        "enable_over_with_threads",
        "the same with 2,000 sleeping kthreads",
        None,
    ),
    row(
        "stack_check",
        "stack check, 2,000 sleeping kthreads x 1,000 functions",
        Some(0.05),
    ),
    row(
        "shadow_alloc",
        "klp_shadow_alloc, 100,000 variables, each",
        None,
    ),
    row(
        "shadow_get",
        "klp_shadow_get, 100,000 variables, each",
        Some(0.15),
    ),
    row(
        "shadow_read",
        "the same, and a look at the data",
        Some(0.15),
    ),
    row(
        "shadow_free",
        "klp_shadow_free_all, 100,000 variables, each",
        None,
    ),
    row(
        "memory_per_function",
        "memory per patched function",
        Some(1.0),
    ),
];

/// Value and unit by name.
type Results = BTreeMap<String, (f64, String)>;

/// Measures on one kernel, or on both and compares; an error if a limit is exceeded.
pub(super) fn run(engine: Option<Engine>) -> Result<()> {
    if let Some(engine) = engine {
        measure(engine)?;
        return Ok(());
    }
    let (c, rust) = (measure(Engine::C)?, measure(Engine::Rust)?);
    let mut exceeded = Vec::new();
    println!(
        "{:55} {:>14} {:>14} {:>7}  limit",
        "work", "C", "Rust", "ratio"
    );
    for row in &ROWS {
        let of = |results: &Results| {
            results
                .get(row.name)
                .cloned()
                .with_context(|| format!("no result for {}", row.name))
        };
        let ((c, unit), (rust, _)) = (of(&c)?, of(&rust)?);
        let ratio = rust / c;
        let limit = row
            .limit
            .map_or_else(String::new, |limit| format!("{limit}"));
        println!(
            "{:55} {:>14} {:>14} {ratio:>7.3}  {limit}",
            row.title,
            shown(c, &unit),
            shown(rust, &unit)
        );
        // Nothing to compare with, or a difference that is more below zero than it may be above,
        // means that the measurement is no good; that is no pass.
        if row
            .limit
            .is_some_and(|limit| c <= 0.0 || ratio.abs() > limit)
        {
            exceeded.push(row.title);
        }
    }
    if !exceeded.is_empty() {
        bail!("costs more than its limit: {}", exceeded.join("; "));
    }
    Ok(())
}

fn measure(engine: Engine) -> Result<Results> {
    let which = Kernel::plain(engine);
    let build = kernel::build(which)?;
    let files = modules::ours(which)?;
    let job = Job {
        name: "bench",
        script: SCRIPT,
        files,
        limit: Duration::from_secs(3600),
        processors: PARALLEL,
    };
    let outcome = guest::run(which, &build, job)?;
    outcome.log.check()?;
    let mut results = Results::new();
    for line in &outcome.output {
        let Some(result) = line.strip_prefix("klp-bench: ") else {
            bail!("the guest wrote {line:?}");
        };
        let [name, value, unit] = result.split(' ').collect::<Vec<_>>()[..] else {
            bail!("the guest wrote {line:?}");
        };
        results.insert(
            name.to_owned(),
            (
                value.parse().with_context(|| line.clone())?,
                unit.to_owned(),
            ),
        );
    }
    Ok(results)
}

/// A value with a unit that fits its size.
fn shown(value: f64, unit: &str) -> String {
    match unit {
        "ps" => format!("{:.1} ns", value / 1e3),
        "us" if value >= 1e6 => format!("{:.2} s", value / 1e6),
        "us" => format!("{:.2} ms", value / 1e3),
        _ => format!("{value} {unit}"),
    }
}
