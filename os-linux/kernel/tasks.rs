// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Tasks: threads and idle tasks, and what each of them runs during a transition (kernel:
//! `transition.c`).
//!
//! A task's state is `task->patch_state`. `TIF_PATCH_PENDING` is set while it may switch itself: on
//! its way to user mode, in the idle loop, when it is forked by a task that moved, or where a
//! kernel thread offers to be scheduled.

use crate::host::{self, task_struct};
use crate::log::Errno;
use crate::unwinder::{KernelUnwinder, Stopped};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};
use klp_core::mem::{OutOfMemory, try_vec};
use klp_core::port::{
    EntryCheck, InTurn, Moment, Moves, Progress, Reason, SelfSwitch, Stopper, TaskId, TaskName, TaskSet, TaskState,
    Unwinder, Visitor,
};

/// All tasks.
pub(crate) struct KernelTasks;

/// Where tasks with `TIF_PATCH_PENDING` move to (kernel: `klp_target_state`).
static TARGET: AtomicI32 = AtomicI32::new(TaskState::Idle as i32);

/// What [`SelfSwitch::lend`] lent.
struct Lent {
    check: UnsafeCell<Option<&'static dyn EntryCheck>>,
    /// Whether the check is there. It is written while this is false and nobody has seen it true
    /// for a while.
    valid: AtomicBool,
}

// SAFETY: see `valid`.
unsafe impl Sync for Lent {}

static LENT: Lent = Lent { check: UnsafeCell::new(None), valid: AtomicBool::new(false) };

impl Lent {
    /// What is lent now. Preemption is off while it is used.
    fn get(&self) -> Option<&'static dyn EntryCheck> {
        // ORDER(check): acquire; the partner is in `lend`. SAFETY: who sees `valid` sees the check;
        // it is not written before `withdraw` and a wait behind it.
        if self.valid.load(Ordering::Acquire) { unsafe { *self.check.get() } } else { None }
    }
}

/// The state of the task that calls.
pub(crate) fn current_state() -> TaskState {
    // SAFETY: the current task is there.
    unsafe { state_of(host::klp_host_current()) }
}

/// # Safety
///
/// `task` is not freed.
unsafe fn cell(task: *mut task_struct) -> &'static AtomicI32 {
    // SAFETY: the caller's promise; the field is only accessed like this while tasks can be
    // switched, and by nobody but us. The reference does not outlive the statement that it is made
    // for.
    unsafe { AtomicI32::from_ptr(&raw mut (*task).patch_state) }
}

/// # Safety
///
/// As for [`cell`].
unsafe fn state_of(task: *mut task_struct) -> TaskState {
    // SAFETY: the caller's promise.
    let state = unsafe { cell(task) }.load(Ordering::Relaxed);
    i8::try_from(state).ok().and_then(TaskState::from_i8).unwrap_or(TaskState::Idle)
}

/// # Safety
///
/// As for [`cell`].
unsafe fn set_state(task: *mut task_struct, state: TaskState) {
    // SAFETY: the caller's promise.
    unsafe { cell(task) }.store(state as i32, Ordering::Relaxed);
}

/// Shows each thread to `visit`, with the list of tasks held still: no allocation, no sleep.
fn each_thread<F: FnMut(*mut task_struct)>(mut visit: F) {
    unsafe extern "C" fn call<F: FnMut(*mut task_struct)>(task: *mut task_struct, visit: *mut c_void) {
        // SAFETY: `each_thread` passes an `F`, and does not use it meanwhile.
        unsafe { (*visit.cast::<F>())(task) }
    }
    // SAFETY: `visit` stays until the function returns.
    unsafe { host::klp_host_each_task(call::<F>, (&raw mut visit).cast()) }
}

/// Shows each idle task to `visit`, and whether its CPU is online.
fn each_idle<F: FnMut(*mut task_struct, bool)>(mut visit: F) {
    unsafe extern "C" fn call<F: FnMut(*mut task_struct, bool)>(
        task: *mut task_struct,
        online: bool,
        visit: *mut c_void,
    ) {
        // SAFETY: as in `each_thread`.
        unsafe { (*visit.cast::<F>())(task, online) }
    }
    // SAFETY: as in `each_thread`.
    unsafe { host::klp_host_each_idle(call::<F>, (&raw mut visit).cast()) }
}

/// Shows all tasks to `visit`.
fn each_task(mut visit: impl FnMut(*mut task_struct)) {
    each_thread(&mut visit);
    each_idle(|task, _| visit(task));
}

/// A task that is kept from being freed.
struct Task(*mut task_struct);

impl Task {
    fn find(id: TaskId) -> Option<Self> {
        let task = host::klp_host_find_task(id.0);
        // Not `then_some`: a `Task` of nothing must not come to be.
        (!task.is_null()).then(|| Self(task))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // SAFETY: `find` got a reference, which ends here.
        unsafe { host::klp_host_put_task(self.0) }
    }
}

