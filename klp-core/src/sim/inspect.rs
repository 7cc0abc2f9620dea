//! What [`crate::audit`] reads from the simulated system.

use super::SimOs;
use super::machine::{INSN, Insn};
use super::object::{Function, Pad, STUB};
use super::shared::World;
use crate::addr::{CodeAddr, TextRange};
use crate::ops::{self, Ops};
use crate::port::{TaskId, TaskState};
use alloc::string::String;
use alloc::vec::Vec;

/// Where a site leads, as the bytes in the text say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lead {
    /// To the function behind it: its bytes are as they were built.
    Original,
    /// Straight to this address, perhaps through a veneer.
    Direct(CodeAddr),
    /// To the handler, with this argument.
    Handler(u64),
    /// Nobody knows.
    Broken,
}

/// A function with its site, as it stands.
#[derive(Debug)]
pub(crate) struct SiteView {
    pub(crate) object: String,
    pub(crate) name: String,
    /// The whole function.
    pub(crate) range: TextRange,
    pub(crate) cold: Vec<TextRange>,
    pub(crate) lead: Lead,
    /// Whether every byte behind the site is as it was built.
    pub(crate) body_intact: bool,
}

impl SiteView {
    /// The first instruction behind the site.
    pub(crate) fn body(&self) -> CodeAddr {
        self.range.start().wrapping_add(INSN)
    }
}

/// A task, as it stands.
#[derive(Debug)]
pub(crate) struct TaskView {
    pub(crate) id: TaskId,
    pub(crate) state: TaskState,
    /// A forced transition caught it.
    pub(crate) excused: bool,
    /// Code that it is in, will go to without a further decision, or will return to.
    pub(crate) places: Vec<CodeAddr>,
}

/// Where a run of the handler by a task in `state` goes.
pub(crate) fn ask_handler(arg: u64, state: TaskState) -> CodeAddr {
    // SAFETY: the argument stands in a thunk that the engine's tracer wrote; the engine does not
    // run.
    unsafe { ops::handler(arg, || state) }
}

/// Everything on the stack of functions that the handler reads, newest first.
pub(crate) fn layers(arg: u64) -> Vec<CodeAddr> {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "it was a pointer of this machine"
    )]
    let ops = core::ptr::with_exposed_provenance::<Ops>(arg as usize);
    // SAFETY: as in `ask_handler`; an ops lives for ever.
    let nodes = unsafe { (*ops).stack().peek() };
    nodes.map(|node| node.range().start()).collect()
}

impl World {
    pub(super) fn lead(&self, function: &Function) -> Lead {
        let site = function.range.start();
        let insn = Insn::decode(self.memory.word(site));
        let to = match (function.pad, insn) {
            (Pad::None, _) | (_, Some(Insn::Nop)) => return Lead::Original,
            (Pad::Split, Some(Insn::ShortNop)) => return Lead::Original,
            (_, Some(Insn::Jump(to))) => to,
            _ => return Lead::Broken,
        };
        if self.code_at(to).is_some() {
            return Lead::Direct(to);
        }
        let next = to.wrapping_add(INSN);
        match (
            Insn::decode(self.memory.word(to)),
            Insn::decode(self.memory.word(next)),
        ) {
            (Some(Insn::Arg(arg)), Some(Insn::Jump(STUB))) => Lead::Handler(arg),
            (Some(Insn::Jump(far)), _) => Lead::Direct(far),
            _ => Lead::Broken,
        }
    }

    fn view(&self, function: &Function) -> SiteView {
        let range = function.range;
        let site = if function.pad == Pad::None { 0 } else { INSN };
        let built = function.built();
        let body = usize::try_from(site)
            .ok()
            .and_then(|site| Some((site, built.get(site..)?)));
        let body_intact = body.is_some_and(|(site, built)| {
            self.memory
                .bytes(range.start().wrapping_add(site as u64), built.len())
                == Some(built)
        });
        SiteView {
            object: self.modules[function.object].name.clone(),
            name: function.name.clone(),
            range,
            cold: function.cold.clone(),
            lead: self.lead(function),
            body_intact,
        }
    }
}

impl SimOs {
    pub(crate) fn site_views(&self) -> Vec<SiteView> {
        let world = self.shared.world();
        let mapped = world
            .functions
            .iter()
            .filter(|function| world.modules[function.object].is_loaded());
        mapped.map(|function| world.view(function)).collect()
    }

    pub(crate) fn task_views(&self) -> Vec<TaskView> {
        let world = self.shared.world();
        let is_site = |place: &CodeAddr| {
            world
                .functions
                .iter()
                .any(|function| function.range.start() == *place)
        };
        let view = |(id, task): (&TaskId, &super::task::Task)| {
            // At an entry nothing is decided yet; in a veneer everything is.
            let mut places: Vec<_> = task.places().filter(|place| !is_site(place)).collect();
            match Insn::decode(world.memory.word(task.pc)) {
                Some(Insn::Jump(to)) if world.code_at(task.pc).is_none() && to != STUB => {
                    places.push(to)
                }
                _ => {}
            }
            TaskView {
                id: *id,
                state: task.state,
                excused: task.excused,
                places,
            }
        };
        world.tasks.iter().map(view).collect()
    }

    /// The `position`-th symbol (from 1; 0 means the first) called `name` of a loaded object.
    pub(crate) fn symbol(&self, object: &str, name: &str, position: u32) -> Option<CodeAddr> {
        let world = self.shared.world();
        let module = world
            .modules
            .iter()
            .find(|module| module.is_loaded() && module.name == object)?;
        let nth = (position.max(1) - 1) as usize;
        module.symbols_called(name).nth(nth)
    }

    /// All code of `patch`.
    pub(crate) fn code_of(&self, patch: &str) -> Vec<TextRange> {
        let world = self.shared.world();
        let code = world
            .code
            .values()
            .filter(|code| code.patch.as_deref() == Some(patch));
        code.map(|code| code.range).collect()
    }

    /// The parts that were split off `func`.
    pub(crate) fn parts_of(&self, func: TextRange) -> Vec<TextRange> {
        let world = self.shared.world();
        let parts = world
            .code
            .values()
            .filter(|code| code.part_of == Some(func.start()));
        parts.map(|code| code.range).collect()
    }

    /// Where functions of objects were that are not loaded.
    pub(crate) fn code_that_is_gone(&self) -> Vec<TextRange> {
        let world = self.shared.world();
        let gone = world
            .functions
            .iter()
            .filter(|function| !world.modules[function.object].is_loaded());
        gone.flat_map(|function| function.cold.iter().copied().chain([function.range]))
            .collect()
    }

    /// The code that `addr` lies in.
    pub(crate) fn code_range(&self, addr: CodeAddr) -> Option<TextRange> {
        self.shared.world().code_at(addr).map(|code| code.range)
    }

    /// Whether the engine said that sites are not settled; it is forgotten if `forget`.
    pub(crate) fn unsettled(&self, forget: bool) -> bool {
        let mut world = self.shared.world();
        let unsettled = world.unsettled;
        world.unsettled &= !forget;
        unsettled
    }
}
