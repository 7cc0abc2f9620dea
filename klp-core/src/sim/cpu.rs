//! Tasks run: calls, single instructions, returns.

use super::machine::{INSN, Insn};
use super::object::{Code, REST, SimFunc};
use super::shared::{Phase, Shared, World};
use super::task::Sleep;
use crate::addr::CodeAddr;
use crate::ops;
use crate::port::{Frame, FrameKind, TaskId, TaskState};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Steps after which a call that has reached no body counts as lost.
const MAX_STEPS: usize = 32;
/// Frames that a task may have.
const MAX_DEPTH: usize = 8;

/// What came of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The task went one instruction on.
    Moved,
    /// It is in the body of a function, or at rest: it waits to be told to call or to return.
    InBody,
    /// It is asleep, gone, or lost.
    Stuck,
}

impl World {
    fn awake(&self, id: TaskId) -> bool {
        self.tasks
            .get(&id)
            .is_some_and(|task| task.sleep == Sleep::Awake)
    }

    fn insn(&self, at: CodeAddr) -> Option<Insn> {
        Insn::decode(self.memory.word(at))
    }

    /// Whether a task that is awake is in a body; a call that got it there has arrived.
    fn in_body(&mut self, id: TaskId) -> bool {
        let in_body = self.awake(id)
            && self
                .tasks
                .get(&id)
                .is_some_and(|task| self.insn(task.pc) == Some(Insn::Body));
        if in_body {
            self.arrive(id);
        }
        in_body
    }

    /// Puts a task at the entry of `func`. Fails if it is not in a body, asleep, or too deep,
    /// and if the function's module is not loaded.
    pub(super) fn begin_call(&mut self, id: TaskId, func: SimFunc) -> bool {
        let entry = self.functions[func.0].range.start();
        let ready = self.is_live(func) && self.in_body(id);
        match self.tasks.get_mut(&id) {
            Some(task) if ready && task.frames.len() < MAX_DEPTH => {
                task.frames.push((task.pc.wrapping_add(INSN), func));
                task.calling = Some(func);
                task.jumped = false;
                task.pc = entry;
                self.hit_probes(func);
                true
            }
            _ => false,
        }
    }

    /// Leaves the innermost function.
    pub(super) fn leave(&mut self, id: TaskId) -> bool {
        let ready = self.in_body(id);
        let Some(task) = self.tasks.get_mut(&id).filter(|_| ready) else {
            return false;
        };
        let Some((back, _)) = task.frames.pop() else {
            return false;
        };
        // The instruction that called: the one behind it may be in another function.
        task.pc = back.wrapping_sub(INSN);
        let depth = task.frames.len();
        task.spans.retain(|_, span| span.depth <= depth);
        task.excused &= depth > 0;
        true
    }

    /// Goes to the next part of the function that the task is in, if that has one.
    pub(super) fn go_cold(&mut self, id: TaskId) -> bool {
        self.go_to(id, |here, code| {
            let main = here.part_of.unwrap_or(here.range.start());
            code.part_of == Some(main) && code.range.start() > here.range.start()
        })
    }

    /// Goes to code of the patch whose function the task is in that replaces nothing.
    pub(super) fn go_helper(&mut self, id: TaskId) -> bool {
        self.go_to(id, |here, code| {
            code.func.is_none() && here.patch.is_some() && code.patch == here.patch
        })
    }

    /// Where a task is, if that is the body of a function.
    fn pc_in_body(&mut self, id: TaskId) -> Option<CodeAddr> {
        let inside = self.in_body(id);
        self.tasks.get(&id).filter(|_| inside).map(|task| task.pc)
    }

    /// Goes to the first code that is `wanted` from the code that the task is in.
    fn go_to(&mut self, id: TaskId, wanted: impl Fn(&Code, &Code) -> bool) -> bool {
        let Some(here) = self.pc_in_body(id).and_then(|pc| self.code_at(pc)) else {
            return false;
        };
        let to = self
            .code
            .values()
            .find(|code| wanted(here, code))
            .map(|code| code.range.start());
        if let (Some(to), Some(task)) = (to, self.tasks.get_mut(&id)) {
            task.pc = to;
        }
        to.is_some()
    }

    /// Puts a task at the jump, number `number`, in which the function that it is in may end. If
    /// the code does not tell where that goes, it goes to `func`.
    pub(super) fn begin_end(&mut self, id: TaskId, number: usize, func: SimFunc) -> bool {
        let Some(code) = self.pc_in_body(id).and_then(|pc| self.code_at(pc)) else {
            return false;
        };
        let site = u64::from(code.patch.is_none() && code.part_of.is_none());
        let places =
            (site..code.range.len() / INSN).map(|at| code.range.start().wrapping_add(at * INSN));
        let ends = places.filter_map(|at| match self.insn(at) {
            Some(Insn::Jump(to)) => Some((at, self.code_at(to)?.func?)),
            Some(Insn::JumpAnywhere) => Some((at, func)),
            _ => None,
        });
        let ends: Vec<_> = ends.filter(|(_, func)| self.is_live(*func)).collect();
        let Some((at, to)) = ends.get(number % ends.len().max(1)).copied() else {
            return false;
        };
        let entry = self.functions[to.0].range.start();
        if let Some(task) = self.tasks.get_mut(&id) {
            task.pc = at;
            task.calling = Some(to);
            task.jumped = true;
            task.anywhere = Some(entry);
        }
        self.hit_probes(to);
        true
    }

