//! Where a host keeps what was lent to its tasks.

use crate::sync::{AtomicPtr, LOAN_READ, LOAN_WRITE, Ordering};
use core::ptr::{self, NonNull};

/// Holds what tasks look at inside of runs of the handler, between
/// [`SelfSwitch::lend`](super::SelfSwitch::lend) and [`withdraw`](super::SelfSwitch::withdraw).
///
/// # Invariants
///
/// The pointer is null or leads to what was lent last, which stays as [`lend`](Lending::lend)
/// demands.
#[derive(Debug)]
pub struct Lending<T> {
    loan: AtomicPtr<T>,
}

impl<T: Sync> Lending<T> {
    /// Nothing is lent.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            loan: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Nothing is lent.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self {
            loan: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Lends `loan`. Whatever the engine wrote before is seen by those who find it.
    ///
    /// # Safety
    ///
    /// It stays until [`withdraw`](Lending::withdraw) was called, and every run of the handler that
    /// began before that has ended.
    pub unsafe fn lend(&self, loan: NonNull<T>) {
        // ORDER(loan): release; the partner is the load in `borrow`.
        self.loan.store(loan.as_ptr(), LOAN_WRITE);
    }

    /// Ends the loan: who borrows it still is inside of a run of the handler.
    pub fn withdraw(&self) {
        // Runs that begin after `Tracer::synchronize` see it.
        self.loan.store(ptr::null_mut(), Ordering::SeqCst);
    }

    /// What is lent now.
    ///
    /// # Safety
    ///
    /// The reference is not used any more when the run of the handler ends in which this is called.
    #[must_use]
    pub unsafe fn borrow(&self) -> Option<&T> {
        // ORDER(loan): acquire; the partner is the store in `lend`. SAFETY: by the invariant; this
        // run has begun before the loan was withdrawn, or finds nothing.
        unsafe { self.loan.load(LOAN_READ).as_ref() }
    }
}

impl<T: Sync> Default for Lending<T> {
    fn default() -> Self {
        Self::new()
    }
}
