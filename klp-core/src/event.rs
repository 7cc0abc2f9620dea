//! The engine's log: one line per event, in Linux livepatch's words.

use crate::port::{Reason, TaskId, TaskState};
use core::fmt;

/// How loud a line is (kernel: `pr_debug` … `pr_err`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// For those who look for the reason of something.
    Debug,
    /// A step that an administrator wants to see.
    Notice,
    /// Something to look after.
    Warning,
    /// Something was refused or failed.
    Error,
}

/// Why a task was not switched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Obstacle<'a> {
    /// It could not be stopped.
    NotStopped(Reason),
    /// Its stack cannot be trusted.
    UnreliableStack,
    /// It is inside this function, which the transition changes.
    InFunction(&'a str),
}

/// One event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A patch is about to be enabled.
    Enabling {
        /// The patch.
        patch: &'a str,
    },
    /// Tasks are put into the state that the transition starts from.
    Initializing {
        /// The patch.
        patch: &'a str,
        /// Where the transition leads.
        target: TaskState,
    },
    /// Tasks begin to move.
    Starting {
        /// The patch.
        patch: &'a str,
        /// Where the transition leads.
        target: TaskState,
    },
    /// The last task has moved.
    Completing {
        /// The patch.
        patch: &'a str,
        /// Where the transition led.
        target: TaskState,
    },
    /// The transition is over.
    Complete {
        /// The patch.
        patch: &'a str,
        /// Where the transition led.
        target: TaskState,
    },
    /// The transition turns round.
    Reversing {
        /// The patch.
        patch: &'a str,
        /// Where the transition led until now.
        from: TaskState,
    },
    /// A transition ends before it started.
    Canceling {
        /// The patch.
        patch: &'a str,
    },
    /// An object could not be patched.
    FailedToPatch {
        /// The object.
        object: &'a str,
    },
    /// The patch was not enabled.
    FailedToEnable {
        /// The patch.
        patch: &'a str,
    },
    /// A symbol is missing.
    SymbolNotFound {
        /// The symbol.
        symbol: &'a str,
    },
    /// A symbol is there more than once.
    SymbolAmbiguous {
        /// The symbol.
        symbol: &'a str,
        /// The object.
        object: &'a str,
    },
    /// A symbol is there, but not that often.
    SymbolPositionNotFound {
        /// The position, counted from 1.
        sympos: u32,
        /// The symbol.
        symbol: &'a str,
        /// The object.
        object: &'a str,
    },
    /// The function has no entry site.
    NoLocation {
        /// The function.
        func: &'a str,
    },
    /// The size of a new function is not known.
    NewSizeUnknown {
        /// The function that it replaces.
        func: &'a str,
    },
    /// A task was not switched.
    NotSwitched {
        /// The task's name.
        name: &'a str,
        /// The task.
        task: TaskId,
        /// Why.
        obstacle: Obstacle<'a>,
    },
    /// Tasks that hold the transition back are signalled.
    Signaling,
    /// Tasks that hold the transition back are switched without a check.
    Forcing,
    /// The patch was not disabled.
    FailedToDisable {
        /// The patch.
        patch: &'a str,
    },
    /// Tasks could not be listed, or memory ran out: the next poll tries again.
    NotTried {
        /// The patch.
        patch: &'a str,
    },
    /// Sites could not be settled; calls go through the handler until it works.
    NotSettled {
        /// The patch.
        patch: &'a str,
    },
}

impl Event<'_> {
    /// How loud the line is.
    #[must_use]
    pub const fn level(&self) -> Level {
        match self {
            Self::Initializing { .. }
            | Self::Completing { .. }
            | Self::Canceling { .. }
            | Self::Reversing { .. }
            | Self::NotSwitched { .. } => Level::Debug,
            Self::Enabling { .. } | Self::Starting { .. } | Self::Complete { .. } | Self::Signaling => Level::Notice,
            Self::FailedToPatch { .. }
            | Self::FailedToEnable { .. }
            | Self::FailedToDisable { .. }
            | Self::NotTried { .. }
            | Self::Forcing
            | Self::NotSettled { .. } => Level::Warning,
            Self::SymbolNotFound { .. }
            | Self::SymbolAmbiguous { .. }
            | Self::SymbolPositionNotFound { .. }
            | Self::NoLocation { .. }
            | Self::NewSizeUnknown { .. } => Level::Error,
        }
    }
}

/// `patching` or `unpatching`.
const fn way(target: TaskState) -> &'static str {
    match target {
        TaskState::Patched => "patching",
        TaskState::Unpatched | TaskState::Idle => "unpatching",
    }
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Enabling { patch } => write!(f, "enabling patch '{patch}'"),
            Self::Initializing { patch, target } => write!(f, "'{patch}': initializing {} transition", way(target)),
            Self::Starting { patch, target } => write!(f, "'{patch}': starting {} transition", way(target)),
            Self::Completing { patch, target } => write!(f, "'{patch}': completing {} transition", way(target)),
            Self::Complete { patch, target } => write!(f, "'{patch}': {} complete", way(target)),
            Self::Reversing { patch, from } => {
                write!(f, "'{patch}': reversing transition from {} to {}", way(from), way(from.opposite()))
            }
            Self::Canceling { patch } => write!(f, "'{patch}': canceling patching transition, going to unpatch"),
            Self::FailedToPatch { object } => write!(f, "failed to patch object '{object}'"),
            Self::FailedToEnable { patch } => write!(f, "failed to enable patch '{patch}'"),
            Self::FailedToDisable { patch } => write!(f, "failed to disable patch '{patch}'"),
            Self::NotTried { patch } => write!(f, "'{patch}': tasks could not be listed, trying again"),
            Self::SymbolNotFound { symbol } => write!(f, "symbol '{symbol}' not found in symbol table"),
            Self::SymbolAmbiguous { symbol, object } => {
                write!(f, "unresolvable ambiguity for symbol '{symbol}' in object '{object}'")
            }
            Self::SymbolPositionNotFound { sympos, symbol, object } => {
                write!(f, "symbol position {sympos} for symbol '{symbol}' in object '{object}' not found")
            }
            Self::NoLocation { func } => write!(f, "failed to find location for function '{func}'"),
            Self::NewSizeUnknown { func } => write!(f, "kallsyms size lookup failed for '{func}' replacement"),
            Self::NotSwitched { name, task, obstacle } => {
                write!(f, "klp_try_switch_task: {name}:{} ", task.0)?;
                match obstacle {
                    Obstacle::NotStopped(reason) => reason.fmt(f),
                    Obstacle::UnreliableStack => f.write_str("has an unreliable stack"),
                    Obstacle::InFunction(func) => write!(f, "is sleeping on function {func}"),
                }
            }
            Self::Signaling => f.write_str("signaling remaining tasks"),
            Self::Forcing => f.write_str("forcing remaining tasks to the patched state"),
            Self::NotSettled { patch } => {
                write!(f, "'{patch}': entry sites not settled, calls go through the handler for now")
            }
        }
    }
}
