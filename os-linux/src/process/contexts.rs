//! Contexts: stacks that can be suspended, as coroutines are. Whoever switches between them
//! registers them here.
//!
//! A stack that no thread runs on is memory like any other: what it is in the middle of can only be
//! known if somebody tells. So each registered context bears a [`TaskState`] of its own, which
//! stays with it wherever it goes on. A thread has the state of the context that it runs on; a
//! suspended context is a task by itself.
//!
//! ```text
//!            first leave or enter        leave             enter
//!   Fresh ─────────────────────► Running ─────► Suspended ─────► Running …
//!   nothing is on its stack      a thread's     a task: walked from the registers
//!                                state          that `leave` was given
//! ```
//!
//! Between `leave` and `enter` a thread is on no stack that it could be judged by. It keeps the
//! state that it left with, and nobody moves it.
//!
//! Why none is missed when a transition closes: a state is copied from one place to another only in
//! `leave`, from a context to the thread that leaves it, and at the first `leave` or `enter` of a
//! context, from the thread to the context. `close` looks at contexts first, then at threads, with
//! the registry locked. The second copy is made with the registry locked too, so it is over or has
//! not begun. Whoever the first copy gave an old state had it from a context in the old state,
//! which moved after that, if at all. So either the context is seen in the old state, or the thread
//! is.

mod c;

use super::arch::registers;
use super::error::Error;
use super::records::{self, Record, registry};
use super::slots::{FIRST_ID, Slot, phase, slots};
use super::sys::{KeepErrno, SignalMask, gettid, nap, thread_exists};
use super::ucontext;
use super::unwind::Stopped;
use core::cell::OnceCell;
use core::ptr;
use core::sync::atomic::Ordering;
use core::time::Duration;
use klp_core::port::{Reason, TaskId, TaskName, TaskState, Visitor};

/// What becomes of the process's contexts; see `docs/coroutines.md`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Contexts {
    /// Nothing is patched once somebody has made a context that is not registered, as far as that
    /// can be noticed.
    #[default]
    Refuse,
    /// All are registered, says whoever sets this. If one is not, threads may run both versions of
    /// what it is in the middle of, and it may go on in memory that is free.
    Registered,
}

/// A stack that can be suspended, registered.
///
/// This is a handle: copies of it mean the same context. In C, `<klp/context.h>` has the same
/// functions.
#[derive(Clone, Copy)]
pub struct Context(&'static Slot);

impl Context {
    /// Registers a context. If nothing runs on it yet, it is [entered](Self::enter) when it begins;
    /// else [left](Self::leave) when it is suspended for the first time. `name`, of which 15 bytes
    /// count, is what the engine's [`blockers`](klp_core::Engine::blockers) call it; empty:
    /// `context` and a number. `None` if there is no memory.
    ///
    /// Not for signal handlers, as nothing of this.
    pub fn new(name: &str) -> Option<Self> {
        records::keep_in_children().ok()?;
        registry().contexts.take(name).map(Self)
    }

    /// The context of the calling thread's own stack, the one that the thread began on. It is
    /// registered at the first call, and freed when the thread ends. `None` if there is no memory.
    pub fn of_thread() -> Option<Self> {
        std::thread_local! {
            static OWN: OnceCell<Own> = const { OnceCell::new() };
        }
        OWN.try_with(|own| {
            if own.get().is_none() {
                let context = Self::new("")?;
                context.0.home.store(gettid(), Ordering::Relaxed);
                let _ = own.set(Own(context));
            }
            own.get().map(|own| own.0)
        })
        .ok()
        .flatten()
    }

    /// Forgets the context. If the calling thread runs on it, the stack is an ordinary one of the
    /// thread again.
    ///
    /// # Safety
    ///
    /// Nobody enters or leaves the context any more. If it is suspended, nobody goes on there; its
    /// stack is still there.
    pub unsafe fn free(self) {
        free(self.0);
    }

    /// Says that the calling thread is about to go away from the context, which it runs on. From
    /// here to the next [`enter`](Self::enter) nobody moves the thread.
    ///
    /// # Safety
    ///
    /// The thread does go to another context, which it enters, or does not come back. The calling
    /// function does not return before that, nor does it leave its frame in another way (by a tail
    /// call); and not until the context is entered again. It must not be called in a signal
    /// handler. [`switch`](Self::switch) does it right.
    #[inline(always)]
    #[allow(
        clippy::inline_always,
        reason = "the registers are those of the function that calls"
    )]
    pub unsafe fn leave(self) {
        leave(self.0, &registers::here());
    }

    /// Says that the calling thread has come to the context: the first thing that is done there.
    ///
    /// # Safety
    ///
    /// The calling thread runs on the context's stack, and has [left](Self::leave) the one that it
    /// ran on before. It must not be called in a signal handler.
    pub unsafe fn enter(self) {
        enter(self.0);
    }

    /// Leaves the context, calls `away`, which switches to another one, and enters it again when
    /// that returns.
    ///
    /// # Safety
    ///
    /// The calling thread runs on the context, and `away` returns when a thread, this or another,
    /// runs on it again.
    #[inline(never)]
    pub unsafe fn switch(self, away: impl FnOnce()) {
        // SAFETY: this function is on the stack until the context is entered.
        unsafe { self.leave() };
        away();
        // SAFETY: the caller's promise.
        unsafe { self.enter() };
    }
}

