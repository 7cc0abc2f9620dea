//! The few system calls that the standard library does not have.

use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// The effective user id of this process.
pub(super) fn user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

/// The user id at the other end, as it was when the connection was made (`SO_PEERCRED`, unix(7)).
pub(super) fn peer(stream: &UnixStream) -> Result<u32> {
    let mut found = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    #[allow(clippy::cast_possible_truncation, reason = "twelve")]
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    let into = (&raw mut found).cast();
    // SAFETY: `found` has room for `len` bytes, and every value of them is a `ucred`.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            into,
            &raw mut len,
        )
    };
    if done == 0 {
        Ok(found.uid)
    } else {
        Err(Error::last_os_error())
    }
}

/// Waits until somebody connects, at most `time`. Returns early at signals.
pub(super) fn wait(listener: &UnixListener, time: Duration) {
    let mut fd = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one descriptor, which is open.
    unsafe { libc::poll(&raw mut fd, 1, millis) };
}
