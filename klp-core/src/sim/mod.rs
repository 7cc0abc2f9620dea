//! A simulated operating system: every port of the engine on data that a test can look at.
//!
//! There is one toy machine (see [`machine`]) with a text segment of bytes. Tasks execute it
//! instruction by instruction: a call fetches what stands at the function's entry, follows jumps,
//! thunks and veneers, and in the entry stub runs the real [`ops::handler`](crate::ops::handler). A
//! test can hold a call at any instruction, let tasks run [inside every port
//! call](SimOs::make_noise), make [any port call fail](SimOs::fail_at), and read the engine's log.
//! [`crate::audit`] recomputes from all this what must hold.
//!
//! The simulated OS itself allocates as it likes; [`SimOs::watch_border`] tells its allocations
//! from the engine's. One thread at a time drives it.

#![allow(
    clippy::missing_panics_doc,
    reason = "handles of one simulated OS, used with another, are a mistake in a test"
)]

mod chance;
mod cpu;
mod fault;
pub(crate) mod inspect;
mod loader;
mod lock;
pub mod machine;
mod memory;
mod object;
mod probe;
pub mod relocator;
mod shared;
mod task;
mod versions;

pub use chance::Chance;
pub use cpu::Step;
pub use fault::SimError;
pub use loader::{Console, ModuleState, insmod, rmmod};
pub use lock::SimLock;
pub use memory::SimText;
pub use object::{End, Pad, Place, SimEntries, SimFunc, SimSymbols};
pub use probe::Claim;
pub use task::{SimContext, SimTasks, SimUnwinder, Sleep};

use crate::addr::{CodeAddr, TextRange};
use crate::engine::{Engine, PatchId, Poll};
use crate::error::{Error, PatchReason};
use crate::event::Event;
use crate::mem::OutOfMemory;
use crate::model::{Func, Patch};
use crate::port::{Doubt, EntryTracer, Image, Platform, Reason, TaskId, TaskState};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use chance::Noise;
use core::any::TypeId;
use inspect::Lead;
use machine::{Insn, SimArch};
use object::REST;
use relocator::SimRelocator;
use shared::Shared;

/// The tracer of the simulated OS: the engine's own, on simulated text.
pub type SimTracer = EntryTracer<SimArch, SimText, SimEntries>;

/// Replaces the function called `old_name` by the one that occupies `new` in a simulated system.
/// Only such a system executes it, where code can do no harm, so this needs no promise; the engine
/// of any other host refuses a patch with it.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn func(old_name: &str, new: TextRange) -> Result<Func, OutOfMemory> {
    // SAFETY: `check` keeps it out of systems that it could harm.
    let mut func = unsafe { Func::with_range(old_name, new) }?;
    func.simulated = true;
    Ok(func)
}

/// The same by the function at `new`, whose size the symbol tables tell.
///
/// # Errors
///
/// [`OutOfMemory`].
pub fn func_at(old_name: &str, new: CodeAddr) -> Result<Func, OutOfMemory> {
    // SAFETY: as in `func`.
    let mut func = unsafe { Func::new(old_name, new) }?;
    func.simulated = true;
    Ok(func)
}

/// Refuses a patch with simulated code on a host whose text is not simulated.
pub(crate) fn check<P: Platform>(patch: &Patch) -> Result<(), Error> {
    if TypeId::of::<P::Text>() == TypeId::of::<SimText>() {
        return Ok(());
    }
    for object in patch.objects() {
        if let Some(func) = object.funcs().iter().find(|func| func.simulated) {
            let (object, func) = (Some(&**object.name()), Some(&**func.old_name()));
            return Err(Error::patch(
                patch.name(),
                object,
                func,
                PatchReason::Simulated,
            ));
        }
    }
    Ok(())
}

/// [`Engine::force`] without the promise: a simulated task that is in the midst of two versions
/// harms nothing.
///
/// # Errors
///
/// As there.
pub fn force(engine: &Engine<SimOs>, id: PatchId) -> Result<Poll, Error> {
    // SAFETY: the tasks are simulated.
    unsafe { engine.force(id) }
}

/// The simulated OS.
#[derive(Debug)]
pub struct SimOs {
    shared: Arc<Shared>,
    tracer: SimTracer,
    text: SimText,
    tasks: SimTasks,
    symbols: SimSymbols,
    unwinder: SimUnwinder,
}

// SAFETY: all of it is one simulated system.
unsafe impl Platform for SimOs {
    type Lock = SimLock;
    type Tracer = SimTracer;
    type Unwinder = SimUnwinder;
    type Tasks = SimTasks;
    type Symbols = SimSymbols;
    type Text = SimText;
    type Arch = SimArch;
    type Relocator = SimRelocator;

