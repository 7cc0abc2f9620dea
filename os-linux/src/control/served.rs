//! Finding the processes that can be patched, wherever they have put their sockets: the kernel
//! knows all sockets of a network namespace (`/proc/PID/net/unix`), and shows each process's files
//! as that process sees them (`/proc/PID/root`). See proc(5), unix(7).

use super::client::{AskError, ask_one_of};
use super::place::{belongs_to, owner};
use super::protocol::{Reply, Request};
use super::sys::{self, user};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A process that serves at a default place.
#[derive(Debug)]
pub struct Served {
    pid: u32,
    user: u32,
    socket: PathBuf,
    folder: OwnedFd,
}

/// The processes that this user may ask, in the order of their ids: the user's own; for the
/// superuser, those of all. One that has ended is not among them.
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn served() -> Result<Vec<Served>> {
    let mut tables = Tables::default();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that serves for somebody else, or is gone meanwhile, is left out.
        found.extend(find(pid, &mut tables).ok().flatten());
    }
    found.sort_by_key(Served::pid);
    Ok(found)
}

/// The process `pid`.
///
/// # Errors
///
/// If it is not there, serves nobody, or not for this user.
pub fn served_by(pid: u32) -> Result<Served> {
    if !Path::new("/proc").join(pid.to_string()).exists() {
        let why = format!("there is no process {pid}");
        return Err(Error::new(ErrorKind::NotFound, why));
    }
    let nothing = || {
        let why = format!("process {pid} cannot be patched: it does not serve its engine");
        Error::new(ErrorKind::NotFound, why)
    };
    find(pid, &mut Tables::default())?.ok_or_else(nothing)
}

impl Served {
    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The user whose socket it is.
    #[must_use]
    pub fn user(&self) -> u32 {
        self.user
    }

    /// The socket, as the process calls it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks it, and nobody else: the kernel is asked who is at the other end.
    ///
    /// # Errors
    ///
    /// [`AskError`]; a request that is refused is answered, by [`Reply::Refused`].
    pub fn ask(&self, request: &Request) -> std::result::Result<Reply, AskError> {
        // By way of the folder that was looked at; which also makes the path short enough.
        let folder = format!("/proc/self/fd/{}", self.folder.as_raw_fd());
        let socket = Path::new(&folder).join(self.socket.file_name().unwrap_or_default());
        ask_one_of(&socket, request, |user, pid| {
            (user, pid) == (self.user, self.pid)
        })
    }
}

/// The sockets that somebody listens at, for each network namespace that was looked at.
#[derive(Default)]
struct Tables(BTreeMap<PathBuf, Vec<PathBuf>>);

impl Tables {
    /// Those in the namespace of the process `pid`, as far as they may be servers.
    fn of(&mut self, pid: u32) -> Result<&[PathBuf]> {
        let process = Path::new("/proc").join(pid.to_string());
        // A process that does not let itself be looked at (prctl(2), `PR_SET_DUMPABLE`) is taken for
        // one of this namespace.
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let namespace = std::fs::read_link(process.join("ns/net")).unwrap_or_else(|_| own.clone());
        if !self.0.contains_key(&namespace) {
            let table = if namespace == own {
                std::fs::read("/proc/self/net/unix")?
            } else {
                std::fs::read(process.join("net/unix"))?
            };
            let table = listening(&table);
            self.0.insert(namespace.clone(), table);
        }
        Ok(self.0.get(&namespace).map_or(&[], Vec::as_slice))
    }
}

/// The paths of sockets called `NUMBER.sock` that somebody listens at, in a `/proc/PID/net/unix`.
fn listening(table: &[u8]) -> Vec<PathBuf> {
    /// `__SO_ACCEPTCON`
    const LISTENS: &[u8] = b"00010000";
    let path = |line: &[u8]| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut words = line.splitn(8, |byte| *byte == b' ');
        if words.nth(3)? != LISTENS {
            return None;
        }
        // The number of the inode is padded with blanks.
        let rest = line.splitn(2, |byte| *byte == b'/').nth(1)?;
        let path = PathBuf::from(OsStr::from_bytes(&[b"/", rest].concat()));
        let number = path.file_name()?.to_str()?.strip_suffix(".sock")?;
        number.parse::<u32>().ok().map(|_| path)
    };
    table
        .split(|byte| *byte == b'\n')
        .filter_map(path)
        .collect()
}

