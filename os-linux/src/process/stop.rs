//! Looking at threads. Who sleeps is looked at from outside, where that is enough; all others are
//! stopped: each gets a signal and is looked at by itself, in the signal's handler.
//!
//! One [`Stop`] at a time is published; the handler takes part in it if its thread is among those
//! to be stopped.

use super::context::Interrupted;
use super::error::Error;
use super::records::{self, Record};
use super::scan::{self, Threads};
use super::sys::{self, KeepErrno, SignalMask, futex_wait, futex_wake};
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;
use klp_core::port::TaskId;
use std::time::Instant;

/// Without any answer for this long, a stop gives up on the threads that are left.
const PATIENCE: Duration = Duration::from_millis(50);

/// Without any answer for this long, threads that have not answered are checked for life.
const SLICE: Duration = Duration::from_micros(200);

/// What came of looking at a thread from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FromOutside {
    /// It was looked at.
    Looked,
    /// It does not sleep, or more of it must be known, or done with it, than can be from there: it
    /// has to be stopped.
    Stop,
    /// The same; but it counts as not stopped rather than being woken.
    Leave,
}

impl FromOutside {
    /// Whoever was not looked at has to be stopped.
    pub(crate) fn or_stop(looked: bool) -> Self {
        if looked { Self::Looked } else { Self::Stop }
    }
}

/// What is done with a thread.
pub(crate) trait Look: Sync {
    /// Looks at thread `index` from outside: `record` is the one of it in `threads`.
    fn look_from_outside(
        &self,
        index: usize,
        record: &'static Record,
        threads: &Threads,
    ) -> FromOutside;

    /// The same on the thread itself, which is stopped: in a signal handler.
    ///
    /// Looks at thread `index` of those to be stopped, which is the calling thread. `false`: it
    /// counts as not stopped.
    fn look(&self, index: usize, thread: &mut Interrupted<'_>, record: &Record) -> bool;
}

/// One round of stopping.
struct Stop<'a> {
    /// Never 0, never the same twice.
    number: u64,
    /// Sorted.
    tasks: &'a [TaskId],
    look: &'a dyn Look,
    /// Threads that have answered the signal sent for this round.
    answers: AtomicU32,
    /// How many are expected, once that is known.
    expected: AtomicU32,
}

/// The round under way.
static STOP: AtomicPtr<Stop<'static>> = AtomicPtr::new(ptr::null_mut());
/// Threads inside the handler.
static INSIDE: AtomicU32 = AtomicU32::new(0);
/// The number of the last round.
static NUMBER: AtomicU64 = AtomicU64::new(0);
/// The stop signal.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Takes `signal` for stopping threads.
///
/// Blocked system calls are restarted afterwards where the kernel can do that (`SA_RESTART`);
/// `signal(7)` lists those that fail with `EINTR`. The handler runs on the thread's own stack, not
/// on an alternate one, which is often too small.
///
/// # Errors
///
/// [`Error::SignalTaken`].
pub(crate) fn install(signal: i32) -> Result<(), Error> {
    if sys::handler(signal).map_err(Error::os("sigaction"))? != libc::SIG_DFL {
        return Err(Error::SignalTaken { signal });
    }
    // SAFETY: the handler allocates nothing, takes no lock but the registry's, which is made for
    // that, and keeps errno.
    unsafe { sys::install(signal, on_signal, libc::SA_RESTART) }.map_err(Error::os("sigaction"))?;
    SIGNAL.store(signal, Ordering::Relaxed);
    Ok(())
}

/// The signal that stops threads.
pub(crate) fn signal() -> i32 {
    SIGNAL.load(Ordering::Relaxed)
}

/// The records of threads that are to be stopped, in their order; `None` for those that are not
/// known.
pub(crate) type Records = Vec<Option<&'static Record>>;

/// Whether nobody has taken the stop signal since it was [installed](install). Whoever sends it
/// without that may kill the process.
pub(crate) fn is_in_place() -> bool {
    sys::handler(signal()) == Ok(on_signal as *const () as usize)
}

