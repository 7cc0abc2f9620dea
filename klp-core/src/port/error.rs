//! What the engine wants to know of a port's error.

use core::fmt;

/// An error of a port.
///
/// The engine acts on [`kind`](PortError::kind) alone; the text goes into the engine's own error
/// for people to read.
pub trait PortError: fmt::Display + fmt::Debug {
    /// What kind of failure it was.
    fn kind(&self) -> PortErrorKind;
}

/// Kinds of failure that the engine tells apart. For a host that has no more to say, this is an
/// error by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PortErrorKind {
    /// Memory ran out: `ENOMEM`.
    OutOfMemory,
    /// No executable memory could be had within reach of the code that must jump there: `ENOMEM`.
    NoMemoryInReach,
    /// The thing asked for does not exist: `ENOENT`.
    NotFound,
    /// The function has no entry site: `EINVAL`.
    NoSite,
    /// The function is marked as one that must not be redirected: `EINVAL`.
    Notrace,
    /// Somebody else holds it: `EBUSY`.
    Held,
    /// The host forbids it: `EPERM`.
    Denied,
    /// The host failed in another way: `EIO`.
    Failed,
}

impl fmt::Display for PortErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "out of memory",
            Self::NoMemoryInReach => "no memory for code in reach",
            Self::NotFound => "it does not exist",
            Self::NoSite => "it has no entry site (compiled without an entry pad?)",
            Self::Notrace => "it is marked notrace: it must not be redirected",
            Self::Held => "somebody else holds it",
            Self::Denied => "the host forbids it",
            Self::Failed => "the host failed",
        })
    }
}

impl PortError for PortErrorKind {
    fn kind(&self) -> PortErrorKind {
        *self
    }
}
