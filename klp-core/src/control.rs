//! The attribute tree: what Linux shows of livepatches in sysfs and procfs, for any host (kernel:
//! `kobj_attribute`s of `core.c`; `Documentation/ABI/testing/sysfs-kernel-livepatch`).
//!
//! ```text
//! livepatch/PATCH/enabled                  0644  0 or 1; see below
//! livepatch/PATCH/transition               0444  1 while the patch is in transition
//! livepatch/PATCH/replace                  0444  1 if it takes the place of others
//! livepatch/PATCH/stack_order              0444  its place among the patches in force, from 1;
//!                                                0: it is not in force
//! livepatch/PATCH/blockers                 0444  who holds its transition back, and why
//! livepatch/PATCH/force                    0200  1 ends its transition now
//! livepatch/PATCH/signal                   0200  1 kicks the tasks that its transition waits for
//! livepatch/PATCH/OBJECT/patched           0444  1 while its functions there are redirected
//! livepatch/PATCH/OBJECT/FUNCTION,SYMPOS/        a function that it replaces there
//! tasks/TASK/patch_state                   0400  -1 no transition, 0 unpatched, 1 patched
//! ```
//!
//! What is written is a truth value in the kernel's spelling (`1`, `y`, `on`, … and `0`, `n`,
//! `off`, …), a newline may follow. Written to `enabled`:
//!
//! | the patch is | its present value | the other value |
//! |---|---|---|
//! | in transition | `EINVAL` | the transition turns round |
//! | enabled | `EINVAL` | it is disabled, or `EBUSY` during the transition of another |
//! | disabled | `EINVAL` | it is enabled again, or `EBUSY` during the transition of another |
//!
//! Patches that are enabled or disabled as one are in transition together: what is written to one
//! of them is about all.
//!
//! `force` and `signal` ignore 0, and refuse 1 with `EINVAL` outside of the patch's transition.
//! `blockers`, `signal` and enabling again are beyond today's Linux, where a disabled patch is
//! gone. `tasks` lists the tasks that the transition waits for; `patch_state` can be read for every
//! task.

use crate::engine::{Engine, PatchId, PatchStatus};
use crate::error::{ApiMisuse, Error};
use crate::mem::{Name, OutOfMemory, try_push};
use crate::model::{Func, Replace};
use crate::port::{Platform, TaskId};
use alloc::vec::Vec;
use core::fmt;

/// Something in a directory.
#[derive(PartialEq, Eq, Debug)]
pub struct Entry {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: Kind,
}

/// What an [`Entry`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory.
    Directory,
    /// An attribute: one value, read or written as a whole.
    Attribute,
}

impl Entry {
    /// Who may do what with it, as Linux shows it: `0o755`, `0o444`, …
    #[must_use]
    pub fn mode(&self) -> u16 {
        match self.kind {
            Kind::Directory => 0o755,
            Kind::Attribute => mode(&self.name),
        }
    }
}

/// What the tree answers when it refuses.
#[derive(PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ControlError {
    /// Nothing has that path.
    NotFound,
    /// The attribute's mode does not allow it.
    Denied,
    /// The path is that of a directory.
    IsDirectory,
    /// The path is that of an attribute.
    NotDirectory,
    /// The value is not one that can be written there, or not now.
    BadValue,
    /// What was read could not be passed on.
    Output,
    /// The engine refused.
    Engine(Error),
}

impl ControlError {
    /// The Linux error number that a file operation returns for it, negative.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotFound | Self::Engine(Error::ApiMisuse(ApiMisuse::UnknownPatch)) => -2, // ENOENT
            Self::Output => -5,                                                             // EIO
            Self::Denied => -13,       // EACCES
            Self::NotDirectory => -20, // ENOTDIR
            Self::IsDirectory => -21,  // EISDIR
            Self::BadValue => -22,     // EINVAL
            Self::Engine(error) => error.errno(),
        }
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "there is nothing of that name",
            Self::Denied => "its mode does not allow that",
            Self::IsDirectory => "it is a directory",
            Self::NotDirectory => "it is not a directory",
            Self::BadValue => "that value cannot be written there now",
            Self::Output => "the value could not be passed on",
            Self::Engine(error) => return error.fmt(f),
        })
    }
}

