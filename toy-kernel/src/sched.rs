//! Tasks, in turn.

use crate::boot::processors;
use crate::interrupt::{Frame, processor, yield_now};
use crate::machine::uninterrupted;
use alloc::alloc::{Layout, alloc_zeroed};
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicI8, AtomicPtr, AtomicU64, Ordering};

/// How many processors there may be.
pub const PROCESSORS: usize = 2;
/// Bytes of a [`Task`], and what it is aligned to.
pub const SIZE: usize = 0x10000;

/// A task. Its stack is what lies behind these words.
#[repr(C, align(0x10000))]
pub struct Task {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: &'static str,
    /// The engine's.
    pub patch_state: AtomicI8,
    /// Where it was left, if it does not run.
    pub frame: AtomicPtr<Frame>,
    running: AtomicBool,
    over: AtomicBool,
    waits_for: AtomicPtr<AtomicBool>,
    stack: UnsafeCell<[u8; 0xf000]>,
}

// SAFETY: the stack is used by the processor that runs the task.
unsafe impl Sync for Task {}

/// Run where there is nothing else to do; one for each processor.
#[unsafe(no_mangle)]
static IDLE: [Task; PROCESSORS] = [Task::idle(0, "idle0"), Task::idle(1, "idle1")];

/// All tasks, by their numbers; only touched with the lock.
struct Tasks(UnsafeCell<Vec<&'static Task>>);

// SAFETY: see above.
unsafe impl Sync for Tasks {}

static TASKS: Tasks = Tasks(UnsafeCell::new(Vec::new()));
static NEXT_ID: AtomicU64 = AtomicU64::new(PROCESSORS as u64);

/// Released by `boot.s`, too.
#[unsafe(no_mangle)]
static LOCK: AtomicBool = AtomicBool::new(false);

/// Takes the lock, interrupts being off.
pub fn lock() {
    while LOCK.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
}

/// Shows all tasks, and keeps them from coming, going, and changing processors.
pub fn with_tasks<R>(work: impl FnOnce(&mut Vec<&'static Task>) -> R) -> R {
    uninterrupted(|| {
        lock();
        // SAFETY: the lock is held.
        let result = work(unsafe { &mut *TASKS.0.get() });
        LOCK.store(false, Ordering::Release);
        result
    })
}

/// The task that calls: the one whose stack this is.
#[inline(always)]
pub fn current() -> &'static Task {
    let sp: usize;
    // SAFETY: it only reads a register.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack)) };
    // SAFETY: every stack is inside of its task, and tasks stay.
    unsafe { &*((sp & !(SIZE - 1)) as *const Task) }
}

impl Task {
    const fn idle(id: u64, name: &'static str) -> Self {
        Self {
            id,
            name,
            patch_state: AtomicI8::new(-1),
            frame: AtomicPtr::new(core::ptr::null_mut()),
            running: AtomicBool::new(true),
            over: AtomicBool::new(false),
            waits_for: AtomicPtr::new(core::ptr::null_mut()),
            stack: UnsafeCell::new([0; 0xf000]),
        }
    }

    fn is_ready(&self) -> bool {
        // SAFETY: what a task waits for stays for ever.
        let waits_for = unsafe { self.waits_for.load(Ordering::Relaxed).as_ref() };
        let ready = waits_for.is_none_or(|event| event.load(Ordering::Acquire));
        ready && self.id >= PROCESSORS as u64 && !self.running.load(Ordering::Relaxed)
    }
}

/// Whose turn it is on this processor, after the current task. The lock is held.
pub fn next() -> *const Frame {
    let me = current();
    me.running.store(false, Ordering::Relaxed);
    // SAFETY: the lock is held.
    let tasks = unsafe { &mut *TASKS.0.get() };
    if me.over.load(Ordering::Relaxed) {
        tasks.retain(|task| task.id != me.id);
    }
    let (first, then) = tasks.split_at(tasks.partition_point(|task| task.id <= me.id));
    let ready = then.iter().chain(first).find(|task| task.is_ready());
    let next = ready.copied().unwrap_or(&IDLE[processor()]);
    next.running.store(true, Ordering::Relaxed);
    next.frame.load(Ordering::Acquire)
}

/// Idle tasks are tasks like others.
pub fn init() {
    with_tasks(|tasks| tasks.extend(&IDLE[..processors()]));
}

/// A new task that runs `function`. It takes over what the engine's ports want it to
/// ([`crate::tasks`]).
pub fn spawn(name: &'static str, function: extern "C" fn()) -> u64 {
    unsafe extern "C" {
        fn task_start();
    }
    // SAFETY: zeros are a task, but for its name; the frame lies on its stack.
    unsafe {
        let task = alloc_zeroed(Layout::new::<Task>()).cast::<Task>();
        assert!(!task.is_null(), "no memory for a task");
        let top = task.wrapping_add(1);
        let frame = top.cast::<Frame>().wrapping_sub(1);
        frame.write(Frame {
            rbx: function as usize as u64,
            rip: task_start as usize as u64,
            cs: 0x18,
            rflags: 0x202,
            rsp: top.addr() as u64,
            ss: 0x10,
            ..Frame::default()
        });
        (*task).name = name;
        (*task).frame = AtomicPtr::new(frame);
        with_tasks(|tasks| {
            (*task).id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
            crate::tasks::born(current(), &*task);
            tasks.push(&*task);
            (*task).id
        })
    }
}

/// Sleeps until `event` is true.
pub fn wait(event: &'static AtomicBool) {
    current().waits_for.store(core::ptr::from_ref(event).cast_mut(), Ordering::Relaxed);
    yield_now();
    current().waits_for.store(core::ptr::null_mut(), Ordering::Relaxed);
}

/// Whether a task sleeps.
pub fn sleeps(id: u64) -> bool {
    let waits = |task: &&Task| !task.waits_for.load(Ordering::Relaxed).is_null();
    let sleeps = |task: &&Task| waits(task) && !task.running.load(Ordering::Relaxed);
    with_tasks(|tasks| tasks.iter().filter(|task| task.id == id).copied().any(|task| sleeps(&task)))
}

#[unsafe(no_mangle)]
extern "C" fn task_exit() -> ! {
    current().over.store(true, Ordering::Relaxed);
    loop {
        yield_now();
    }
}