    fn tracer(&self) -> &SimTracer {
        &self.tracer
    }
    fn unwinder(&self) -> &SimUnwinder {
        &self.unwinder
    }
    fn tasks(&self) -> &SimTasks {
        &self.tasks
    }
    fn symbols(&self) -> &SimSymbols {
        &self.symbols
    }
    fn text(&self) -> &SimText {
        &self.text
    }
    fn self_switch(&self) -> Option<&dyn crate::port::SelfSwitch> {
        Some(&self.tasks)
    }

    unsafe fn apply_relocs(&self, patch: &str, object: &str) -> Result<(), Error> {
        self.shared.apply_relocs(patch, object)
    }

    unsafe fn clear_relocs(&self, patch: &str, object: &str) {
        self.shared.clear_relocs(patch, object);
    }

    /// One thread at a time drives the system.
    fn caller(&self) -> u64 {
        1
    }

    fn event(&self, event: &Event<'_>) {
        let _inside = self.shared.inside();
        let mut world = self.shared.world();
        world.follow(event);
        world.transcript.push(event.to_string());
    }
}

impl Default for SimOs {
    fn default() -> Self {
        Self::new()
    }
}

/// The system and what is in it.
impl SimOs {
    /// A system with an empty base image and no task.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared::new();
        shared.world().boot();
        let text = SimText(shared.clone());
        Self {
            tracer: EntryTracer::new(text.clone(), SimEntries(shared.clone())),
            text,
            tasks: SimTasks(shared.clone()),
            symbols: SimSymbols(shared.clone()),
            unwinder: SimUnwinder(shared.clone()),
            shared,
        }
    }

    /// Adds a function to `object`, which is made if it is new.
    pub fn function(&self, object: &str, name: &str) -> SimFunc {
        self.function_with(object, name, Pad::Whole)
    }

    /// Adds a function with that kind of entry.
    pub fn function_with(&self, object: &str, name: &str, pad: Pad) -> SimFunc {
        self.shared.world().function(object, name, pad, &[])
    }

    /// Adds a function that may end in jumps.
    pub fn function_ending(&self, object: &str, name: &str, pad: Pad, ends: &[End]) -> SimFunc {
        self.shared.world().function(object, name, pad, ends)
    }

    /// Gives `func` a second name in its object.
    pub fn alias(&self, func: SimFunc, name: &str) {
        let mut world = self.shared.world();
        let (object, range) = (
            world.functions[func.0].object,
            world.functions[func.0].range,
        );
        world.symbol(object, name, range, range.len());
    }

    /// Adds a symbol to `object` that has `func`'s address, but no size.
    pub fn sizeless_alias(&self, func: SimFunc, name: &str) {
        let mut world = self.shared.world();
        let (object, range) = (
            world.functions[func.0].object,
            world.functions[func.0].range,
        );
        world.symbol(object, name, range, 0);
    }

    /// Splits an unlikely part off `func`: `NAME.cold`, and, at further calls, `NAME.cold.N`.
    pub fn cold_part(&self, func: SimFunc) {
        self.shared.world().cold_part(func);
    }

    /// Marks `func` as one that must not be redirected.
    pub fn notrace(&self, func: SimFunc) {
        self.shared.world().functions[func.0].notrace = true;
    }

    /// Has callers of `func` count on a register that no other function gives back.
    pub fn counted_on(&self, func: SimFunc) {
        self.shared.world().functions[func.0].counted_on = true;
    }

    /// Has `func` called through a pointer only: who looks at a call of it does not see where it
    /// went.
    pub fn by_pointer(&self, func: SimFunc) {
        self.shared.world().functions[func.0].by_pointer = true;
    }

    /// Lets the linker of patches bind new code to `name`, wherever that is.
    pub fn export(&self, name: &str) {
        let mut world = self.shared.world();
        for module in &mut world.modules {
            if module.symbols_called(name).next().is_some() {
                module.exports.push(name.to_string());
            }
        }
    }

    /// Makes `object` the build with this build-id.
    pub fn set_build_id(&self, object: &str, id: &[u8]) {
        let mut world = self.shared.world();
        let mut modules = world.modules.iter_mut();
        if let Some(module) = modules.find(|module| module.name == object) {
            module.build_id = Some(id.to_vec());
        }
    }

    /// Takes an object away that no engine knows yet: [`insmod`] brings it.
    pub fn not_loaded(&self, object: &str) {
        self.shared.world().unmap(object);
    }

    /// From now on the system's own loader relocates patches, too, as the Linux kernel's does.
    pub fn relocate_patches(&self) {
        self.shared.world().own_loader = true;
    }

    /// Whether the system's own loader has relocated `patch` for `object`.
    #[must_use]
    pub fn is_relocated(&self, patch: &str, object: &str) -> bool {
        let key = (patch.to_string(), object.to_string());
        self.shared.world().relocated.contains(&key)
    }

    /// Veneers of `func`'s site that nobody needs: the site leads elsewhere, and not to the
    /// handler.
    #[must_use]
    pub fn spare_veneers(&self, func: SimFunc) -> usize {
        let site = {
            let world = self.shared.world();
            let function = &world.functions[func.0];
            let settled = !matches!(world.lead(function), Lead::Handler(_));
            settled.then(|| function.range.start())
        };
        site.map_or(0, |site| self.tracer.spare_veneers(site))
    }

    /// Where callbacks write their lines to.
    #[must_use]
    pub fn console(&self) -> Console {
        Console(self.shared.clone())
    }

    /// Maps new code for `func`; the patch called `patch` is going to use it.
    pub fn replacement(&self, patch: &str, func: SimFunc, place: Place) -> TextRange {
        self.shared.world().replacement(patch, func, place, &[])
    }

    /// The same, of code that may end in jumps.
    pub fn replacement_ending(
        &self,
        patch: &str,
        func: SimFunc,
        place: Place,
        ends: &[End],
    ) -> TextRange {
        self.shared.world().replacement(patch, func, place, ends)
    }

    /// Splits an unlikely part off a replacement.
    pub fn cold_part_of(&self, new: TextRange) -> TextRange {
        self.shared.world().cold_part_of(new.start())
    }

    /// Maps code of the patch called `patch`, behind its code `new`, that replaces nothing.
    pub fn helper(&self, patch: &str, new: TextRange) -> TextRange {
        self.shared.world().helper(patch, new.start())
    }

    /// The code of `patch` is about to be freed: a task that is in it, or returns to it, is a
    /// [violation](SimOs::violations).
    pub fn forbid_code_of(&self, patch: &str) {
        let mut world = self.shared.world();
        let code = world
            .code
            .values()
            .filter(|code| code.patch.as_deref() == Some(patch));
        let ranges: Vec<TextRange> = code.map(|code| code.range).collect();
        ranges
            .into_iter()
            .for_each(|range| world.forbid_tasks_in(range, "freed"));
    }

    /// Notes that code in an image is what `patch` replaces `func` by.
    pub fn adopt(&self, patch: &str, func: SimFunc, code: TextRange) {
        self.shared.world().adopt(patch, func, code);
    }

    /// Notes which patches `patch` takes the place of, so that [`mixes`](SimOs::mixes) counts
    /// functions that it gives back to the original.
    pub fn know(&self, patch: &Patch) {
        self.shared
            .world()
            .versions
            .know(patch.name(), patch.replace());
    }

    /// The code of the original `func`.
    #[must_use]
    pub fn range(&self, func: SimFunc) -> TextRange {
        self.shared.world().functions[func.0].range
    }

    /// Writes into the text, as somebody who does not ask the engine.
    pub fn overwrite(&self, at: CodeAddr, bytes: &[u8]) {
        self.shared.world().memory.write(at, bytes);
    }

    /// The eight bytes at `at`.
    #[must_use]
    pub fn word(&self, at: CodeAddr) -> [u8; 8] {
        self.shared.world().memory.word(at)
    }

    /// The memory that is handed out now.
    #[must_use]
    pub fn images(&self) -> Vec<Image> {
        self.shared.world().memory.images().to_vec()
    }
}

