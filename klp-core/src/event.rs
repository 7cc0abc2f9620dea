//! The engine's log: one line per event, in Linux livepatch's words.

use crate::port::{KeyId, Reason, TaskId, TaskState};
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
    /// The host has no keys: it takes patch objects without looking at signatures.
    NotVerified,
    /// A patch object was loaded whose signature was verified.
    Signed {
        /// The patch.
        patch: &'a str,
        /// The key.
        key: KeyId,
    },
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
    /// A pre-patch callback said no.
    Vetoed {
        /// The object.
        object: &'a str,
    },
    /// The patch does not fit the states of enabled ones.
    Incompatible {
        /// The patch.
        patch: &'a str,
    },
    /// An enabled patch is applied to an object that is coming.
    Applying {
        /// The patch.
        patch: &'a str,
        /// The object.
        object: &'a str,
    },
    /// An enabled patch is taken back from an object that is going.
    Reverting {
        /// The patch.
        patch: &'a str,
        /// The object.
        object: &'a str,
    },
    /// What the patch names was not found in the object that is coming.
    FailedToInit {
        /// The patch.
        patch: &'a str,
        /// The object.
        object: &'a str,
        /// The Linux error number, negative.
        errno: i32,
    },
    /// The patch could not be applied to the object that is coming.
    FailedToApply {
        /// The patch.
        patch: &'a str,
        /// The object.
        object: &'a str,
        /// The Linux error number, negative.
        errno: i32,
    },
    /// An object may not come because of a patch.
    RefusingObject {
        /// The patch.
        patch: &'a str,
        /// The object.
        object: &'a str,
    },
    /// The patch was not enabled.
    FailedToEnable {
        /// The patch.
        patch: &'a str,
    },
    /// An enabled patch names an object that is not there: it is applied when that comes.
    Waiting {
        /// The patch.
        patch: &'a str,
        /// The object.
        object: &'a str,
    },
    /// Objects that patches in force name are left as they are.
    NotAdopted {
        /// The host's words.
        why: &'a str,
    },
    /// The compiler has made another function of one that is replaced, for some of its callers:
    /// these do not come to the new version.
    Cloned {
        /// The patch.
        patch: &'a str,
        /// The object.
        object: &'a str,
        /// The function that is replaced.
        func: &'a str,
        /// The one that is not.
        clone: &'a str,
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
    /// The function has no entry site, or one that must not be redirected.
    NoLocation {
        /// The function.
        func: &'a str,
    },
    /// Somebody else holds the function's entry site.
    NotRegistered {
        /// The function.
        func: &'a str,
        /// The Linux error number, negative.
        errno: i32,
    },
    /// The size of a function that is to be replaced is not known.
    OldSizeUnknown {
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
    /// The patch was removed; its memory stays for now.
    MemoryKept {
        /// The patch.
        patch: &'a str,
    },
    /// Sites could not be settled; calls go through the handler until it works.
    NotSettled {
        /// The patch.
        patch: &'a str,
    },
    /// A constructor refused a shadow variable.
    ShadowNotConstructed {
        /// The object's address.
        obj: usize,
        /// The variable's id.
        id: u64,
        /// The constructor's answer.
        errno: i32,
    },
    /// A shadow variable was to be made that exists.
    ShadowDuplicate {
        /// The object's address.
        obj: usize,
        /// The variable's id.
        id: u64,
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
            Self::Enabling { .. }
            | Self::Starting { .. }
            | Self::Complete { .. }
            | Self::Applying { .. }
            | Self::Reverting { .. }
            | Self::MemoryKept { .. }
            | Self::Waiting { .. }
            | Self::NotVerified
            | Self::Signed { .. }
            | Self::Signaling => Level::Notice,
            Self::FailedToPatch { .. }
            | Self::Vetoed { .. }
            | Self::FailedToInit { .. }
            | Self::FailedToApply { .. }
            | Self::RefusingObject { .. }
            | Self::FailedToEnable { .. }
            | Self::FailedToDisable { .. }
            | Self::NotTried { .. }
            | Self::Forcing
            | Self::NotSettled { .. }
            | Self::NotAdopted { .. }
            | Self::Cloned { .. }
            | Self::ShadowDuplicate { .. } => Level::Warning,
            Self::Incompatible { .. }
            | Self::SymbolNotFound { .. }
            | Self::SymbolAmbiguous { .. }
            | Self::SymbolPositionNotFound { .. }
            | Self::NoLocation { .. }
            | Self::NotRegistered { .. }
            | Self::OldSizeUnknown { .. }
            | Self::NewSizeUnknown { .. }
            | Self::ShadowNotConstructed { .. } => Level::Error,
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
            Self::NotVerified => {
                f.write_str("there are no keys: signatures of patch objects are not verified")
            }
            Self::Signed { patch, key } => write!(f, "'{patch}': signed with key {key}"),
            Self::Enabling { patch } => write!(f, "enabling patch '{patch}'"),
            Self::Initializing { patch, target } => {
                write!(f, "'{patch}': initializing {} transition", way(target))
            }
            Self::Starting { patch, target } => {
                write!(f, "'{patch}': starting {} transition", way(target))
            }
            Self::Completing { patch, target } => {
                write!(f, "'{patch}': completing {} transition", way(target))
            }
            Self::Complete { patch, target } => write!(f, "'{patch}': {} complete", way(target)),
            Self::Reversing { patch, from } => {
                write!(
                    f,
                    "'{patch}': reversing transition from {} to {}",
                    way(from),
                    way(from.opposite())
                )
            }
            Self::Canceling { patch } => write!(
                f,
                "'{patch}': canceling patching transition, going to unpatch"
            ),
            Self::FailedToPatch { object } => write!(f, "failed to patch object '{object}'"),
            Self::FailedToEnable { patch } => write!(f, "failed to enable patch '{patch}'"),
            Self::Vetoed { object } => write!(f, "pre-patch callback failed for object '{object}'"),
            Self::Incompatible { patch } => {
                write!(
                    f,
                    "Livepatch patch ({patch}) is not compatible with the already installed livepatches."
                )
            }
            Self::Applying { patch, object } => {
                write!(f, "applying patch '{patch}' to loading module '{object}'")
            }
            Self::Reverting { patch, object } => write!(
                f,
                "reverting patch '{patch}' on unloading module '{object}'"
            ),
            Self::FailedToInit {
                patch,
                object,
                errno,
            } => {
                write!(
                    f,
                    "failed to initialize patch '{patch}' for module '{object}' ({errno})"
                )
            }
            Self::FailedToApply {
                patch,
                object,
                errno,
            } => {
                write!(
                    f,
                    "failed to apply patch '{patch}' to module '{object}' ({errno})"
                )
            }
            Self::RefusingObject { patch, object } => {
                write!(
                    f,
                    "patch '{patch}' failed for module '{object}', refusing to load module '{object}'"
                )
            }
            Self::Waiting { patch, object } => write!(
                f,
                "'{patch}': waiting for object '{object}', which is not loaded"
            ),
            Self::NotAdopted { why } => write!(f, "libraries are left as they are: {why}"),
            Self::Cloned {
                patch,
                object,
                func,
                clone,
            } => write!(
                f,
                "'{patch}': callers of '{clone}' in object '{object}' do not call '{func}': the \
                 compiler made it for them, and it is not patched"
            ),
            Self::FailedToDisable { patch } => write!(f, "failed to disable patch '{patch}'"),
            Self::NotTried { patch } => {
                write!(f, "'{patch}': tasks could not be listed, trying again")
            }
            Self::SymbolNotFound { symbol } => {
                write!(f, "symbol '{symbol}' not found in symbol table")
            }
            Self::SymbolAmbiguous { symbol, object } => {
                write!(
                    f,
                    "unresolvable ambiguity for symbol '{symbol}' in object '{object}'"
                )
            }
            Self::SymbolPositionNotFound {
                sympos,
                symbol,
                object,
            } => {
                write!(
                    f,
                    "symbol position {sympos} for symbol '{symbol}' in object '{object}' not found"
                )
            }
            Self::NoLocation { func } => write!(f, "failed to find location for function '{func}'"),
            Self::NotRegistered { func, errno } => {
                write!(
                    f,
                    "failed to register ftrace handler for function '{func}' ({errno})"
                )
            }
            Self::OldSizeUnknown { func } => write!(f, "kallsyms size lookup failed for '{func}'"),
            Self::NewSizeUnknown { func } => {
                write!(f, "kallsyms size lookup failed for '{func}' replacement")
            }
            Self::NotSwitched {
                name,
                task,
                obstacle,
            } => {
                write!(f, "klp_try_switch_task: {name}:{} ", task.0)?;
                match obstacle {
                    Obstacle::NotStopped(reason) => reason.fmt(f),
                    Obstacle::UnreliableStack => f.write_str("has an unreliable stack"),
                    Obstacle::InFunction(func) => write!(f, "is sleeping on function {func}"),
                }
            }
            Self::Signaling => f.write_str("signaling remaining tasks"),
            Self::Forcing => f.write_str("forcing remaining tasks to the patched state"),
            Self::MemoryKept { patch } => write!(
                f,
                "'{patch}': removed; its memory is kept, as something may still point into it"
            ),
            Self::NotSettled { patch } => {
                write!(
                    f,
                    "'{patch}': entry sites not settled, calls go through the handler for now"
                )
            }
            Self::ShadowNotConstructed { obj, id, errno } => {
                write!(
                    f,
                    "Failed to construct shadow variable <{obj:016x}, {id:x}> ({errno})"
                )
            }
            Self::ShadowDuplicate { obj, id } => {
                write!(f, "Duplicate shadow variable <{obj:016x}, {id:x}>")
            }
        }
    }
}
