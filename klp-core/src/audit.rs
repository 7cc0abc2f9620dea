//! An independent checker: recomputes from first principles what must hold on the simulated OS
//! between two operations.
//!
//! It believes the patches as their author wrote them and the engine's [`status`](Engine::status),
//! and nothing else of the engine: what sites, stacks of functions and tasks should be is worked
//! out here again and compared with the bytes in the simulated text.

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
    let mut audit = Audit {
        host: engine.host(),
        findings: Vec::new(),
    };
    match engine.status() {
        Ok(status) => audit.all(engine, &status),
        Err(error) => audit.find(format!("no status: {error}")),
    }
    if audit.findings.is_empty() {
        Ok(())
    } else {
        Err(audit.findings)
    }
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

    /// What runs instead, with its parts.
    fn code(&self, host: &SimOs) -> Vec<TextRange> {
        let mut code = host.parts_of(self.new);
        code.push(self.new);
        code
    }
}

/// What a patch has on the stacks of functions.
struct Active {
    replace: Replace,
    enabled: bool,
    /// It is in transition, perhaps as one with others.
    moves: bool,
    name: String,
    depends: Vec<String>,
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

/// Whether patch number `at` gives way to one of those in transition.
fn gives_way(active: &[Active], at: usize) -> bool {
    let mut newer = active[at + 1..].iter().filter(|new| new.moves);
    newer.any(|new| new.takes_the_place_of(&active[at]))
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
                let moves = known.transition.is_some();
                let layers = self.layers(patch, moves);
                let (name, replace) = (String::from(&**patch.name()), patch.replace());
                let depends = patch.depends().iter().map(|on| String::from(&**on));
                let depends = depends.collect();
                active.push(Active {
                    replace,
                    enabled: known.enabled,
                    moves,
                    name,
                    depends,
                    layers,
                });
            }
        });
        self.depends(&active);
        self.add_nops(&mut active);
        let stacked: Vec<&Layer> = active.iter().flat_map(|patch| &patch.layers).collect();
        let transition = status.iter().any(|patch| patch.transition.is_some());
        let mut sides = Sides::default();
        let mut settled = true;
        for site in self.host.site_views() {
            let on_site: Vec<&Layer> = stacked
                .iter()
                .copied()
                .filter(|layer| layer.old == site.range.start())
                .collect();
            settled &= self.site(&site, &on_site);
            sides.add(self.host, &site, &on_site);
        }
        // Sites may wait to be settled only if the engine said so.
        if !self.host.unsettled(settled && !transition) && !settled {
            self.find(String::from(
                "sites lead to the handler though no transition needs it",
            ));
        }
        // What is not there any more keeps nobody: other code may come to its place.
        let mut affected = Vec::new();
        engine.each_affected(|range| affected.push(range));
        for gone in self.host.code_that_is_gone() {
            let overlaps =
                |range: &TextRange| range.start() < gone.end() && gone.start() < range.end();
            if affected.iter().any(overlaps) {
                self.find(format!("tasks wait for code at {gone:?}, which is gone"));
            }
        }
        let replaced = (0..active.len())
            .filter(|at| gives_way(&active, *at))
            .map(|at| &active[at]);
        // Their versions count even where newer ones hide them.
        for layer in replaced.clone().flat_map(|patch| &patch.layers) {
            sides.unpatched.extend(layer.code(self.host));
        }
        self.coverage(&sides, &affected);
        // Code that belongs to no function comes and goes with its patch.
        for patch in replaced {
            sides.unpatched.extend(self.host.code_of(&patch.name));
        }
        for patch in active.iter().filter(|patch| patch.moves) {
            sides.patched.extend(self.host.code_of(&patch.name));
        }
        for task in self.host.task_views() {
            self.task(&task, transition, &sides);
        }
        for broken in self.host.mixes().into_iter().chain(self.host.violations()) {
            self.find(broken);
        }
    }

    fn status(&mut self, status: &[PatchStatus]) {
        let moving: Vec<_> = status
            .iter()
            .filter(|patch| patch.transition.is_some())
            .collect();
        if moving
            .windows(2)
            .any(|pair| pair[0].transition != pair[1].transition)
        {
            self.find(format!(
                "patches in one transition go different ways: {moving:?}"
            ));
        }
        for patch in moving {
            if patch.transition == Some(TaskState::Idle)
                || patch.enabled != (patch.transition == Some(TaskState::Patched))
            {
                self.find(format!(
                    "{patch:?}: enabled and transition contradict each other"
                ));
            }
        }
        for (index, patch) in status.iter().enumerate() {
            if status[..index]
                .iter()
                .any(|other| other.name == patch.name || other.id == patch.id)
            {
                self.find(format!("{patch:?} is there twice"));
            }
            let off = |patch: &PatchStatus| !patch.enabled && patch.transition.is_none();
            if !off(patch) && status[..index].iter().any(off) {
                self.find(format!(
                    "{patch:?} is enabled, but stands behind one that is not"
                ));
            }
        }
    }

    /// What an enabled patch depends on is enabled, stays as long as the patch, and moves only with
    /// it.
    fn depends(&mut self, active: &[Active]) {
        for (at, patch) in active.iter().enumerate().filter(|(_, patch)| patch.enabled) {
            for on in &patch.depends {
                let found = active.iter().position(|other| other.name == *on);
                let found = found.filter(|found| active[*found].enabled);
                let holds = found.is_some_and(|found| {
                    let goes_alone = gives_way(active, found) && !gives_way(active, at);
                    !goes_alone && (patch.moves || !active[found].moves)
                });
                if !holds {
                    self.find(format!(
                        "'{}' is enabled, but '{on}', on which it depends, is not there with it",
                        patch.name
                    ));
                }
            }
        }
    }

    /// What `patch` replaces in objects that are loaded.
    fn layers(&mut self, patch: &Patch, in_transition: bool) -> Vec<Layer> {
        let mut layers = Vec::new();
        for object in patch.objects() {
            for func in object.funcs() {
                let Some(old) = self
                    .host
                    .symbol(object.name(), func.old_name(), func.position())
                else {
                    continue;
                };
                match self.host.code_range(func.new_addr()) {
                    Some(new) => layers.push(Layer {
                        old,
                        new,
                        nop: false,
                        in_transition,
                    }),
                    None => self.find(format!("{}: no code at {}", patch.name(), func.new_addr())),
                }
            }
        }
        layers
    }

    /// Adds to the newest patch in transition what goes back to the original or to something older:
    /// functions whose newest version belongs to a patch that gives way.
    fn add_nops(&mut self, active: &mut [Active]) {
        let goes: Vec<bool> = (0..active.len()).map(|at| gives_way(active, at)).collect();
        let mut nops: Vec<Layer> = Vec::new();
        for layer in (0..active.len())
            .filter(|at| goes[*at])
            .flat_map(|at| &active[at].layers)
        {
            let versions = (0..active.len())
                .rev()
                .flat_map(|at| active[at].layers.iter().map(move |layer| (at, layer)));
            let mut versions = versions.filter(|(_, version)| version.old == layer.old);
            if !versions.next().is_some_and(|(at, _)| goes[at])
                || nops.iter().any(|nop| nop.old == layer.old)
            {
                continue;
            }
            let old = layer.old;
            match versions
                .find(|(at, _)| !goes[*at])
                .map(|(_, below)| (below.new, below.nop))
            {
                Some((new, nop)) => nops.push(Layer {
                    old,
                    new,
                    nop,
                    in_transition: true,
                }),
                None => match self.host.code_range(old) {
                    Some(new) => nops.push(Layer {
                        old,
                        new,
                        nop: true,
                        in_transition: true,
                    }),
                    None => self.find(format!("no function at {}", layer.old)),
                },
            }
        }
        if let Some(newest) = active.iter_mut().rfind(|patch| patch.moves) {
            newest.layers.append(&mut nops);
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
        let below = on_site
            .iter()
            .rev()
            .find(|layer| !layer.in_transition)
            .map_or(original, |below| below.target(original));
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
                        self.find(format!(
                            "{name}: the handler says {answer} for {state:?}, not {expected}"
                        ));
                    }
                }
                let expected: Vec<_> = on_site
                    .iter()
                    .rev()
                    .map(|layer| layer.new.start())
                    .collect();
                if layers(arg) != expected {
                    self.find(format!(
                        "{name}: functions stacked {:?}, not {expected:?}",
                        layers(arg)
                    ));
                }
                return moving;
            }
            Lead::Original if !moving && top.is_none() => {}
            Lead::Direct(to) if !moving && top.is_some() && to == new => {}
            lead => self.find(format!(
                "{name} leads to {lead:?}; in transition: {moving}, newest: {new}"
            )),
        }
        true
    }

    /// All code of `sides` keeps tasks from moving, whether one is there or not: it is `affected`,
    /// unless that waits to be worked out.
    fn coverage(&mut self, sides: &Sides, affected: &[TextRange]) {
        if affected.is_empty() {
            return;
        }
        for range in sides.unpatched.iter().chain(&sides.patched) {
            let mut at = range.start();
            while range.contains(at) {
                match affected.iter().find(|kept| kept.contains(at)) {
                    Some(kept) => at = kept.end(),
                    None => {
                        self.find(format!("code of {range:?} keeps no task at {at}"));
                        break;
                    }
                }
            }
        }
    }

    fn task(&mut self, task: &TaskView, transition: bool, sides: &Sides) {
        if (task.state != TaskState::Idle) != transition {
            self.find(format!(
                "task {} is {:?}; transition: {transition}",
                task.id.0, task.state
            ));
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
                self.find(format!(
                    "task {} is {:?}, but has code of the other side at {place}",
                    task.id.0, task.state
                ));
            }
        }
    }
}

impl Sides {
    /// Adds what tasks may be in because of the patches in transition, if they replace this
    /// function: its versions with their parts. What else belongs to a patch that stays may be on
    /// both sides: other functions of it go there, too.
    fn add(&mut self, host: &SimOs, site: &SiteView, on_site: &[&Layer]) {
        let code = |layer: Option<&&Layer>| match layer {
            Some(layer) if !layer.nop => layer.code(host),
            _ => core::iter::once(site.range)
                .chain(site.cold.iter().copied())
                .collect(),
        };
        for (index, layer) in on_site
            .iter()
            .enumerate()
            .filter(|(_, layer)| layer.in_transition)
        {
            self.patched.extend(code(Some(layer)));
            self.unpatched.extend(code(
                on_site[..index]
                    .iter()
                    .rev()
                    .find(|below| !below.in_transition),
            ));
        }
    }
}
