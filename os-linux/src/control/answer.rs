//! From a request to the engine, and from what it says to a reply.

use super::protocol::{Blocking, Direction, Node, ObjectInfo, PatchInfo, Reply, Request, Source};
use crate::process::{Livepatch, LoadError};
use klp_core::control::{self, ControlError, Kind};
use klp_core::engine::{PatchId, PatchStatus};
use klp_core::error::{ApiMisuse, Error};
use klp_core::model::Replace;
use klp_core::port::TaskState;
use std::path::Path;

/// Does what `request` asks for.
pub(super) fn answer(livepatch: &'static Livepatch, request: Request) -> Reply {
    let engine = livepatch.engine();
    let reply = match request {
        Request::Status => status(livepatch),
        Request::Enable { patches } => enable(livepatch, &patches),
        Request::Disable { patches } => disable(livepatch, &patches),
        Request::Reverse { patch } => with(livepatch, &patch, |id| engine.reverse(id).map(|_| ())),
        Request::Force { patch } => with(livepatch, &patch, |id| engine.force(id).map(|_| ())),
        Request::Signal { patch } => with(livepatch, &patch, |id| engine.kick(id)),
        Request::Remove { patch } => remove(livepatch, patch),
        Request::Blockers { patch } => blockers(livepatch, &patch),
        Request::Check { file } => check(livepatch, &file),
        Request::List { path } => list(livepatch, &path),
        Request::Read { path } => {
            let mut value = String::new();
            control::read(engine, &path, &mut value)
                .map(|()| Reply::Value { value })
                .map_err(Refusal::from)
        }
        Request::Write { path, value } => write(livepatch, &path, value),
    };
    reply.unwrap_or_else(|Refusal { error, errno }| Reply::Refused { error, errno })
}

/// Why a request was refused.
struct Refusal {
    error: String,
    errno: i32,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self {
            errno: error.errno(),
            error: error.to_string(),
        }
    }
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        Self {
            errno: error.errno(),
            error: error.to_string(),
        }
    }
}

impl From<LoadError> for Refusal {
    fn from(error: LoadError) -> Self {
        Self {
            errno: error.errno(),
            error: error.to_string(),
        }
    }
}

fn find(livepatch: &'static Livepatch, patch: &str) -> Result<PatchId, Refusal> {
    let unknown = || Refusal {
        error: format!("there is no patch '{patch}'"),
        errno: -libc::ENOENT,
    };
    livepatch.engine().find(patch).ok_or_else(unknown)
}

/// Does something with the patch called `patch`, and shows it as it is afterwards.
fn with(
    livepatch: &'static Livepatch,
    patch: &str,
    what: impl FnOnce(PatchId) -> Result<(), Error>,
) -> Result<Reply, Refusal> {
    let id = find(livepatch, patch)?;
    what(id)?;
    show(livepatch, id)
}

fn show(livepatch: &'static Livepatch, id: PatchId) -> Result<Reply, Refusal> {
    let all = livepatch.engine().status()?;
    Ok(Reply::Patch {
        patch: info_of(livepatch, &all, id)?,
    })
}

fn show_all(livepatch: &'static Livepatch, ids: &[PatchId]) -> Result<Reply, Refusal> {
    let all = livepatch.engine().status()?;
    let patches = ids.iter().map(|id| info_of(livepatch, &all, *id));
    Ok(Reply::Patches {
        patches: patches.collect::<Result<_, _>>()?,
    })
}

fn info_of(
    livepatch: &'static Livepatch,
    all: &[PatchStatus],
    id: PatchId,
) -> Result<PatchInfo, Error> {
    let status = all
        .iter()
        .find(|patch| patch.id == id)
        .ok_or(Error::ApiMisuse(ApiMisuse::UnknownPatch))?;
    info(livepatch, status)
}

fn status(livepatch: &'static Livepatch) -> Result<Reply, Refusal> {
    let all = livepatch.engine().status()?;
    let patches = all.iter().filter_map(|patch| match info(livepatch, patch) {
        // It was removed meanwhile.
        Err(Error::ApiMisuse(ApiMisuse::UnknownPatch)) => None,
        info => Some(info),
    });
    Ok(Reply::Status {
        pid: std::process::id(),
        patches: patches.collect::<Result<_, _>>()?,
    })
}

fn info(livepatch: &'static Livepatch, status: &PatchStatus) -> Result<PatchInfo, Error> {
    let engine = livepatch.engine();
    let (mut objects, [labels, descriptions, authors]) = engine.with_patch(status.id, |patch| {
        let object = |object: &klp_core::Object| ObjectInfo {
            name: object.name().to_string(),
            patched: false,
            functions: object
                .funcs()
                .iter()
                .map(|func| format!("{},{}", func.old_name(), func.position().max(1)))
                .collect(),
        };
        let about = patch.about();
        let about = [&about.labels, &about.descriptions, &about.authors].map(|them| texts(them));
        let objects: Vec<_> = patch.objects().iter().map(object).collect();
        (objects, about)
    })?;
    for object in &mut objects {
        object.patched = engine
            .object_patched(status.id, &object.name)?
            .unwrap_or(false);
    }
    Ok(PatchInfo {
        name: status.name.to_string(),
        enabled: status.enabled,
        transition: match status.transition {
            Some(TaskState::Patched) => Some(Direction::Patching),
            Some(TaskState::Unpatched) => Some(Direction::Unpatching),
            Some(TaskState::Idle) | None => None,
        },
        pending: status.pending,
        forced: status.forced,
        replace: status.replace != Replace::None,
        stack_order: status.stack_order,
        labels,
        descriptions,
        authors,
        objects,
    })
}

