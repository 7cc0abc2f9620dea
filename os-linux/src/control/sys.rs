//! The few system calls that the standard library does not have.

use crate::process::{call_ours, stop_signal};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{Error, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The effective user id of this process.
pub(super) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether the process `pid` is stopped, by a signal or a tracer (`proc_pid_stat(5)`).
pub(super) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Its name, in parentheses, may have any in it.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

/// The user and the process at the other end (`SO_PEERCRED`, unix(7)): who connected, or who called
/// `listen`. The process is 0 if it cannot be seen from here.
pub(super) fn peer(stream: &UnixStream) -> Result<(u32, u32)> {
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
        Ok((found.uid, found.pid.unsigned_abs()))
    } else {
        Err(Error::last_os_error())
    }
}

/// Connects to the socket at `path`. Does not wait: [`ErrorKind::WouldBlock`] if the server has more
/// connections to accept than the kernel keeps.
///
/// [`ErrorKind::WouldBlock`]: std::io::ErrorKind::WouldBlock
pub(super) fn connect(path: &Path) -> Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Opens a folder, if it is one and no link to one, to look at it and into it.
pub(super) fn open_folder(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Starts a thread of the library's own, for ever. It blocks all signals, so that those of the
/// process go to the program's threads, but for the engine's own and those that a thread causes by
/// what it does (signal(7), "synchronously generated").
pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut blocked = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: `sigfillset` makes a valid set, the numbers are those of signals, and both sets
    // outlive the calls.
    unsafe {
        libc::sigfillset(blocked.as_mut_ptr());
        for signal in [
            stop_signal(),
            libc::SIGTRAP,
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGSYS,
        ] {
            libc::sigdelset(blocked.as_mut_ptr(), signal);
        }
        // A thread begins with the mask of the one that makes it.
        libc::pthread_sigmask(libc::SIG_SETMASK, blocked.as_ptr(), before.as_mut_ptr());
    }
    let made = std::thread::Builder::new().name(name.into()).spawn(|| {
        call_ours();
        body();
    });
    // SAFETY: `before` was written above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    made.map(drop)
}
