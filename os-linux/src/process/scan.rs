//! The threads of this process, from `/proc/self/task`.

use super::error::Error;
use super::sys::{self, Errno, errno, getpid, gettid, thread_exists};
use core::ffi::CStr;
use klp_core::port::{TaskId, TaskName};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// Listings that are tried before the threads are said to come and go too fast.
const TRIES: u32 = 100;

/// Bytes of one entry of a listing, at most: 19 of `struct linux_dirent64`, a number of ten digits,
/// its end, padding.
const ENTRY: usize = 32;

/// What `/proc` knows of the threads of this process.
///
/// Not to be kept for long: a signal handler may fork, and go on in the child.
pub(crate) struct Threads {
    directory: File,
    process: u32,
    caller: u32,
}

impl Threads {
    /// Opens their directory.
    ///
    /// # Errors
    ///
    /// If it is not there, or no file can be opened.
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self {
            process: getpid(),
            caller: gettid(),
            directory: File::open("/proc/self/task")
                .map_err(|error| Error::io("open /proc/self/task", &error))?,
        })
    }

    /// The thread that has opened this.
    pub(crate) fn caller(&self) -> u32 {
        self.caller
    }

    /// Opens a file about the thread `tid`.
    pub(crate) fn file(&self, tid: u32, name: &str) -> io::Result<File> {
        use core::fmt::Write;
        let mut path = heapless::String::<32>::new();
        write!(path, "{tid}/{name}\0").map_err(|_| io::ErrorKind::InvalidInput)?;
        let path = CStr::from_bytes_until_nul(path.as_bytes());
        sys::open_at(&self.directory, path.map_err(io::Error::other)?)
    }

    /// Whether they are the calling process's: not in a child of the one that has opened this.
    pub(crate) fn are_own(&self) -> bool {
        getpid() == self.process
    }
}

/// Lists every thread that exists at some moment during the call, in ascending order.
///
/// # Errors
///
/// [`Error::Churn`] if no listing was complete; the last one is there then.
pub(crate) fn threads(into: &mut Vec<TaskId>) -> Result<(), Error> {
    let mut buffer = Vec::new();
    for _ in 0..TRIES {
        let threads = Threads::open()?;
        if list(&threads.directory, &mut buffer, into)? {
            into.sort_unstable();
            return Ok(());
        }
    }
    into.sort_unstable();
    Err(Error::Churn)
}

/// One listing; says whether it is complete.
///
/// The kernel goes from thread to thread, and stops early where the thread that it stands on ends.
/// So the listing is checked: `n` threads exist at a moment after it, and if as many of those that
/// it names exist after that moment, it names all of them.
fn list(directory: &File, buffer: &mut Vec<u8>, into: &mut Vec<TaskId>) -> Result<bool, Error> {
    let likely = usize::try_from(count(directory)?).unwrap_or(usize::MAX);
    let likely = likely.saturating_add(64).saturating_mul(ENTRY);
    let len = loop {
        if buffer.len() < likely {
            grow(buffer, likely)?;
        }
        let len = read_directory(directory, buffer)?;
        if len + ENTRY <= buffer.len() {
            break len;
        }
        let more = buffer.len() * 2;
        grow(buffer, more)?;
    };
    into.clear();
    let mut rest = &buffer[..len];
    while let Some((tid, next)) = entry(rest) {
        if let Some(tid) = tid {
            into.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
            into.push(TaskId(tid.into()));
        }
        rest = next;
    }
    let exist = count(directory)?;
    let alive = into
        .iter()
        .filter(|task| u32::try_from(task.0).is_ok_and(thread_exists))
        .count();
    Ok(alive as u64 >= exist)
}

/// How many threads the process has: the links to `/proc/self/task`, less the two of any directory.
fn count(directory: &File) -> Result<u64, Error> {
    let metadata = directory
        .metadata()
        .map_err(|error| Error::io("stat /proc/self/task", &error))?;
    Ok(metadata.nlink().saturating_sub(2))
}

fn grow(buffer: &mut Vec<u8>, len: usize) -> Result<(), Error> {
    buffer
        .try_reserve(len - buffer.len())
        .map_err(|_| Error::OutOfMemory)?;
    buffer.resize(len, 0);
    Ok(())
}

/// Reads `directory` from its beginning with a single call of the kernel.
fn read_directory(directory: &File, buffer: &mut [u8]) -> Result<usize, Error> {
    let fd = directory.as_raw_fd();
    // SAFETY: the buffer is as long as said.
    let len = unsafe {
        libc::lseek(fd, 0, libc::SEEK_SET);
        libc::syscall(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len())
    };
    usize::try_from(len).map_err(|_| Error::Os {
        call: "getdents64",
        errno: Errno(errno()),
    })
}

/// The first entry of `bytes`, a sequence of `struct linux_dirent64`: the number that is its name,
/// and the rest.
fn entry(bytes: &[u8]) -> Option<(Option<u32>, &[u8])> {
    let len = usize::from(u16::from_le_bytes(bytes.get(16..18)?.try_into().ok()?));
    let name = CStr::from_bytes_until_nul(bytes.get(19..len)?).ok()?;
    let tid = name.to_str().ok().and_then(|name| name.parse().ok());
    Some((tid, bytes.get(len..)?))
}

