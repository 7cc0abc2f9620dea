//! What is known of each thread: one [`Record`] per thread, found through a thread-local pointer.
//!
//! A record is made at the thread's first handled call (or first stop signal) by the thread itself,
//! or before that by a scan on its behalf; there is never more than one per thread id. Records live
//! in chunks that are never unmapped. Whoever runs with another thread's variables, as a child of
//! `vfork`, counts as that thread. All but the fields of a record change under one
//! [`SignalLock`], so that a signal or entry handler may join at any time.

use super::asleep::{Sleeper, Slept};
use super::lock::{Guard, SignalLock};
use super::scan::Threads;
use super::slots::{Pool, Slot};
use super::sys::{Errno, KeepErrno, gettid, map_zeroed, nap, thread_exists, tid_of_variables};
use super::tls;
use core::ptr;
use core::sync::atomic::{
    AtomicBool, AtomicI8, AtomicPtr, AtomicU32, AtomicU64, Ordering, compiler_fence,
};
use core::time::Duration;
use klp_core::port::{TaskId, TaskState};

/// One thread. All that a call asks for is in one line of the cache.
#[repr(C, align(64))]
pub(crate) struct Record {
    /// The thread's [`TaskState`], as a number, while it runs on no registered context; see
    /// `contexts.rs`. [`PROBED`] is added while somebody looks at the thread from outside.
    own: AtomicI8,
    /// Whether the thread goes from one context to another just now, so that nobody may move it.
    between: AtomicBool,
    /// Whether the thread itself has found the record; if not, a scan made it.
    owned: AtomicBool,
    /// See [`is_ours`](Self::is_ours).
    ours: AtomicBool,
    /// The thread's id; 0 in a record that is free.
    tid: AtomicU32,
    /// The registered context that the thread runs on: this bears its state then. Null: none.
    context: AtomicPtr<Slot>,
    /// Runs of the handler, begun and ended: odd while the thread is inside of one.
    runs: AtomicU64,
    /// The thread tries to switch itself in calls made with the stack pointer above this.
    try_above: AtomicU64,
    /// See [`stay_at`](Self::stay_at).
    stays_at: AtomicU64,
    /// The number of the stop whose signal is on its way to the thread; 0 if none is.
    pub(crate) signalled: AtomicU64,
    /// The number of the last stop that looked at the thread.
    pub(crate) visited: AtomicU64,
    /// Where it slept when it was last looked at from outside.
    slept: Slept,
}

/// What [`Record::own`] has more while somebody looks at the thread from outside.
const PROBED: i8 = 16;

fn state_in(own: i8) -> TaskState {
    let state = if own >= PROBED { own - PROBED } else { own };
    TaskState::from_i8(state).unwrap_or(TaskState::Idle)
}

/// A look at a thread from outside. It may wake up at any moment: if it asks for its state then,
/// the look has been in vain.
pub(crate) struct Probe<'a> {
    record: &'a Record,
    own: i8,
}

impl Probe<'_> {
    /// Whether the thread bears its state itself, for as long as it sleeps.
    pub(crate) fn is_plain(&self) -> bool {
        self.record.context().is_none() && !self.record.is_between()
    }

    /// Puts the thread into `state`; says whether that was possible.
    pub(crate) fn commit(self, state: TaskState) -> bool {
        let new = state as i8;
        let set =
            self.record
                .own
                .compare_exchange(self.own, new, Ordering::SeqCst, Ordering::SeqCst);
        set.is_ok()
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let _ = self.record.own.compare_exchange(
            self.own,
            self.own - PROBED,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
    }
}