/// Looks at each of `tasks` (sorted) that sleeps or can be stopped. Returns when the last look has
/// ended; [`Round::reached`] tells who was looked at.
///
/// Must be called by one thread at a time.
///
/// # Errors
///
/// Memory, or the directory of threads, cannot be had: before anybody is stopped.
pub(crate) fn stop(
    tasks: &[TaskId],
    look: &dyn Look,
    records: &mut Records,
) -> Result<Round, Error> {
    clear(records, tasks.len())?;
    records::registry().find_all(tasks, records);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed) + 1;
    let stop = Stop {
        number,
        tasks,
        look,
        answers: AtomicU32::new(0),
        expected: AtomicU32::new(u32::MAX),
    };
    let mut awake = Vec::new();
    awake
        .try_reserve(tasks.len())
        .map_err(|_| Error::OutOfMemory)?;
    let threads = Threads::open()?;
    for (index, record) in records.iter().enumerate() {
        let Some(record) = record else { continue };
        match look.look_from_outside(index, record, &threads) {
            FromOutside::Looked => record.visited.store(number, Ordering::Release),
            FromOutside::Stop => awake.push((tasks[index], *record)),
            FromOutside::Leave => {}
        }
    }
    if awake.is_empty() || !is_in_place() {
        return Ok(Round(number));
    }
    // The caller may be one of them, and block the signal.
    let _open = SignalMask::without(signal());
    STOP.store(ptr::from_ref(&stop).cast_mut().cast(), Ordering::SeqCst);
    let mut sent = 0;
    for (task, record) in awake {
        sent += u32::from(signal_for(number, task, record));
    }
    stop.expected.store(sent, Ordering::SeqCst);
    wait_for_answers(&stop, sent, records);
    STOP.store(ptr::null_mut(), Ordering::SeqCst);
    // ORDER(stop): a handler counts itself in before it looks for the round; who is not counted
    // here finds none.
    wait_outside(&INSIDE);
    Ok(Round(number))
}

/// Has `task` take part in the round `number`; says whether it is expected to.
fn signal_for(number: u64, task: TaskId, record: &Record) -> bool {
    loop {
        match record
            .signalled
            .compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst)
        {
            Ok(_) => {
                let sent = sys::tgkill(record.tid(), signal()).is_ok();
                if !sent {
                    record.signalled.store(0, Ordering::SeqCst);
                }
                return sent;
            }
            // A signal that is still on its way serves for this round, too; but who blocks it is
            // not waited for again.
            Err(_) if !is_open(task) => return false,
            Err(before) => {
                let joined = record.signalled.compare_exchange(
                    before,
                    number,
                    Ordering::SeqCst,
                    Ordering::SeqCst,
                );
                if joined.is_ok() {
                    return true;
                }
            }
        }
    }
}

/// Whether the stop signal is known to reach `task`.
fn is_open(task: TaskId) -> bool {
    matches!(scan::status(task), Ok(Some(status)) if !status.blocks(signal()))
}

/// A round that is over.
#[derive(Clone, Copy)]
pub(crate) struct Round(u64);

impl Round {
    /// Whether the thread of `record` was looked at.
    pub(crate) fn reached(self, record: &Record) -> bool {
        record.visited.load(Ordering::Acquire) == self.0
    }
}

/// Why a thread was not reached.
pub(crate) enum Missed {
    /// It is not there any more, or never runs code of the process: a thread of the kernel's.
    Gone,
    /// It blocks the signal.
    Blocks,
    /// It was not fast enough.
    Running,
}

/// Finds out why `task` was not reached. Who cannot be asked for may be there, and run.
pub(crate) fn why_missed(task: TaskId, record: Option<&'static Record>) -> Missed {
    let status = match scan::status(task) {
        Ok(Some(status)) if !status.dead => status,
        Ok(_) => return Missed::Gone,
        Err(_) => return Missed::Running,
    };
    if let Some(record) = record {
        // The signal went to another thread that had this id before.
        let sent = record.signalled.load(Ordering::SeqCst);
        if sent != 0 && !status.awaits(signal()) && !status.blocks(signal()) {
            let _ = record
                .signalled
                .compare_exchange(sent, 0, Ordering::SeqCst, Ordering::SeqCst);
        }
    }
    if !status.blocks(signal()) {
        Missed::Running
    } else if scan::is_kernels(task) {
        Missed::Gone
    } else {
        Missed::Blocks
    }
}

