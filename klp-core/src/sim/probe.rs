//! Probes: other users of entry sites, of whom the simulated OS keeps account (kernel: kprobes on
//! ftrace sites).

use super::SimOs;
use super::fault::SimError;
use super::inspect::Lead;
use super::object::SimFunc;
use super::shared::World;
use crate::addr::CodeAddr;
use crate::port::PortErrorKind;
use alloc::string::{String, ToString};

/// What a probe wants of a function's entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// To look on at calls (kernel: a kprobe without a post-handler). Does not disturb a patch.
    Look,
    /// To change where calls go, or what they return to (kernel: `IPMODIFY`, which a kprobe with a
    /// post-handler has). There can be only one such user of a site, a patch or a probe.
    Change,
}

#[derive(Clone, Debug)]
pub(super) struct Probe {
    name: String,
    claim: Claim,
    hits: u32,
}

impl SimOs {
    /// Sets a probe called `name` on the entry of `func`.
    ///
    /// # Errors
    ///
    /// [`PortErrorKind::Held`] if it wants to change calls, and a patch or another probe does so
    /// already.
    pub fn probe(&self, func: SimFunc, name: &str, claim: Claim) -> Result<(), SimError> {
        let mut world = self.shared.world();
        let function = &world.functions[func.0];
        let taken =
            world.owner(function.range.start()).is_some() || world.lead(function) != Lead::Original;
        if claim == Claim::Change && taken {
            return Err(SimError {
                call: "SimOs::probe",
                kind: PortErrorKind::Held,
            });
        }
        world.functions[func.0].probes.push(Probe {
            name: name.to_string(),
            claim,
            hits: 0,
        });
        Ok(())
    }

    /// Takes the probe called `name` away. Says how many calls of `func` it saw; `None` if it was
    /// not there.
    pub fn unprobe(&self, func: SimFunc, name: &str) -> Option<u32> {
        let probes = &mut self.shared.world().functions[func.0].probes;
        let index = probes.iter().position(|probe| probe.name == name)?;
        Some(probes.remove(index).hits)
    }
}

impl World {
    /// The probe that wants the site at `site` for itself.
    pub(super) fn owner(&self, site: CodeAddr) -> Option<String> {
        let function = self
            .functions
            .iter()
            .find(|function| function.range.start() == site)?;
        let owner = function
            .probes
            .iter()
            .find(|probe| probe.claim == Claim::Change)?;
        Some(owner.name.clone())
    }

    /// A task has come to the entry of `func`.
    pub(super) fn hit_probes(&mut self, func: SimFunc) {
        for probe in &mut self.functions[func.0].probes {
            probe.hits += 1;
        }
    }
}