    /// A task that calls an affected function moves, if nothing below the call keeps it.
    fn switch_itself(&mut self, id: TaskId) {
        let (Some(lent), Phase::Moving(target)) = (&self.lent, self.phase) else {
            return;
        };
        let Some(task) = self
            .tasks
            .get(&id)
            .filter(|task| task.state != target && task.doubt.is_none())
        else {
            return;
        };
        let called = task.frames.iter().map(|(_, func)| self.called(*func));
        // Of the call that led here, nothing is to be asked.
        let called = called
            .take(task.frames.len().saturating_sub(1))
            .chain([None]);
        let keeps = |pc, called| {
            lent.check().keeps(
                target,
                Frame {
                    pc,
                    kind: FrameKind::Call,
                },
                called,
            )
        };
        if self.self_switching
            && !task
                .frames
                .iter()
                .zip(called)
                .any(|((pc, _), called)| keeps(*pc, called))
        {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.state = target;
            }
        }
    }

    /// The body of the function that is being called was reached.
    fn arrive(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else {
            return;
        };
        let Some(called) = task.calling.take() else {
            return;
        };
        let (pc, excused) = (task.pc, task.excused);
        let code = self
            .code_at(pc)
            .filter(|code| code.func == Some(called))
            .cloned();
        let Some(code) = code else {
            return self.violation(format!("task {}: a call of {called:?} ended at {pc}", id.0));
        };
        if !excused {
            self.check_versions(id, called, code.patch.as_deref());
        }
    }
}

impl Shared {
    /// One instruction of `id`.
    pub(super) fn step(&self, id: TaskId) -> Step {
        let mut world = self.world();
        if !world.awake(id) {
            return Step::Stuck;
        }
        let Some(pc) = world.tasks.get(&id).map(|task| task.pc) else {
            return Step::Stuck;
        };
        let Some(insn) = world.insn(pc) else {
            world.violation(format!(
                "task {} executes what is no instruction at {pc}",
                id.0
            ));
            return Step::Stuck;
        };
        if insn == Insn::Body {
            world.arrive(id);
            return Step::InBody;
        }
        let Some(task) = world.tasks.get_mut(&id) else {
            return Step::Stuck;
        };
        match insn {
            Insn::Nop => task.pc = pc.wrapping_add(INSN),
            Insn::ShortNop => task.pc = pc.wrapping_add(1),
            Insn::Jump(to) => task.pc = to,
            Insn::JumpAnywhere => task.pc = task.anywhere.take().unwrap_or(REST),
            Insn::Arg(arg) => {
                task.arg = arg;
                task.pc = pc.wrapping_add(INSN);
            }
            Insn::Stub => {
                task.pc = pc.wrapping_add(INSN);
                let arg = task.arg;
                let to = self.run_handler(world, id, arg);
                if let Some(task) = self.world().tasks.get_mut(&id) {
                    task.chosen = Some(to);
                }
            }
            Insn::Go => task.pc = task.chosen.take().unwrap_or(REST),
            Insn::Break => return Step::Stuck,
            Insn::Body => {}
        }
        Step::Moved
    }

    /// The real handler, on behalf of `id`, with the world unlocked.
    fn run_handler(
        &self,
        mut world: spin::MutexGuard<'_, World>,
        id: TaskId,
        arg: u64,
    ) -> CodeAddr {
        world.current = Some(id);
        let callee = world
            .tasks
            .get(&id)
            .and_then(|task| task.frames.last())
            .map(|(_, func)| *func);
        let called = callee.and_then(|func| world.called(func));
        // SAFETY: as below.
        world.may_switch = unsafe { ops::may_switch(arg, || called) };
        drop(world);
        // SAFETY: a thunk that the engine's tracer wrote has loaded `arg`. The run is one step of
        // the simulation: it ends before anybody can ask `synchronize` about it.
        unsafe { ops::handler(arg, || self.current_state()) }
    }

    /// The state of the task whose call of the handler runs, which may switch itself first.
    pub(super) fn current_state(&self) -> TaskState {
        let mut world = self.world();
        let Some(id) = world.current else {
            return TaskState::Idle;
        };
        if world.may_switch {
            world.switch_itself(id);
        }
        world
            .tasks
            .get(&id)
            .map_or(TaskState::Idle, |task| task.state)
    }

    /// Steps until `id` is in a body.
    pub(super) fn run(&self, id: TaskId) -> bool {
        for _ in 0..MAX_STEPS {
            match self.step(id) {
                Step::Moved => {}
                Step::InBody => return true,
                Step::Stuck => return false,
            }
        }
        self.world().violation(format!("task {} is lost", id.0));
        false
    }

    /// Which code `id` is in: a function by its name, a replacement as `PATCH_FUNCTION`.
    pub(super) fn whereabouts(&self, id: TaskId) -> String {
        let world = self.world();
        let code = world.tasks.get(&id).and_then(|task| world.code_at(task.pc));
        code.map_or_else(|| String::from("nowhere"), |code| code.name.clone())
    }
}
