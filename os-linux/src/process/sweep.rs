//! Memory of patches that were removed: it goes when no stack points into it any more.
//!
//! The engine knows that nobody is inside of a patch that it has forgotten. Somebody may hold an
//! address in it all the same, and use it later: a function that was looked up and not called yet,
//! say. So its patch object is *retired*: it stays as it is until every stack was looked at, from
//! its stack pointer on, registers included, and no word there lies in it. Any number that could be
//! such an address counts as one. What cannot be looked at means "not yet"; and so does a thread
//! that sleeps in a system call which a signal would end: of its registers nobody knows, and it is
//! not woken for this.
//!
//! What the engine itself has on its stack must not look like such an address: hence numbers of
//! pages, not addresses, in [`Retired`], and [`scrub`].

use super::arch::{self, Regs, registers};
use super::asleep::Sleeper;
use super::context::Interrupted;
use super::contexts;
use super::error::Error;
use super::memory;
use super::peek::{Copied, stack_memory};
use super::records::Record;
use super::retired::{Retired, hold};
use super::scan::Threads;
use super::space::Space;
use super::stop::{self, FromOutside, Look, Missed, Records, why_missed};
use super::sys::{PAGE, gettid};
use super::tasks::check_contexts;
use super::unwind::{Stacks, Stopped};
use core::cell::Cell;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, Ordering};
use klp_core::port::{Reason, TaskId, TaskState, Visitor};

/// How often threads are listed and stopped, if some were born meanwhile or could not be looked at.
const ROUNDS: u32 = 3;

/// The same of a context, as it was left: whoever switches then pushes registers.
const BELOW: u64 = 256;

/// Keeps those of `retired` that no stack points into, and drops the others: all of them, if not
/// every stack could be looked at. Only while the engine is held still: it stops threads, too.
///
/// # Errors
///
/// Threads, contexts or what is mapped could not be listed.
pub(crate) fn keep_free(space: &Space, retired: &mut Vec<Retired>) -> Result<(), Error> {
    check_contexts()?;
    space.refresh()?;
    let living = contexts::living()?;
    let mut looked_at = Vec::new();
    looked_at
        .try_reserve(living.len())
        .map_err(|_| Error::OutOfMemory)?;
    looked_at.extend(living.iter().map(|_| AtomicBool::new(false)));
    let scan = Scan {
        caller: gettid(),
        retired,
        mappings: memory::mappings()?,
        stacks: &space.stacks,
        living,
        looked_at,
    };
    scrub();
    if scan.look_at_all()? {
        retired.retain(|image| !image.is_held());
    } else {
        retired.clear();
    }
    Ok(())
}

/// Overwrites what calls that have returned have left below the stack of the caller: whoever it
/// calls next would have it in the holes of its frame.
#[inline(never)]
pub(crate) fn scrub() {
    core::hint::black_box(&mut [0_u64; 1024]);
}

/// A look at all stacks.
struct Scan<'a> {
    /// The thread that looks.
    caller: u32,
    retired: &'a [Retired],
    /// What is mapped.
    mappings: Vec<(u64, u64)>,
    stacks: &'a Stacks,
    /// Contexts that may have something on their stacks, sorted.
    living: Vec<TaskId>,
    /// Which of them were looked at.
    looked_at: Vec<AtomicBool>,
}

/// Up to where a stack is searched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// To the end of its mapping.
    Mapping,
    /// To the outermost frame: it may be a part of the heap.
    Frames,
}

