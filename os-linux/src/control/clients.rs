//! Those who have connected to a server. None of them is waited for: a client that is slow, silent
//! or gone delays nobody.

use super::listener::Listener;
use super::protocol::{Reply, Request};
use super::sys;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

/// How many may be connected at once. One that has not asked yet, or does not take its answer, makes
/// room for the next.
const MOST: usize = 64;
/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest request.
const MAX_REQUEST: usize = 64 * 1024;
/// How often a client that waits for its answer is told that it is being worked on.
const SIGN_OF_LIFE: Duration = Duration::from_millis(250);
/// How often the listener is looked after, the time while somebody is connected, and the engine
/// while it works for somebody.
const IDLE: Duration = Duration::from_secs(1);
const CONNECTED: Duration = Duration::from_millis(50);
const AT_WORK: Duration = Duration::from_millis(2);

/// All that are connected, in the order of their coming.
pub(super) struct Clients {
    listener: Listener,
    ask: Sender<Request>,
    replies: Receiver<Reply>,
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    stage: Stage,
    /// When it did something last, or something was said to it.
    since: Instant,
}

enum Stage {
    /// Its request comes in.
    Asking(Vec<u8>),
    /// It waits for its turn.
    Queued(Request),
    /// It is the one whose request is being worked on.
    Served,
    /// Its answer goes out, from the given byte on.
    Answered(Vec<u8>, usize),
    /// It is done with, or gone.
    Gone,
}

impl Clients {
    pub(super) fn new(listener: Listener, ask: Sender<Request>, replies: Receiver<Reply>) -> Self {
        Self {
            listener,
            ask,
            replies,
            clients: Vec::new(),
        }
    }

    /// Serves for ever.
    pub(super) fn serve(mut self) {
        let mut served = false;
        // Whether the listener is to be left alone for a while: there is no room for a connection.
        let mut full = false;
        loop {
            let time = match (served, full || !self.clients.is_empty()) {
                (true, _) => AT_WORK,
                (false, true) => CONNECTED,
                (false, false) => IDLE,
            };
            let ready = self.wait(full, time);
            for (client, ready) in self.clients.iter_mut().zip(&ready) {
                client.go_on(*ready);
            }
            self.listener.renew();
            full = self.accept();
            while let Ok(reply) = self.replies.try_recv() {
                served = false;
                // The client that asked may be gone.
                let asked = |client: &&mut Client| matches!(client.stage, Stage::Served);
                if let Some(client) = self.clients.iter_mut().find(asked) {
                    client.answer(&reply);
                }
            }
            self.clients
                .retain(|client| !matches!(client.stage, Stage::Gone));
            if !served {
                served = self.serve_next();
            }
        }
    }

    /// Waits until there is something to do, at most for `time`; what there is for each client.
    fn wait(&self, full: bool, time: Duration) -> Vec<PollFlags> {
        let clients = self.clients.iter().map(|client| {
            let wanted = match client.stage {
                Stage::Asking(_) => PollFlags::IN,
                Stage::Answered(..) => PollFlags::OUT,
                // That it has hung up is told always.
                _ => PollFlags::empty(),
            };
            PollFd::new(&client.stream, wanted)
        });
        let listener = self.listener.as_fd().filter(|_| !full);
        let listener = listener.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> = clients.chain(listener).collect();
        let time = Timespec::try_from(time).ok();
        if rustix::event::poll(&mut fds, time.as_ref()).is_err() {
            return vec![PollFlags::empty(); fds.len()];
        }
        fds.iter().map(PollFd::revents).collect()
    }

