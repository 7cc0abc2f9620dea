//! System calls and errno, as thin wrappers. Everything here may be called in a signal handler.

use core::cell::Cell;
use core::ffi::CStr;
use core::ptr;
use core::sync::atomic::AtomicU32;
use core::time::Duration;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// An error number of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// The calling thread's `errno`.
pub(crate) fn errno() -> i32 {
    // SAFETY: the location is the thread's own and lives as long as it.
    unsafe { *libc::__errno_location() }
}

/// Keeps the interrupted code's `errno` for as long as it lives.
pub(crate) struct KeepErrno(i32);

impl KeepErrno {
    pub(crate) fn new() -> Self {
        Self(errno())
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: as in `errno`.
        unsafe { *libc::__errno_location() = self.0 };
    }
}

/// Bytes of the smallest page of memory that a kernel has. Where this is used, a larger page may
/// count as several.
pub(crate) const PAGE: u64 = 4096;

/// Bytes of a page of this kernel: a multiple of [`PAGE`]. What is mapped or protected is a number
/// of these.
pub(crate) fn page_size() -> u64 {
    // SAFETY: no memory is involved.
    unsafe { libc::getauxval(libc::AT_PAGESZ) }.max(PAGE)
}

fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 {
        Err(Errno(errno()))
    } else {
        Ok(result)
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ids of threads are positive and fit"
)]
pub(crate) fn gettid() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}

#[allow(clippy::cast_sign_loss, reason = "ids of processes are positive")]
pub(crate) fn getpid() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getpid() as u32 }
}

/// Sends `signal` to the thread `tid` of this process; signal 0 only asks whether it is there.
pub(crate) fn tgkill(tid: u32, signal: i32) -> Result<(), Errno> {
    // SAFETY: sending a signal touches no memory of ours.
    check(unsafe { libc::syscall(libc::SYS_tgkill, getpid(), tid, signal) }).map(drop)
}

/// Whether this process has a thread `tid`. One that has ended but was not yet reaped counts.
pub(crate) fn thread_exists(tid: u32) -> bool {
    match tgkill(tid, 0) {
        Ok(()) => true,
        Err(Errno(libc::ESRCH)) => false,
        // The call is forbidden: the list says it, if there is one.
        Err(_) => is_listed(tid) || !is_listed(gettid()),
    }
}

/// Whether `/proc/self/task` lists the thread `tid`.
fn is_listed(tid: u32) -> bool {
    use core::fmt::Write;
    let mut path = heapless::String::<64>::new();
    // SAFETY: the path ends with a zero byte.
    write!(path, "/proc/self/task/{tid}\0").is_ok()
        && unsafe { libc::access(path.as_ptr().cast(), libc::F_OK) } == 0
}

/// Opens `path`, which begins at `directory`, for reading.
pub(crate) fn open_at(directory: &File, path: &CStr) -> io::Result<File> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    // SAFETY: the path ends with a zero byte.
    let file = unsafe { libc::openat(directory.as_raw_fd(), path.as_ptr(), flags) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened just now, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(file) })
}

/// The number of the inode of `file`.
pub(crate) fn inode(file: &File) -> Option<u64> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: only writes to `stat`.
    let told = unsafe { libc::fstat(file.as_raw_fd(), &raw mut stat) };
    (told == 0).then_some(stat.st_ino)
}

/// Sleeps until `word` is woken, if it holds `expected`, at most for `timeout`. May return early.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(ptr::null(), ptr::from_ref);
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: `word` and `time` outlive the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, expected, time) };
}

/// Wakes those that wait on `word`.
pub(crate) fn futex_wake(word: &AtomicU32, how_many: i32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the kernel only uses the address.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, how_many) };
}

/// A use of `membarrier(2)`.
#[derive(Clone, Copy)]
pub(crate) enum Barrier {
    /// Every running thread of the process has executed a full memory barrier.
    Memory,
    /// Every running thread of the process has executed a core-serializing instruction.
    Core,
}

/// Must be called once before [`barrier`].
pub(crate) fn register_barriers() -> Result<(), Errno> {
    for command in [
        libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED,
        libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
    ] {
        // SAFETY: no memory is involved.
        check(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) })?;
    }
    Ok(())
}

/// Makes every running thread of the process pass a barrier; threads that do not run pass one
/// before they run again.
pub(crate) fn barrier(barrier: Barrier) -> Result<(), Errno> {
    let command = match barrier {
        Barrier::Memory => libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED,
        Barrier::Core => libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE,
    };
    // SAFETY: no memory is involved.
    check(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop)
}

/// New memory, zeroed, readable and writable.
pub(crate) fn map_zeroed(len: usize) -> Result<*mut u8, Errno> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping disturbs no old one.
    unsafe { map(ptr::null_mut(), len, prot, 0) }
}

/// Unreadable memory at exactly `at`; fails with `EEXIST` if something is there.
pub(crate) fn reserve_at(at: usize, len: usize) -> Result<(), Errno> {
    let wanted = at as *mut u8;
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing.
    let got = unsafe { map(wanted, len, libc::PROT_NONE, libc::MAP_FIXED_NOREPLACE)? };
    if got == wanted {
        return Ok(());
    }
    // A kernel before 4.17 takes the address as a hint.
    // SAFETY: the mapping was made just now and nobody knows it.
    unsafe { unmap(got as usize, len) };
    Err(Errno(libc::EEXIST))
}

