//! Faults on demand: every port call that can fail is numbered, and one of them can be made to
//! fail.

use crate::port::{PortError, PortErrorKind};
use alloc::vec::Vec;
use core::fmt;

/// A port of the simulated OS failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimError {
    /// The call: `Text::poke`.
    pub call: &'static str,
    /// What kind of failure it was.
    pub kind: PortErrorKind,
}

impl fmt::Display for SimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {:?}", self.call, self.kind)
    }
}

impl PortError for SimError {
    fn kind(&self) -> PortErrorKind {
        self.kind
    }
}

/// Counts port calls, and says which ones fail.
#[derive(Debug, Default)]
pub(super) struct Faults {
    calls: u64,
    fail_at: Option<u64>,
    /// Calls by name, each with how often it is made until it fails.
    named: Vec<(&'static str, u64)>,
    failed: Option<&'static str>,
}

impl Faults {
    /// Arms: the `n`-th call from now on fails, counted from 1.
    pub(super) fn fail_at(&mut self, n: u64) {
        *self = Self {
            fail_at: Some(n),
            ..Self::default()
        };
    }

    /// Arms: each call fails when it is made for the time that it is listed with, counted from 1.
    pub(super) fn fail_calls(&mut self, calls: &[(&'static str, u64)]) {
        *self = Self {
            named: calls.to_vec(),
            ..Self::default()
        };
    }

    /// Disarms; the last call that failed since it was armed.
    pub(super) fn disarm(&mut self) -> Option<&'static str> {
        core::mem::take(self).failed
    }

    /// Counts `call`; whether it is to fail.
    pub(super) fn strikes(&mut self, call: &'static str) -> bool {
        self.calls += 1;
        let mut strikes = self.fail_at == Some(self.calls);
        for (_, left) in self.named.iter_mut().filter(|(name, _)| *name == call) {
            strikes |= *left == 1;
            *left = left.saturating_sub(1);
        }
        if strikes {
            self.failed = Some(call);
        }
        strikes
    }
}
