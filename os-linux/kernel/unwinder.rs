// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Reliable stacks, from the kernel's own unwinder (kernel: `klp_check_stack`).

use crate::host::{self, task_struct};
use core::ops::ControlFlow;
use klp_core::addr::CodeAddr;
use klp_core::port::{Doubt, Frame, FrameKind, Unreliable, Unwinder};

/// A task that does not run, and is not freed meanwhile; or the one that calls. Preemption is off.
pub(crate) struct Stopped(pub(crate) *mut task_struct);

/// `stack_trace_save_tsk_reliable`.
pub(crate) struct KernelUnwinder;

// SAFETY: the kernel promises as much of `stack_trace_save_tsk_reliable`, for a task that does not
// run.
unsafe impl Unwinder for KernelUnwinder {
    type Context = Stopped;

    fn walk(&self, context: &Stopped, visit: &mut dyn FnMut(Frame) -> ControlFlow<()>) -> Result<(), Unreliable> {
        let mut frames = core::ptr::null();
        // SAFETY: the task does not run, and is not freed, while there is a `Stopped` of it;
        // preemption is off.
        let count = unsafe { host::klp_host_walk(context.0, &raw mut frames) };
        let Ok(count) = usize::try_from(count) else {
            return Err(Unreliable { at: CodeAddr::new(0), why: Doubt::Corrupt });
        };
        // SAFETY: as many were written to memory of this CPU, where we stay.
        for frame in unsafe { core::slice::from_raw_parts(frames, count) } {
            // The kernel does not say which frames were interrupted. A call at the very end of a
            // function does not return there, so the address as it is will do for all of them.
            let frame = Frame { pc: CodeAddr::new(*frame), kind: FrameKind::Interrupted };
            if visit(frame).is_break() {
                break;
            }
        }
        Ok(())
    }
}
