//! What a porter implements: one trait per file, each with its contract and a toy implementation.
//!
//! * [`Arch`] (arch crate): bytes of an unpatched entry, of a jump, of a thunk
//! * [`Relocator`] (arch crate): one relocation into a byte buffer
//! * [`Unwinder`] (arch crate, wrapped by the OS): `Ok` means every function that the task may
//!   return to was visited
//! * [`Text`] (OS): changes live instructions, hands out memory for code
//! * [`Tracer`] ([`EntryTracer`], or the OS): finds entry sites and routes them
//! * [`TaskSet`] (OS): no task is missed
//! * [`Stopper`] (OS): stops a task while its stack is checked
//! * [`SelfSwitch`] (OS, if it can): tasks look at their own stacks
//! * [`SymbolResolver`] (OS): every symbol of a name in an object
//! * [`Verifier`] (OS, if it wants): who may sign patch objects
//! * [`Platform`] (OS): ties the parts together

mod arch;
mod call_c;
mod entry_error;
mod entry_tracer;
mod error;
mod lending;
mod platform;
mod relocator;
mod self_switch;
mod stages;
mod stopper;
mod symbol_resolver;
mod task_set;
mod text;
mod tracer;
mod unwinder;
mod verifier;

pub use arch::{Arch, Code, Entry, Intruder, OutOfReach};
pub use call_c::CallC;
pub use entry_error::{Holder, TracerError};
pub use entry_tracer::{EntryHost, EntrySite, EntryTracer};
pub use error::{PortError, PortErrorKind};
pub use lending::Lending;
pub use platform::Platform;
pub use relocator::{Access, Around, Owner, RelocError, Relocation, Relocator, Support, Via};
pub use self_switch::{EntryCheck, Moment, SelfSwitch};
pub use stages::{Closed, InTurn, Moves, Stated};
pub use stopper::{Reason, Stopper, Visitor};
pub use symbol_resolver::{Extent, Symbol, SymbolResolver, ThreadLocal};
pub use task_set::{Progress, TaskId, TaskName, TaskSet, TaskState};
pub use text::{Fill, Image, ImageLayout, Poke, Text};
pub use tracer::{HandlerArg, Route, Routing, Tracer};
pub use unwinder::{Doubt, Frame, FrameKind, Unreliable, Unwinder};
pub use verifier::{Distrust, KeyId, Signed, Verifier};
