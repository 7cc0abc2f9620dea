//! The other end of the socket.

use super::protocol::{Reply, Request};
use core::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take. Loading a large patch takes a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum AskError {
    /// Nobody serves at that path, or not for this user.
    Connect(std::io::Error),
    /// The connection broke, or nothing came in time.
    Broken(std::io::Error),
    /// The connection was closed without an answer: the serving process belongs to another user, or
    /// has ended.
    NoAnswer,
    /// What came is not an answer.
    NotUnderstood(serde_json::Error),
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "cannot connect: {error}"),
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::NoAnswer => {
                f.write_str("no answer: the process belongs to another user, or has ended")
            }
            Self::NotUnderstood(error) => write!(f, "the answer cannot be understood: {error}"),
        }
    }
}

impl core::error::Error for AskError {}

/// Asks the process that serves at `socket`.
///
/// # Errors
///
/// [`AskError`]; a request that is refused is answered, by [`Reply::Refused`].
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, AskError> {
    let stream = UnixStream::connect(socket).map_err(AskError::Connect)?;
    let mut line = serde_json::to_string(request).map_err(AskError::NotUnderstood)?;
    line.push('\n');
    let mut answer = String::new();
    let mut talk = || -> std::io::Result<usize> {
        stream.set_read_timeout(Some(PATIENCE))?;
        (&stream).write_all(line.as_bytes())?;
        BufReader::new(&stream).read_line(&mut answer)
    };
    match talk() {
        Ok(0) => Err(AskError::NoAnswer),
        Ok(_) => serde_json::from_str(&answer).map_err(AskError::NotUnderstood),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
            ) =>
        {
            Err(AskError::NoAnswer)
        }
        Err(error) => Err(AskError::Broken(error)),
    }
}
