//! The process to talk to, or several.

use crate::args::Args;
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use klp_os_linux::control::{self, PatchInfo, Reply, Request, Served};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A process that serves its engine.
pub(crate) enum Target {
    /// At a default place.
    Process(Served),
    /// Wherever it was told to.
    Socket(PathBuf),
}

impl Target {
    /// The process that was named, or the only one there is.
    pub(crate) fn find(args: &Args) -> Result<Self> {
        match (&args.socket, args.pid) {
            (Some(socket), _) => Ok(Self::Socket(socket.clone())),
            (None, Some(pid)) => Ok(Self::Process(control::served_by(pid)?)),
            (None, None) => only_one().map(Self::Process),
        }
    }

    /// Those that were asked for; at least one.
    pub(crate) fn find_all(args: &Args) -> Result<Vec<Served>> {
        let mut found = control::served().context("looking for processes that can be patched")?;
        found.retain(|served| {
            let pid = served.pid();
            args.name
                .as_ref()
                .is_none_or(|name| process::is_called(pid, name))
                && args
                    .library
                    .as_ref()
                    .is_none_or(|library| process::has_loaded(pid, library))
        });
        ensure!(
            !found.is_empty(),
            "no process that can be patched is as asked for"
        );
        Ok(found)
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Reply> {
        match self {
            Self::Process(served) => served
                .ask(request)
                .with_context(|| format!("process {}", served.pid())),
            Self::Socket(path) => {
                control::ask(path, request).with_context(|| path.display().to_string())
            }
        }
    }

    /// The patches.
    pub(crate) fn status(&self) -> Result<Vec<PatchInfo>> {
        match self.ask(&Request::Status)? {
            Reply::Status { patches, .. } => Ok(patches),
            Reply::Refused { error, .. } => bail!(error),
            other => bail!("an answer to another question: {other:?}"),
        }
    }

    /// `path` as the process is told of it: it opens the file itself, and must see the same.
    pub(crate) fn path_for(&self, path: &Path) -> Result<PathBuf> {
        let named = || path.display().to_string();
        let path = path.canonicalize().with_context(named)?;
        if let Self::Process(served) = self {
            let root = PathBuf::from(format!("/proc/{}/root", served.pid()));
            let here = std::fs::metadata(&path).with_context(named)?;
            let there = root.join(path.strip_prefix("/").unwrap_or(&path));
            // A process that does not let itself be looked at is believed to see what we see.
            let same = match std::fs::metadata(there) {
                Ok(there) => (here.dev(), here.ino()) == (there.dev(), there.ino()),
                Err(error) => error.kind() != std::io::ErrorKind::NotFound,
            };
            ensure!(
                same,
                "{}: process {} sees another file there, or none: its root or its mounts are others",
                path.display(),
                served.pid()
            );
        }
        Ok(path)
    }
}

/// The only process of this user that can be patched.
fn only_one() -> Result<Served> {
    let mut found = control::served().context("looking for processes that can be patched")?;
    let own = rustix::process::geteuid().as_raw();
    found.retain(|served| served.user() == own);
    match found.len() {
        0 | 1 => found.pop().with_context(|| {
            "no process of yours can be patched; say --pid or --socket, or start one with 'klp run'"
        }),
        _ => {
            let pids: Vec<String> = found.iter().map(|served| served.pid().to_string()).collect();
            bail!(
                "several processes can be patched: say --pid with one of {}, or --all",
                pids.join(", ")
            )
        }
    }
}
