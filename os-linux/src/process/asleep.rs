//! Looking at a thread that sleeps in a system call, without waking it.
//!
//! The kernel tells where such a thread stands, and how often it was given a processor
//! (`/proc/PID/task/TID/syscall` and `schedstat`, see proc(5)). If that number is the same before
//! and after a look, the thread has not run meanwhile, and its stack was what was looked at. Of its
//! registers only the stack pointer and the next instruction are told; and as long as the number
//! stays the same, they need not be asked for again.

use super::arch::{FORKS, registers};
use super::scan::Threads;
use super::sys;
use super::unwind::Stopped;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A thread that slept in a system call when it was found.
pub(crate) struct Sleeper<'a> {
    threads: &'a Threads,
    schedstat: File,
    inode: u64,
    /// How often it had been given a processor by then.
    runs: u64,
    place: Place,
    last: &'a LastPlace,
}

/// Where a thread sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    sp: u64,
    pc: u64,
    /// See [`Sleeper::is_resumed`].
    resumed: bool,
}

/// Where a thread slept when it was last found: it is there still if it has not run since. Only one
/// thread at a time finds sleepers.
pub(crate) struct LastPlace {
    /// The number of its `schedstat`, which no other thread's file has, also if that thread gets
    /// the id of this one when this one is gone. 0: nothing is known.
    inode: AtomicU64,
    runs: AtomicU64,
    sp: AtomicU64,
    pc: AtomicU64,
    resumed: AtomicBool,
}

impl LastPlace {
    pub(crate) const fn new() -> Self {
        Self {
            inode: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            sp: AtomicU64::new(0),
            pc: AtomicU64::new(0),
            resumed: AtomicBool::new(false),
        }
    }

    /// The place, if it was found when the thread of the file `inode` had run `runs` times.
    fn get(&self, inode: u64, runs: u64) -> Option<Place> {
        let known = inode != 0
            && self.inode.load(Ordering::Relaxed) == inode
            && self.runs.load(Ordering::Relaxed) == runs;
        known.then(|| Place {
            sp: self.sp.load(Ordering::Relaxed),
            pc: self.pc.load(Ordering::Relaxed),
            resumed: self.resumed.load(Ordering::Relaxed),
        })
    }

    fn set(&self, inode: u64, runs: u64, place: Place) {
        // Who is interrupted here by a handler that forks leaves no half of a place.
        self.inode.store(0, Ordering::SeqCst);
        self.runs.store(runs, Ordering::Relaxed);
        self.sp.store(place.sp, Ordering::Relaxed);
        self.pc.store(place.pc, Ordering::Relaxed);
        self.resumed.store(place.resumed, Ordering::Relaxed);
        self.inode.store(inode, Ordering::SeqCst);
    }
}

impl<'a> Sleeper<'a> {
    /// Finds out where the thread `tid` of `threads` sleeps; `last` is where it did the last time.
    /// `None`: it runs or may run, it sleeps elsewhere than in a system call, its stack is in use by
    /// a child of `vfork`, or nobody can tell.
    pub(crate) fn find(threads: &'a Threads, tid: u32, last: &'a LastPlace) -> Option<Self> {
        // Of the caller, the kernel would tell where it asks.
        if tid == threads.caller() {
            return None;
        }
        let schedstat = threads.file(tid, "schedstat").ok()?;
        let runs = runs(&schedstat)?;
        let inode = sys::inode(&schedstat)?;
        let place = last.get(inode, runs).or_else(|| {
            let mut buffer = [0; 256];
            let syscall = threads.file(tid, "syscall").ok()?;
            place(core::str::from_utf8(read(&syscall, &mut buffer)?).ok()?)
        })?;
        Some(Self {
            threads,
            schedstat,
            inode,
            runs,
            place,
            last,
        })
    }

    /// Whether it has not run since it was found.
    pub(crate) fn still_sleeps(&self) -> bool {
        let asleep = runs(&self.schedstat) == Some(self.runs) && self.threads.are_own();
        if asleep {
            self.last.set(self.inode, self.runs, self.place);
        }
        asleep
    }

    /// Whether the call goes on after a signal (with `SA_RESTART`) as if there had been none
    /// (`signal(7)`). Of other calls, that is not known.
    pub(crate) fn is_resumed(&self) -> bool {
        self.place.resumed
    }

    /// Its stack pointer.
    pub(crate) fn sp(&self) -> u64 {
        self.place.sp
    }

    /// Where a walk of its stack begins.
    pub(crate) fn stopped(&self) -> Stopped {
        Stopped::from_outside(registers::asleep(self.place.pc, self.place.sp))
    }
}

fn read<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let len = file.read_at(buffer, 0).ok()?;
    buffer.get(..len)
}

/// The third number of `schedstat`: how often the thread was given a processor. It is never 0 if
/// the kernel counts at all.
fn runs(schedstat: &File) -> Option<u64> {
    let mut buffer = [0; 96];
    let mut numbers = read(schedstat, &mut buffer)?.split(u8::is_ascii_whitespace);
    let runs = core::str::from_utf8(numbers.nth(2)?).ok()?;
    runs.parse().ok().filter(|runs| *runs != 0)
}

