//! What can go wrong with a process.

use super::sys::Errno;
use super::ucontext::Unregistered;
use core::fmt;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::Name;
use klp_core::port::{PortError, PortErrorKind, TaskId, TaskName};

/// An error of the process embedding.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A call of the operating system failed.
    Os {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// Memory ran out.
    OutOfMemory,
    /// No program code or patch image is mapped there.
    NotText {
        /// The address.
        at: CodeAddr,
    },
    /// The bytes found are not those expected.
    TextChanged {
        /// The address.
        at: CodeAddr,
    },
    /// No memory is free within reach.
    NoMemoryInReach {
        /// What it must be reached from.
        near: TextRange,
    },
    /// What is to be changed lies in two lines of the processor's cache: no single store changes it.
    NotInOneLine {
        /// The address.
        at: CodeAddr,
    },
    /// A thread did not show in time that it is outside of an entry pad that is to be rewritten.
    ThreadSilent {
        /// The thread.
        task: TaskId,
        /// Its name.
        name: TaskName,
        /// Why.
        why: Silence,
    },
    /// Threads come and go so fast that they cannot be listed.
    Churn,
    /// Coroutines may be suspended where nobody sees them.
    Contexts(Unregistered),
    /// The process has its livepatch engine already.
    Twice,
    /// Somebody else has a handler on a signal that is needed.
    SignalTaken {
        /// The signal's number.
        signal: i32,
    },
    /// Stacks cannot be followed through an object that all of them go through: it was linked
    /// without an index of its unwind tables and has no section headers, or has no tables.
    NoUnwindTables {
        /// The object.
        object: Name,
    },
    /// Patches cannot tell two libraries apart.
    NameTaken {
        /// How patches would call both.
        object: Name,
        /// The file of one of them, as the dynamic linker calls it.
        one: Name,
        /// The other's.
        other: Name,
    },
    /// A copy of the library is in memory that cannot be patched: the dynamic linker does not show
    /// it.
    Outside {
        /// How patches would call it.
        object: Name,
        /// Its file, as the kernel calls it.
        file: Name,
        /// Where its code is.
        at: CodeAddr,
    },
    /// The dynamic linker does not let anybody hold the object in memory.
    NotHeld {
        /// The object.
        object: Name,
    },
    /// The symbol is an indirect function: code that says which function is meant.
    Indirect {
        /// The object that has it.
        object: Name,
        /// Its name.
        symbol: Name,
    },
    /// Both the program and a library have a thread-local variable of this name.
    TwoThreadLocals {
        /// The library.
        object: Name,
        /// The name.
        symbol: Name,
    },
    /// An object's file is not the one that was loaded, or is not an ELF file that can be read.
    BadFile {
        /// The object, as patches name it.
        object: Name,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// Why a thread did not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Silence {
    /// It blocks the stop signal.
    Blocks,
    /// It has not run since the signal was sent, or its stack cannot be followed.
    Running,
}

impl Error {
    pub(crate) fn io(call: &'static str, error: &std::io::Error) -> Self {
        Self::Os {
            call,
            errno: Errno(error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    /// [`Error::Indirect`], or `OutOfMemory`.
    pub(crate) fn indirect(object: &str, symbol: &str) -> Self {
        match (Name::new(object), Name::new(symbol)) {
            (Ok(object), Ok(symbol)) => Self::Indirect { object, symbol },
            _ => Self::OutOfMemory,
        }
    }

    /// [`Error::TwoThreadLocals`], or `OutOfMemory`.
    pub(crate) fn two_thread_locals(object: &str, symbol: &str) -> Self {
        match (Name::new(object), Name::new(symbol)) {
            (Ok(object), Ok(symbol)) => Self::TwoThreadLocals { object, symbol },
            _ => Self::OutOfMemory,
        }
    }

    pub(crate) const fn os(call: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Os { call, errno }
    }
}

impl Error {
    /// The Linux error number that says the same, negative.
    #[must_use]
    pub fn errno(&self) -> i32 {
        -match self {
            Self::Os { errno, .. } => errno.0,
            Self::Twice => libc::EEXIST,
            _ => match self.kind() {
                PortErrorKind::OutOfMemory | PortErrorKind::NoMemoryInReach => libc::ENOMEM,
                PortErrorKind::NotFound => libc::ENOENT,
                PortErrorKind::Denied => libc::EPERM,
                PortErrorKind::Held => libc::EBUSY,
                _ => libc::EIO,
            },
        }
    }
}

impl LoadError {
    /// The Linux error number that says the same, negative.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::File { error, .. } => -error.raw_os_error().unwrap_or(libc::EIO),
            Self::Library { .. } => -libc::ELIBACC,
            Self::Engine(error) => error.errno(),
            Self::Process(error) => error.errno(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os { call, errno } => write!(f, "{call}: {errno}"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::NotText { at } => write!(f, "no code is mapped at {at}"),
            Self::TextChanged { at } => write!(f, "the code at {at} is not what it should be"),
            Self::NoMemoryInReach { near } => {
                write!(f, "no memory is free within reach of {near:?}")
            }
            Self::NotInOneLine { at } => write!(
                f,
                "the entry pad at {at} lies in two lines of the cache, so that it cannot be changed \
                 at once (a pad of 16 NOPs can)"
            ),
            Self::ThreadSilent { task, name, why } => {
                let why = match why {
                    Silence::Blocks => "blocks the stop signal",
                    Silence::Running => "does not answer, or its stack cannot be followed",
                };
                write!(
                    f,
                    "thread {} ({name}) may stand in an entry pad: it {why}",
                    task.0
                )
            }
            Self::Churn => f.write_str("threads come and go too fast to be listed"),
            Self::Contexts(why) => why.fmt(f),
            Self::Twice => f.write_str("the process has its livepatch engine already"),
            Self::SignalTaken { signal } => {
                write!(
                    f,
                    "signal {signal}, which stops threads, is not the engine's (any more): somebody \
                     else has set what it does"
                )
            }
            Self::NoUnwindTables { object } => write!(
                f,
                "stacks cannot be followed: no unwind tables of object '{object}' are found \
                 (compile with -fasynchronous-unwind-tables, link with --eh-frame-hdr)"
            ),
            Self::NameTaken { object, one, other } => write!(
                f,
                "there are two libraries called '{object}': {one} and {other}"
            ),
            Self::Outside { object, file, at } => write!(
                f,
                "there is a copy of '{object}' that cannot be patched, {file} at {at}: it was loaded \
                 by dlmopen, or without the dynamic linker"
            ),
            Self::NotHeld { object } => write!(
                f,
                "object '{object}' cannot be held in memory: dlopen does not find it"
            ),
            Self::TwoThreadLocals { object, symbol } => write!(
                f,
                "thread-local variable '{symbol}' of object '{object}': the program has one of this \
                 name, too, and nothing tells which of both the object uses"
            ),
            Self::Indirect { object, symbol } => write!(
                f,
                "'{symbol}' in object '{object}' is an indirect function (IFUNC), whose code only \
                 chooses one; name the function that it chooses"
            ),
            Self::BadFile { object, why } => write!(f, "the file of object '{object}' {why}"),
        }
    }
}

impl core::error::Error for Error {}

/// Why a patch object could not be loaded, or unloaded.
#[derive(Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The dynamic linker did not load the library.
    Library {
        /// The library.
        path: std::path::PathBuf,
        /// The dynamic linker's words.
        why: String,
    },
    /// The engine refused.
    Engine(klp_core::Error),
    /// The process embedding failed.
    Process(Error),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Library { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Engine(error) => error.fmt(f),
            Self::Process(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for LoadError {}

impl From<klp_core::Error> for LoadError {
    fn from(error: klp_core::Error) -> Self {
        Self::Engine(error)
    }
}

impl PortError for Error {
    fn kind(&self) -> PortErrorKind {
        match self {
            Self::Os {
                errno: Errno(libc::ENOMEM),
                ..
            }
            | Self::OutOfMemory => PortErrorKind::OutOfMemory,
            Self::Os {
                errno: Errno(libc::EPERM | libc::EACCES),
                ..
            } => PortErrorKind::Denied,
            Self::NoMemoryInReach { .. } => PortErrorKind::NoMemoryInReach,
            Self::Contexts(_) => PortErrorKind::Denied,
            Self::NotText { .. } => PortErrorKind::NotFound,
            Self::TextChanged { .. }
            | Self::SignalTaken { .. }
            | Self::NameTaken { .. }
            | Self::Outside { .. } => PortErrorKind::Held,
            _ => PortErrorKind::Failed,
        }
    }
}

impl From<klp_core::mem::OutOfMemory> for Error {
    fn from(_: klp_core::mem::OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}
