//! An independent checker: recomputes from first principles what must hold on the simulated OS between two operations.
//!
//! It believes the patches as their author wrote them and the engine's [`status`](Engine::status), and nothing else of the engine: what
//! sites, stacks of functions and tasks should be is worked out here again and compared with the bytes in the simulated text.

use crate::addr::{CodeAddr, TextRange};
use crate::engine::{Engine, PatchStatus};
use crate::model::{Patch, Replace};
use crate::port::TaskState;
use crate::sim::SimOs;
use crate::sim::inspect::{Lead, SiteView, TaskView, ask_handler, layers};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Something that must not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding(pub String);

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks everything. May be called whenever no operation of `engine` is under way.
///
/// # Errors
///
/// All that was found.
pub fn audit(engine: &Engine<SimOs>) -> Result<(), Vec<Finding>> {
    let mut audit = Audit { host: engine.host(), findings: Vec::new() };
    match engine.status() {
        Ok(status) => audit.all(engine, &status),
        Err(error) => audit.find(format!("no status: {error}")),
    }
    if audit.findings.is_empty() { Ok(()) } else { Err(audit.findings) }
}

struct Audit<'a> {
    host: &'a SimOs,
    findings: Vec<Finding>,
}

/// One function of one patch that is on the stacks of functions.
struct Layer {
    /// The address of the function that is replaced.
    old: CodeAddr,
    /// What runs instead; of a nop, the function itself.
    new: TextRange,
    /// It goes back to the original.
    nop: bool,
    in_transition: bool,
}

impl Layer {
    /// Where a call goes that this layer decides, if the original goes on at `original`.
    fn target(&self, original: CodeAddr) -> CodeAddr {
        if self.nop { original } else { self.new.start() }
    }
}

/// What a patch has on the stacks of functions.
struct Active {
    replace: Replace,
    enabled: bool,
    layers: Vec<Layer>,
}

impl Active {
    /// Whether `old`, which was enabled before, gives way to it.
    fn takes_the_place_of(&self, old: &Self) -> bool {
        old.enabled
            && match self.replace {
                Replace::None => false,
                Replace::All => true,
                set @ Replace::Set(_) => old.replace == set,
            }
    }
}

/// Code of the two sides of the transition.
#[derive(Default)]
struct Sides {
    unpatched: Vec<TextRange>,
    patched: Vec<TextRange>,
}