/// What `syscall` tells of a thread in a system call: its number, six arguments, the stack pointer
/// and the next instruction.
fn place(syscall: &str) -> Option<Place> {
    let mut words = syscall.split_ascii_whitespace();
    // -1: it sleeps elsewhere, in a page fault, say.
    let number = words
        .next()?
        .parse::<i64>()
        .ok()
        .filter(|number| *number >= 0)?;
    // A child of `vfork` runs on its parent's stack.
    if FORKS.contains(&number) {
        return None;
    }
    let mut hex = words.map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok());
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = hex.next()??;
    }
    let (sp, pc) = (hex.next()??, hex.next()??);
    let resumed = match number {
        libc::SYS_wait4 | libc::SYS_waitid => true,
        // A timeout, relative to the call's beginning, ends it.
        libc::SYS_futex => arguments[3] == 0,
        _ => false,
    };
    // Threads of the kernel's have neither.
    let known = hex.next().is_none() && sp != 0 && pc != 0;
    known.then_some(Place { sp, pc, resumed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::hint::black_box;
    use std::sync::mpsc::{Receiver, RecvError, channel};

    #[test]
    fn what_the_kernel_says_is_understood() {
        let at = |text| place(text);
        let asleep = format!(
            "{} 0x3 0x7f65b5530000 0x20000 0x22 0xffffffff 0x0 0x7ffdf6c7ada8 0x7f65b56ac2ad\n",
            libc::SYS_read
        );
        let expected = Place {
            sp: 0x7ffd_f6c7_ada8,
            pc: 0x7f65_b56a_c2ad,
            resumed: false,
        };
        assert_eq!(at(&asleep), Some(expected));
        let futex = |timeout| {
            place(&format!(
                "{} 0x1000 0x80 0x2 {timeout} 0x0 0xffffffff 0x7ffdf6c7ada8 0x7f65b56ac2ad\n",
                libc::SYS_futex
            ))
        };
        assert_eq!(
            futex("0x0"),
            Some(Place {
                resumed: true,
                ..expected
            })
        );
        assert_eq!(futex("0x7ffdf6c7adb0"), Some(expected));
        assert_eq!(at("running\n"), None);
        assert_eq!(at("-1 0x7ffdf6c7ada8 0x7f65b56ac2ad\n"), None);
        for number in FORKS {
            let fork = format!("{number} 0x0 0x0 0x0 0x0 0x0 0x0 0x7ffdf6c7ada8 0x7f65b56ac2ad\n");
            assert_eq!(place(&fork), None);
        }
        assert_eq!(at("0 0x3 0x7f65b5530000 0x20000 0x22\n"), None, "cut off");
        assert_eq!(at(""), None);
        assert_eq!(
            at("0 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0\n"),
            None,
            "a thread of the kernel's"
        );
    }

    #[test]
    fn a_place_is_known_as_long_as_its_thread_has_not_run() {
        let place = Place {
            sp: 0x1000,
            pc: 0x2000,
            resumed: true,
        };
        let last = LastPlace::new();
        assert_eq!(last.get(0, 0), None);
        last.set(7, 3, place);
        assert_eq!(last.get(7, 3), Some(place));
        assert_eq!(last.get(7, 4), None, "it has run");
        assert_eq!(last.get(8, 3), None, "another thread with its id");
    }

    /// Sleeps, so many calls deep, until there is a message.
    #[inline(never)]
    fn sleep(depth: usize, messages: &Receiver<usize>) -> Result<usize, RecvError> {
        match depth {
            0 => messages.recv(),
            _ => black_box(sleep(depth - 1, messages)),
        }
    }

    #[test]
    fn a_sleeper_is_found_and_its_waking_noticed() {
        let (send_tid, tids) = channel();
        let (wake, woken) = channel();
        let (send_done, done) = channel();
        let thread = std::thread::spawn(move || {
            send_tid.send(sys::gettid()).expect("the test listens");
            let mut depth = 0;
            while let Ok(next) = sleep(depth, &woken) {
                depth = next;
                send_done.send(()).expect("the test listens");
            }
        });
        let tid = tids.recv().expect("the thread says its id");
        // It may sleep for a moment somewhere else before it listens.
        let (threads, last) = (Threads::open().expect("`/proc` is there"), LastPlace::new());
        let find = || loop {
            let sleeper = Sleeper::find(&threads, tid, &last);
            std::thread::sleep(std::time::Duration::from_millis(10));
            if let Some(sleeper) = sleeper.filter(Sleeper::still_sleeps) {
                return sleeper;
            }
        };
        let sleeper = find();
        assert_eq!(find().place, sleeper.place, "it sleeps on");
        wake.send(10).expect("the thread listens");
        done.recv().expect("the thread answers");
        assert!(!sleeper.still_sleeps(), "it has run");
        assert!(find().sp() < sleeper.sp(), "it sleeps elsewhere");
        assert!(
            Sleeper::find(&threads, sys::gettid(), &last).is_none(),
            "the caller does not sleep"
        );
        drop((wake, find()));
        thread.join().expect("the thread only waits");
        assert!(Sleeper::find(&threads, tid, &last).is_none(), "it is gone");
    }
}
