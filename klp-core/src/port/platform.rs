//! All ports of a host together.

use super::arch::Arch;
use super::relocator::Relocator;
use super::self_switch::SelfSwitch;
use super::stopper::Stopper;
use super::symbol_resolver::SymbolResolver;
use super::task_set::TaskSet;
use super::text::Text;
use super::tracer::Tracer;
use super::unwinder::Unwinder;
use super::verifier::Verifier;
use crate::error::Error;
use crate::event::Event;

/// A host: every port, and the lock that the engine sleeps on.
///
/// The types are chained so that parts of different hosts do not compile together.
///
/// # For OS porters
///
/// This is the last thing to write, about twenty lines. `klp_core::sim::SimOs` (feature `sim`) is a
/// complete example.
///
/// # Safety
///
/// The parts are of one system, and each is the same one whenever it is asked for: sites lead to
/// functions that `Symbols` finds, tasks call through the sites of `Tracer`, and so on.
pub unsafe trait Platform: Sync + Sized + 'static {
    /// The host's sleeping lock (kernel: `struct mutex`); the engine holds one of it.
    type Lock: lock_api::RawMutex + 'static;
    /// Finds and routes entry sites.
    type Tracer: Tracer;
    /// Walks stacks.
    type Unwinder: Unwinder;
    /// The tasks, stopped in the form that the unwinder walks.
    type Tasks: TaskSet + Stopper<Context = <Self::Unwinder as Unwinder>::Context>;
    /// Looks names up.
    type Symbols: SymbolResolver;
    /// Memory of code and patch images.
    type Text: Text;
    /// Instructions of the machine.
    type Arch: Arch;
    /// Relocations of patch objects.
    type Relocator: Relocator;

    /// The tracer.
    fn tracer(&self) -> &Self::Tracer;
    /// The unwinder.
    fn unwinder(&self) -> &Self::Unwinder;
    /// The tasks.
    fn tasks(&self) -> &Self::Tasks;
    /// The symbols.
    fn symbols(&self) -> &Self::Symbols;
    /// The text.
    fn text(&self) -> &Self::Text;

    /// The tasks once more, if they switch themselves.
    fn self_switch(&self) -> Option<&dyn SelfSwitch> {
        None
    }

    /// Who may sign patch objects, if not everybody's are taken.
    fn verifier(&self) -> Option<&dyn Verifier> {
        None
    }

    /// Completes the code of `patch` for `object`, which is there now, on a host whose own loader
    /// keeps the relocations of patches (kernel: `klp_apply_object_relocs`).
    ///
    /// # Errors
    ///
    /// The code is as before then, and the object is not patched.
    ///
    /// # Safety
    ///
    /// No task executes that code, and it is not completed already.
    unsafe fn apply_relocs(&self, patch: &str, object: &str) -> Result<(), Error> {
        let _ = (patch, object);
        Ok(())
    }

    /// Undoes [`apply_relocs`](Platform::apply_relocs).
    ///
    /// # Safety
    ///
    /// No task executes that code.
    unsafe fn clear_relocs(&self, patch: &str, object: &str) {
        let _ = (patch, object);
    }

    /// A number, not 0, that tells those apart who call the engine at the same time: the calling
    /// task's, say. By it the engine knows that a callback of a patch calls it, and refuses
    /// ([`ApiMisuse::InCallback`](crate::error::ApiMisuse::InCallback)). A host that leaves it out
    /// sees such a call wait for itself.
    fn caller(&self) -> u64 {
        0
    }

    /// Takes one line of the engine's log. Mostly called with the engine's lock held: must not call
    /// the engine.
    fn event(&self, event: &Event<'_>) {
        let _ = event;
    }

    /// Whether somebody reads the log. If not, events that cost something to put together (the names
    /// of all tasks that a transition waits for, at every poll) are left out.
    fn is_heard(&self) -> bool {
        true
    }
}
