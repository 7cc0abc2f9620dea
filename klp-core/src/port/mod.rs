//! What a porter implements: one trait per file, each with its contract and a toy implementation.
//!
//! | trait | who implements it | in one sentence |
//! |---|---|---|
//! | [`Arch`] | arch crate | bytes of an unpatched entry, of a jump, of a thunk |
//! | [`Relocator`] | arch crate | one relocation into a byte buffer |
//! | [`Unwinder`] | arch crate, wrapped by the OS | `Ok` means every function that the task may return to was visited |
//! | [`Text`] | OS | changes live instructions, hands out memory for code |
//! | [`Tracer`] | [`EntryTracer`], or the OS | finds entry sites and routes them |
//! | [`TaskSet`] | OS | no task is missed; stops a task while its stack is checked |
//! | [`SymbolResolver`] | OS | every symbol of a name in an object |
//! | [`Platform`] | OS | ties the parts together |

mod arch;
mod call_c;
mod entry_error;
mod entry_tracer;
mod error;
mod lending;
mod relocator;
mod symbol_resolver;
mod task_set;
mod text;
mod tracer;
mod unwinder;

pub use arch::{Arch, Code, Entry, Intruder, OutOfReach};
pub use call_c::CallC;
pub use entry_error::{Holder, TracerError};
pub use entry_tracer::{EntryHost, EntrySite, EntryTracer};
pub use error::{PortError, PortErrorKind};
pub use lending::Lending;
pub use relocator::{RelocError, Relocator, Support};
pub use symbol_resolver::{Symbol, SymbolResolver};
pub use task_set::{EntryCheck, Progress, Reason, TaskId, TaskName, TaskSet, TaskState, Visitor};
pub use text::{Fill, Image, ImageLayout, Poke, Text};
pub use tracer::{HandlerArg, Route, Routing, Tracer};
pub use unwinder::{Doubt, Frame, FrameKind, Unreliable, Unwinder};

use crate::error::Error;
use crate::event::Event;

/// A host: every port, and the lock that the engine sleeps on.
///
/// The types are chained so that parts of different hosts do not compile together.
///
/// # For OS porters
///
/// This is the last thing to write, about twenty lines. `klp_core::sim::SimOs` (feature `sim`) is a complete example.
///
/// # Safety
///
/// The parts are of one system, and each is the same one whenever it is asked for: sites lead to functions that `Symbols` finds, tasks
/// call through the sites of `Tracer`, and so on.
pub unsafe trait Platform: Sync + Sized + 'static {
    /// The host's sleeping lock (kernel: `struct mutex`); the engine holds one of it.
    type Lock: lock_api::RawMutex + 'static;
    /// Finds and routes entry sites.
    type Tracer: Tracer;
    /// Walks stacks.
    type Unwinder: Unwinder;
    /// The tasks, stopped in the form that the unwinder walks.
    type Tasks: TaskSet<Context = <Self::Unwinder as Unwinder>::Context>;
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

    /// Completes the code of `patch` for `object`, which is there now, on a host whose own loader keeps the relocations of patches
    /// (kernel: `klp_apply_object_relocs`).
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

    /// A number, not 0, that tells those apart who call the engine at the same time: the calling task's, say. By it the engine knows that a
    /// callback of a patch calls it, and refuses ([`ApiMisuse::InCallback`](crate::error::ApiMisuse::InCallback)). A host that leaves it
    /// out sees such a call wait for itself.
    fn caller(&self) -> u64 {
        0
    }

    /// Takes one line of the engine's log. Called with the engine's lock held: must not call the engine.
    fn event(&self, event: &Event<'_>) {
        let _ = event;
    }
}
