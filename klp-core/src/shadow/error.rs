//! Why there is no new shadow variable.

#![forbid(unsafe_code)]

use crate::event::Event;
use crate::mem::OutOfMemory;
use core::fmt;

/// Why a shadow variable was not made. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ShadowError {
    /// The object has one of this id already (Linux warns and returns `NULL`).
    Duplicate {
        /// The object's address.
        obj: usize,
        /// The variable's id.
        id: u64,
    },
    /// The constructor said no.
    Constructor {
        /// The object's address.
        obj: usize,
        /// The variable's id.
        id: u64,
        /// What it answered: a negative error number, as in Linux.
        errno: i32,
    },
    /// The last address, `usize::MAX`, was given as an object's: no object lies there.
    NoObject,
    /// Memory ran out.
    OutOfMemory,
}

impl ShadowError {
    /// The line of the engine's log that Linux would write, for
    /// [`Platform::event`](crate::port::Platform::event).
    #[must_use]
    pub const fn event(&self) -> Option<Event<'static>> {
        match *self {
            Self::Duplicate { obj, id } => Some(Event::ShadowDuplicate { obj, id }),
            Self::Constructor { obj, id, errno } => {
                Some(Event::ShadowNotConstructed { obj, id, errno })
            }
            Self::NoObject | Self::OutOfMemory => None,
        }
    }
}

impl From<OutOfMemory> for ShadowError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl fmt::Display for ShadowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Duplicate { obj, id } => Event::ShadowDuplicate { obj, id }.fmt(f),
            Self::Constructor { obj, id, errno } => {
                Event::ShadowNotConstructed { obj, id, errno }.fmt(f)
            }
            Self::NoObject => f.write_str("no object lies at the last address"),
            Self::OutOfMemory => OutOfMemory.fmt(f),
        }
    }
}

impl core::error::Error for ShadowError {}