    /// Takes in those who have connected; says whether the process has no room for more.
    fn accept(&mut self) -> bool {
        loop {
            let stream = match self.listener.accept() {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return !matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::ConnectionAborted
                    );
                }
            };
            let user = sys::peer(&stream).map(|(user, _)| user);
            if !user.is_ok_and(may_ask) || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let mut client = Client {
                stream,
                stage: Stage::Asking(Vec::new()),
                since: Instant::now(),
            };
            if self.clients.len() >= MOST && !self.make_room() {
                client.answer(&Reply::Refused {
                    error: format!("{MOST} others wait already"),
                    errno: -libc::EBUSY,
                });
                client.go_on(PollFlags::OUT);
            } else {
                self.clients.push(client);
            }
        }
    }

    /// Lets the first one go that keeps the server waiting, if there is one.
    fn make_room(&mut self) -> bool {
        let waits = |client: &Client| !matches!(client.stage, Stage::Queued(_) | Stage::Served);
        let first = self.clients.iter().position(waits);
        first.map(|first| self.clients.remove(first)).is_some()
    }

    /// Has the next request worked on, if there is one, and says whether there is.
    fn serve_next(&mut self) -> bool {
        let queued = |client: &&mut Client| matches!(client.stage, Stage::Queued(_));
        let Some(client) = self.clients.iter_mut().find(queued) else {
            return false;
        };
        match core::mem::replace(&mut client.stage, Stage::Served) {
            Stage::Queued(request) => self.ask.send(request).is_ok(),
            _ => false,
        }
    }
}

/// The owner of the process may, and the superuser, who may do to it whatever it likes.
fn may_ask(user: u32) -> bool {
    user == sys::user() || user == 0
}

impl Client {
    /// Does what can be done without waiting.
    fn go_on(&mut self, ready: PollFlags) {
        match &mut self.stage {
            // What it has asked for, and nobody has begun with, is not done any more. (One that only
            // says nothing more has not hung up: see poll(2).)
            Stage::Asking(_) | Stage::Queued(_) | Stage::Served
                if ready.intersects(PollFlags::HUP | PollFlags::ERR) =>
            {
                self.stage = Stage::Gone;
            }
            Stage::Asking(line) if !ready.is_empty() => {
                let mut part = [0; 4096];
                match self.stream.read(&mut part) {
                    Ok(len) => {
                        line.extend_from_slice(&part[..len]);
                        // It is over with a newline, or if nothing more comes.
                        if len == 0 || line.contains(&b'\n') || line.len() > MAX_REQUEST {
                            let line = core::mem::take(line);
                            self.asked(&line);
                        }
                    }
                    Err(error) if is_passing(&error) => {}
                    Err(_) => self.stage = Stage::Gone,
                }
            }
            Stage::Answered(reply, sent) if !ready.is_empty() => {
                match self.stream.write(&reply[*sent..]) {
                    Ok(len) => {
                        *sent += len;
                        self.since = Instant::now();
                        if *sent == reply.len() {
                            self.stage = Stage::Gone;
                        }
                    }
                    Err(error) if is_passing(&error) => {}
                    Err(_) => self.stage = Stage::Gone,
                }
            }
            Stage::Asking(_) | Stage::Answered(..) if self.since.elapsed() > PATIENCE => {
                self.stage = Stage::Gone;
            }
            Stage::Queued(_) | Stage::Served if self.since.elapsed() > SIGN_OF_LIFE => {
                self.since = Instant::now();
                let sign = line(&Reply::Working);
                match self.stream.write(&sign) {
                    Ok(len) if len == sign.len() => {}
                    // It does not read; the answer will find out.
                    Err(error) if is_passing(&error) => {}
                    _ => self.stage = Stage::Gone,
                }
            }
            _ => {}
        }
    }

    /// It has asked.
    fn asked(&mut self, line: &[u8]) {
        if line.is_empty() {
            self.stage = Stage::Gone;
            return;
        }
        let request = if line.len() > MAX_REQUEST {
            Err(format!("longer than {MAX_REQUEST} bytes"))
        } else {
            let first = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            serde_json::from_slice(first).map_err(|error| error.to_string())
        };
        match request {
            Ok(request) => {
                self.stage = Stage::Queued(request);
                self.since = Instant::now();
            }
            Err(why) => self.answer(&Reply::Refused {
                error: format!("not a request: {why}"),
                errno: -libc::EINVAL,
            }),
        }
    }

    fn answer(&mut self, reply: &Reply) {
        self.stage = Stage::Answered(line(reply), 0);
        self.since = Instant::now();
    }
}

/// One line of JSON.
fn line(reply: &Reply) -> Vec<u8> {
    // There is nothing in a reply that JSON does not have.
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Whether it may go well the next time.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
