//! What the tests on the simulated OS share.

#![allow(dead_code, reason = "every test uses a part of it")]

use klp_core::audit::audit;
use klp_core::model::{Object, Patch, VMLINUX};
use klp_core::port::TaskId;
use klp_core::sim::{self, Place, SimFunc, SimOs};
use klp_core::{Engine, PatchId};

/// The engine on the simulated OS.
pub(crate) type Sim = Engine<SimOs>;

/// Two functions of the base image and a task.
pub(crate) struct Basic {
    pub(crate) engine: Sim,
    pub(crate) f: SimFunc,
    pub(crate) g: SimFunc,
    pub(crate) task: TaskId,
}

impl Basic {
    pub(crate) fn new() -> Self {
        let host = SimOs::new();
        let (f, g) = (host.function(VMLINUX, "f"), host.function(VMLINUX, "g"));
        let task = host.spawn("worker");
        Self {
            engine: Engine::new(host),
            f,
            g,
            task,
        }
    }

    pub(crate) fn host(&self) -> &SimOs {
        self.engine.host()
    }
}

/// A patch that replaces `funcs`, each `(object, name, function)`, by code at `place`.
pub(crate) fn patch_at(
    host: &SimOs,
    name: &str,
    place: Place,
    funcs: &[(&str, &str, SimFunc)],
) -> Patch {
    let mut names: Vec<&str> = funcs.iter().map(|(object, ..)| *object).collect();
    names.dedup();
    let mut patch = Patch::builder(name);
    for object in names {
        let of_object = funcs.iter().filter(|(other, ..)| *other == object);
        let new = of_object.map(|(_, old, func)| {
            sim::func_at(old, host.replacement(name, *func, place).start()).expect("memory")
        });
        patch = patch.object(Object::module(object).and_then(|object| object.funcs_from(new)));
    }
    patch.build().expect("the patch is well formed")
}

/// A patch whose code is near what it replaces.
pub(crate) fn patch(host: &SimOs, name: &str, funcs: &[(&str, &str, SimFunc)]) -> Patch {
    patch_at(host, name, Place::Near, funcs)
}

/// Adds a patch that must be accepted.
pub(crate) fn add(engine: &Sim, patch: Patch) -> PatchId {
    engine.add(patch).expect("the patch is new")
}

/// Everything must hold.
#[track_caller]
pub(crate) fn check(engine: &Sim) {
    if let Err(findings) = audit(engine) {
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        panic!(
            "the audit found:\n  {}\nafter:\n  {}",
            lines.join("\n  "),
            engine.host().take_transcript().join("\n  ")
        );
    }
}
