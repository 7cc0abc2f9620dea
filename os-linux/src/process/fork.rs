//! `fork`: the child has one thread, and the engine goes on there.
//!
//! The engine is held still while the process forks. In the child, the forking thread keeps its
//! state under its new id, and all others are gone. A transition under way goes on in both
//! processes: in the child, the next polls finish it.
//!
//! A thread that is inside of the dynamic linker when another one forks leaves it unusable in the
//! child, and with it the engine. `fork` waits a while for threads that are there for the engine
//! ([`Livepatch::open_library`], `adopt`), but does not know of a plain `dlopen`.
//!
//! This covers `fork(3)`. A child made with the bare system call must not call patched functions;
//! one made by `vfork` or `posix_spawn` runs in the parent's memory for a moment, as the thread
//! that made it.

use super::error::Error;
use super::libraries::Known;
use super::livepatch::Livepatch;
use super::lock::{self, FutexLock, Mutex};
use super::shadow::shadows;
use super::sys::{Errno, gettid, nap};
use super::{records, stop, trap};
use core::cell::RefCell;
use core::mem::ManuallyDrop;
use core::time::Duration;
use lock_api::MutexGuard;
use std::os::fd::RawFd;

thread_local! {
    /// Empty outside of forks. Without a destructor: to announce one, a thread waits for the
    /// dynamic linker.
    static FROZEN: ManuallyDrop<RefCell<Option<Frozen>>> = const { ManuallyDrop::new(RefCell::new(None)) };
}

/// What the forking thread holds during the fork: everything that has a lock, at rest.
struct Frozen {
    /// The engine, the shadow variables, and what is in memory.
    _at_rest: Box<dyn Any>,
    known: MutexGuard<'static, FutexLock, Known>,
    sockets: MutexGuard<'static, FutexLock, Vec<(RawFd, u64)>>,
}

trait Any {}
impl<T> Any for T {}

/// Sockets that only threads of the parent use: descriptors and inodes.
static PARENTS: Mutex<Vec<(RawFd, u64)>> = Mutex::new(Vec::new());

/// Has a socket closed in children, if the program has not done so itself.
#[cfg(feature = "control")]
pub(crate) fn close_in_children(socket: RawFd, inode: u64) {
    let mut parents = PARENTS.lock();
    parents.retain(|(other, _)| *other != socket);
    parents.push((socket, inode));
}

/// Whether the descriptor is that of the socket with this inode: the program may have closed that,
/// and opened something else.
pub(crate) fn is_file(socket: RawFd, inode: u64) -> bool {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut found: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: there is room for the answer.
    let done = unsafe { libc::fstat(socket, &raw mut found) };
    done == 0 && found.st_mode & libc::S_IFMT == libc::S_IFSOCK && found.st_ino == inode
}

/// Has the functions below called at every `fork`. Once: they take locks.
pub(crate) fn install() -> Result<(), Error> {
    records::keep_in_children().map_err(Error::os("pthread_atfork"))?;
    // SAFETY: the functions take no arguments and stay for ever.
    match unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) } {
        0 => Ok(()),
        errno => Err(Error::Os {
            call: "pthread_atfork",
            errno: Errno(errno),
        }),
    }
}

extern "C" fn prepare() {
    let Some(livepatch) = Livepatch::get() else {
        return;
    };
    FROZEN.with(|slot| {
        // In the order of `adopt.rs`.
        lock::set_forker(gettid());
        let known = known_at_rest(livepatch);
        let engine = livepatch.engine().freeze();
        lock::set_forker(0);
        // Callbacks of the engine take the lock of the variables.
        let shadows = shadows().freeze();
        let at_rest = Box::new((livepatch.space().freeze(), shadows, engine));
        *slot.borrow_mut() = Some(Frozen {
            _at_rest: at_rest,
            known,
            sockets: PARENTS.lock(),
        });
    });
}

/// Locks what is known of libraries, if possible at a moment when no thread is inside of the
/// dynamic linker for the engine: `fork` leaves locks of the dynamic linker locked in the child if
/// another thread holds them. It is not waited for constructors that take long.
fn known_at_rest(livepatch: &'static Livepatch) -> MutexGuard<'static, FutexLock, Known> {
    /// How often is looked, at most.
    const LOOKS: u32 = 5000;
    for _ in 0..LOOKS {
        let known = livepatch.libraries.lock();
        if known.at_rest() {
            return known;
        }
        drop(known);
        nap(Duration::from_micros(100));
    }
    livepatch.libraries.lock()
}

extern "C" fn in_parent() {
    FROZEN.with(|slot| slot.borrow_mut().take());
}

extern "C" fn in_child() {
    stop::reset_in_child();
    trap::reset_in_child();
    if let Some(livepatch) = Livepatch::get() {
        livepatch.space().stacks.reset_in_child();
    }
    if let Some(mut frozen) = FROZEN.with(|slot| slot.borrow_mut().take()) {
        frozen.known.reset_in_child();
        for (socket, inode) in frozen.sockets.drain(..) {
            if is_file(socket, inode) {
                // SAFETY: the thread that owns it is not in the child.
                unsafe { libc::close(socket) };
            }
        }
    }
}
