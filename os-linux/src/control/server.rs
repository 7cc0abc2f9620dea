//! The thread that serves the socket, and brings transitions on.

use super::answer::answer;
use super::protocol::{Reply, Request};
use super::{place, sys};
use crate::process::{Livepatch, close_in_children};
use klp_core::Poll;
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest request.
const MAX_REQUEST: u64 = 64 * 1024;
/// How often a transition is looked after at first, and how often at least while it lasts.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How often a look is taken whether the program itself has started a transition, or loaded a
/// library.
const IDLE_PAUSE: Duration = Duration::from_millis(200);

impl Livepatch {
    /// Serves this engine on a Unix socket, from a thread of its own, which also polls transitions
    /// until they end: the command `klp` can be used on this process. See
    /// [`control`](crate::control) for who may connect. The socket is at `path`, or at its default
    /// place (`$XDG_RUNTIME_DIR/klp/PID.sock`). Returns where it is. The thread also
    /// [adopts](Livepatch::adopt) libraries soon after a plain `dlopen`.
    ///
    /// # Errors
    ///
    /// If the socket or the thread cannot be made; [`ErrorKind::AddrInUse`] if somebody serves at
    /// `path` already.
    pub fn serve(&'static self, path: Option<&Path>) -> Result<PathBuf> {
        let path = match path {
            Some(path) => std::path::absolute(path)?,
            None => place::make_folder()?.join(format!("{}.sock", std::process::id())),
        };
        let listener = bind(&path)?;
        close_in_children(listener.as_raw_fd());
        std::thread::Builder::new()
            .name("klp-control".into())
            .spawn(move || serve(self, &listener))?;
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
fn is_abandoned(path: &Path) -> bool {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn serve(livepatch: &'static Livepatch, listener: &UnixListener) {
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
        sys::wait(listener, if waiting { pause } else { IDLE_PAUSE });
        while let Ok((stream, _)) = listener.accept() {
            // A client that is gone gets no answer; that is all.
            let _ = converse(livepatch, &stream);
        }
    }
}

/// Reads one request and answers it.
fn converse(livepatch: &'static Livepatch, mut stream: &UnixStream) -> Result<()> {
    if sys::peer(stream)? != sys::user() {
        return Err(Error::from(ErrorKind::PermissionDenied));
    }
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
    let reply = match serde_json::from_str::<Request>(&line) {
        Ok(request) => answer(livepatch, request),
        Err(error) => Reply::Refused {
            error: format!("not a request: {error}"),
            errno: -libc::EINVAL,
        },
    };
    let mut reply = serde_json::to_string(&reply)?;
    reply.push('\n');
    stream.write_all(reply.as_bytes())
}
