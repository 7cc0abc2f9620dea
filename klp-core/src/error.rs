//! Errors: each says whose fault it is, with names in it, and reads as a sentence.

use crate::mem::{Name, OutOfMemory};
use crate::port::{Distrust, PortError, PortErrorKind, RelocError};
use core::fmt;

/// What the engine answers when it refuses or fails.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The patch is wrong, or does not fit this system.
    Patch(PatchError),
    /// The host could not do what it was asked.
    Port(PortFault),
    /// Not now: one transition at a time.
    Busy {
        /// The patch in transition.
        patch: Name,
    },
    /// The caller asked for something that makes no sense in this state.
    ApiMisuse(ApiMisuse),
    /// Memory ran out. Nothing has changed.
    OutOfMemory,
    /// The engine contradicts itself. Please report it.
    Bug(&'static str),
}

/// What is wrong with a patch.
#[derive(Debug, PartialEq, Eq)]
pub struct PatchError {
    /// The patch.
    pub patch: Name,
    /// The object, if the reason is about one.
    pub object: Option<Name>,
    /// The function, if the reason is about one.
    pub func: Option<Name>,
    /// Why.
    pub reason: PatchReason,
}

/// Why a patch is refused.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatchReason {
    /// It has no objects.
    NoObjects,
    /// The object has no functions.
    NoFuncs,
    /// The name is empty, or longer than the limit in [`crate::config`].
    BadNameLength,
    /// The function's name is longer than any of the host's.
    LongName {
        /// [`SymbolResolver::NAME_LEN`](crate::port::SymbolResolver::NAME_LEN).
        limit: usize,
    },
    /// The object or function is listed twice.
    ListedTwice,
    /// The state is listed twice.
    StateTwice {
        /// Its id.
        id: u64,
    },
    /// It does not fit the states of an enabled patch.
    IncompatibleStates {
        /// The enabled patch.
        with: Name,
    },
    /// It shares a function or state with an enabled patch of another replace set.
    SharedWithOtherSet {
        /// The enabled patch.
        with: Name,
    },
    /// It takes the place of a patch that is to be enabled as one with it.
    ReplacesCompanion {
        /// That patch.
        with: Name,
    },
    /// It depends on a patch that is not enabled.
    DependsOn {
        /// That patch.
        on: Name,
    },
    /// It takes the place of a patch that another depends on, which stays.
    ReplacesNeeded {
        /// The patch that would go.
        with: Name,
        /// The one that depends on it.
        by: Name,
    },
    /// It cannot be disabled: an enabled patch depends on it.
    NeededBy {
        /// That patch.
        by: Name,
    },
    /// Its pre-patch callback said no.
    Vetoed {
        /// The Linux error number that it gave, negative.
        errno: i32,
    },
    /// No symbol has the function's name.
    SymbolNotFound,
    /// Several symbols have the function's name, and no position says which one is meant.
    SymbolAmbiguous,
    /// There is no symbol of that name at that position.
    SymbolPositionNotFound {
        /// The position asked for, counted from 1.
        sympos: u32,
    },
    /// The symbol has no size, so its code cannot be told from its neighbours'.
    SymbolWithoutSize,
    /// The size of the new function cannot be found.
    NewFunctionUnknown,
    /// The new function does not give callers of the old one what they count on.
    Misfit {
        /// The symbol resolver's words.
        why: &'static str,
    },
    /// The object is another build than the one that the patch was made for.
    OtherBuild {
        /// The build-id of the one that it was made for.
        expected: Name,
        /// That of what runs; `None`: nothing tells it.
        found: Option<Name>,
    },
    /// The object, or the function that is replaced, has other code than in the build that the
    /// patch was made for.
    OtherCode {
        /// Digest and, of a function, size of the one that it was made for.
        expected: Name,
        /// Those of what runs, without what patches and tracers changed in it; `None`: nothing
        /// tells them.
        found: Option<Name>,
    },
    /// Its new version is code of a simulated system, and this is none.
    #[cfg(feature = "sim")]
    Simulated,
    /// The function has no entry site; what the tracer says of it.
    NoEntrySite {
        /// The tracer's words.
        detail: Name,
    },
    /// The function is marked as one that must not be redirected: the engine's handler runs it, or
    /// it cannot bear it (kernel: `notrace`).
    Notrace,
    /// Somebody else holds the function's entry site.
    EntryHeld {
        /// The tracer's words.
        detail: Name,
    },
    /// The host takes signed patch objects only, and does not trust this one.
    Untrusted {
        /// Why.
        why: Distrust,
    },
    /// The file is not a patch object that can be read.
    Malformed {
        /// What is wrong with it.
        what: &'static str,
        /// The section, symbol or file offset that shows it, in words.
        place: Name,
    },
    /// The file is for another machine.
    ForeignMachine {
        /// Its `e_machine`.
        machine: u16,
        /// The one that was expected.
        expected: u16,
    },
    /// The file asks for something that the engine does not do.
    Unsupported {
        /// What.
        what: &'static str,
        /// The section or symbol that asks for it.
        place: Name,
    },
    /// A symbol that the patch refers to does not exist.
    Unresolved {
        /// The symbol.
        symbol: Name,
        /// Why it was not found.
        why: SymbolFault,
    },
    /// A relocation was refused.
    Relocation {
        /// The section that holds the field.
        section: Name,
        /// The symbol it refers to.
        symbol: Name,
        /// Why.
        error: RelocError,
    },
}

