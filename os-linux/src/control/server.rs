//! The two threads of a server: one for the socket, which waits for nobody, and one that works with
//! the engine: it brings transitions on, and does what clients ask for, one after the other.

use super::answer::answer;
use super::clients::Clients;
use super::protocol::{Reply, Request};
use super::{place, sys};
use crate::process::{Livepatch, close_in_children};
use klp_core::Poll;
use rustix::event::EventfdFlags;
use std::fs::Permissions;
use std::io::{ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often a transition is looked after at first, and how often at least while it lasts.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How often a look is taken whether the program itself has started a transition, or loaded a
/// library.
const IDLE_PAUSE: Duration = Duration::from_millis(200);

impl Livepatch {
    /// Serves this engine on a Unix socket, from threads of its own, which also poll transitions
    /// until they end: the command `klp` can be used on this process. See
    /// [`control`](crate::control) for who may connect. The socket is at `path`, or at its default
    /// place ([`folders`](crate::control::folders)). Returns where it is. The server also
    /// [adopts](Livepatch::adopt) libraries soon after a plain `dlopen`.
    ///
    /// The threads block all signals but the engine's own.
    ///
    /// # Errors
    ///
    /// If the socket or a thread cannot be made; [`ErrorKind::AddrInUse`] if somebody serves at
    /// `path` already.
    pub fn serve(&'static self, path: Option<&Path>) -> Result<PathBuf> {
        let path = match path {
            Some(path) => std::path::absolute(path)?,
            None => place::make_folder()?.join(format!("{}.sock", std::process::id())),
        };
        let (ask, requests) = channel();
        let (reply, replies) = channel();
        let wake = Arc::new(rustix::event::eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?);
        let listener = bind(&path)?;
        close_in_children(listener.as_raw_fd());
        close_in_children(wake.as_raw_fd());
        let clients = Clients::new(listener, Arc::clone(&wake), ask, replies);
        sys::spawn("klp-engine", move || work(self, &requests, &reply, &wake))?;
        sys::spawn("klp-control", move || clients.serve())?;
        Ok(path)
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_abandoned(path) => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    // Who was faster than this is asked for its user id all the same.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether it is a socket that nobody serves.
pub(super) fn is_abandoned(path: &Path) -> bool {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && sys::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Brings transitions on, adopts libraries, and answers what comes meanwhile. `wake` tells that
/// there is a reply.
fn work(
    livepatch: &'static Livepatch,
    requests: &Receiver<Request>,
    replies: &Sender<Reply>,
    wake: &OwnedFd,
) {
    let mut pause = FIRST_PAUSE;
    let mut counts = None;
    loop {
        // The engine has logged what patches refused.
        let _ = livepatch.adopt_new(&mut counts);
        let waiting = matches!(livepatch.engine().poll(), Poll::Waiting { .. });
        pause = if waiting {
            LONGEST_PAUSE.min(2 * pause)
        } else {
            FIRST_PAUSE
        };
        match requests.recv_timeout(if waiting { pause } else { IDLE_PAUSE }) {
            Ok(request) => {
                if replies.send(answer(livepatch, request)).is_err() {
                    return;
                }
                let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