/// Tasks.
impl SimOs {
    /// Adds a task that rests in no function, and that nobody gave birth to.
    pub fn spawn(&self, name: &str) -> TaskId {
        self.shared.world().spawn(name, None)
    }

    /// `parent` starts a task that rests in no function.
    pub fn spawn_child(&self, name: &str, parent: TaskId) -> TaskId {
        self.shared.world().spawn(name, Some(parent))
    }

    /// `parent` forks: the child is in the middle of the same functions. `None` if it is gone.
    pub fn fork(&self, parent: TaskId) -> Option<TaskId> {
        self.shared.world().fork(parent)
    }

    /// The task is gone, wherever it was.
    pub fn exit(&self, task: TaskId) {
        self.shared.world().tasks.remove(&task);
    }

    /// Calls `func` and runs until its body is reached; whether the task could.
    pub fn call(&self, task: TaskId, func: SimFunc) -> bool {
        self.begin_call(task, func) && self.run(task)
    }

    /// Puts the task at the entry of `func`; [`step`](SimOs::step) takes it on.
    pub fn begin_call(&self, task: TaskId, func: SimFunc) -> bool {
        self.shared.world().begin_call(task, func)
    }

    /// Executes one instruction.
    pub fn step(&self, task: TaskId) -> Step {
        self.shared.step(task)
    }

