//! What all parts of the simulated OS share, and the border that every port call crosses.

use super::chance::Noise;
use super::fault::{Faults, SimError};
use super::memory::Memory;
use super::object::{Code, Function, Module, SimFunc};
use super::task::{Lent, Task};
use super::versions::Versions;
use crate::addr::CodeAddr;
use crate::port::{PortErrorKind, TaskId, TaskState};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::{Mutex, MutexGuard};

/// How far the transition is, as the tasks know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Idle,
    /// All tasks start from this state.
    Initial(TaskState),
    /// Tasks move to this state.
    Moving(TaskState),
}

/// The whole simulated system.
#[derive(Debug)]
pub(super) struct World {
    pub(super) memory: Memory,
    /// All code by its start.
    pub(super) code: BTreeMap<CodeAddr, Code>,
    pub(super) functions: Vec<Function>,
    pub(super) modules: Vec<Module>,
    pub(super) tasks: BTreeMap<TaskId, Task>,
    pub(super) next_task: u64,
    /// The task whose call of the handler runs.
    pub(super) current: Option<TaskId>,
    /// Whether it may switch itself.
    pub(super) may_switch: bool,
    pub(super) phase: Phase,
    /// What keeps a task from switching itself, while tasks move.
    pub(super) lent: Option<Lent>,
    pub(super) self_switching: bool,
    /// Whether stacks that no task runs are listed like tasks.
    pub(super) sees_suspended: bool,
    /// Whether the system's own loader relocates patches, too.
    pub(super) own_loader: bool,
    /// The patches that it has relocated, each with the object that this was for.
    pub(super) relocated: BTreeSet<(String, String)>,
    pub(super) faults: Faults,
    pub(super) noise: Option<Noise>,
    pub(super) transcript: Vec<String>,
    pub(super) versions: Versions,
    /// Whether the engine said that sites are not settled.
    pub(super) unsettled: bool,
    /// Contracts that were broken.
    pub(super) violations: Vec<String>,
    /// Told when a port is entered (`true`) and left.
    pub(super) border: fn(bool),
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            memory: Memory::default(),
            code: BTreeMap::new(),
            functions: Vec::new(),
            modules: Vec::new(),
            tasks: BTreeMap::new(),
            next_task: 1,
            current: None,
            may_switch: false,
            phase: Phase::Idle,
            lent: None,
            self_switching: false,
            sees_suspended: true,
            own_loader: false,
            relocated: BTreeSet::new(),
            faults: Faults::default(),
            noise: None,
            transcript: Vec::new(),
            versions: Versions::default(),
            unsettled: false,
            violations: Vec::new(),
            border: |_| {},
        }
    }

    pub(super) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// What a call of `func` tells of where it goes.
    pub(super) fn called(&self, func: SimFunc) -> Option<CodeAddr> {
        let function = &self.functions[func.0];
        (!function.by_pointer).then(|| function.range.start())
    }

    /// The code that `addr` lies in.
    pub(super) fn code_at(&self, addr: CodeAddr) -> Option<&Code> {
        let (_, code) = self.code.range(..=addr).next_back()?;
        code.range.contains(addr).then_some(code)
    }
}

/// The world behind its lock. The lock is held for moments only, never while anything of the engine
/// runs.
#[derive(Debug)]
pub(super) struct Shared(Mutex<World>);

impl Shared {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(World::new())))
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock()
    }

    /// Enters a port that can fail.
    pub(super) fn enter(&self, call: &'static str) -> Result<Inside, SimError> {
        self.enter_or(call, PortErrorKind::Failed)
    }

    /// Enters a port that can fail with `kind`. Tasks may run first, if there is noise.
    pub(super) fn enter_or(
        &self,
        call: &'static str,
        kind: PortErrorKind,
    ) -> Result<Inside, SimError> {
        let inside = self.inside();
        self.make_noise();
        if self.world().faults.strikes(call) {
            Err(SimError { call, kind })
        } else {
            Ok(inside)
        }
    }

    /// Enters a port that cannot fail, or that must not be disturbed.
    pub(super) fn inside(&self) -> Inside {
        let border = self.world().border;
        border(true);
        Inside(border)
    }
}

/// Lives as long as a port is entered; while it calls the engine back, it is
/// [paused](Inside::outside).
pub(super) struct Inside(fn(bool));

impl Inside {
    /// Runs something of the engine's.
    pub(super) fn outside<R>(&self, run: impl FnOnce() -> R) -> R {
        (self.0)(false);
        let result = run();
        (self.0)(true);
        result
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        (self.0)(false);
    }
}