impl Record {
    /// A free record, until it [begins](Self::begin): zeros only, so that programs need no room for
    /// it in their files.
    const fn new() -> Self {
        Self {
            own: AtomicI8::new(0),
            between: AtomicBool::new(false),
            owned: AtomicBool::new(false),
            ours: AtomicBool::new(false),
            tid: AtomicU32::new(0),
            context: AtomicPtr::new(ptr::null_mut()),
            runs: AtomicU64::new(0),
            try_above: AtomicU64::new(0),
            stays_at: AtomicU64::new(0),
            signalled: AtomicU64::new(0),
            visited: AtomicU64::new(0),
            slept: Slept::new(),
        }
    }

    pub(crate) fn tid(&self) -> u32 {
        self.tid.load(Ordering::Relaxed)
    }

    /// The state of what the thread runs. Of a thread that is being looked at from outside it is
    /// the one that it has had.
    pub(crate) fn state(&self) -> TaskState {
        match self.context() {
            Some(context) => context.state(),
            None => state_in(self.own.load(Ordering::Acquire)),
        }
    }

    /// The state of the calling thread, whose record this is. Whoever looks at it from outside does
    /// so in vain: it is not asleep.
    #[inline]
    pub(crate) fn own_state(&self) -> TaskState {
        match self.context() {
            Some(context) => context.state(),
            None => match self.own.load(Ordering::Acquire) {
                own if own >= PROBED => self.end_probe(own),
                own => state_in(own),
            },
        }
    }

    #[cold]
    fn end_probe(&self, own: i8) -> TaskState {
        // ORDER(probe): if this fails, the look has ended, and the state is what it says.
        let _ = self
            .own
            .compare_exchange(own, own - PROBED, Ordering::SeqCst, Ordering::SeqCst);
        self.state()
    }

    /// Begins a look at the thread from outside: from here to [`Probe::commit`] its state can only
    /// be set if the thread did not ask for it. `None`: it runs on a registered context, which
    /// bears its state, or goes from one to another.
    pub(crate) fn probe(&self) -> Option<Probe<'_>> {
        let own = self.own.load(Ordering::Relaxed);
        // ORDER(probe): that the thread sleeps is asked for after this.
        let begun = own < PROBED
            && self
                .own
                .compare_exchange(own, own + PROBED, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok();
        begun.then(|| Probe {
            record: self,
            own: own + PROBED,
        })
    }

    /// Puts what the thread runs into `state`.
    pub(crate) fn set_state(&self, state: TaskState) {
        match self.context() {
            Some(context) => context.set_state(state),
            None => self.set_own(state),
        }
    }

    /// Sets the state that the thread is in while it runs on no registered context.
    pub(crate) fn set_own(&self, state: TaskState) {
        // ORDER(contexts): see `contexts::set_all`.
        self.own.store(state as i8, Ordering::SeqCst);
    }