/// Interrupts the sleep of `task`, if it is in one.
pub(crate) fn interrupt(task: TaskId) {
    if !is_in_place() {
        return;
    }
    if let Ok(tid) = u32::try_from(task.0) {
        let _ = sys::tgkill(tid, signal());
    }
}

/// After `fork`, in the child: no other thread is inside anything.
pub(crate) fn reset_in_child() {
    INSIDE.store(0, Ordering::SeqCst);
}

/// Waits until a count of threads has been zero.
pub(crate) fn wait_outside(inside: &AtomicU32) {
    let mut tries = 0_u32;
    while inside.load(Ordering::SeqCst) != 0 {
        tries += 1;
        if tries > 100 {
            sys::nap(Duration::from_micros(50));
        } else {
            core::hint::spin_loop();
        }
    }
}

/// Lists all threads, and makes a record for each.
///
/// # Errors
///
/// [`Error::Churn`]: threads come and go so fast that the list is not complete; what was found has
/// records. Others.
pub(crate) fn all_threads(tasks: &mut Vec<TaskId>, records: &mut Records) -> Result<(), Error> {
    let complete = match scan::threads(tasks) {
        Err(Error::Churn) => Err(Error::Churn),
        other => Ok(other?),
    };
    clear(records, tasks.len())?;
    records::registry().enter_all(tasks, records);
    complete
}

fn clear(records: &mut Records, len: usize) -> Result<(), Error> {
    records.clear();
    records.try_reserve(len).map_err(|_| Error::OutOfMemory)?;
    records.resize(len, None);
    Ok(())
}

fn wait_for_answers(stop: &Stop<'_>, mut sent: u32, records: &Records) {
    let mut last = Instant::now();
    loop {
        let answers = stop.answers.load(Ordering::SeqCst);
        if answers >= sent {
            return;
        }
        futex_wait(&stop.answers, answers, Some(SLICE));
        if stop.answers.load(Ordering::SeqCst) != answers {
            last = Instant::now();
        } else if last.elapsed() >= PATIENCE {
            return;
        } else {
            sent -= forget_dead(stop, records);
            stop.expected.store(sent, Ordering::SeqCst);
        }
    }
}

/// Takes back the signals to threads that have ended instead of answering; says how many there
/// were.
fn forget_dead(stop: &Stop<'_>, records: &Records) -> u32 {
    let mut dead = 0;
    for record in records.iter().flatten() {
        if record.signalled.load(Ordering::SeqCst) == stop.number
            && !sys::thread_exists(record.tid())
        {
            // Whoever takes the number out of the record counts it, this or the handler.
            let taken = record.signalled.compare_exchange(
                stop.number,
                0,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
            dead += u32::from(taken.is_ok());
        }
    }
    dead
}

extern "C" fn on_signal(_signal: i32, _info: *mut libc::siginfo_t, ucontext: *mut libc::c_void) {
    let _errno = KeepErrno::new();
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let record = records::current();
    // Who runs with another thread's variables is not that thread.
    if record.tid() == sys::gettid() {
        // SAFETY: it is this handler's argument.
        answer(record, &mut unsafe { Interrupted::new(ucontext) });
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
}

/// Takes part in the round that is published, if there is one. Only while the calling thread is
/// counted in [`INSIDE`].
fn answer(record: &Record, thread: &mut Interrupted<'_>) {
    let sent = record.signalled.swap(0, Ordering::SeqCst);
    // SAFETY: a round that is published lives until this handler has counted itself out.
    let Some(stop) = (unsafe { STOP.load(Ordering::SeqCst).as_ref() }) else {
        return;
    };
    stop.take_part(thread, record);
    if sent == stop.number {
        let answers = stop.answers.fetch_add(1, Ordering::SeqCst) + 1;
        if answers == stop.expected.load(Ordering::SeqCst) {
            futex_wake(&stop.answers, 1);
        }
    }
}

impl Stop<'_> {
    fn take_part(&self, thread: &mut Interrupted<'_>, record: &Record) {
        if record.visited.load(Ordering::Relaxed) == self.number {
            return;
        }
        let Ok(index) = self.tasks.binary_search(&TaskId(record.tid().into())) else {
            return;
        };
        if self.look.look(index, thread, record) {
            record.visited.store(self.number, Ordering::Release);
        }
    }
}