/// The server of the process `pid`, if it has one.
fn find(pid: u32, tables: &mut Tables) -> Result<Option<Served>> {
    let process = Path::new("/proc").join(pid.to_string());
    let table = tables.of(pid)?;
    if table.is_empty() {
        return Ok(None);
    }
    // As it calls itself.
    let name = format!("{}.sock", inner_pid(&process)?);
    let mut result = Ok(None);
    for socket in table {
        if socket.file_name() != Some(OsStr::new(&name)) {
            continue;
        }
        match look(pid, &process, socket) {
            Ok(Some(served)) => return Ok(Some(served)),
            Ok(None) => {}
            Err(error) => result = Err(error),
        }
    }
    result
}

/// The number of a process in its own namespace: the last one of `NSpid`.
fn inner_pid(process: &Path) -> Result<u32> {
    let status = std::fs::read_to_string(process.join("status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let last = numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok());
    last.ok_or_else(|| Error::from(ErrorKind::InvalidData))
}

/// Looks at the folder of `socket`: whose is it, and is it that user's own? None if it is no folder
/// for servers.
fn look(pid: u32, process: &Path, socket: &Path) -> Result<Option<Served>> {
    let (Some(path), Some(name)) = (socket.parent(), socket.parent().and_then(Path::file_name))
    else {
        return Ok(None);
    };
    let named_for = name.to_str().and_then(|name| name.strip_prefix("klp-"));
    if name != "klp" && named_for.is_none() {
        return Ok(None);
    }
    let inside = process
        .join("root")
        .join(path.strip_prefix("/").unwrap_or(path));
    let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
    let folder = sys::open_folder(&inside)
        .or_else(|error| match error.kind() {
            ErrorKind::PermissionDenied => sys::open_folder(path),
            _ => Err(error),
        })
        .map_err(named)?;
    let owner = owner(&folder).map_err(named)?;
    let is_right = named_for.is_none_or(|user| user == inner_user(process, owner).to_string());
    if !is_right || (user() != 0 && user() != owner) {
        return Err(named(belongs_to(owner)));
    }
    Ok(Some(Served {
        pid,
        user: owner,
        socket: socket.to_owned(),
        folder,
    }))
}

/// What a user of this process's user namespace is called in that of another (user_namespaces(7),
/// `uid_map`: first inside, first outside, how many).
fn inner_user(process: &Path, outer: u32) -> u32 {
    let map = std::fs::read_to_string(process.join("uid_map")).unwrap_or_default();
    let inner = map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (inside, outside, count) = (next()?, next()?, next()?);
        let distance = outer.checked_sub(outside)?;
        (distance < count).then(|| inside.checked_add(distance))?
    });
    inner.unwrap_or(outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_listens_and_is_called_like_a_process() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 12345 /tmp/klp-0/77.sock
0000000000000000: 00000003 00000000 00000000 0001 03   345 /tmp/klp-0/78.sock
0000000000000000: 00000002 00000000 00010000 0001 01     5 /run/a b/klp/9.sock
0000000000000000: 00000002 00000000 00010000 0001 01     6 /run/server.sock
0000000000000000: 00000002 00000000 00010000 0001 01     7 @/tmp/.X11-unix/X0
0000000000000000: 00000003 00000000 00000000 0001 03   346
\xff\xff
";
        assert_eq!(
            listening(table),
            [
                PathBuf::from("/tmp/klp-0/77.sock"),
                PathBuf::from("/run/a b/klp/9.sock")
            ]
        );
    }

    #[test]
    fn users_of_this_namespace_keep_their_numbers() {
        assert_eq!(inner_user(Path::new("/proc/self"), 0), 0);
        assert_eq!(inner_user(Path::new("/nowhere"), 7), 7);
    }
}
