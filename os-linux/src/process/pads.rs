//! Entry pads of several instructions: getting threads out of their midst.
//!
//! When this begins, every pad starts with an instruction that leads over its first five bytes, and
//! all cores see it, so nobody gets among them any more. It remains to look at each thread once:
//! who stands there, or was interrupted there by a signal whose handler it is in, goes on behind
//! the pad.

use super::arch::{self, Regs, thread};
use super::context::Interrupted;
use super::error::{Error, Silence};
use super::peek::stack_memory;
use super::records::Record;
use super::scan::{self, Threads};
use super::stop::{self, FromOutside, Look, Missed, Records, why_missed};
use super::sys;
use super::unwind::Stacks;
use core::cell::Cell;
use core::ops::ControlFlow;
use core::ptr;
use core::time::Duration;
use klp_core::addr::CodeAddr;
use klp_core::port::{FrameKind, Poke};
use std::time::Instant;

/// How long nobody may show where it is while somebody has not.
const LIMIT: Duration = Duration::from_secs(2);

/// Bytes of a stack that are searched at most.
const MAX_SEARCHED: u64 = 64 << 20;

/// The pads of a batch of changes.
pub(crate) struct Pads<'a> {
    batch: &'a [Poke<'a>],
    stacks: &'a Stacks,
}

impl<'a> Pads<'a> {
    pub(crate) fn new(batch: &'a [Poke<'a>], stacks: &'a Stacks) -> Self {
        Self { batch, stacks }
    }

    /// Returns when no thread is in the midst of a pad.
    ///
    /// # Errors
    ///
    /// [`Error::ThreadSilent`] if a thread cannot be looked at for long, and the errors of listing
    /// threads. Some threads may have been moved, which is harmless: a pad does nothing.
    pub(crate) fn clear(&self) -> Result<(), Error> {
        let mut last = Instant::now();
        let mut tasks = Vec::new();
        let mut records = Records::new();
        stop::all_threads(&mut tasks, &mut records)?;
        loop {
            let _round = self.stacks.round();
            let round = stop::stop(&tasks, self, &mut records)?;
            let mut index = 0;
            let mut silent = None;
            let before = tasks.len();
            tasks.retain(|&task| {
                let record = records[index];
                index += 1;
                if record.is_none_or(|record| round.reached(record)) {
                    return false;
                }
                let why = match why_missed(task, record) {
                    Missed::Gone => return false,
                    Missed::Blocks => Silence::Blocks,
                    Missed::Running => Silence::Running,
                };
                silent = Some((task, why));
                true
            });
            if tasks.len() < before {
                last = Instant::now();
            }
            match silent {
                None => return Ok(()),
                Some((task, why)) if last.elapsed() >= LIMIT => {
                    return Err(Error::ThreadSilent {
                        task,
                        name: scan::name(task),
                        why,
                    });
                }
                Some(_) => sys::nap(Duration::from_millis(1)),
            }
        }
    }

    /// Where a thread goes on that would execute `pc` next, if that is in the midst of a pad.
    fn body(&self, pc: u64) -> Option<CodeAddr> {
        let pc = CodeAddr::new(pc);
        let behind = self.batch.partition_point(|poke| poke.at < pc);
        let poke = self.batch.get(behind.checked_sub(1)?)?;
        (poke.split && pc.get() - poke.at.get() < poke.old.len() as u64).then_some(poke.body)
    }

    /// Whether the stack above `regs` holds no address in a pad, so that no interrupted code on it
    /// is in one.
    fn none_on_stack(&self, regs: &Regs) -> bool {
        let (Some(first), Some(last)) = (self.batch.first(), self.batch.last()) else {
            return true;
        };
        let hull = first.at.get()..last.at.get() + last.old.len() as u64;
        let memory = stack_memory();
        let start = arch::sp(regs).next_multiple_of(8);
        // If it is above, the stack ends there at the latest.
        let end = start + MAX_SEARCHED;
        let end = Some(thread::thread_pointer())
            .filter(|top| (start..end).contains(top))
            .unwrap_or(end);
        let pages =
            core::iter::successors(Some(start), |addr| Some((addr / sys::PAGE + 1) * sys::PAGE));
        pages
            .take_while(|addr| *addr < end)
            .map_while(|addr| memory.page_from(addr))
            .all(|mut words| words.all(|word| !hull.contains(&word) || self.body(word).is_none()))
    }

    /// Moves all code that was interrupted in a pad, by walking the stack. Says whether the walk
    /// got to its end.
    fn move_on_stack(&self, regs: &Regs) -> bool {
        let saved = Cell::new((0, 0));
        let seen = |addr, value| {
            if self.body(value).is_some() {
                saved.set((addr, value));
            }
        };
        let walked = self.stacks.walk_seeing(regs, seen, &mut |frame| {
            let (addr, value) = saved.get();
            if frame.kind == FrameKind::Interrupted && frame.pc.get() == value {
                if let Some(body) = self.body(value) {
                    // SAFETY: it is where the kernel's signal frame, on this thread's own stack,
                    // holds the interrupted instruction's address.
                    unsafe { ptr::write_volatile(addr as *mut u64, body.get()) };
                }
            }
            ControlFlow::Continue(())
        });
        walked.is_ok()
    }
}

impl Look for Pads<'_> {
    /// Who sleeps in a system call stands in no pad, but may have been interrupted in one.
    fn look_from_outside(
        &self,
        _: usize,
        record: &'static Record,
        threads: &Threads,
    ) -> FromOutside {
        let Some(sleeper) = record.sleeper(threads) else {
            return FromOutside::Stop;
        };
        let is_pad = |word| self.body(word).is_some();
        let none = self.stacks.words(sleeper.sp(), |word| !is_pad(word));
        // Memory around the stack may hold anything.
        let none = none == Some(true) || {
            let mut none = true;
            let regs = *sleeper.stopped().regs();
            let walked = self.stacks.walk_asleep(&regs, &mut |frame| {
                none &= !(frame.kind == FrameKind::Interrupted && is_pad(frame.pc.get()));
                ControlFlow::Continue(())
            });
            walked.is_ok() && none
        };
        FromOutside::or_stop(none && sleeper.still_sleeps())
    }

    fn look(&self, _: usize, thread: &mut Interrupted<'_>, _: &Record) -> bool {
        if let Some(body) = self.body(thread.pc()) {
            thread.set_pc(body.get());
        }
        let regs = thread.regs();
        !thread.on_signal_stack() && self.none_on_stack(&regs) || self.move_on_stack(&regs)
    }
}
