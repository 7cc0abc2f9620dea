//! `fork`: the child has one thread, and the engine goes on there.
//!
//! The engine is held still while the process forks. In the child, the forking thread keeps its state under its new id, and
//! all others are gone. A transition under way goes on in both processes: in the child, the next polls finish it.
//!
//! This covers `fork(3)`. A child made with the bare system call must not call patched functions; one made by `vfork` or
//! `posix_spawn` runs in the parent's memory for a moment, as the thread that made it.

use super::Livepatch;
use super::error::Error;
use super::sys::Errno;
use super::{records, stop, trap};
use core::cell::RefCell;

thread_local! {
    /// What the forking thread holds during the fork: the engine, at rest.
    static FROZEN: RefCell<Option<Box<dyn Frozen>>> = const { RefCell::new(None) };
}

trait Frozen {}
impl<T> Frozen for T {}

/// Has the functions below called at every `fork`.
pub(crate) fn install() -> Result<(), Error> {
    // SAFETY: the functions take no arguments and stay for ever.
    match unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) } {
        0 => Ok(()),
        errno => Err(Error::Os { call: "pthread_atfork", errno: Errno(errno) }),
    }
}

extern "C" fn prepare() {
    if let Some(livepatch) = Livepatch::get() {
        let frozen = livepatch.engine().freeze();
        FROZEN.with(|slot| *slot.borrow_mut() = Some(Box::new(frozen)));
    }
}

extern "C" fn in_parent() {
    FROZEN.with(|slot| slot.borrow_mut().take());
}

extern "C" fn in_child() {
    stop::reset_in_child();
    trap::reset_in_child();
    if let Some(livepatch) = Livepatch::get() {
        livepatch.space().stacks.reset_in_child();
    }
    // SAFETY: this is the child's only thread, and it is not in the registry; what another one was changing there was its own
    // record, or, under the engine's lock, which is held here, anything else.
    unsafe { records::reset_in_child() };
    in_parent();
}