    /// The registered context that the thread runs on.
    #[inline]
    pub(crate) fn context(&self) -> Option<&'static Slot> {
        // SAFETY: slots are never unmapped.
        unsafe { self.context.load(Ordering::Acquire).as_ref() }
    }

    /// From here on the thread runs on `context`; `None`: on no registered one.
    pub(crate) fn set_context(&self, context: Option<&'static Slot>) {
        self.context.store(
            context.map_or(ptr::null_mut(), |slot| ptr::from_ref(slot).cast_mut()),
            Ordering::Release,
        );
    }

    /// Whether the thread has left a context and not entered another one yet.
    #[inline]
    pub(crate) fn is_between(&self) -> bool {
        self.between.load(Ordering::Acquire)
    }

    /// Only for the record's own thread.
    pub(crate) fn set_between(&self, between: bool) {
        self.between.store(between, Ordering::Release);
        // A signal handler of the same thread sees it before all that follows.
        compiler_fence(Ordering::SeqCst);
    }

    /// Has the thread try to switch itself in calls made with the stack pointer above `sp` only;
    /// `u64::MAX`: in none.
    pub(crate) fn try_above(&self, sp: u64) {
        self.try_above.store(sp, Ordering::Relaxed);
    }

    /// Whether the thread should try to switch itself in a call made with the stack pointer at
    /// `sp`.
    #[inline]
    pub(crate) fn tries_at(&self, sp: u64) -> bool {
        sp > self.try_above.load(Ordering::Relaxed)
    }

    /// Does `work` as a run of the handler, which [`runs`](Self::runs) tells of. Only for the
    /// record's own thread.
    #[inline]
    pub(crate) fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        let before = self.runs.load(Ordering::Relaxed);
        if before & 1 == 1 {
            // A signal handler has interrupted a run of the same thread: that run covers this one.
            return work();
        }
        self.runs.store(before.wrapping_add(1), Ordering::Relaxed);
        // ORDER(runs): the store above comes before all that `work` reads. The processor's half of
        // this fence is the memory barrier that `Tasks::synchronize` makes every thread pass before
        // it reads `runs`.
        compiler_fence(Ordering::SeqCst);
        let result = work();
        self.runs.store(before.wrapping_add(2), Ordering::Release);
        result
    }

    /// The number of the run that the thread is inside of, if it is.
    pub(crate) fn running(&self) -> Option<u64> {
        let runs = self.runs.load(Ordering::Acquire);
        (runs & 1 == 1).then_some(runs)
    }

    /// Takes note that the thread left run `run` without ending it (a `longjmp` out of a signal
    /// handler, say).
    pub(crate) fn abandon(&self, run: u64) {
        let _ = self.runs.compare_exchange(
            run,
            run.wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// Takes note that the thread was stopped in a system call made with the stack pointer at `sp`,
    /// and stays in its state. As long as it sleeps there, it is not stopped again for this. 0: it
    /// is.
    pub(crate) fn stay_at(&self, sp: u64) {
        self.stays_at.store(sp, Ordering::Relaxed);
    }

    pub(crate) fn stays_at(&self) -> u64 {
        self.stays_at.load(Ordering::Relaxed)
    }

    /// Finds out where the thread, one of `threads`, sleeps.
    pub(crate) fn sleeper<'a>(&'static self, threads: &'a Threads) -> Option<Sleeper<'a>> {
        Sleeper::find(threads, self.tid(), &self.slept)
    }

    /// Whether it is the engine's own thread, which may be woken at any time.
    pub(crate) fn is_ours(&self) -> bool {
        self.ours.load(Ordering::Relaxed)
    }

    /// Makes the record one of the thread `tid`, new to us.
    fn begin(&self, tid: u32, state: TaskState) {
        if let Some(context) = self.context() {
            context.abandon();
        }
        self.set_context(None);
        self.set_between(false);
        self.set_own(state);
        self.owned.store(false, Ordering::Relaxed);
        self.runs.store(0, Ordering::Relaxed);
        self.try_above(u64::MAX);
        self.ours.store(false, Ordering::Relaxed);
        self.stay_at(0);
        self.slept.forget();
        self.signalled.store(0, Ordering::Relaxed);
        self.visited.store(0, Ordering::Relaxed);
        self.tid.store(tid, Ordering::Relaxed);
    }
}

/// Records of one chunk.
const CHUNK: usize = 1024;

/// A block of records. The ids stand apart so that a search reads few cache lines.
struct Chunk {
    tids: [AtomicU32; CHUNK],
    records: [Record; CHUNK],
    next: AtomicPtr<Chunk>,
}

static FIRST: Chunk = Chunk {
    tids: [const { AtomicU32::new(0) }; CHUNK],
    records: [const { Record::new() }; CHUNK],
    next: AtomicPtr::new(ptr::null_mut()),
};

static REGISTRY: SignalLock<Registry> = SignalLock::new(Registry {
    newborn: TaskState::Idle,
    joined: 0,
    contexts: Pool::new(),
});

/// The calling thread's record, if it has found it before.
#[inline]
pub(crate) fn known() -> Option<&'static Record> {
    // SAFETY: 0, or where a record is that `join` found; chunks are never unmapped.
    unsafe { (tls::get::<{ tls::RECORD }>() as *const Record).as_ref() }
}

