//! The way of a redirected call: thunk → entry stub → one of the two functions here → the version
//! that the engine chose.

use super::arch::{Preserved, entry_stub};
use super::context::Interrupted;
use super::entry;
use super::error::Error;
use super::lock::FutexLock;
use super::notrace;
use super::records::{self, Record, registry};
use super::scan::Threads;
use super::sites;
use super::space::Space;
use super::stop::{self, FromOutside, Look, Missed, Records};
use super::symbols;
use super::sys::{self, Barrier, thread_exists};
use alloc::sync::Arc;
use core::fmt;
use core::ops::ControlFlow;
use core::time::Duration;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::ops;
use klp_core::port::{EntryHost, TaskId, Unwinder};

entry_stub!(fn klp_os_linux_entry_stub, fast, slow);
crate::notrace!(klp_os_linux_entry_stub);

/// For threads that have a record and are in the state that they are to be in, or cannot be now or
/// here. 0: this one is not.
extern "C" fn fast(arg: u64, sp: u64) -> u64 {
    match records::known() {
        // SAFETY: thunks bring only arguments that the engine made.
        Some(record) if !record.tries_at(sp) || !unsafe { ops::may_switch_at_all(arg) } => {
            record.run(|| decide(record, arg))
        }
        _ => 0,
    }
}

/// For all others: makes a record, tries to switch.
unsafe extern "C" fn slow(arg: u64, sp: u64, preserved: *const Preserved) -> u64 {
    let record = records::current();
    record.run(|| {
        // SAFETY: the stub's promise; thunks bring only arguments that the engine made.
        unsafe { entry::try_switch(record, arg, sp, preserved) };
        decide(record, arg)
    })
}

/// Inside a run of the handler.
#[inline]
fn decide(record: &Record, arg: u64) -> u64 {
    // SAFETY: thunks bring only arguments that the engine made; `synchronize` waits for runs.
    unsafe { ops::handler(arg, || record.own_state()) }.get()
}

/// What the tracer wants from the process.
pub struct EntryPoints {
    space: Arc<Space>,
}

impl EntryPoints {
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self { space }
    }
}

// SAFETY: sites come from the sections in which compilers record them; the engine's own code is
// notrace; the stub calls `ops::handler` through the functions above; `synchronize` waits for every
// run that has begun.
unsafe impl EntryHost for EntryPoints {
    type Lock = FutexLock;

    fn recorded_site(&self, func: TextRange) -> Option<CodeAddr> {
        sites::recorded(&self.space.objects, func)
    }

    fn is_notrace(&self, func: TextRange) -> bool {
        notrace::is_notrace(&self.space, func)
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        symbols::describe(&self.space, addr, out)
    }

    fn stub(&self) -> CodeAddr {
        CodeAddr::new(klp_os_linux_entry_stub as *const () as u64)
    }

    fn synchronize(&self) {
        if sys::barrier(Barrier::Memory).is_err() {
            // Somebody has forbidden the call since it was made at the beginning.
            while !every_thread_passes_a_barrier().is_ok_and(|all| all) {
                sys::nap(Duration::from_millis(1));
            }
        }
        // ORDER(runs): a run that the barrier above did not make visible has not read anything yet.
        // A record that is free by the time it is looked at is not running.
        let known = registry().records();
        let mut running = Vec::new();
        for (record, run) in known.filter_map(|record| Some((record, record.running()?))) {
            // First all are asked: while one is waited for, others begin runs that need no waiting.
            // Without memory, these are waited for, too.
            match running.try_reserve(1) {
                Ok(()) => running.push((record, run)),
                Err(_) => wait_for_run(record, run, &self.space),
            }
        }
        for (record, run) in running {
            wait_for_run(record, run, &self.space);
        }
    }
}

/// Looks at every thread: each passes a barrier, who sleeps when it fell asleep. Says whether that
/// was all of them.
fn every_thread_passes_a_barrier() -> Result<bool, Error> {
    let (mut tasks, mut records) = (Vec::new(), Records::new());
    stop::all_threads(&mut tasks, &mut records)?;
    let round = stop::stop(&tasks, &Passes, &mut records)?;
    let passed = |(task, record): (&TaskId, &Option<&'static Record>)| {
        record.is_some_and(|record| round.reached(record))
            || matches!(stop::why_missed(*task, *record), Missed::Gone)
    };
    Ok(tasks.iter().zip(&records).all(passed))
}

struct Passes;

impl Look for Passes {
    fn look_from_outside(
        &self,
        _: usize,
        record: &'static Record,
        threads: &Threads,
    ) -> FromOutside {
        FromOutside::or_stop(record.sleeper(threads).is_some())
    }

    fn look(&self, _: usize, _: &mut Interrupted<'_>, _: &Record) -> bool {
        true
    }
}

/// Waits until `record` is not in the run `run` any more.
fn wait_for_run(record: &'static Record, run: u64, space: &Space) {
    /// Short waits before the thread is asked where it is.
    const WAITS: u32 = 200;
    let mut waits = 0_u32;
    while record.running() == Some(run) {
        waits += 1;
        if waits < 20 {
            core::hint::spin_loop();
        } else if waits % WAITS != 0 {
            sys::nap(Duration::from_micros(50));
        } else if thread_exists(record.tid()) {
            let tasks = [TaskId(record.tid().into())];
            let _ = stop::stop(&tasks, &Outside { run, space }, &mut Records::new());
        } else {
            record.abandon(run);
        }
    }
}

/// Ends a run of the handler that its thread has left by a `longjmp` out of a signal handler.
///
/// A reliable stack proves that: the stub that calls the handler has no unwind information.
struct Outside<'a> {
    run: u64,
    space: &'a Space,
}

impl Look for Outside<'_> {
    /// It might wake up and begin another run, which the one that it has left would cover.
    fn look_from_outside(&self, _: usize, _: &'static Record, _: &Threads) -> FromOutside {
        FromOutside::Stop
    }

    fn look(&self, _: usize, thread: &mut Interrupted<'_>, record: &Record) -> bool {
        let walked = self
            .space
            .stacks
            .walk(&thread.regs().into(), &mut |_| ControlFlow::Continue(()));
        if walked.is_ok() {
            record.abandon(self.run);
        }
        true
    }
}