/// What `/proc` says of a thread.
pub(crate) struct Status {
    /// Whether the thread has ended and only waits to be forgotten.
    pub(crate) dead: bool,
    /// The signals that it blocks, bit `n - 1` for signal `n`.
    blocked: u64,
    /// The signals that wait for it alone.
    pending: u64,
}

impl Status {
    pub(crate) fn blocks(&self, signal: i32) -> bool {
        (1..=64).contains(&signal) && self.blocked >> (signal - 1) & 1 == 1
    }

    pub(crate) fn awaits(&self, signal: i32) -> bool {
        (1..=64).contains(&signal) && self.pending >> (signal - 1) & 1 == 1
    }
}

/// What `/proc` says of the thread `task`; `None` if it is gone.
///
/// # Errors
///
/// If nobody can tell.
pub(crate) fn status(task: TaskId) -> Result<Option<Status>, Error> {
    let mut text = [0; 4096];
    let Some(text) = read(task, "status", &mut text)? else {
        return Ok(None);
    };
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let signals = |name| u64::from_str_radix(field(name)?.trim(), 16).ok();
    let status = || {
        Some(Status {
            dead: field("State:")?.trim_start().starts_with(['Z', 'X']),
            blocked: signals("SigBlk:")?,
            pending: signals("SigPnd:")?,
        })
    };
    status().map(Some).ok_or(Error::Os {
        call: "read /proc/self/task/TID/status",
        errno: Errno(libc::EIO),
    })
}

/// Whether `task` is a thread that the kernel made for itself in this process, as io_uring does: it
/// never runs code of the process.
pub(crate) fn is_kernels(task: TaskId) -> bool {
    // `include/linux/sched.h`.
    const PF_IO_WORKER: u64 = 0x10;
    const PF_USER_WORKER: u64 = 0x4000;
    const PF_KTHREAD: u64 = 0x20_0000;
    let mut text = [0; 1024];
    let Ok(Some(text)) = read(task, "stat", &mut text) else {
        return false;
    };
    // The name, in parentheses, may contain anything; `flags` is the seventh field behind it.
    let flags = text
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) != 0)
}

/// The thread's name; empty if it is gone, or cannot be told.
pub(crate) fn name(task: TaskId) -> TaskName {
    let mut text = [0; 64];
    let mut name = TaskName::new();
    let text = read(task, "comm", &mut text).ok().flatten();
    for letter in text.unwrap_or_default().trim_end().chars() {
        if name.push(letter).is_err() {
            break;
        }
    }
    name
}

/// The beginning of a file about `task`; `None` if it is gone.
fn read<'a>(task: TaskId, file: &str, buffer: &'a mut [u8]) -> Result<Option<&'a str>, Error> {
    let Ok(tid) = u32::try_from(task.0) else {
        return Ok(None);
    };
    match read_all(&Threads::open()?, tid, file, buffer) {
        Ok(len) => {
            let text = buffer.get(..len).unwrap_or_default();
            let valid = match core::str::from_utf8(text) {
                Ok(text) => text,
                Err(error) => core::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or(""),
            };
            Ok(Some(valid))
        }
        // The file is not there, or its thread was gone when it was read: see proc(5). Both would
        // be said, too, where `/proc` is another system's or none.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
                && !thread_exists(tid) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::io("read /proc/self/task/TID", &error)),
    }
}

fn read_all(threads: &Threads, tid: u32, file: &str, buffer: &mut [u8]) -> io::Result<usize> {
    let mut file = threads.file(tid, file)?;
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Barrier};

    #[test]
    fn every_thread_is_listed() {
        let barrier = Arc::new(Barrier::new(33));
        let (send, tids) = std::sync::mpsc::channel();
        let threads = [(); 32].map(|()| {
            let (barrier, send) = (Arc::clone(&barrier), send.clone());
            std::thread::spawn(move || {
                send.send(TaskId(gettid().into()))
                    .expect("the test listens");
                barrier.wait();
            })
        });
        let mut listed = Vec::new();
        for _ in 0..32 {
            let tid = tids.recv().expect("32 threads send");
            super::threads(&mut listed).expect("listing works");
            assert!(listed.binary_search(&tid).is_ok(), "{tid:?} is missing");
        }
        barrier.wait();
        for thread in threads {
            thread.join().expect("the thread only waits");
        }
    }

    fn known(task: TaskId) -> Option<Status> {
        status(task).expect("it can be told")
    }

    #[test]
    fn a_thread_has_a_name_and_a_mask() {
        let thread = std::thread::Builder::new().name("a name".into()).spawn(|| {
            let own = TaskId(gettid().into());
            assert!(
                !known(own)
                    .expect("the thread is there")
                    .blocks(libc::SIGUSR1)
            );
            let blocked = crate::process::sys::SignalMask::all();
            assert!(
                known(own)
                    .expect("the thread is there")
                    .blocks(libc::SIGUSR1)
            );
            drop(blocked);
            assert_eq!(name(own).as_str(), "a name");
        });
        thread
            .expect("threads can be had")
            .join()
            .expect("the assertions hold");
        assert!(known(TaskId(i32::MAX as u64)).is_none());
    }
}