/// Says that the calling thread is the engine's own: it may be woken at any time.
#[cfg(feature = "control")]
pub(crate) fn call_ours() {
    current().ours.store(true, Ordering::Relaxed);
}

/// The calling thread's record, made now if there was none.
#[inline]
pub(crate) fn current() -> &'static Record {
    match known() {
        Some(record) => record,
        None => join(),
    }
}

#[cold]
#[inline(never)]
fn join() -> &'static Record {
    let _errno = KeepErrno::new();
    let record = {
        let mut registry = registry();
        registry.joined += 1;
        let record = registry.enter(tid_of_variables());
        if record.owned.swap(true, Ordering::Relaxed) {
            // The owner was another thread with this id, which has ended: only its state is
            // inherited.
            record.begin(record.tid(), record.state());
            record.owned.store(true, Ordering::Relaxed);
        }
        record
    };
    tls::set::<{ tls::RECORD }>(ptr::from_ref(record).addr());
    record
}

/// All records, and what they have in common.
pub(crate) struct Registry {
    /// The state of a thread that is seen for the first time.
    pub(crate) newborn: TaskState,
    /// Threads that made themselves known.
    pub(crate) joined: u64,
    /// What registered contexts have in common.
    pub(crate) contexts: Pool,
}

/// The registry, locked. No signal reaches the calling thread until the guard is gone.
pub(crate) fn registry() -> Guard<'static, Registry> {
    REGISTRY.lock()
}

/// Has the registry made whole again in every child of `fork`: the calling thread keeps its record,
/// under its new id.
pub(crate) fn keep_in_children() -> Result<(), Errno> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    // SAFETY: the function takes no arguments and stays for ever.
    match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
        0 => Ok(()),
        errno => {
            DONE.store(false, Ordering::Relaxed);
            Err(Errno(errno))
        }
    }
}

extern "C" fn in_child() {
    // SAFETY: this is the child's only thread, and it is not in the registry; what another one was
    // changing there was its own record, or, under the engine's lock, which was held during the
    // fork (see `fork.rs`), anything else.
    unsafe { REGISTRY.reset_in_child() };
    registry().keep_only_caller();
}

