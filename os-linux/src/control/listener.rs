//! The socket that a server listens at.

use super::sys;
use crate::process::{close_in_children, is_file};
use std::fs::Permissions;
use std::io::{ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Descriptors from here on are not in the way of programs that expect to get small numbers.
const HIGH: i32 = 512;

/// A socket that is listened at, and comes again if the program closes it: many a daemon closes all
/// descriptors that it does not know.
pub(super) struct Listener {
    /// Taken out only while it is made anew.
    socket: Option<UnixListener>,
    inode: u64,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let mut listener = Self {
            socket: None,
            inode: 0,
            path: path.to_owned(),
        };
        listener.make()?;
        Ok(listener)
    }

    fn make(&mut self) -> Result<()> {
        let socket = bind(&self.path)?;
        // If there are not so many, a small number must do.
        let socket = rustix::io::fcntl_dupfd_cloexec(&socket, HIGH).map_or(socket, Into::into);
        self.inode = rustix::fs::fstat(&socket)?.st_ino;
        close_in_children(socket.as_raw_fd(), self.inode);
        self.socket = Some(socket);
        Ok(())
    }

    /// Makes the socket anew if the program has closed it; its number may be that of another file by
    /// now.
    pub(super) fn renew(&mut self) {
        if let Some(socket) = self.socket.take() {
            if is_file(socket.as_raw_fd(), self.inode) {
                self.socket = Some(socket);
                return;
            }
            // It is not ours to close.
            let _ = socket.into_raw_fd();
        }
        // Or the next time.
        let _ = self.make();
    }

    /// The socket, if there is one.
    pub(super) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Takes in the next one who has connected.
    pub(super) fn accept(&self) -> Result<UnixStream> {
        match &self.socket {
            Some(socket) => {
                let (stream, _) = socket.accept()?;
                close_in_children(stream.as_raw_fd(), rustix::fs::fstat(&stream)?.st_ino);
                Ok(stream)
            }
            None => Err(ErrorKind::WouldBlock.into()),
        }
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