fn texts(names: &[klp_core::mem::Name]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// Enables patches as one. What was loaded for it is unloaded if they are refused.
fn enable(livepatch: &'static Livepatch, patches: &[Source]) -> Result<Reply, Refusal> {
    let (mut ids, mut loaded) = (Vec::new(), Vec::new());
    let enabled = patches.iter().try_for_each(|source| {
        let id = match source {
            Source::Loaded(name) => find(livepatch, name)?,
            Source::File(file) => match livepatch.loaded_from(file)? {
                Some(known) => known,
                None => {
                    let id = load(livepatch, file)?;
                    loaded.push(id);
                    id
                }
            },
        };
        ids.push(id);
        Ok(())
    });
    if let Err(refusal) = enabled.and_then(|()| Ok(livepatch.enable_all(&ids).map(|_| ())?)) {
        loaded.into_iter().try_for_each(|id| livepatch.unload(id))?;
        return Err(refusal);
    }
    show_all(livepatch, &ids)
}

fn disable(livepatch: &'static Livepatch, patches: &[String]) -> Result<Reply, Refusal> {
    let ids: Vec<PatchId> = patches
        .iter()
        .map(|name| find(livepatch, name))
        .collect::<Result<_, _>>()?;
    livepatch.disable_all(&ids)?;
    show_all(livepatch, &ids)
}

fn remove(livepatch: &'static Livepatch, patch: String) -> Result<Reply, Refusal> {
    livepatch.unload(find(livepatch, &patch)?)?;
    Ok(Reply::Removed { patch })
}

fn blockers(livepatch: &'static Livepatch, patch: &str) -> Result<Reply, Refusal> {
    let blockers = livepatch.engine().blockers(find(livepatch, patch)?)?;
    let blocking = |blocker: &klp_core::transition::Blocker| Blocking {
        task: blocker.task.0,
        name: blocker.name.to_string(),
        why: blocker
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned(),
        stack: blocker.stack.iter().map(ToString::to_string).collect(),
    };
    Ok(Reply::Blockers {
        blockers: blockers.iter().map(blocking).collect(),
    })
}

/// Loads a file that is not loaded already.
fn load(livepatch: &'static Livepatch, file: &Path) -> Result<PatchId, Refusal> {
    livepatch.load_file(file).map_err(|error| {
        let taken = matches!(
            error,
            LoadError::Engine(Error::ApiMisuse(ApiMisuse::NameTaken))
        );
        let mut refusal = Refusal::from(error);
        if taken {
            let file = file.display();
            refusal.error += &format!(
                ", made of another file than {file}: remove that one, or give this one a name of \
                 its own"
            );
        }
        refusal
    })
}

fn check(livepatch: &'static Livepatch, file: &Path) -> Result<Reply, Refusal> {
    let engine = livepatch.engine();
    let known = livepatch.loaded_from(file)?;
    let id = match known {
        Some(known) => known,
        None => load(livepatch, file)?,
    };
    let checked = engine
        .with_patch(id, |patch| patch.name().to_string())
        .and_then(|patch| {
            let report = livepatch.preflight(id)?;
            Ok(Reply::Preflight {
                patch,
                ready: report.is_ready(),
                functions: report.functions,
                findings: report.findings.iter().map(ToString::to_string).collect(),
                waiting: texts(&report.waiting),
                replaces: texts(&report.replaces),
                clones: report.clones.iter().map(ToString::to_string).collect(),
            })
        });
    if known.is_none() {
        livepatch.unload(id)?;
    }
    Ok(checked?)
}

fn write(livepatch: &'static Livepatch, path: &str, value: String) -> Result<Reply, Refusal> {
    let engine = livepatch.engine();
    // The attribute tree is the engine's own, which does not know what was loaded behind its back.
    let enables = control::enables(engine, path, &value)?;
    if let Some(patch) = enables {
        livepatch.adopt_for(patch)?;
    }
    // SAFETY: as for `Request::Force`.
    unsafe { control::write(engine, path, &value) }?;
    livepatch.tell_waiting(enables.as_slice());
    Ok(Reply::Value { value })
}

fn list(livepatch: &'static Livepatch, path: &str) -> Result<Reply, Refusal> {
    let entries = control::list(livepatch.engine(), path)?;
    let node = |entry: &control::Entry| Node {
        name: entry.name.to_string(),
        directory: entry.kind == Kind::Directory,
        mode: entry.mode(),
    };
    Ok(Reply::Nodes {
        entries: entries.iter().map(node).collect(),
    })
}