impl Registry {
    /// The records of all known threads, some of which may have ended.
    #[allow(clippy::unused_self, reason = "the lock's guard is what permits it")]
    pub(crate) fn records(&self) -> impl Iterator<Item = &'static Record> + use<> {
        slots()
            .filter(|(tid, _)| tid.load(Ordering::Relaxed) != 0)
            .map(|(_, record)| record)
    }

    /// The record of the thread `tid`, made now if there was none.
    ///
    /// If the id belonged to a thread before that has ended, its record is taken over with its
    /// state: that thread either was never switched, so the state is where everybody started, or it
    /// was switched in the transition under way, and a thread born later fits the target state.
    pub(crate) fn enter(&mut self, tid: u32) -> &'static Record {
        if let Some((_, record)) = slots().find(|(slot, _)| slot.load(Ordering::Relaxed) == tid) {
            return record;
        }
        loop {
            if let Some((slot, record)) =
                slots().find(|(slot, _)| slot.load(Ordering::Relaxed) == 0)
            {
                return self.take(slot, record, tid);
            }
            if !self.retire(|record| !thread_exists(record.tid())) && !grow() {
                // There is no answer without a record, and the caller cannot be told no.
                nap(Duration::from_millis(1));
            }
        }
    }

    /// Finds the records of `tasks`, which are sorted, in one pass.
    pub(crate) fn find_all(&self, tasks: &[TaskId], into: &mut [Option<&'static Record>]) {
        for record in self.records() {
            if let Ok(index) = tasks.binary_search(&TaskId(record.tid().into())) {
                into[index] = Some(record);
            }
        }
    }

    /// As [`find_all`](Self::find_all), and makes records for those that have none.
    pub(crate) fn enter_all(&mut self, tasks: &[TaskId], into: &mut [Option<&'static Record>]) {
        self.find_all(tasks, into);
        let mut free = slots().filter(|(slot, _)| slot.load(Ordering::Relaxed) == 0);
        for (task, found) in tasks.iter().zip(into) {
            let (None, Ok(tid)) = (*found, u32::try_from(task.0)) else {
                continue;
            };
            *found = Some(match free.next() {
                Some((slot, record)) => self.take(slot, record, tid),
                None => self.enter(tid),
            });
        }
    }

    fn take(&self, slot: &AtomicU32, record: &'static Record, tid: u32) -> &'static Record {
        record.begin(tid, self.newborn);
        slot.store(tid, Ordering::Relaxed);
        record
    }

    /// Frees the records that `which` says belong to threads that have ended; says whether there
    /// were any.
    #[allow(
        clippy::unused_self,
        clippy::needless_pass_by_ref_mut,
        reason = "the lock's guard is what permits it"
    )]
    pub(crate) fn retire(&mut self, which: impl Fn(&Record) -> bool) -> bool {
        let mut any = false;
        for (slot, record) in slots() {
            if slot.load(Ordering::Relaxed) != 0 && which(record) {
                record.begin(0, TaskState::Idle);
                slot.store(0, Ordering::Relaxed);
                any = true;
            }
        }
        any
    }

    /// After `fork`, in the child: the calling thread has a new id, the others are not there.
    pub(crate) fn keep_only_caller(&mut self) {
        let own = known();
        let tid = gettid();
        self.contexts
            .keep_only_those_of(own.map_or(0, Record::tid), tid);
        for (slot, record) in slots() {
            if own.is_some_and(|own| ptr::eq(own, record)) {
                record.tid.store(tid, Ordering::Relaxed);
                // Signals that were on their way went to the parent.
                record.signalled.store(0, Ordering::Relaxed);
                slot.store(tid, Ordering::Relaxed);
            } else if slot.load(Ordering::Relaxed) != 0 {
                record.begin(0, TaskState::Idle);
                slot.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// Every slot for a thread, used or not.
fn slots() -> impl Iterator<Item = (&'static AtomicU32, &'static Record)> {
    chunks().flat_map(|chunk| chunk.tids.iter().zip(&chunk.records))
}

fn chunks() -> impl Iterator<Item = &'static Chunk> {
    core::iter::successors(Some(&FIRST), |chunk| {
        // SAFETY: a chunk is published whole, and never unmapped.
        unsafe { chunk.next.load(Ordering::Acquire).as_ref() }
    })
}

/// Appends a chunk. Called with the registry locked.
fn grow() -> bool {
    let Ok(memory) = map_zeroed(size_of::<Chunk>()) else {
        return false;
    };
    // Zeros are what a chunk begins with. The mapping is large enough, and aligned to a page.
    let chunk = memory.cast::<Chunk>();
    let last = chunks().last().unwrap_or(&FIRST);
    last.next.store(chunk, Ordering::Release);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_seen_while_it_lasts_and_nested_ones_belong_to_it() {
        let record = Record::new();
        assert_eq!(record.running(), None);
        let outer = record.run(|| {
            let outer = record.running();
            assert_eq!(record.run(|| record.running()), outer);
            outer
        });
        assert_eq!(outer, Some(1));
        assert_eq!(record.running(), None);
        assert_eq!(record.run(|| record.running()), Some(3));
    }

    #[test]
    fn an_abandoned_run_ends_only_if_it_is_still_the_same() {
        let record = Record::new();
        record.runs.store(5, Ordering::Relaxed);
        record.abandon(3);
        assert_eq!(record.running(), Some(5));
        record.abandon(5);
        assert_eq!(record.running(), None);
    }
}
