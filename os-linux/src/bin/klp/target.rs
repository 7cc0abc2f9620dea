//! The process to talk to.

use anyhow::{Context, Result, bail};
use klp_os_linux::control::{self, PatchInfo, Reply, Request};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A process that serves its engine.
pub(crate) struct Target {
    socket: PathBuf,
}

impl Target {
    /// The process that was named, or the only one there is.
    pub(crate) fn find(pid: Option<u32>, socket: Option<&Path>) -> Result<Self> {
        let socket = match (socket, pid) {
            (Some(socket), _) => socket.to_owned(),
            (None, Some(pid)) => control::socket_of(pid),
            (None, None) => only_one()?,
        };
        Ok(Self { socket })
    }

    pub(crate) fn ask(&self, request: &Request) -> Result<Reply> {
        control::ask(&self.socket, request).with_context(|| self.socket.display().to_string())
    }

    /// The patches.
    pub(crate) fn status(&self) -> Result<Vec<PatchInfo>> {
        match self.ask(&Request::Status)? {
            Reply::Status { patches, .. } => Ok(patches),
            Reply::Refused { error, .. } => bail!(error),
            other => bail!("an answer to another question: {other:?}"),
        }
    }
}

fn only_one() -> Result<PathBuf> {
    let mut live = control::sockets().context("looking for processes that can be patched")?;
    live.retain(|(_, socket)| UnixStream::connect(socket).is_ok());
    match &live[..] {
        [(_, socket)] => Ok(socket.clone()),
        [] => bail!(
            "no process of yours can be patched (looked in {}); say --pid or --socket",
            control::folder().display()
        ),
        several => {
            let pids: Vec<String> = several.iter().map(|(pid, _)| pid.to_string()).collect();
            bail!(
                "several processes can be patched: say --pid with one of {}",
                pids.join(", ")
            )
        }
    }
}