/// Preemption is off while there is one.
struct NotPreempted;

impl NotPreempted {
    fn new() -> Self {
        host::klp_host_preempt_disable();
        Self
    }
}

impl Drop for NotPreempted {
    fn drop(&mut self) {
        // SAFETY: `new` has disabled it.
        unsafe { host::klp_host_preempt_enable() }
    }
}

// SAFETY: the list of tasks has all of them, and idle tasks are counted by CPU. A new task gets its
// parent's state while the list is held (`klp_copy_process`), so none is missed between two walks.
unsafe impl TaskSet for KernelTasks {
    type Error = Errno;

    fn current_state(&self) -> TaskState {
        current_state()
    }

    fn init(&self, initial: TaskState, _: InTurn) -> Result<(), Errno> {
        // SAFETY: tasks are not freed while they are shown.
        each_task(|task| unsafe { set_state(task, initial) });
        Ok(())
    }

    fn start(&self, target: TaskState, _: InTurn) -> Result<(), Errno> {
        if TARGET.load(Ordering::Relaxed) != TaskState::Idle as i32 {
            // Turning round: nobody may still be moving to the old target.
            // SAFETY: tasks are not freed while they are shown.
            each_task(|task| unsafe { host::klp_host_set_pending(task, false) });
            host::klp_host_synchronize();
        }
        TARGET.store(target as i32, Ordering::Relaxed);
        // ORDER(target): release, before flags are set; the partners are behind the tests of the
        // flag.
        fence(Ordering::Release);
        // SAFETY: tasks are not freed while they are shown.
        each_task(|task| unsafe {
            if state_of(task) != target {
                host::klp_host_set_pending(task, true);
            }
        });
        Ok(())
    }

    fn pending(&self, moves: &Moves, each: &mut dyn FnMut(TaskId)) -> Result<(), Errno> {
        let mut ids = list(moves.target())
            .map_err(|OutOfMemory| Errno { what: "no memory for a list of tasks", errno: -host::errno::ENOMEM })?;
        ids.sort_unstable();
        ids.into_iter().for_each(each);
        Ok(())
    }

    fn close(&self, moves: &Moves) -> Progress {
        let mut done = true;
        // SAFETY: tasks are not freed while they are shown.
        each_task(|task| done &= unsafe { state_of(task) } == moves.target());
        if done { Progress::Done } else { Progress::Waiting }
    }

    unsafe fn force(&self, moves: &Moves) {
        // SAFETY: tasks are not freed while they are shown.
        each_task(|task| unsafe {
            host::klp_host_set_pending(task, false);
            set_state(task, moves.target());
        });
    }

    fn kick(&self, task: TaskId) {
        if let Some(task) = Task::find(task) {
            // SAFETY: the task is not freed.
            unsafe { host::klp_host_kick(task.0) }
        }
    }

    fn finish(&self, _: InTurn) {
        // SAFETY: tasks are not freed while they are shown.
        each_task(|task| unsafe {
            host::klp_host_set_pending(task, false);
            set_state(task, TaskState::Idle);
        });
        TARGET.store(TaskState::Idle as i32, Ordering::Relaxed);
    }

    fn exists(&self, task: TaskId) -> bool {
        Task::find(task).is_some()
    }

    fn name(&self, task: TaskId) -> TaskName {
        let mut name = TaskName::new();
        if let Some(task) = Task::find(task) {
            // SAFETY: the task is not freed; its name is a C string at any time, though perhaps
            // half of the one before.
            let comm = unsafe { CStr::from_ptr((&raw const (*task.0).comm).cast()) };
            for part in comm.to_bytes().utf8_chunks() {
                let _ = name.push_str(part.valid());
            }
        }
        name
    }
}

// SAFETY: a task is visited while the scheduler keeps it from running (`task_call_func`), or by
// itself.
unsafe impl Stopper for KernelTasks {
    type Context = Stopped;

    unsafe fn with_stopped(&self, _: &Moves, tasks: &[TaskId], visitor: &dyn Visitor<Stopped>) {
        for (index, id) in tasks.iter().enumerate() {
            if let Some(task) = Task::find(*id) {
                let mut visit = Visit { index, visitor, switched: false };
                // SAFETY: the task is not freed; `visit` stays until the function returns.
                unsafe { host::klp_host_call_stopped(task.0, Visit::call, (&raw mut visit).cast()) };
                if !visit.switched {
                    // An idle task that stays idle never passes the place where it could switch
                    // itself. SAFETY: the task is not freed.
                    unsafe { host::klp_host_kick_idle(task.0) };
                }
            }
        }
    }
}

// SAFETY: tasks look with preemption off, which `synchronize` waits for, and only at `valid`. They
// look where they give the CPU up, which no patch changes.
unsafe impl SelfSwitch for KernelTasks {
    fn moment(&self) -> Moment {
        Moment::Elsewhere
    }

