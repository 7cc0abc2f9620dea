//! [`Text`]: the whole protocol is that nobody runs any code while it changes.

use crate::interrupt::stop_machine;
use crate::sched::with_tasks;
use alloc::alloc::{Layout, alloc_zeroed};
use core::sync::atomic::Ordering;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::port::{CallC, Fill, Image, ImageLayout, Poke, PortErrorKind, Text};

/// All memory is mapped at its own address, writable and executable.
#[derive(Clone, Copy)]
pub struct Memory;

const END: u64 = 1 << 32;

/// # Safety
///
/// `len` bytes at `at` are memory, and do not change meanwhile.
unsafe fn bytes<'a>(at: CodeAddr, len: usize) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts(at.get() as *const u8, len) }
}

/// # Safety
///
/// There is memory at `at`, and nobody runs or reads these bytes meanwhile.
unsafe fn write(at: CodeAddr, bytes: &[u8]) {
    // SAFETY: the caller's promise.
    unsafe { bytes.as_ptr().copy_to(at.get() as *mut u8, bytes.len()) }
}

// SAFETY: code changes while every processor is in `stop_machine`, and behind that each goes on
// with an instruction that makes it see the change. A task that was interrupted goes on in front of the
// bytes that changed or behind them: in between only if they were several instructions, and then it
// is moved. Memory is handed out once, and never taken back.
unsafe impl Text for Memory {
    type Error = PortErrorKind;

    const CALL_C: Option<CallC> = Some(CallC::HERE);

    fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), PortErrorKind> {
        let end = at.get().checked_add(into.len() as u64);
        if at.get() == 0 || end.is_none_or(|end| end > END) {
            return Err(PortErrorKind::NotFound);
        }
        // SAFETY: it is mapped; code changes only while this one waits for that.
        into.copy_from_slice(unsafe { bytes(at, into.len()) });
        Ok(())
    }

    unsafe fn poke(&self, batch: &[Poke<'_>]) -> Result<(), PortErrorKind> {
        let mut changed = Err(PortErrorKind::Held);
        stop_machine(&mut || {
            // SAFETY: the caller names code.
            let as_it_was = |poke: &Poke<'_>| unsafe { bytes(poke.at, poke.old.len()) } == poke.old;
            if !batch.iter().all(as_it_was) {
                return;
            }
            for poke in batch {
                if poke.split {
                    move_out(poke);
                }
                // SAFETY: everybody is stopped.
                unsafe { write(poke.at, poke.new) };
            }
            changed = Ok(());
        });
        changed
    }

    fn alloc(
        &self,
        near: TextRange,
        reach: u64,
        layout: ImageLayout,
    ) -> Result<Image, PortErrorKind> {
        let refused = PortErrorKind::NoMemoryInReach;
        let ImageLayout { text, rodata, data } = layout;
        let memory = Layout::from_size_align((text + rodata + data) as usize, 64).ok();
        // SAFETY: nobody asks for nothing.
        let start = unsafe { alloc_zeroed(memory.filter(|it| it.size() > 0).ok_or(refused)?) };
        let start = CodeAddr::new(start.addr() as u64);
        let part = |offset, len| TextRange::new(start.wrapping_add(offset), len).ok_or(refused);
        let all = part(0, text + rodata + data)?;
        let far = |from: CodeAddr, to: CodeAddr| from.distance_to(to).unsigned_abs() > reach;
        if start.get() == 0 || far(near.start(), all.end()) || far(near.end(), all.start()) {
            return Err(refused);
        }
        Ok(Image {
            text: part(0, text)?,
            rodata: part(text, rodata)?,
            data: part(text + rodata, data)?,
        })
    }

    unsafe fn free(&self, _: Image) {}

    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), PortErrorKind> {
        for fill in batch {
            // SAFETY: the caller's promise. Whoever runs it gets there by a change of live code,
            // behind which every processor sees this, too.
            unsafe { write(fill.at, fill.bytes) };
        }
        Ok(())
    }
}

/// Moves tasks that stand between the old instructions behind them. Everybody is stopped.
fn move_out(poke: &Poke<'_>) {
    with_tasks(|tasks| {
        for task in tasks {
            // SAFETY: it is stopped, the frame is there.
            let frame = unsafe { &mut *task.frame.load(Ordering::Acquire) };
            if (poke.at.get() + 1..poke.body.get()).contains(&frame.rip) {
                frame.rip = poke.body.get();
            }
        }
    });
}
