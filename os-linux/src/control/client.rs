//! The other end of the socket.

use super::protocol::{Reply, Request};
use super::sys;
use core::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a server may give no sign of life if its process is stopped.
const SILENCE: Duration = Duration::from_millis(900);
/// How long if it is not: on a busy machine, it may get no processor for seconds.
const HANGING: Duration = Duration::from_secs(10);
/// How long an answer may take. Loading a large patch takes a while.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer.
const MAX_REPLY: usize = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody serves at that path, or not for this user.
    Connect(std::io::Error),
    /// Who serves there is not who should.
    Stranger {
        /// The user.
        user: u32,
        /// The process; 0 if it cannot be seen.
        pid: u32,
    },
    /// The server gives no sign of life: the process is stopped, or hangs.
    Silent,
    /// The server lives, but the answer takes too long.
    Slow,
    /// The connection broke.
    Broken(std::io::Error),
    /// The connection was closed without an answer: the serving process belongs to another user, or
    /// has ended.
    NoAnswer,
    /// What came is not an answer.
    NotUnderstood(serde_json::Error),
    /// What came does not end.
    TooLong,
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Stranger { user, pid } => {
                write!(
                    f,
                    "process {pid} of user {user} serves there, who should not"
                )
            }
            Self::Silent => f.write_str("it does not answer: the process is stopped, or hangs"),
            Self::Slow => write!(f, "no answer within {PATIENCE:?}; the process works on it"),
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::NoAnswer => {
                f.write_str("no answer: the process belongs to another user, or has ended")
            }
            Self::NotUnderstood(error) => write!(f, "the answer cannot be understood: {error}"),
            Self::TooLong => write!(f, "the answer is longer than {MAX_REPLY} bytes"),
        }
    }
}

impl core::error::Error for AskError {}

/// Asks the process that serves at `socket`, which must be one of the socket's owner.
///
/// # Errors
///
/// [`AskError`]; a request that is refused is answered, by [`Reply::Refused`].
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, AskError> {
    let owner = std::fs::metadata(socket).map_err(AskError::Connect)?.uid();
    ask_one_of(socket, request, |user, _| user == owner)
}

/// Asks the process that serves at `socket`, if `is_right` says so of its user and its id.
pub(super) fn ask_one_of(
    socket: &Path,
    request: &Request,
    is_right: impl FnOnce(u32, u32) -> bool,
) -> Result<Reply, AskError> {
    let begin = Instant::now();
    let stream = connect(socket, begin)?;
    let (user, pid) = sys::peer(&stream).map_err(AskError::Connect)?;
    if !is_right(user, pid) {
        return Err(AskError::Stranger { user, pid });
    }
    let mut line = serde_json::to_vec(request).map_err(AskError::NotUnderstood)?;
    line.push(b'\n');
    stream
        .set_write_timeout(Some(SILENCE))
        .map_err(AskError::Broken)?;
    (&stream).write_all(&line).map_err(broken)?;
    let mut answer = Vec::new();
    loop {
        let end = read_line(&stream, pid, &mut answer, begin)?;
        match serde_json::from_slice(&answer[..end]) {
            Ok(Reply::Working) => drop(answer.drain(..=end)),
            Ok(reply) => return Ok(reply),
            Err(error) => return Err(AskError::NotUnderstood(error)),
        }
    }
}

/// Connects; a server that has not accepted others for a while does not answer.
fn connect(socket: &Path, begin: Instant) -> Result<UnixStream, AskError> {
    loop {
        match sys::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if begin.elapsed() >= SILENCE {
                    return Err(AskError::Silent);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(AskError::Connect(error)),
        }
    }
}

/// Reads on until `answer` has a whole line of the process `pid`; where that ends.
fn read_line(
    mut stream: &UnixStream,
    pid: u32,
    answer: &mut Vec<u8>,
    begin: Instant,
) -> Result<usize, AskError> {
    let silent_from = Instant::now();
    loop {
        if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
            return Ok(end);
        }
        if answer.len() > MAX_REPLY {
            return Err(AskError::TooLong);
        }
        if begin.elapsed() > PATIENCE {
            return Err(AskError::Slow);
        }
        // A line is a sign of life, a part of one is not.
        let silence = silent_from.elapsed();
        if silence >= HANGING || silence >= SILENCE && sys::is_stopped(pid) {
            return Err(AskError::Silent);
        }
        stream
            .set_read_timeout(Some(SILENCE))
            .map_err(AskError::Broken)?;
        let mut part = [0; 16 * 1024];
        match stream.read(&mut part) {
            Ok(0) => return Err(AskError::NoAnswer),
            Ok(len) => answer.extend_from_slice(&part[..len]),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
                _ => return Err(broken(error)),
            },
        }
    }
}

fn broken(error: std::io::Error) -> AskError {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => AskError::Silent,
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => AskError::NoAnswer,
        _ => AskError::Broken(error),
    }
}