impl core::fmt::Debug for Context {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Context")
            .field(&self.0.name().as_str())
            .finish()
    }
}

/// The context of a thread's own stack.
struct Own(Context);

impl Drop for Own {
    fn drop(&mut self) {
        free(self.0.0);
    }
}

/// The task that stands for all contexts that are not registered.
pub(crate) const UNREGISTERED: TaskId = TaskId(FIRST_ID);

/// Whoever registers contexts has made a mistake: what is suspended is not known any more.
#[cold]
fn misused() {
    ucontext::note(ucontext::MISUSE);
}

/// See [`Context::leave`]. `regs` are those to walk the context's stack with.
///
/// Not inlined, nor is `enter`: where thread-local variables are must not be known from before a
/// switch, which may end on another thread.
#[inline(never)]
fn leave(slot: &'static Slot, regs: &registers::Left) {
    let record = records::current();
    match record.context() {
        Some(context) if ptr::eq(context, slot) => {}
        // The stack that it runs on was not registered before.
        None if begin(record, slot) => {}
        _ => return misused(),
    }
    record.set_between(true);
    // ORDER(contexts): see `set_all`.
    loop {
        let state = slot.state();
        record.set_own(state);
        if slot.state() == state {
            break;
        }
    }
    record.set_context(None);
    for (stored, reg) in slot.regs.iter().zip(regs) {
        stored.store(*reg, Ordering::Relaxed);
    }
    slot.phase.store(phase::SUSPENDED, Ordering::Release);
}

/// See [`Context::enter`].
#[inline(never)]
fn enter(slot: &'static Slot) {
    let record = records::current();
    if !record.is_between() {
        // What it ran on until now was left without a word.
        return misused();
    }
    let mut tries = 0_u32;
    loop {
        match slot.turn(phase::SUSPENDED, phase::RUNNING) {
            Ok(()) => break,
            Err(phase::FRESH) if begin(record, slot) => return,
            Err(phase::VISITED) if tries < 100 => core::hint::spin_loop(),
            Err(phase::VISITED) => nap_quietly(),
            Err(_) => return misused(),
        }
        tries = tries.saturating_add(1);
    }
    arrive(record, slot);
}

/// The stack that the thread of `record` runs on is that of `slot`, which is fresh: it takes the
/// thread's state. Says whether it was.
#[cold]
fn begin(record: &Record, slot: &'static Slot) -> bool {
    let _errno = KeepErrno::new();
    // With the registry locked, nobody looks at states, and no signal handler moves the thread.
    let _registry = registry();
    if slot.phase() != phase::FRESH {
        return false;
    }
    slot.set_state(record.own_state());
    slot.phase.store(phase::RUNNING, Ordering::Release);
    arrive(record, slot);
    true
}

fn arrive(record: &Record, slot: &'static Slot) {
    record.set_context(Some(slot));
    record.set_between(false);
    // What it has tried was on another stack.
    record.try_above(0);
}

fn free(slot: &'static Slot) {
    let record = records::current();
    let mut tries = 0_u32;
    loop {
        let mut registry = registry();
        match slot.phase() {
            phase::FREE => return misused(),
            phase::RUNNING => {
                if !record
                    .context()
                    .is_some_and(|context| ptr::eq(context, slot))
                {
                    return misused();
                }
                record.set_own(slot.state());
                record.set_context(None);
                return registry.contexts.give_back(slot);
            }
            phase::VISITED => {}
            // A visit may begin at this moment.
            before if slot.turn(before, phase::DEAD).is_ok() => {
                return registry.contexts.give_back(slot);
            }
            _ => {}
        }
        drop(registry);
        tries = tries.saturating_add(1);
        if tries < 100 {
            core::hint::spin_loop()
        } else {
            nap_quietly()
        }
    }
}