/// Why a name could not be turned into one symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolFault {
    /// No symbol of that name.
    NotFound,
    /// Several symbols of that name, and no position given.
    Ambiguous,
    /// No symbol at that position, counted from 1.
    PositionNotFound(u32),
}

/// A failure of the host.
#[derive(Debug, PartialEq, Eq)]
pub struct PortFault {
    /// What the engine was doing, as a participle: "routing entry sites".
    pub doing: &'static str,
    /// The patch it was doing it for.
    pub patch: Name,
    /// What kind of failure.
    pub kind: PortErrorKind,
    /// The host's words.
    pub detail: Name,
}

/// Requests that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApiMisuse {
    /// No patch was named.
    NoPatches,
    /// No patch has that id.
    UnknownPatch,
    /// A patch of that name is there already.
    NameTaken,
    /// The patch is enabled already.
    AlreadyEnabled,
    /// The patch is not enabled.
    NotEnabled,
    /// There is no transition to reverse, force or kick.
    NoTransition,
    /// The patch was pinned by a forced transition: tasks may still be inside it.
    Forced,
    /// The engine was called by what it was calling: a callback of a patch, or whoever takes its
    /// log.
    InCallback,
}

impl Error {
    /// The Linux error number that says the same, negative: what a kernel host returns.
    #[must_use]
    pub fn errno(&self) -> i32 {
        const EPERM: i32 = 1;
        const ENOENT: i32 = 2;
        const EIO: i32 = 5;
        const ENOEXEC: i32 = 8;
        const ENOMEM: i32 = 12;
        const EBUSY: i32 = 16;
        const EINVAL: i32 = 22;
        const ENODATA: i32 = 61;
        const EBADMSG: i32 = 74;
        const ENOKEY: i32 = 126;
        const EKEYREJECTED: i32 = 129;
        if let Self::Patch(PatchError {
            reason: PatchReason::Vetoed { errno },
            ..
        }) = self
        {
            return *errno;
        }
        -match self {
            Self::Patch(PatchError {
                reason: PatchReason::SymbolWithoutSize | PatchReason::NewFunctionUnknown,
                ..
            }) => ENOENT,
            Self::Patch(PatchError {
                reason:
                    PatchReason::EntryHeld { .. }
                    | PatchReason::ReplacesNeeded { .. }
                    | PatchReason::NeededBy { .. },
                ..
            })
            | Self::Busy { .. } => EBUSY,
            // What the kernel says of modules that were built for another kernel.
            Self::Patch(PatchError {
                reason: PatchReason::OtherBuild { .. } | PatchReason::OtherCode { .. },
                ..
            }) => ENOEXEC,
            // As `mod_verify_sig` of the kernel.
            Self::Patch(PatchError {
                reason: PatchReason::Untrusted { why },
                ..
            }) => match why {
                Distrust::NotSigned => ENODATA,
                Distrust::UnknownKey(_) => ENOKEY,
                Distrust::Changed(_) => EKEYREJECTED,
                Distrust::Damaged(_) => EBADMSG,
            },
            Self::Patch(_) | Self::ApiMisuse(_) => EINVAL,
            Self::OutOfMemory => ENOMEM,
            Self::Bug(_) => EIO,
            Self::Port(fault) => match fault.kind {
                PortErrorKind::OutOfMemory | PortErrorKind::NoMemoryInReach => ENOMEM,
                PortErrorKind::NotFound => ENOENT,
                PortErrorKind::NoSite | PortErrorKind::Notrace => EINVAL,
                PortErrorKind::Held => EBUSY,
                PortErrorKind::Denied => EPERM,
                PortErrorKind::Failed => EIO,
            },
        }
    }