    /// Steps until the task is in a body; whether it could.
    pub fn run(&self, task: TaskId) -> bool {
        self.shared.run(task)
    }

    /// Returns from the innermost function; whether the task could.
    pub fn ret(&self, task: TaskId) -> bool {
        self.shared.world().leave(task)
    }

    /// Goes to the next part of the function that the task is in.
    pub fn go_cold(&self, task: TaskId) -> bool {
        self.shared.world().go_cold(task)
    }

    /// Goes to code of the patch whose function the task is in that replaces nothing.
    pub fn go_helper(&self, task: TaskId) -> bool {
        self.shared.world().go_helper(task)
    }

    /// Puts the task at a jump in which the function that it is in may end, number `end` of them;
    /// [`step`](SimOs::step) takes it on. If the code does not tell where it goes, it goes to
    /// `func`. Whether the task could.
    pub fn begin_end(&self, task: TaskId, end: usize, func: SimFunc) -> bool {
        self.shared.world().begin_end(task, end, func)
    }

    /// The task's stack becomes one that no task runs.
    pub fn suspend(&self, task: TaskId) {
        self.sleep(task, Sleep::Suspended);
    }

    /// `by` goes on with the stack `context`, if that is suspended. A host that does not
    /// [see](SimOs::see_suspended) such stacks does not know their state: it is that of `by` then.
    pub fn resume(&self, context: TaskId, by: TaskId) {
        let mut world = self.shared.world();
        let state = world
            .tasks
            .get(&by)
            .map(|task| task.state)
            .filter(|_| !world.sees_suspended);
        if let Some(task) = world
            .tasks
            .get_mut(&context)
            .filter(|task| task.sleep == Sleep::Suspended)
        {
            task.sleep = Sleep::Awake;
            task.state = state.unwrap_or(task.state);
        }
    }

    /// Whether the host lists stacks that no task runs as if they were tasks (as at the beginning),
    /// or knows nothing of them.
    pub fn see_suspended(&self, on: bool) {
        self.shared.world().sees_suspended = on;
    }

    /// Which code the task is in: a function by its name, a replacement as `PATCH_FUNCTION`.
    #[must_use]
    pub fn whereabouts(&self, task: TaskId) -> String {
        self.shared.whereabouts(task)
    }

    /// Which version a call of `func` by `task` runs now: calls, looks, returns.
    pub fn version(&self, task: TaskId, func: SimFunc) -> String {
        let called = self.call(task, func);
        let at = self.whereabouts(task);
        assert!(called && self.ret(task), "task {} cannot call", task.0);
        at
    }

    /// Sends the task to sleep, or wakes it.
    pub fn sleep(&self, task: TaskId, sleep: Sleep) {
        self.with_task(task, |task| task.sleep = sleep);
    }

    /// Maps code at `place`, where nothing is, that no engine knows.
    pub fn map_foreign(&self, name: &str, place: TextRange) {
        let mut world = self.shared.world();
        let bytes = (0..place.len() / machine::INSN)
            .flat_map(|_| Insn::Body.encode())
            .collect();
        world.memory.map(place.start(), bytes);
        world.define(name, place, None, None, None);
    }

    /// Puts the task, which rests, at `place`; whether it could.
    pub fn stand_at(&self, task: TaskId, place: CodeAddr) -> bool {
        let rests = self.rests(task);
        self.with_task(task, |task| task.pc = if rests { place } else { task.pc });
        rests
    }

    /// Makes the task's stack one that cannot be trusted, or trusted again.
    pub fn set_unreliable(&self, task: TaskId, doubt: Option<Doubt>) {
        self.with_task(task, |task| task.doubt = doubt);
    }

    /// Makes the task one that cannot be stopped, or can be again.
    pub fn set_unstoppable(&self, task: TaskId, reason: Option<Reason>) {
        self.with_task(task, |task| task.unstoppable = reason);
    }

    /// Lets tasks switch themselves when they call an affected function, or not (as at the
    /// beginning).
    pub fn set_self_switching(&self, on: bool) {
        self.shared.world().self_switching = on;
    }