/// Lets a visit go on.
fn nap_quietly() {
    let _errno = KeepErrno::new();
    nap(Duration::from_micros(50));
}

/// Puts every context into `state`. With the registry locked, and before [`Record::set_own`] of
/// every thread.
///
/// ORDER(contexts): `leave` reads a context's state, writes it to the thread, and reads it again;
/// here the context's state is written, then the thread's. In the one order of all these, either
/// the second reading comes after the context was written, and `leave` copies again, or the copy
/// comes before the thread was written.
pub(crate) fn set_all(state: TaskState) {
    slots().for_each(|slot| slot.set_state(state));
}

/// Whether every context that has something on its stack is in `target`. With the registry locked.
pub(crate) fn all_are_in(target: TaskState) -> bool {
    slots()
        .filter(|slot| slot.lives())
        .all(|slot| slot.state() == target)
}

/// Forgets suspended stacks of threads that are gone. With the registry locked.
pub(crate) fn retire() {
    for slot in slots().filter(|slot| slot.phase() == phase::SUSPENDED) {
        let home = slot.home.load(Ordering::Relaxed);
        if home != 0 && !thread_exists(home) {
            let _ = slot.turn(phase::SUSPENDED, phase::DEAD);
        }
    }
}

/// The suspended contexts that are not in `target`. With the registry locked.
pub(crate) fn pending(target: TaskState) -> impl Iterator<Item = TaskId> {
    slots()
        .filter(move |slot| slot.is_suspended() && slot.state() != target)
        .map(Slot::id)
}

/// The contexts that may have something on their stacks, sorted.
///
/// # Errors
///
/// [`Error::Churn`]: somebody is about to begin on one, so that it is not known what that will be;
/// or contexts come too fast. [`Error::OutOfMemory`].
pub(crate) fn living() -> Result<Vec<TaskId>, Error> {
    let mut living = Vec::new();
    let room = slots().filter(|slot| slot.lives()).count() + 16;
    living.try_reserve(room).map_err(|_| Error::OutOfMemory)?;
    let unknown = {
        let _registry = registry();
        let ids = slots().filter(|slot| slot.lives()).map(Slot::id);
        living.extend(ids.take(room));
        living.len() == room || slots().any(|slot| slot.phase() == phase::FRESH)
    };
    if unknown {
        return Err(Error::Churn);
    }
    living.sort_unstable();
    Ok(living)
}

/// Lets `visitor` look at the contexts among `tasks` (sorted), which nobody enters meanwhile; says
/// how many it moved.
pub(crate) fn visit(tasks: &[TaskId], visitor: &dyn Visitor<Stopped>) -> u64 {
    let mut moved = 0;
    if tasks.last().is_none_or(|last| last.0 <= FIRST_ID) {
        return moved;
    }
    for slot in slots().filter(|slot| slot.phase() != phase::FREE) {
        let Ok(index) = tasks.binary_search(&slot.id()) else {
            continue;
        };
        // A signal handler of this thread must not wait for the visit to end.
        let _signals = SignalMask::all();
        match slot.turn(phase::SUSPENDED, phase::VISITED) {
            // Another context has this slot now.
            Ok(()) if tasks[index] != slot.id() => {}
            Ok(()) => {
                if let Some(state) = visitor.visit(index, &slot.regs().into()) {
                    slot.set_state(state);
                    moved += 1;
                }
            }
            Err(phase::RUNNING) => {
                visitor.missed(index, Reason::Running);
                continue;
            }
            Err(_) => continue,
        }
        slot.phase.store(phase::SUSPENDED, Ordering::Release);
    }
    moved
}

/// The name of the context `task`; `None` if `task` is a thread.
pub(crate) fn name(task: TaskId) -> Option<TaskName> {
    if task.0 < FIRST_ID {
        return None;
    }
    let _registry = registry();
    Some(find(task).map(Slot::name).unwrap_or_default())
}

/// Whether `task` is a context that is there, or stands for those that are not registered.
pub(crate) fn exists(task: TaskId) -> bool {
    let _registry = registry();
    task == UNREGISTERED || find(task).is_some()
}

/// The context that is `task`. The registry is locked.
fn find(task: TaskId) -> Option<&'static Slot> {
    slots().find(|slot| slot.phase() != phase::FREE && slot.id() == task)
}