    /// An error about `patch`, or `OutOfMemory` if even its names find no room.
    #[must_use]
    pub fn patch(
        patch: &str,
        object: Option<&str>,
        func: Option<&str>,
        reason: PatchReason,
    ) -> Self {
        let build = || -> Result<PatchError, OutOfMemory> {
            Ok(PatchError {
                patch: Name::new(patch)?,
                object: object.map(Name::new).transpose()?,
                func: func.map(Name::new).transpose()?,
                reason,
            })
        };
        build().map_or(Self::OutOfMemory, Self::Patch)
    }

    /// An error of a port, met while `doing` something for `patch`.
    #[must_use]
    pub fn port(doing: &'static str, patch: &str, error: &dyn PortError) -> Self {
        let kind = error.kind();
        if kind == PortErrorKind::OutOfMemory {
            return Self::OutOfMemory;
        }
        let build = || -> Result<PortFault, OutOfMemory> {
            Ok(PortFault {
                doing,
                patch: Name::new(patch)?,
                kind,
                detail: Name::display(&DisplayPort(error))?,
            })
        };
        build().map_or(Self::OutOfMemory, Self::Port)
    }
}

struct DisplayPort<'a>(&'a dyn PortError);

impl fmt::Display for DisplayPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0, f)
    }
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl core::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Patch(error) => error.fmt(f),
            Self::Port(fault) => {
                write!(
                    f,
                    "{} for patch '{}' failed: {}",
                    fault.doing, fault.patch, fault.detail
                )
            }
            Self::Busy { patch } => write!(
                f,
                "patch '{patch}' is in transition; one transition at a time"
            ),
            Self::ApiMisuse(misuse) => f.write_str(match misuse {
                ApiMisuse::InCallback => {
                    "a callback of a patch, or the taker of the log, must not call the engine"
                }
                ApiMisuse::NoPatches => "no patch was named",
                ApiMisuse::UnknownPatch => "there is no such patch",
                ApiMisuse::NameTaken => "a patch of that name is there already",
                ApiMisuse::AlreadyEnabled => "the patch is enabled already",
                ApiMisuse::NotEnabled => "the patch is not enabled",
                ApiMisuse::NoTransition => "the patch is not in transition",
                ApiMisuse::Forced => {
                    "a forced transition pinned the patch for good: tasks may still be inside it"
                }
            }),
            Self::OutOfMemory => OutOfMemory.fmt(f),
            Self::Bug(what) => write!(f, "bug in the engine: {what}"),
        }
    }
}

