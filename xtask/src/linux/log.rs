//! What a kernel said on its console, and whether any of it is a report of a fault.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// The beginnings of reports: oopses, warnings, lockdep, RCU, KASAN, KFENCE, DEBUG_OBJECTS, hung
/// tasks, sleeping while atomic.
///
/// They are matched anywhere in a line. What the kernel prints about these checks while it boots is
/// none of them.
const REPORTS: [&str; 20] = [
    "BUG:",
    "WARNING:",
    "INFO: ",
    "Oops",
    "Call Trace:",
    "Kernel panic",
    "general protection fault",
    "invalid opcode",
    "stack segment",
    "divide error",
    "ODEBUG: ",
    "sleeping function called",
    "suspicious RCU usage",
    "possible recursive locking",
    "blocked for more than",
    "self-detected stall",
    "detected stalls",
    "soft lockup",
    "UBSAN:",
    "refcount_t:",
];

/// A console log.
pub(super) struct Log {
    path: PathBuf,
    lines: Vec<String>,
}

impl Log {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)
            .with_context(|| format!("there is no kernel log {}", path.display()))?;
        let lines = String::from_utf8_lossy(&bytes)
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        Ok(Self {
            path: path.to_owned(),
            lines,
        })
    }

    /// An error if the kernel reported a fault.
    pub(super) fn check(&self) -> Result<()> {
        let Some(first) = self.lines.iter().position(|line| is_report(line)) else {
            return Ok(());
        };
        let count = self.lines.iter().filter(|line| is_report(line)).count();
        let shown = self.lines[first..]
            .iter()
            .take(40)
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n");
        bail!(
            "the kernel reported a fault ({count} lines that begin a report in {}):\n{shown}",
            self.path.display()
        );
    }

    /// The first report, as an addition to another error.
    pub(super) fn trouble(&self) -> String {
        self.check()
            .err()
            .map_or_else(String::new, |error| format!("; {error}"))
    }

    /// The last lines.
    pub(super) fn end(&self) -> String {
        self.lines[self.lines.len().saturating_sub(40)..].join("\n")
    }
}

fn is_report(line: &str) -> bool {
    REPORTS.iter().any(|report| line.contains(report))
}

#[cfg(test)]
mod tests {
    use super::is_report;

    #[test]
    fn reports_are_told_from_what_a_healthy_kernel_says() {
        for line in [
            "[    9.1] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585",
            "[    9.1] WARNING: possible circular locking dependency detected",
            "[    9.1] WARNING: CPU: 1 PID: 7 at kernel/trace/ftrace.c:2047",
            "[    9.1] BUG: KASAN: slab-use-after-free in foo+0x1/0x2",
            "[    9.1] INFO: task bash:77 blocked for more than 122 seconds.",
            "[    9.1] rcu: INFO: rcu_sched self-detected stall on CPU",
            "[    9.1] Oops: general protection fault, probably for non-canonical address",
        ] {
            assert!(is_report(line), "{line}");
        }
        for line in [
            "[    0.0] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
            "[    0.0] rcu: \tRCU lockdep checking is enabled.",
            "[    0.1] kasan: KernelAddressSanitizer initialized (generic)",
            "[    0.2] kfence: initialized - using 2097152 bytes for 255 objects",
            "[    5.2] livepatch: pre-patch callback failed for object 'test_klp_callbacks_busy'",
            "[    5.2] test_klp_livepatch: tainting kernel with TAINT_LIVEPATCH",
        ] {
            assert!(!is_report(line), "{line}");
        }
    }
}
