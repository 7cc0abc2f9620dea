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
//! A signal handler may fork, too, in the midst of the engine's own work: a crash reporter's does.
//! Its thread cannot wait for what it holds itself, nor for long for others, who may wait for it.
//! The child may call patched functions, replace itself (`exec`) and end. If the handler returns
//! there, the engine's work goes on in the child as well; before that, the handler must ask nothing
//! of the engine. If another thread held something that the handler's could not get, the child must
//! never ask anything of the engine.
//!
//! So nothing here allocates, or uses a thread-local variable that has to be allocated.
//!
//! This covers `fork(3)`. A child made with the bare system call must not call patched functions;
//! one made by `vfork` or `posix_spawn` runs in the parent's memory for a moment, as the thread
//! that made it.

use super::error::Error;
use super::livepatch::Livepatch;
use super::lock::{self, FutexLock, Mutex};
use super::sys::{Errno, gettid, nap};
use super::{records, stop, tls};
use core::time::Duration;
use lock_api::RawMutex;
use std::os::fd::RawFd;
use std::time::Instant;

/// Sockets that only threads of the parent use: descriptors and inodes.
static PARENTS: Mutex<Vec<(RawFd, u64)>> = Mutex::new(Vec::new());

/// How long a thread that holds locks itself waits for others.
const PATIENCE: Duration = Duration::from_millis(100);

/// Everything that has a lock.
struct Locks([&'static FutexLock; LOCKS]);

const LOCKS: usize = 8;

impl Locks {
    /// In the order of `adopt.rs`. Callbacks of the engine take the lock of shadow variables.
    fn of(livepatch: &'static Livepatch) -> Self {
        let [update, unwinders, images, objects] = livepatch.space().locks();
        Self([
            lock::of(&livepatch.libraries),
            &lock::ENGINE,
            &lock::SHADOWS,
            update,
            unwinders,
            images,
            objects,
            lock::of(&PARENTS),
        ])
    }

    const LIBRARIES: Set = Set(1);
    const PARENTS: Set = Set(1 << (LOCKS - 1));

    /// Those that `which` says.
    fn filter(&self, mut which: impl FnMut(&FutexLock) -> bool) -> Set {
        let bits = self.0.iter().enumerate();
        Set(bits.fold(0, |set, (index, lock)| {
            set | usize::from(which(lock)) << index
        }))
    }

    fn each(&self, set: Set, act: impl Fn(&FutexLock)) {
        let members = self.0.iter().enumerate();
        members
            .filter(|(index, _)| set.0 >> index & 1 == 1)
            .for_each(|(_, lock)| act(lock));
    }
}

/// Some of the locks.
#[derive(Clone, Copy)]
struct Set(usize);

impl Set {
    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The thread's fork under way, kept in a word of its own.
#[derive(Clone, Copy)]
struct Fork {
    /// Locked for the fork.
    taken: Set,
    /// Held by the thread anyway.
    own: Set,
    /// Forks of signal handlers that have interrupted it, and itself. 0: there is none.
    depth: usize,
}

impl Fork {
    const NONE: Self = Self {
        taken: Set(0),
        own: Set(0),
        depth: 0,
    };

    fn current() -> Self {
        let word = tls::get::<{ tls::FORK }>();
        let set = |word: usize| Set(word & ((1 << LOCKS) - 1));
        Self {
            taken: set(word),
            own: set(word >> LOCKS),
            depth: word >> (2 * LOCKS),
        }
    }

    fn keep(self) {
        let word = self.taken.0 | self.own.0 << LOCKS | self.depth << (2 * LOCKS);
        tls::set::<{ tls::FORK }>(word);
    }

    /// Ends the fork; what it has taken is to be unlocked. `None`: it was one of a signal handler's
    /// inside of another, or the engine was not there yet when it began.
    fn end(self) -> Option<Self> {
        match self.depth {
            0 => None,
            1 => {
                Self::NONE.keep();
                Some(self)
            }
            depth => {
                let depth = depth - 1;
                Self { depth, ..self }.keep();
                None
            }
        }
    }
}

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
    let interrupted = Fork::current();
    if interrupted.depth > 0 {
        let depth = interrupted.depth + 1;
        return Fork {
            depth,
            ..interrupted
        }
        .keep();
    }
    let locks = Locks::of(livepatch);
    let own = locks.filter(FutexLock::is_mine);
    lock::set_forker(gettid());
    let taken = if own.0 == 0 {
        wait_for_rest(livepatch);
        locks.filter(|lock| {
            lock.is_mine() || {
                lock.lock();
                true
            }
        })
    } else {
        let end = Instant::now() + PATIENCE;
        locks.filter(|lock| !lock.is_mine() && lock.take_until(end))
    };
    lock::set_forker(0);
    Fork {
        taken,
        own,
        depth: 1,
    }
    .keep();
}

/// Locks what is known of libraries, if possible at a moment when no other thread is inside of the
/// dynamic linker for the engine: `fork` leaves locks of the dynamic linker locked in the child if
/// another thread holds them. It is not waited for constructors that take long.
fn wait_for_rest(livepatch: &'static Livepatch) {
    /// How often is looked, at most.
    const LOOKS: u32 = 5000;
    let own = gettid();
    for _ in 0..LOOKS {
        let known = livepatch.libraries.lock();
        if known.at_rest_but_for(own) {
            // It is unlocked with the others.
            return core::mem::forget(known);
        }
        drop(known);
        nap(Duration::from_micros(100));
    }
}

extern "C" fn in_parent() {
    if let (Some(livepatch), Some(fork)) = (Livepatch::get(), Fork::current().end()) {
        unlock(&Locks::of(livepatch), fork.taken);
    }
}

fn unlock(locks: &Locks, taken: Set) {
    // SAFETY: this thread has locked them in `prepare`.
    locks.each(taken, |lock| unsafe { lock.unlock() });
}

extern "C" fn in_child() {
    lock::forget_id();
    stop::reset_in_child();
    let Some(livepatch) = Livepatch::get() else {
        return;
    };
    livepatch.space().stacks.reset_in_child();
    let (locks, fork) = (Locks::of(livepatch), Fork::current());
    locks.each(fork.own, FutexLock::keep_in_child);
    locks.each(fork.taken, FutexLock::keep_in_child);
    if fork.taken.has(Locks::LIBRARIES) {
        // SAFETY: this thread, the only one, has locked it.
        unsafe { &mut *livepatch.libraries.data_ptr() }.reset_in_child();
    }
    if fork.taken.has(Locks::PARENTS) {
        // SAFETY: as above.
        for (socket, inode) in unsafe { &mut *PARENTS.data_ptr() }.drain(..) {
            if is_file(socket, inode) {
                // SAFETY: the thread that owns it is not in the child.
                unsafe { libc::close(socket) };
            }
        }
    }
    if let Some(fork) = fork.end() {
        unlock(&locks, fork.taken);
    }
}