impl fmt::Display for PatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "patch '{}'", self.patch)?;
        if let Some(object) = &self.object {
            write!(f, ", object '{object}'")?;
        }
        if let Some(func) = &self.func {
            write!(f, ", function '{func}'")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for PatchReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoObjects => f.write_str("it has no objects"),
            Self::NoFuncs => f.write_str("it has no functions"),
            Self::BadNameLength => f.write_str("its name is empty or too long"),
            Self::LongName { limit } => {
                write!(
                    f,
                    "its name has more than {limit} bytes, as no symbol here has"
                )
            }
            Self::ListedTwice => f.write_str("it is listed twice"),
            Self::StateTwice { id } => write!(f, "state {id} is listed twice"),
            Self::IncompatibleStates { with } => {
                write!(
                    f,
                    "its states do not fit those of the enabled patch '{with}'"
                )
            }
            Self::SharedWithOtherSet { with } => {
                write!(
                    f,
                    "it shares a function or state with the enabled patch '{with}' of another replace set"
                )
            }
            Self::ReplacesCompanion { with } => {
                write!(
                    f,
                    "it takes the place of the patch '{with}', which is to be enabled as one with it"
                )
            }
            Self::DependsOn { on } => {
                write!(f, "it depends on the patch '{on}', which is not enabled")
            }
            Self::ReplacesNeeded { with, by } => write!(
                f,
                "it takes the place of the patch '{with}', on which the patch '{by}' depends"
            ),
            Self::NeededBy { by } => write!(f, "the enabled patch '{by}' depends on it"),
            Self::Vetoed { errno } => write!(f, "its pre-patch callback said no (error {errno})"),
            Self::SymbolNotFound => f.write_str("no symbol has that name"),
            Self::SymbolAmbiguous => {
                f.write_str("several symbols have that name; say with sympos which one is meant")
            }
            Self::SymbolPositionNotFound { sympos } => {
                write!(f, "there is no symbol of that name at position {sympos}")
            }
            Self::SymbolWithoutSize => f.write_str("its symbol has no size"),
            #[cfg(feature = "sim")]
            Self::Simulated => f.write_str("its new version is code of a simulated system"),
            Self::NewFunctionUnknown => f.write_str("no symbol tells the size of its new version"),
            Self::Misfit { why } => write!(f, "its new version cannot take its place: {why}"),
            Self::OtherBuild {
                expected,
                found: Some(found),
            } => write!(
                f,
                "the patch is for build {expected}, but build {found} runs"
            ),
            Self::OtherBuild {
                expected,
                found: None,
            } => write!(
                f,
                "the patch is for build {expected}, and nothing tells which build runs"
            ),
            Self::OtherCode {
                expected,
                found: Some(found),
            } => write!(f, "the patch is for other code: {expected}, not {found}"),
            Self::OtherCode {
                expected,
                found: None,
            } => write!(
                f,
                "the patch is for the code {expected}, and nothing tells which code runs"
            ),
            Self::NoEntrySite { detail } => write!(f, "it cannot be redirected: {detail}"),
            Self::Notrace => f.write_str("it is marked notrace: it must not be redirected"),
            Self::EntryHeld { detail } => write!(f, "its entry is taken: {detail}"),
            Self::Untrusted { why } => why.fmt(f),
            Self::Malformed { what, place } => write!(f, "{what} ({place})"),
            Self::ForeignMachine { machine, expected } => {
                write!(
                    f,
                    "it is for ELF machine {machine}, this system is {expected}"
                )
            }
            Self::Unsupported { what, place } => write!(f, "{what} ({place}) is not supported"),
            Self::Unresolved { symbol, why } => write!(f, "symbol '{symbol}': {why}"),
            Self::Relocation {
                section,
                symbol,
                error,
            } => {
                write!(f, "section '{section}', reference to '{symbol}': {error}")
            }
        }
    }
}

impl fmt::Display for SymbolFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("not found in symbol table"),
            Self::Ambiguous => f.write_str("ambiguous; a position must say which one is meant"),
            Self::PositionNotFound(sympos) => write!(f, "not found at position {sympos}"),
        }
    }
}

impl From<SymbolFault> for PatchReason {
    fn from(fault: SymbolFault) -> Self {
        match fault {
            SymbolFault::NotFound => Self::SymbolNotFound,
            SymbolFault::Ambiguous => Self::SymbolAmbiguous,
            SymbolFault::PositionNotFound(sympos) => Self::SymbolPositionNotFound { sympos },
        }
    }
}