impl core::error::Error for ControlError {}

impl From<Error> for ControlError {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl From<OutOfMemory> for ControlError {
    fn from(_: OutOfMemory) -> Self {
        Self::Engine(Error::OutOfMemory)
    }
}

impl From<fmt::Error> for ControlError {
    fn from(_: fmt::Error) -> Self {
        Self::Output
    }
}

/// Lists the directory at `path`; the root is `""`.
///
/// # Errors
///
/// [`NotFound`](ControlError::NotFound), [`NotDirectory`](ControlError::NotDirectory), or the
/// engine's.
pub fn list<P: Platform>(engine: &Engine<P>, path: &str) -> Result<Vec<Entry>, ControlError> {
    let mut entries = Vec::new();
    let mut add = |name: &dyn fmt::Display, kind| -> Result<(), OutOfMemory> {
        try_push(
            &mut entries,
            Entry {
                name: Name::display(name)?,
                kind,
            },
        )
    };
    match Node::find(engine, path)? {
        Node::Root => {
            add(&"livepatch", Kind::Directory)?;
            add(&"tasks", Kind::Directory)?;
        }
        Node::Patches => {
            for patch in engine.status()? {
                add(&patch.name, Kind::Directory)?;
            }
        }
        Node::Patch(id) => {
            for name in PATCH_ATTRIBUTES {
                add(&name, Kind::Attribute)?;
            }
            engine.with_patch(id, |patch| {
                patch
                    .objects()
                    .iter()
                    .try_for_each(|object| add(object.name(), Kind::Directory))
            })??;
        }
        Node::Object(id, object) => {
            add(&"patched", Kind::Attribute)?;
            engine.with_patch(id, |patch| {
                let objects = patch
                    .objects()
                    .iter()
                    .filter(|known| known.name() == object);
                let mut funcs = objects.flat_map(|object| object.funcs());
                funcs.try_for_each(|func| add(&Directory(func), Kind::Directory))
            })??;
        }
        Node::Func => {}
        Node::Tasks => {
            for task in engine.pending_tasks()? {
                add(&task.0, Kind::Directory)?;
            }
        }
        Node::Task => add(&"patch_state", Kind::Attribute)?,
        Node::PatchAttribute(..) | Node::Patched(..) | Node::PatchState(_) => {
            return Err(ControlError::NotDirectory);
        }
    }
    Ok(entries)
}

/// Writes the value of the attribute at `path` to `out`, with a newline at its end. `blockers` is
/// empty outside of the patch's transition.
///
/// # Errors
///
/// [`NotFound`](ControlError::NotFound), [`IsDirectory`](ControlError::IsDirectory),
/// [`Denied`](ControlError::Denied), or the engine's.
pub fn read<P: Platform>(
    engine: &Engine<P>,
    path: &str,
    out: &mut dyn fmt::Write,
) -> Result<(), ControlError> {
    let number = match Node::find(engine, path)? {
        Node::PatchAttribute(_, name) if mode(name) & 0o444 == 0 => {
            return Err(ControlError::Denied);
        }
        Node::PatchAttribute(id, "blockers") => {
            return match engine.blockers(id) {
                Ok(blockers) => Ok(blockers
                    .iter()
                    .try_for_each(|blocker| writeln!(out, "{blocker}"))?),
                Err(Error::ApiMisuse(ApiMisuse::NoTransition)) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
        Node::PatchAttribute(id, name) => {
            let patch = status(engine, id)?;
            match name {
                "enabled" => patch.enabled.into(),
                "transition" => patch.transition.is_some().into(),
                "replace" => (patch.replace != Replace::None).into(),
                "stack_order" => patch.stack_order,
                _ => return Err(ControlError::NotFound),
            }
        }
        Node::Patched(id, object) => engine
            .object_patched(id, object)?
            .ok_or(ControlError::NotFound)?
            .into(),
        Node::PatchState(task) => {
            let state = engine.task_state(task)?.ok_or(ControlError::NotFound)?;
            return Ok(writeln!(out, "{}", state as i8)?);
        }
        _ => return Err(ControlError::IsDirectory),
    };
    Ok(writeln!(out, "{number}")?)
}

/// Writes `value` to the attribute at `path`; see the top of this module.
///
/// # Errors
///
/// [`NotFound`](ControlError::NotFound), [`IsDirectory`](ControlError::IsDirectory),
/// [`Denied`](ControlError::Denied), [`BadValue`](ControlError::BadValue), or the engine's. Nothing
/// has changed then.
///
/// # Safety
///
/// If 1 is written to `force`, as for [`Engine::force`].
#[allow(unsafe_code, reason = "a promise about the patch")]
pub unsafe fn write<P: Platform>(
    engine: &Engine<P>,
    path: &str,
    value: &str,
) -> Result<(), ControlError> {
    let (id, name) = match Node::find(engine, path)? {
        Node::PatchAttribute(id, name) if mode(name) & 0o222 != 0 => (id, name),
        Node::PatchAttribute(..) | Node::Patched(..) | Node::PatchState(_) => {
            return Err(ControlError::Denied);
        }
        _ => return Err(ControlError::IsDirectory),
    };
    let on = truth(value).ok_or(ControlError::BadValue)?;
    match name {
        "enabled" => return set_enabled(engine, id, on),
        // SAFETY: the caller's promise.
        "force" if on => unsafe { engine.force(id) }.map(|_| ())?,
        "signal" if on => engine.kick(id)?,
        _ => {}
    }
    Ok(())
}

/// The patch that is disabled and would not be after [`write`](fn@write) of `value` at `path`: for
/// a host that has something to do before a patch is enabled.
///
/// # Errors
///
/// As for [`write`](fn@write).
pub fn enables<P: Platform>(
    engine: &Engine<P>,
    path: &str,
    value: &str,
) -> Result<Option<PatchId>, ControlError> {
    match Node::find(engine, path)? {
        Node::PatchAttribute(id, "enabled") if truth(value) == Some(true) => {
            Ok(if status(engine, id)?.enabled {
                None
            } else {
                Some(id)
            })
        }
        _ => Ok(None),
    }
}

fn set_enabled<P: Platform>(engine: &Engine<P>, id: PatchId, on: bool) -> Result<(), ControlError> {
    loop {
        let patch = status(engine, id)?;
        if patch.enabled == on {
            return Err(ControlError::BadValue);
        }
        let done = match (patch.transition, on) {
            (Some(_), _) => engine.reverse(id),
            (None, true) => engine.enable(id),
            (None, false) => engine.disable(id),
        };
        match done {
            // It ended after the look at the status: look again.
            Err(Error::ApiMisuse(ApiMisuse::NoTransition)) => {}
            done => return Ok(done.map(|_| ())?),
        }
    }
}

fn status<P: Platform>(engine: &Engine<P>, id: PatchId) -> Result<PatchStatus, ControlError> {
    engine
        .status()?
        .into_iter()
        .find(|patch| patch.id == id)
        .ok_or(ControlError::NotFound)
}

/// A truth value as the kernel reads it (kernel: `kstrtobool`): the first letter counts, and the
/// second of `on` and `off`.
fn truth(value: &str) -> Option<bool> {
    match value.as_bytes() {
        [b'1' | b'y' | b'Y' | b't' | b'T', ..] | [b'o' | b'O', b'n' | b'N', ..] => Some(true),
        [b'0' | b'n' | b'N' | b'f' | b'F', ..] | [b'o' | b'O', b'f' | b'F', ..] => Some(false),
        _ => None,
    }
}

/// The attributes of a patch.
const PATCH_ATTRIBUTES: [&str; 7] = [
    "enabled",
    "transition",
    "replace",
    "stack_order",
    "blockers",
    "force",
    "signal",
];

/// The mode of the attribute called `name`.
fn mode(name: &str) -> u16 {
    match name {
        "enabled" => 0o644,
        "force" | "signal" => 0o200,
        "patch_state" => 0o400,
        _ => 0o444,
    }
}

/// A function as the name of a directory: position 0 is shown as 1.
struct Directory<'a>(&'a Func);

impl fmt::Display for Directory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.0.old_name(), self.0.position().max(1))
    }
}