    /// How often the task was kicked.
    #[must_use]
    pub fn kicks(&self, task: TaskId) -> u32 {
        self.shared
            .world()
            .tasks
            .get(&task)
            .map_or(0, |task| task.kicks)
    }

    /// The task's state; `None` if it is gone.
    #[must_use]
    pub fn state(&self, task: TaskId) -> Option<TaskState> {
        self.shared.world().tasks.get(&task).map(|task| task.state)
    }

    /// The tasks there are.
    #[must_use]
    pub fn task_ids(&self) -> Vec<TaskId> {
        self.shared.world().tasks.keys().copied().collect()
    }

    /// Whether the task is in no function.
    #[must_use]
    pub fn rests(&self, task: TaskId) -> bool {
        self.shared
            .world()
            .tasks
            .get(&task)
            .is_none_or(|task| task.pc == REST)
    }

    /// Runs every task until it is in no function, awake, reliable and stoppable.
    pub fn rest_all(&self) {
        for task in self.task_ids() {
            self.sleep(task, Sleep::Awake);
            self.set_unreliable(task, None);
            self.set_unstoppable(task, None);
            while !self.rests(task) && self.run(task) && self.ret(task) {}
        }
    }

    fn with_task(&self, task: TaskId, change: impl FnOnce(&mut task::Task)) {
        if let Some(task) = self.shared.world().tasks.get_mut(&task) {
            change(task);
        }
    }
}

/// What goes wrong, and what was seen.
impl SimOs {
    /// Numbers port calls that can fail anew; the `n`-th from now on fails, counted from 1.
    pub fn fail_at(&self, n: u64) {
        self.shared.world().faults.fail_at(n);
    }

    /// Each of `calls` fails when it is made for the time that it is listed with, from now on,
    /// counted from 1.
    pub fn fail_calls(&self, calls: &[(&'static str, u64)]) {
        self.shared.world().faults.fail_calls(calls);
    }

    /// No call fails any more. Says which one did last.
    pub fn disarm(&self) -> Option<&'static str> {
        self.shared.world().faults.disarm()
    }

    /// From now on there is no memory for [`Text::alloc`](crate::port::Text::alloc), or there is
    /// again.
    pub fn set_exhausted(&self, exhausted: bool) {
        self.shared.world().memory.exhausted = exhausted;
    }

    /// Lets tasks call, step, return, be born and die at the beginning of each port call; `None`:
    /// not any more.
    pub fn make_noise(&self, chance: Option<Chance>, max_tasks: usize) {
        self.shared.world().noise = chance.map(|chance| Noise { chance, max_tasks });
    }

    /// Has `border` called with `true` when the engine enters a port, and with `false` when it is
    /// on its own again.
    pub fn watch_border(&self, border: fn(bool)) {
        self.shared.world().border = border;
    }

    /// Takes the lines of the engine's log since the last time.
    pub fn take_transcript(&self) -> Vec<String> {
        core::mem::take(&mut self.shared.world().transcript)
    }

    /// Tasks that ran parts of two versions between entering and leaving the outermost of a patch's
    /// functions, unless a transition was forced meanwhile.
    #[must_use]
    pub fn mixes(&self) -> Vec<String> {
        self.shared.world().versions.mixes.clone()
    }

    /// Port contracts that the engine broke, and calls that got lost.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.shared.world().violations.clone()
    }

    /// The system as it is, to be compared with another moment of itself.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let world = self.shared.world();
        let mut memory = world.memory.clone();
        for function in &world.functions {
            let site = function.range.start();
            if function.pad == Pad::Split && memory.word(site) == Insn::Nop.encode() {
                memory.write(site, &Insn::ShortNop.encode());
            }
        }
        Snapshot {
            memory,
            tasks: world
                .tasks
                .iter()
                .map(|(id, task)| (*id, task.clone()))
                .collect(),
        }
    }
}

/// Text byte for byte, memory that was handed out, tasks with states and stacks. Pads of several
/// instructions are as they were built, also where the tracer has left one that does the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    memory: memory::Memory,
    tasks: Vec<(TaskId, task::Task)>,
}

impl Snapshot {
    /// The same without memory that was handed out: patches and the tracer may keep some, and write
    /// to it.
    #[must_use]
    pub fn without_images(mut self) -> Self {
        self.memory.forget_images();
        self
    }

    /// The same without tasks.
    #[must_use]
    pub fn without_tasks(mut self) -> Self {
        self.tasks.clear();
        self
    }
}
