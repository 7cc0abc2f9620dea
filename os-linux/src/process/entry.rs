//! Threads that switch themselves at the entry of an affected function.
//!
//! A thread that is inside of affected functions whenever a stop signal finds it leaves them now
//! and then: when it calls the outermost of them again, no other is on its stack. So while tasks
//! move, a thread that has not moved walks its own stack at a redirected call, before the handler
//! chooses: where [`ops::may_switch`](klp_core::ops::may_switch) says that it was called and has
//! not jumped there, so that whatever it is in has a frame. If that fails, it tries again only in a
//! call from further up the stack: deeper ones have the same function below them.

use super::arch::{self, Preserved};
use super::records::{Record, registry};
use super::space::Space;
use super::ucontext;
use alloc::sync::Arc;
use core::ops::ControlFlow;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use klp_core::addr::CodeAddr;
use klp_core::mem::try_box;
use klp_core::ops;
use klp_core::port::{EntryCheck, Frame, FrameKind, Lending, TaskState, Unwinder};

/// What threads look at.
pub(crate) struct Loan {
    check: *const dyn EntryCheck,
    target: TaskState,
    space: Arc<Space>,
    switched: Arc<AtomicU64>,
}

// SAFETY: the check may be used by any thread (`EntryCheck` is `Sync`), as long as it is lent.
unsafe impl Send for Loan {}

// SAFETY: as above; the rest is shared by its type.
unsafe impl Sync for Loan {}

/// The loan under way.
static LOAN: Lending<Loan> = Lending::new();

/// Lets threads switch themselves to `target`, and counts them in `switched`. Keep what comes back
/// until the loan was withdrawn and the tracer has synchronised. `None`: there is no memory for it,
/// and threads are switched from outside only.
///
/// # Safety
///
/// As for [`SelfSwitch::lend`](klp_core::port::SelfSwitch::lend).
pub(crate) unsafe fn lend(
    check: &dyn EntryCheck,
    target: TaskState,
    space: Arc<Space>,
    switched: Arc<AtomicU64>,
) -> Option<Box<[Loan; 1]>> {
    // SAFETY: only the lifetime changes; the caller promises that the check stays long enough.
    let check = unsafe { core::mem::transmute::<&dyn EntryCheck, &'static dyn EntryCheck>(check) };
    let loan = try_box(Loan {
        check,
        target,
        space,
        switched,
    })
    .ok()?;
    // SAFETY: the caller keeps it until the loan was withdrawn and the tracer has synchronised.
    unsafe { LOAN.lend(NonNull::from(&loan[0])) };
    for record in registry()
        .records()
        .filter(|record| record.state() != target)
    {
        record.try_above(0);
    }
    Some(loan)
}

/// Ends the loan. Threads that look at it are inside a run of the handler.
pub(crate) fn withdraw() {
    LOAN.withdraw();
}

/// Switches the calling thread, which stands at the entry of an affected function with the stack
/// pointer `sp`, if nothing keeps it. Inside a run of the handler.
///
/// # Safety
///
/// `arg`, `sp` and `preserved` are what the entry stub hands to a slow handler.
pub(crate) unsafe fn try_switch(record: &Record, arg: u64, sp: u64, preserved: *const Preserved) {
    // SAFETY: it is used inside of this run of the handler only.
    let Some(loan) = (unsafe { LOAN.borrow() }) else {
        return record.try_above(u64::MAX);
    };
    if record.own_state() == loan.target {
        return record.try_above(u64::MAX);
    }
    if record.is_between() || ucontext::unregistered().is_some() {
        return;
    }
    // SAFETY: if the return address is in memory, it is at `sp`, the caller's promise, aligned or
    // not.
    let read = |at: u64| unsafe { (at as *const u64).read_unaligned() };
    // SAFETY: the caller's promise. And the check is lent.
    let (regs, check) = unsafe { ((*preserved).caller(sp, read), &*loan.check) };
    let caller = Frame {
        pc: CodeAddr::new(arch::pc(&regs)),
        kind: FrameKind::Call,
    };
    let stopped = regs.into();
    // What the entry says is read behind the loan, so that it belongs to the same transition.
    // SAFETY: the caller's promise.
    if !unsafe { ops::may_switch(arg, || loan.space.stacks.called(&stopped, 0, caller)) } {
        return;
    }
    let (mut kept, mut index) = (false, 0);
    let walked = loan.space.stacks.walk_call(&regs, &mut |frame| {
        // The call that led here was the last thing that happened.
        let called = if index == 0 {
            None
        } else {
            loan.space.stacks.called(&stopped, index, frame)
        };
        index += 1;
        kept = check.keeps(loan.target, frame, called);
        if kept {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    if walked.is_ok() && !kept {
        record.set_state(loan.target);
        record.try_above(u64::MAX);
        loan.switched.fetch_add(1, Ordering::Relaxed);
    } else {
        record.try_above(sp);
    }
}