/// What a path leads to.
enum Node<'a> {
    Root,
    Patches,
    Patch(PatchId),
    PatchAttribute(PatchId, &'static str),
    Object(PatchId, &'a str),
    Patched(PatchId, &'a str),
    Func,
    Tasks,
    Task,
    PatchState(TaskId),
}

impl<'a> Node<'a> {
    fn find<P: Platform>(engine: &Engine<P>, path: &'a str) -> Result<Self, ControlError> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let node = match parts.next() {
            None => Self::Root,
            Some("livepatch") => match parts.next() {
                None => Self::Patches,
                Some(patch) => {
                    let id = engine.find(patch).ok_or(ControlError::NotFound)?;
                    Self::find_in_patch(engine, id, &mut parts)?
                }
            },
            Some("tasks") => match parts.next() {
                None => Self::Tasks,
                Some(task) => Self::find_in_task(engine, task, parts.next())?,
            },
            Some(_) => return Err(ControlError::NotFound),
        };
        match (parts.next(), node) {
            (None, node) => Ok(node),
            (Some(_), Self::PatchAttribute(..) | Self::Patched(..) | Self::PatchState(_)) => {
                Err(ControlError::NotDirectory)
            }
            (Some(_), _) => Err(ControlError::NotFound),
        }
    }

    fn find_in_patch<P: Platform>(
        engine: &Engine<P>,
        id: PatchId,
        parts: &mut impl Iterator<Item = &'a str>,
    ) -> Result<Self, ControlError> {
        let Some(part) = parts.next() else {
            return Ok(Self::Patch(id));
        };
        if let Some(name) = PATCH_ATTRIBUTES.iter().find(|name| **name == part) {
            return Ok(Self::PatchAttribute(id, name));
        }
        engine
            .object_patched(id, part)?
            .ok_or(ControlError::NotFound)?;
        match parts.next() {
            None => Ok(Self::Object(id, part)),
            Some("patched") => Ok(Self::Patched(id, part)),
            Some(func) => {
                let (name, sympos) = func.rsplit_once(',').ok_or(ControlError::NotFound)?;
                let position: u32 = sympos.parse().map_err(|_| ControlError::NotFound)?;
                let known = engine.with_patch(id, |patch| {
                    let mut objects = patch
                        .objects()
                        .iter()
                        .filter(|object| object.name() == part);
                    objects.any(|object| {
                        let fits = |func: &Func| {
                            func.old_name() == name && func.position().max(1) == position
                        };
                        object.funcs().iter().any(fits)
                    })
                })?;
                if known {
                    Ok(Self::Func)
                } else {
                    Err(ControlError::NotFound)
                }
            }
        }
    }

    fn find_in_task<P: Platform>(
        engine: &Engine<P>,
        task: &str,
        attribute: Option<&str>,
    ) -> Result<Self, ControlError> {
        let task = TaskId(task.parse().map_err(|_| ControlError::NotFound)?);
        engine.task_state(task)?.ok_or(ControlError::NotFound)?;
        match attribute {
            None => Ok(Self::Task),
            Some("patch_state") => Ok(Self::PatchState(task)),
            Some(_) => Err(ControlError::NotFound),
        }
    }
}
