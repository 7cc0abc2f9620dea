//! Modules that are loaded and unloaded while the system runs, as a kernel's module loader does it.
//!
//! A module that comes back stands at another address, with every byte as it was built.

use super::SimOs;
use super::machine::Insn;
use super::object::{SimFunc, part_name};
use super::shared::{Shared, World};
use crate::addr::{CodeAddr, TextRange};
use crate::engine::Engine;
use crate::error::Error;
use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// Where a module may stand, from its base: it goes round.
const PLACES: [u64; 3] = [0, 0x2_0000, 0x4_0000];

/// How far a module is (kernel: `enum module_state`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModuleState {
    /// Its text and its symbols are not there.
    Unloaded,
    /// They are; none of its functions has been called yet.
    Coming,
    /// Its functions may be called.
    Live,
    /// They may not any more.
    Going,
}

impl fmt::Display for ModuleState {
    /// What livepatch's sample callbacks say of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unloaded => "[MODULE_STATE_UNFORMED] Still setting it up",
            Self::Coming => "[MODULE_STATE_COMING] Full formed, running module_init",
            Self::Live => "[MODULE_STATE_LIVE] Normal state",
            Self::Going => "[MODULE_STATE_GOING] Going away",
        })
    }
}

/// The system's own loader, where patches are concerned.
impl Shared {
    pub(super) fn apply_relocs(&self, patch: &str, object: &str) -> Result<(), Error> {
        if !self.world().own_loader {
            return Ok(());
        }
        let _inside = self
            .enter("Platform::apply_relocs")
            .map_err(|error| Error::port("relocating", patch, &error))?;
        let mut world = self.world();
        if !world.relocated.insert((patch.into(), object.into())) {
            world.violation(format!("'{patch}' is relocated for '{object}' twice"));
        }
        Ok(())
    }

    pub(super) fn clear_relocs(&self, patch: &str, object: &str) {
        if !self.world().own_loader {
            return;
        }
        let _inside = self.inside();
        let mut world = self.world();
        if !world.relocated.remove(&(patch.into(), object.into())) {
            world.violation(format!("'{patch}' is not relocated for '{object}'"));
        }
    }
}

/// Loads a module: maps it, lets `engine` patch it, and only then lets tasks call it.
///
/// # Errors
///
/// The engine's, if it refuses the module, which is not loaded then.
pub fn insmod(engine: &Engine<SimOs>, module: &str) -> Result<(), Error> {
    let shared = &engine.host().shared;
    let inside = shared.inside();
    shared.world().map(module);
    let coming = inside.outside(|| {
        // SAFETY: tasks do not call a module before it is live; they are simulated, too.
        unsafe { engine.object_coming(module) }
    });
    match coming {
        Ok(()) => shared.world().set_module(module, ModuleState::Live),
        Err(_) => shared.world().unmap(module),
    }
    coming
}

/// Unloads a module: lets `engine` take its patches back, then unmaps it. Says `false`, and does
/// nothing, if it is not loaded or a task is in it.
pub fn rmmod(engine: &Engine<SimOs>, module: &str) -> bool {
    let shared = &engine.host().shared;
    let inside = shared.inside();
    {
        let mut world = shared.world();
        if world.module_state(module) != ModuleState::Live || world.is_in_use(module) {
            return false;
        }
        world.set_module(module, ModuleState::Going);
    }
    inside.outside(|| {
        // SAFETY: no task is in it, and none calls one that is going.
        unsafe { engine.object_going(module) }
    });
    shared.world().unmap(module);
    true
}

/// Somewhere to write lines to, beside the engine's; for callbacks.
#[derive(Clone, Debug)]
pub struct Console(pub(super) Arc<Shared>);

impl Console {
    /// Adds a line to the log.
    pub fn say(&self, line: &str) {
        let _inside = self.0.inside();
        self.0.world().transcript.push(line.to_string());
    }

    /// How far a module is.
    #[must_use]
    pub fn module_state(&self, module: &str) -> ModuleState {
        self.0.world().module_state(module)
    }
}

impl World {
    pub(super) fn module_state(&self, name: &str) -> ModuleState {
        self.modules
            .iter()
            .find(|module| module.name == name)
            .map_or(ModuleState::Unloaded, |module| module.state)
    }

    pub(super) fn set_module(&mut self, name: &str, state: ModuleState) {
        let index = self.module(name);
        self.modules[index].state = state;
    }

    /// Whether a task is in one of its functions, in what replaces one, or will return there.
    pub(super) fn is_in_use(&self, name: &str) -> bool {
        let within = |func: SimFunc| self.modules[self.functions[func.0].object].name == name;
        let code = |place| self.code_at(place).and_then(|code| code.func);
        self.tasks.values().any(|task| {
            task.frames.iter().any(|(_, func)| within(*func))
                || task.calling.is_some_and(within)
                || task.places().filter_map(code).any(within)
        })
    }

    /// Whether `func` is there to be called.
    pub(super) fn is_live(&self, func: SimFunc) -> bool {
        self.modules[self.functions[func.0].object].state == ModuleState::Live
    }

    /// Makes a module's text and symbols appear, at the next of its places.
    pub(super) fn map(&mut self, name: &str) {
        let index = self.module(name);
        let module = &mut self.modules[index];
        if module.state != ModuleState::Unloaded {
            return self.violation(alloc::format!("module '{name}' is loaded twice"));
        }
        module.state = ModuleState::Coming;
        let from = PLACES[module.loads % PLACES.len()];
        module.loads += 1;
        let to = PLACES[module.loads % PLACES.len()];
        let moved = |at: CodeAddr| at.wrapping_sub(from).wrapping_add(to);
        for (_, symbol) in &mut module.symbols {
            symbol.addr = moved(symbol.addr);
        }
        module.next = module.next - from + to;
        let shift =
            |range: TextRange| TextRange::new(moved(range.start()), range.len()).unwrap_or(range);
        for func in 0..self.functions.len() {
            if self.functions[func].object == index {
                let function = &mut self.functions[func];
                function.range = shift(function.range);
                function
                    .cold
                    .iter_mut()
                    .for_each(|part| *part = shift(*part));
                self.map_function(SimFunc(func));
            }
        }
    }

    /// Makes a module's text and symbols disappear.
    pub(super) fn unmap(&mut self, name: &str) {
        let index = self.module(name);
        self.modules[index].state = ModuleState::Unloaded;
        let parts: Vec<TextRange> = self
            .functions
            .iter()
            .filter(|function| function.object == index)
            .flat_map(|function| {
                core::iter::once(function.range).chain(function.cold.iter().copied())
            })
            .collect();
        for part in parts {
            self.forbid_tasks_in(part, "unmapped");
            self.memory.unmap(part.start());
            self.code.remove(&part.start());
        }
    }

    /// Maps the text of a function, as it was built.
    pub(super) fn map_function(&mut self, func: SimFunc) {
        let function = self.functions[func.0].clone();
        self.memory.map(function.range.start(), function.built());
        self.define(&function.name, function.range, Some(func), None, None);
        for (number, cold) in function.cold.iter().enumerate() {
            self.memory.map(cold.start(), Insn::Body.encode().to_vec());
            self.define(
                &part_name(&function.name, number),
                *cold,
                Some(func),
                None,
                Some(function.range.start()),
            );
        }
    }
}