    unsafe fn lend(&self, _: &Moves, check: &dyn EntryCheck) {
        // SAFETY: the caller keeps it until `withdraw` and a wait behind it, and after that it is
        // not used.
        let check = unsafe { core::mem::transmute::<&dyn EntryCheck, &'static dyn EntryCheck>(check) };
        // SAFETY: what was lent before was withdrawn, and the engine has waited since: nobody
        // reads.
        unsafe { *LENT.check.get() = Some(check) };
        // ORDER(check): release; the partner is in `Lent::get`.
        LENT.valid.store(true, Ordering::Release);
        host::klp_host_watch_resched(true);
    }

    fn withdraw(&self) {
        LENT.valid.store(false, Ordering::Relaxed);
        host::klp_host_watch_resched(false);
    }
}

/// Lists the tasks that are not in `target`, and puts the idle tasks of CPUs that are off there.
fn list(target: TaskState) -> Result<Vec<TaskId>, OutOfMemory> {
    let mut ids: Vec<TaskId> = Vec::new();
    loop {
        ids.clear();
        let mut missing = 0;
        let mut note = |task| {
            // SAFETY: tasks are not freed while they are shown.
            let (state, id) = unsafe { (state_of(task), host::klp_host_task_id(task)) };
            if state == target {
            } else if ids.len() < ids.capacity() {
                ids.push(TaskId(id));
            } else {
                missing += 1;
            }
        };
        each_thread(&mut note);
        each_idle(|task, online| {
            if online {
                note(task);
                return;
            }
            // SAFETY: as above; it does not run, and will come with its state.
            unsafe {
                host::klp_host_set_pending(task, false);
                set_state(task, target);
            }
        });
        if missing == 0 {
            return Ok(ids);
        }
        // No memory could be had while the list was held; some more, as tasks are born.
        ids = try_vec(ids.len() + missing + 32)?;
    }
}

/// One visit to a stopped task.
struct Visit<'a> {
    index: usize,
    visitor: &'a dyn Visitor<Stopped>,
    switched: bool,
}

impl Visit<'_> {
    /// The scheduler calls this with the task's locks held: it does not begin or cease to run
    /// meanwhile.
    unsafe extern "C" fn call(task: *mut task_struct, visit: *mut c_void) -> c_int {
        // SAFETY: `with_stopped` passes a `Visit`, and does not use it meanwhile.
        let visit = unsafe { &mut *visit.cast::<Visit<'_>>() };
        // SAFETY: the task is not freed.
        if unsafe { host::klp_host_task_runs(task) } {
            visit.visitor.missed(visit.index, Reason::Running);
        } else if let Some(state) = visit.visitor.visit(visit.index, &Stopped(task)) {
            // SAFETY: as above.
            unsafe {
                host::klp_host_set_pending(task, false);
                set_state(task, state);
            }
            visit.switched = true;
        }
        0
    }
}

/// Switches `task`, which is the current one or does not run, if it has still to move: on its way
/// to user mode, in the idle loop.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_update_patch_state(task: *mut task_struct) {
    let _here = NotPreempted::new();
    // SAFETY: the caller's task is there.
    unsafe {
        // ORDER(target): taking the flag is a full barrier; the partner is in `start`.
        if host::klp_host_take_pending(task) {
            cell(task).store(TARGET.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// Gives a new task the state of its parent, the current one. The list of tasks is held.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_copy_process(child: *mut task_struct) {
    let parent = host::klp_host_current();
    // SAFETY: both tasks are there.
    unsafe {
        host::klp_host_set_pending(child, host::klp_host_task_pending(parent));
        set_state(child, state_of(parent));
    }
}

/// Switches the current task, which offers to be scheduled, if it has still to move and is inside
/// of nothing that changes. So kernel threads move that never sleep.
#[unsafe(no_mangle)]
extern "C" fn __klp_sched_try_switch() {
    let current = host::klp_host_current();
    // SAFETY: the current task is there.
    if !unsafe { host::klp_host_task_pending(current) } {
        return;
    }
    let _here = NotPreempted::new();
    let Some(check) = LENT.get() else { return };
    // SAFETY: the current task is there.
    if !unsafe { host::klp_host_task_pending(current) } {
        return;
    }
    // ORDER(target): acquire; the partner is in `start`.
    fence(Ordering::Acquire);
    let target = i8::try_from(TARGET.load(Ordering::Relaxed)).ok().and_then(TaskState::from_i8);
    let Some(target) = target.filter(|target| *target != TaskState::Idle) else { return };
    let mut free = true;
    let walked = KernelUnwinder.walk(&Stopped(current), &mut |frame| {
        free = !check.keeps(target, frame, None);
        if free { core::ops::ControlFlow::Continue(()) } else { core::ops::ControlFlow::Break(()) }
    });
    if free && walked.is_ok() {
        // SAFETY: the current task is there.
        unsafe {
            host::klp_host_set_pending(current, false);
            set_state(current, target);
        }
    }
}
