//! The two threads of a server: one for the socket, which waits for nobody, and one that works with
//! the engine: it brings transitions on, and does what clients ask for, one after the other.

use super::answer::answer;
use super::clients::Clients;
use super::listener::Listener;
use super::protocol::{Reply, Request};
use super::{place, sys};
use crate::process::Livepatch;
use klp_core::Poll;
use std::io::Result;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often a transition is looked after at first, and how often at least while it lasts.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How often a look is taken whether the program itself has started a transition, or loaded a
/// library.
const IDLE_PAUSE: Duration = Duration::from_millis(200);
/// How often it is tried to free the memory of patches that were removed.
const FREE_PAUSE: Duration = Duration::from_secs(10);

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
    /// If the socket or a thread cannot be made; [`ErrorKind::AddrInUse`](std::io::ErrorKind::AddrInUse) if somebody serves at
    /// `path` already.
    pub fn serve(&'static self, path: Option<&Path>) -> Result<PathBuf> {
        let path = match path {
            Some(path) => std::path::absolute(path)?,
            None => place::make_folder()?.join(format!("{}.sock", std::process::id())),
        };
        let (ask, requests) = channel();
        let (reply, replies) = channel();
        let clients = Clients::new(Listener::bind(&path)?, ask, replies);
        sys::spawn("klp-engine", move || work(self, &requests, &reply))?;
        sys::spawn("klp-control", move || clients.serve())?;
        Ok(path)
    }
}

/// Brings transitions on, adopts libraries, and answers what comes meanwhile.
fn work(livepatch: &'static Livepatch, requests: &Receiver<Request>, replies: &Sender<Reply>) {
    let mut pause = FIRST_PAUSE;
    let mut counts = None;
    let mut freed = Instant::now();
    loop {
        // The engine has logged what patches refused.
        let _ = livepatch.adopt_new(&mut counts);
        let waiting = matches!(livepatch.engine().poll(), Poll::Waiting { .. });
        pause = if waiting {
            LONGEST_PAUSE.min(2 * pause)
        } else {
            FIRST_PAUSE
        };
        if freed.elapsed() >= FREE_PAUSE {
            livepatch.free_removed();
            freed = Instant::now();
        }
        match requests.recv_timeout(if waiting { pause } else { IDLE_PAUSE }) {
            Ok(request) => {
                if replies.send(answer(livepatch, request)).is_err() {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