impl Audit<'_> {
    fn find(&mut self, what: String) {
        self.findings.push(Finding(what));
    }

    fn all(&mut self, engine: &Engine<SimOs>, status: &[PatchStatus]) {
        self.status(status);
        let mut active: Vec<Active> = Vec::new();
        let mut index = 0;
        engine.each_patch(|patch| {
            let known = &status[index];
            index += 1;
            if known.enabled || known.transition.is_some() {
                let layers = self.layers(patch, known.transition.is_some());
                let mut patch = Active { replace: patch.replace(), enabled: known.enabled, layers };
                if known.transition.is_some() {
                    self.add_nops(&active, &mut patch);
                }
                active.push(patch);
            }
        });
        let stacked: Vec<&Layer> = active.iter().flat_map(|patch| &patch.layers).collect();
        let transition = status.iter().any(|patch| patch.transition.is_some());
        let mut sides = Sides::default();
        let mut settled = true;
        for site in self.host.site_views() {
            let on_site: Vec<&Layer> =
                stacked.iter().copied().filter(|layer| layer.old == site.range.start()).collect();
            settled &= self.site(&site, &on_site);
            sides.add(&site, &on_site);
        }
        // Sites may wait to be settled only if the engine said so.
        if !self.host.unsettled(settled && !transition) && !settled {
            self.find(String::from("sites lead to the handler though no transition needs it"));
        }
        for task in self.host.task_views() {
            self.task(&task, transition, &sides);
        }
        for broken in self.host.mixes().into_iter().chain(self.host.violations()) {
            self.find(broken);
        }
    }

    fn status(&mut self, status: &[PatchStatus]) {
        let moving: Vec<_> = status.iter().filter(|patch| patch.transition.is_some()).collect();
        if moving.len() > 1 {
            self.find(format!("{} patches are in transition", moving.len()));
        }
        for patch in moving {
            if patch.transition == Some(TaskState::Idle)
                || patch.enabled != (patch.transition == Some(TaskState::Patched))
            {
                self.find(format!("{patch:?}: enabled and transition contradict each other"));
            }
        }
        for (index, patch) in status.iter().enumerate() {
            if status[..index].iter().any(|other| other.name == patch.name || other.id == patch.id) {
                self.find(format!("{patch:?} is there twice"));
            }
            let off = |patch: &PatchStatus| !patch.enabled && patch.transition.is_none();
            if !off(patch) && status[..index].iter().any(off) {
                self.find(format!("{patch:?} is enabled, but stands behind one that is not"));
            }
        }
    }

    /// What `patch` replaces in objects that are loaded.
    fn layers(&mut self, patch: &Patch, in_transition: bool) -> Vec<Layer> {
        let mut layers = Vec::new();
        for object in patch.objects() {
            for func in object.funcs() {
                let Some(old) = self.host.symbol(object.name(), func.old_name(), func.position()) else { continue };
                match self.host.code_range(func.new_addr()) {
                    Some(new) => layers.push(Layer { old, new, nop: false, in_transition }),
                    None => self.find(format!("{}: no code at {}", patch.name(), func.new_addr())),
                }
            }
        }
        layers
    }

    /// Adds the functions that `new`, which is in transition, gives back to the original: those of `older` patches that give way.
    fn add_nops(&mut self, older: &[Active], new: &mut Active) {
        let giving_way: Vec<&Active> = older.iter().filter(|old| new.takes_the_place_of(old)).collect();
        for layer in giving_way.into_iter().flat_map(|old| &old.layers) {
            if new.layers.iter().any(|own| own.old == layer.old) {
                continue;
            }
            let has = |old: &&Active| old.layers.iter().any(|other| other.old == layer.old);
            let stays = |old: &&Active| !new.takes_the_place_of(old);
            if older.iter().rev().find(has).as_ref().is_some_and(stays) {
                continue;
            }
            if let Some(below) = older.iter().rev().filter(has).find(stays) {
                let below = below.layers.iter().find(|other| other.old == layer.old);
                if let Some(Layer { old, new: code, nop, .. }) = below {
                    new.layers.push(Layer { old: *old, new: *code, nop: *nop, in_transition: true });
                    continue;
                }
            }
            match self.host.code_range(layer.old) {
                Some(code) => new.layers.push(Layer { old: layer.old, new: code, nop: true, in_transition: true }),
                None => self.find(format!("no function at {}", layer.old)),
            }
        }
    }

    /// Says whether the site is settled, as far as it may be now.
    fn site(&mut self, site: &SiteView, on_site: &[&Layer]) -> bool {
        let name = format!("{}:{}", site.object, site.name);
        if !site.body_intact {
            self.find(format!("{name}: the body was written to"));
        }
        let original = site.body();
        let top = on_site.last();
        let new = top.map_or(original, |top| top.target(original));
        let below = on_site.len().checked_sub(2).map_or(original, |index| on_site[index].target(original));
        let moving = top.is_some_and(|top| top.in_transition);
        match site.lead {
            Lead::Handler(arg) => {
                let states = [
                    (TaskState::Idle, new),
                    (TaskState::Patched, new),
                    (TaskState::Unpatched, if moving { below } else { new }),
                ];
                for (state, expected) in states {
                    let answer = ask_handler(arg, state);
                    if answer != expected {
                        self.find(format!("{name}: the handler says {answer} for {state:?}, not {expected}"));
                    }
                }
                let expected: Vec<_> = on_site.iter().rev().map(|layer| layer.new.start()).collect();
                if layers(arg) != expected {
                    self.find(format!("{name}: functions stacked {:?}, not {expected:?}", layers(arg)));
                }
                return moving;
            }
            Lead::Original if !moving && top.is_none() => {}
            Lead::Direct(to) if !moving && top.is_some() && to == new => {}
            lead => self.find(format!("{name} leads to {lead:?}; in transition: {moving}, newest: {new}")),
        }
        true
    }

    fn task(&mut self, task: &TaskView, transition: bool, sides: &Sides) {
        if (task.state != TaskState::Idle) != transition {
            self.find(format!("task {} is {:?}; transition: {transition}", task.id.0, task.state));
        }
        if task.excused {
            return;
        }
        let foreign = match task.state {
            TaskState::Idle => return,
            TaskState::Unpatched => &sides.patched,
            TaskState::Patched => &sides.unpatched,
        };
        for place in &task.places {
            if foreign.iter().any(|range| range.contains(*place)) {
                self.find(format!("task {} is {:?}, but has code of the other side at {place}", task.id.0, task.state));
            }
        }
    }
}

impl Sides {
    /// Adds what tasks may be in because of the patch in transition, if it replaces this function.
    fn add(&mut self, site: &SiteView, on_site: &[&Layer]) {
        let Some(index) = on_site.iter().position(|layer| layer.in_transition) else { return };
        let code = |layer: Option<&&Layer>| match layer {
            Some(layer) if !layer.nop => (layer.new, None),
            _ => (site.range, site.cold),
        };
        let (new, new_cold) = code(on_site.get(index));
        let (old, old_cold) = code(index.checked_sub(1).and_then(|below| on_site.get(below)));
        self.patched.extend(core::iter::once(new).chain(new_cold));
        self.unpatched.extend(core::iter::once(old).chain(old_cold));
    }
}
