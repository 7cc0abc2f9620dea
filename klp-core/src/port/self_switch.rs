//! Tasks that switch themselves, on hosts where they can look at their own stacks.

use super::stages::Moves;
use super::task_set::TaskState;
use super::unwinder::Frame;
use crate::addr::CodeAddr;

/// What a task may not be in when it switches itself at the entry of an affected function.
pub trait EntryCheck: Sync {
    /// Whether `frame` keeps a task from moving to `target`; `called` is what
    /// [`Unwinder::called`](super::Unwinder::called) says of it, and `None` for the call that led
    /// to the entry. May run on any task at any time: no lock, no allocation, no panic.
    fn keeps(&self, target: TaskState, frame: Frame, called: Option<CodeAddr>) -> bool;
}

/// Where a task looks at its own stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// In a run of the handler, in a call of an affected function, before the handler chooses. The
    /// task may switch itself there if [`ops::may_switch`](crate::ops::may_switch) says so of the
    /// entry, its stack below that call is reliable, and the check keeps no frame of it.
    Entry,
    /// Elsewhere, in code of the host that is never affected (kernel: where a task gives the CPU
    /// up, `klp_sched_try_switch`).
    Elsewhere,
}

/// Lets tasks switch themselves, so that those move, too, that are inside of affected functions
/// whenever they are looked at from outside. Optional:
/// [`Platform::self_switch`](super::Platform::self_switch).
///
/// # Safety
///
/// * A check is used only from [`lend`](SelfSwitch::lend) to [`withdraw`](SelfSwitch::withdraw), by
///   runs of the handler or in sections that [`Tracer::synchronize`](super::Tracer::synchronize)
///   waits for as it does for them.
/// * A task switches itself to the target that it was lent the check for, and only as
///   [`Moment`] says.
///
/// # For OS porters
///
/// [`Lending`](super::Lending) keeps what is lent, for tasks that look at any moment:
///
/// ```
/// use core::ptr::NonNull;
/// use klp_core::port::{EntryCheck, Lending, Moment, Moves, SelfSwitch, TaskState};
///
/// /// What tasks look at: a pointer that is as wide as one word.
/// struct Loan {
///     check: &'static dyn EntryCheck,
///     target: TaskState,
/// }
///
/// struct Tasks {
///     loan: Lending<Loan>,
/// }
///
/// // SAFETY: handlers look by `Lending::borrow` only, in runs that `synchronize` waits for.
/// unsafe impl SelfSwitch for Tasks {
///     fn moment(&self) -> Moment {
///         Moment::Entry
///     }
///     unsafe fn lend(&self, moves: &Moves, check: &dyn EntryCheck) {
///         // SAFETY: it is used until `withdraw` only, and stays until then.
///         let check = unsafe {
///             core::mem::transmute::<&dyn EntryCheck, &'static dyn EntryCheck>(check)
///         };
///         // A toy does not free it.
///         let loan = Box::leak(Box::new(Loan { check, target: moves.target() }));
///         // SAFETY: it stays for ever.
///         unsafe { self.loan.lend(NonNull::from(loan)) };
///     }
///     fn withdraw(&self) {
///         self.loan.withdraw();
///     }
/// }
/// ```
pub unsafe trait SelfSwitch: Sync {
    /// Where tasks look. Only for [`Moment::Entry`] the engine works out at which entries they may.
    fn moment(&self) -> Moment;

    /// Lends the tasks `check` until [`withdraw`](SelfSwitch::withdraw).
    ///
    /// # Safety
    ///
    /// `check` stays until [`withdraw`](SelfSwitch::withdraw) was called and
    /// [`Tracer::synchronize`](super::Tracer::synchronize) has returned after it. That is true of
    /// what was lent before, too.
    unsafe fn lend(&self, moves: &Moves, check: &dyn EntryCheck);

    /// Ends what [`lend`](SelfSwitch::lend) began: no task begins to use the check any more.
    fn withdraw(&self);
}