impl Scan<'_> {
    /// Says whether every stack was looked at. It gives up when there is nothing to be gained.
    fn look_at_all(&self) -> Result<bool, Error> {
        let (mut tasks, mut records) = (Vec::new(), Records::new());
        stop::all_threads(&mut tasks, &mut records)?;
        if !self.look_at_sleepers(&records)? || self.all_are_held() {
            return Ok(false);
        }
        contexts::visit(&self.living, self);
        scrub();
        if !self.look_at_threads(&mut tasks, &mut records)? {
            return Ok(false);
        }
        Ok(self
            .looked_at
            .iter()
            .all(|looked| looked.load(Ordering::Relaxed)))
    }

    fn all_are_held(&self) -> bool {
        self.retired.iter().all(Retired::is_held)
    }

    /// Looks at stacks of sleeping threads from outside: if one of them holds an image, nobody needs
    /// to be stopped for it. `false`: some threads must not be woken.
    fn look_at_sleepers(&self, records: &Records) -> Result<bool, Error> {
        let threads = Threads::open()?;
        let mut all = true;
        for record in records.iter().flatten() {
            let Some(sleeper) = record.sleeper(&threads) else {
                continue;
            };
            all &= may_be_woken(&sleeper, record);
            if record.context().is_none() {
                self.hold_from(sleeper.sp());
            }
        }
        Ok(all)
    }

    /// Looks at the stack from `sp` on, as far as it can be read.
    fn hold_from(&self, sp: u64) {
        let end = self.end_of_mapping(sp).unwrap_or(sp);
        let memory = Copied::stack(sp, end);
        let words = (sp.next_multiple_of(8)..end).step_by(8);
        hold(self.retired, words.map_while(|at| memory.read(at)));
    }

    /// Stops every thread once, those that are born meanwhile too; `false`: not every one could be
    /// looked at.
    fn look_at_threads(
        &self,
        tasks: &mut Vec<TaskId>,
        records: &mut Records,
    ) -> Result<bool, Error> {
        let mut done: Vec<TaskId> = Vec::new();
        for _ in 0..ROUNDS {
            let round = stop::stop(tasks, self, records)?;
            done.try_reserve(tasks.len())
                .map_err(|_| Error::OutOfMemory)?;
            for (&task, record) in tasks.iter().zip(&*records) {
                if record.is_some_and(|record| round.reached(record)) {
                    done.push(task);
                    continue;
                }
                match why_missed(task, *record) {
                    Missed::Gone | Missed::Running => {}
                    Missed::Blocks => return Ok(false),
                }
            }
            if self.all_are_held() {
                return Ok(false);
            }
            done.sort_unstable();
            stop::all_threads(tasks, records)?;
            tasks.retain(|task| done.binary_search(task).is_err());
            if tasks.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks at the stack that `regs` are in, from `from` on; says whether all of it could be
    /// looked at.
    fn look_at_stack(&self, regs: &Regs, from: u64, end: End) -> bool {
        let (low, high) = (Cell::new(from), Cell::new(arch::sp(regs)));
        let seen = |addr, _| {
            low.set(low.get().min(addr));
            high.set(high.get().max(addr + 8));
        };
        let walked = self
            .stacks
            .walk_seeing(regs, seen, &mut |_| ControlFlow::Continue(()));
        // The frames may lie on several stacks: then there is one that nobody has looked at.
        let Some(limit) = self.end_of_mapping(from) else {
            return false;
        };
        if walked.is_err() || low.get() < from || high.get() > limit {
            return false;
        }
        let end = match end {
            End::Mapping => limit,
            End::Frames => high.get(),
        };
        let memory = stack_memory();
        let mut at = from / 8 * 8;
        while at < end {
            let Some(words) = memory.page_from(at) else {
                return false;
            };
            let next = ((at / PAGE + 1) * PAGE).min(end);
            hold(self.retired, words.take(((next - at) / 8) as usize));
            at = next;
        }
        true
    }

    /// Looks at the registers that a function finds unchanged when one that it has called returns.
    fn hold_saved(&self, regs: &Regs) {
        hold(self.retired, registers::preserved(regs));
    }

    /// The end of the mapping that `addr` lies in.
    fn end_of_mapping(&self, addr: u64) -> Option<u64> {
        // The room below the main stack may overlap with what stands before it in the list.
        let contains = |(start, end): &&(u64, u64)| *start <= addr && addr < *end;
        self.mappings.iter().find(contains).map(|(_, end)| *end)
    }

    /// The context `index` was looked at.
    fn looked_at(&self, index: usize) {
        if let Some(looked_at) = self.looked_at.get(index) {
            looked_at.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether nobody notices that `sleeper` is stopped.
fn may_be_woken(sleeper: &Sleeper, record: &Record) -> bool {
    sleeper.is_resumed() || record.is_ours()
}

impl Look for Scan<'_> {
    /// Of who sleeps, the registers are not known.
    fn look_from_outside(
        &self,
        _: usize,
        record: &'static Record,
        threads: &Threads,
    ) -> FromOutside {
        match record.sleeper(threads) {
            Some(sleeper) if !may_be_woken(&sleeper, record) => FromOutside::Leave,
            _ => FromOutside::Stop,
        }
    }

    fn look(&self, _: usize, thread: &mut Interrupted<'_>, record: &Record) -> bool {
        let regs = thread.regs();
        if record.tid() == self.caller {
            // It is in a call of `stop`: other registers are not in use (psABI 3.2.1).
            self.hold_saved(&regs);
        } else {
            hold(self.retired, thread.registers());
        }
        let from = arch::sp(&regs).saturating_sub(arch::RED_ZONE);
        let context = record.context().map(|context| context.id());
        let end = context.map_or(End::Mapping, |_| End::Frames);
        if thread.on_signal_stack() || !self.look_at_stack(&regs, from, end) {
            return false;
        }
        if let Some(Ok(index)) = context.map(|context| self.living.binary_search(&context)) {
            self.looked_at(index);
        }
        true
    }
}

impl Visitor<Stopped> for Scan<'_> {
    fn visit(&self, index: usize, stopped: &Stopped) -> Option<TaskState> {
        let regs = stopped.regs();
        self.hold_saved(regs);
        if self.look_at_stack(regs, arch::sp(regs).saturating_sub(BELOW), End::Frames) {
            self.looked_at(index);
        }
        None
    }

    /// A thread runs on it, and marks it when it is looked at.
    fn missed(&self, _: usize, _: Reason) {}
}
