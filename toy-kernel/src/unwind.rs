//! [`Unwinder`]: stacks by the tables that the compiler made, all of the kernel having them but for
//! the entry stub, as it must be, and what `boot.s` does between tasks.

use crate::interrupt::Frame as Registers;
use crate::sched;
use core::ops::ControlFlow;
use klp_arch_x86_64::calls::{CALL_LEN, called};
use klp_arch_x86_64::unwind::{EhFrame, Regs, Table, TableError, compile, walk};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::config::MAX_STACK_ENTRIES;
use klp_core::port::{Frame, FrameKind, Unreliable, Unwinder};

/// The rules of `.eh_frame`.
pub struct Tables(Table);

impl Tables {
    /// Compiles them.
    pub fn new() -> Result<Self, TableError> {
        unsafe extern "C" {
            // `kernel.ld`
            static eh_frame_start: u8;
            static eh_frame_end: u8;
            static text_start: u8;
            static text_end: u8;
        }
        let (start, end) = (&raw const eh_frame_start, &raw const eh_frame_end);
        let (text, behind) = (&raw const text_start, &raw const text_end);
        let section = EhFrame {
            // SAFETY: the linker has put it there.
            bytes: unsafe { core::slice::from_raw_parts(start, end.offset_from(start) as usize) },
            addr: CodeAddr::new(start.addr() as u64),
        };
        let len = behind.addr() - text.addr();
        let text = TextRange::new(CodeAddr::new(text.addr() as u64), len as u64);
        Ok(Self(compile(section, text.ok_or(TableError::TooLarge)?)?))
    }
}

// SAFETY: `walk` keeps the contract, for a task that is stopped as the registers say.
unsafe impl Unwinder for Tables {
    type Context = Registers;

    fn walk(
        &self,
        task: &Registers,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable> {
        let Registers { rip, rsp, rbp, rbx, r12, r13, r14, r15, .. } = *task;
        let regs = Regs { rip, rsp, rbp, rbx, r12, r13, r14, r15 };
        let last = (rsp | (sched::SIZE as u64 - 1)) - 7;
        let rule = |frame: Frame| self.0.find(frame.lookup());
        // SAFETY: the rest of a stack is memory, which does not change meanwhile.
        let read = |at| (rsp..=last).contains(&at).then(|| unsafe { *(at as *const u64) });
        walk(regs, MAX_STACK_ENTRIES, rule, read, visit)
    }

    fn called(&self, _: &Registers, _: usize, frame: Frame) -> Option<CodeAddr> {
        let before = frame.pc.wrapping_sub(CALL_LEN as u64);
        let is_call = frame.kind == FrameKind::Call && self.0.text().contains(before);
        // SAFETY: there is code.
        let before = is_call.then(|| unsafe { *(before.get() as *const [u8; CALL_LEN]) })?;
        called(frame.pc, before)
    }
}