unsafe fn map(at: *mut u8, len: usize, prot: i32, flags: i32) -> Result<*mut u8, Errno> {
    let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the caller's duty.
    let got = unsafe { libc::mmap(at.cast(), len, prot, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        Err(Errno(errno()))
    } else {
        Ok(got.cast())
    }
}

/// Gives memory back.
///
/// # Safety
///
/// Nobody uses it any more.
pub(crate) unsafe fn unmap(at: usize, len: usize) {
    // SAFETY: the caller's duty.
    unsafe { libc::munmap(at as *mut libc::c_void, len) };
}

/// Changes the protection of whole pages.
///
/// # Safety
///
/// What the pages are used for agrees with `prot`.
pub(crate) unsafe fn protect(at: usize, len: usize, prot: i32) -> Result<(), Errno> {
    // SAFETY: the caller's duty.
    check(unsafe { libc::mprotect(at as *mut libc::c_void, len, prot) }.into()).map(drop)
}

/// Bytes of the kernel's signal set.
const SIGSET_LEN: usize = 8;

/// Whether the eight bytes at `addr` can be read.
///
/// The kernel copies a new signal mask in before it looks at the first argument, which is wrong on
/// purpose: `EFAULT` then tells an unreadable address, `EINVAL` a readable one, and no mask is
/// changed.
pub(crate) fn readable(addr: u64) -> bool {
    // A null pointer would only mean that no mask is given.
    if addr == 0 {
        return false;
    }
    // SAFETY: the kernel checks the address; nothing is written.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            -1_i32,
            addr,
            ptr::null_mut::<u64>(),
            SIGSET_LEN,
        )
    };
    result == 0 || errno() == libc::EINVAL
}

/// Copies the memory of this process at `from`, up to the first page that cannot be read; says how
/// many bytes that were.
pub(crate) fn copy(from: u64, into: &[Cell<u64>]) -> usize {
    let vector = |base: *mut libc::c_void, len| libc::iovec {
        iov_base: base,
        iov_len: len,
    };
    let len = size_of_val(into);
    let local = vector(into.as_ptr().cast_mut().cast(), len);
    // The kernel splits no element, so each ends with its page.
    let first = len.min((PAGE - from % PAGE) as usize);
    let second = (len - first).min(PAGE as usize);
    let third = len - first - second;
    let at = |offset: usize| from.wrapping_add(offset as u64) as *mut libc::c_void;
    let remote = [
        vector(at(0), first),
        vector(at(first), second),
        vector(at(first + second), third),
    ];
    // SAFETY: the kernel checks what it reads, and writes to cells, which are as long as said.
    let copied = unsafe {
        libc::process_vm_readv(
            libc::getpid(),
            &raw const local,
            1,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    usize::try_from(copied).unwrap_or(0)
}

/// The id of the thread whose thread-local variables the calling one has. It is its own, but for
/// whoever runs on another one's behalf: a child of `vfork`, or of a `clone` that shares memory and
/// gives it no thread pointer of its own.
pub(crate) fn tid_of_variables() -> u32 {
    // The C library's word, as the kernel encodes it (`include/linux/posix-timers.h`).
    const KIND: libc::clockid_t = 6;
    let mut clock = 0;
    // SAFETY: the thread is there, and the number is written.
    let told = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    match u32::try_from(!(clock >> 3)) {
        Ok(tid) if told == 0 && clock & 7 == KIND && tid != 0 => tid,
        _ => gettid(),
    }
}

/// What signals the calling thread blocks, changed for as long as this lives.
pub(crate) struct SignalMask {
    /// `None`: it could not be changed.
    before: Option<u64>,
}

impl SignalMask {
    /// Blocks every one, those that libc keeps for itself too.
    pub(crate) fn all() -> Self {
        Self::change(libc::SIG_SETMASK, u64::MAX)
    }

    /// Lets `signal` through.
    pub(crate) fn without(signal: i32) -> Self {
        Self::change(libc::SIG_UNBLOCK, 1 << (signal - 1))
    }

    fn change(how: i32, signals: u64) -> Self {
        let mut before = 0_u64;
        // SAFETY: both masks are of the kernel's size and outlive the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                how,
                &raw const signals,
                &raw mut before,
                SIGSET_LEN,
            )
        };
        Self {
            before: (done == 0).then_some(before),
        }
    }
}

impl Drop for SignalMask {
    fn drop(&mut self) {
        let Some(before) = &self.before else {
            return;
        };
        let before = ptr::from_ref(before);
        let no = ptr::null_mut::<u64>();
        // SAFETY: as in `change`.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                before,
                no,
                SIGSET_LEN,
            )
        };
    }
}

/// Sleeps for a moment, or until a signal comes.
pub(crate) fn nap(time: Duration) {
    let word = AtomicU32::new(0);
    futex_wait(&word, 0, Some(time));
}

/// The handler of `signal`, or `SIG_DFL` or `SIG_IGN`.
pub(crate) fn handler(signal: i32) -> Result<usize, Errno> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut now: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: only reads the disposition into `now`.
    check(unsafe { libc::sigaction(signal, ptr::null(), &raw mut now) }.into())?;
    Ok(now.sa_sigaction)
}

/// What a handler with `SA_SIGINFO` looks like.
pub(crate) type SignalHandler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

/// Installs `handler`; every signal is blocked while it runs. Returns what was installed before.
///
/// # Safety
///
/// `handler` does only what is allowed in a signal handler.
pub(crate) unsafe fn install(
    signal: i32,
    handler: SignalHandler,
    flags: i32,
) -> Result<libc::sigaction, Errno> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let (mut new, mut old): (libc::sigaction, libc::sigaction) = unsafe { core::mem::zeroed() };
    new.sa_sigaction = handler as *const () as usize;
    new.sa_flags = flags | libc::SA_SIGINFO;
    // SAFETY: `new` and `old` outlive the calls; the handler is the caller's duty.
    unsafe {
        libc::sigfillset(&raw mut new.sa_mask);
        check(libc::sigaction(signal, &raw const new, &raw mut old).into())?;
    }
    Ok(old)
}
