//! Why an [`EntryTracer`](super::EntryTracer) refuses, and who holds an entry that is not free
//! (kernel: what `register_ftrace_function` answers, which gives no name).

use super::arch::{Code, OutOfReach};
use super::error::{PortError, PortErrorKind};
use crate::mem::{Name, OutOfMemory};
use core::fmt;

/// Why an [`EntryTracer`](super::EntryTracer) refused.
#[derive(Debug)]
pub enum TracerError<E> {
    /// The function is marked as one that must not be redirected.
    Notrace,
    /// The compiler recorded no entry pad for the function.
    NoSite,
    /// Somebody else holds the entry: it is neither as it was built nor as this tracer left it, or
    /// the host knows of another user.
    Held {
        /// Where, in the host's words.
        at: Name,
        /// By whom, or by what.
        by: Holder,
    },
    /// The new place cannot be reached, not even through a veneer.
    OutOfReach(OutOfReach),
    /// The host's text failed.
    Text(E),
    /// Memory ran out.
    OutOfMemory,
}

/// Who holds an entry, as far as it can be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Holder {
    /// A user that the host knows by name.
    User(Name),
    /// A debugger or a probe: a breakpoint stands there.
    Breakpoint,
    /// A jump stands there.
    Jump {
        /// Where it leads, in the host's words, if the instruction tells.
        to: Option<Name>,
    },
    /// A call stands there.
    Call {
        /// What it calls, in the host's words.
        to: Name,
    },
    /// Other code; these are its first bytes.
    Code(Code),
}

impl<E: fmt::Display> fmt::Display for TracerError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Notrace => f.write_str("it is marked notrace: it must not be redirected"),
            Self::NoSite => f.write_str("it has no entry site (compiled without an entry pad?)"),
            Self::Held {
                at,
                by: Holder::User(name),
            } => write!(f, "{name} holds {at}"),
            Self::Held { at, by } => write!(f, "{by} stands at {at}"),
            Self::OutOfReach(error) => error.fmt(f),
            Self::Text(error) => error.fmt(f),
            Self::OutOfMemory => OutOfMemory.fmt(f),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => name.fmt(f),
            Self::Breakpoint => f.write_str("a breakpoint (of a debugger or probe)"),
            Self::Jump { to: Some(to) } => write!(f, "a jump to {to}"),
            Self::Jump { to: None } => f.write_str("a jump"),
            Self::Call { to } => write!(f, "a call of {to}"),
            Self::Code(bytes) => {
                f.write_str("foreign code")?;
                bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
        }
    }
}

impl<E: PortError> PortError for TracerError<E> {
    fn kind(&self) -> PortErrorKind {
        match self {
            Self::Notrace => PortErrorKind::Notrace,
            Self::NoSite => PortErrorKind::NoSite,
            Self::Held { .. } => PortErrorKind::Held,
            Self::OutOfReach(_) => PortErrorKind::NoMemoryInReach,
            Self::Text(error) => error.kind(),
            Self::OutOfMemory => PortErrorKind::OutOfMemory,
        }
    }
}

impl<E> From<OutOfMemory> for TracerError<E> {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}
