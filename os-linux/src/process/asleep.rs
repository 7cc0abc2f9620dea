//! Looking at a thread that sleeps in a system call, without waking it.
//!
//! The kernel tells where such a thread stands, and how often it was given a processor
//! (`/proc/PID/task/TID/syscall` and `schedstat`, see proc(5)). If that number is the same before
//! and after a look, the thread has not run meanwhile, and its stack was what was looked at. Of its
//! registers only the stack pointer and the next instruction are told.

use super::arch::{FORKS, registers};
use super::scan;
use super::sys::gettid;
use super::unwind::Stopped;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A thread that slept in a system call when it was found.
pub(crate) struct Sleeper {
    schedstat: File,
    /// How often it had been given a processor by then.
    runs: u64,
    place: Place,
}

/// Where a thread sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    sp: u64,
    pc: u64,
    /// See [`Sleeper::is_resumed`].
    resumed: bool,
}

impl Sleeper {
    /// Finds out where the thread `tid` sleeps. `None`: it runs or may run, it sleeps elsewhere
    /// than in a system call, its stack is in use by a child of `vfork`, or nobody can tell.
    pub(crate) fn find(tid: u32) -> Option<Self> {
        // Of the caller, the kernel would tell where it asks.
        if tid == gettid() {
            return None;
        }
        let schedstat = scan::open(tid, "schedstat").ok()?;
        let runs = runs(&schedstat)?;
        let mut buffer = [0; 256];
        let place = place(read(&scan::open(tid, "syscall").ok()?, &mut buffer)?)?;
        Some(Self {
            schedstat,
            runs,
            place,
        })
    }

    /// Whether it has not run since it was found.
    pub(crate) fn still_sleeps(&self) -> bool {
        runs(&self.schedstat) == Some(self.runs)
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

fn read<'a>(file: &File, buffer: &'a mut [u8]) -> Option<&'a str> {
    let len = file.read_at(buffer, 0).ok()?;
    core::str::from_utf8(buffer.get(..len)?).ok()
}

/// The third number of `schedstat`: how often the thread was given a processor. It is never 0 if
/// the kernel counts at all.
fn runs(schedstat: &File) -> Option<u64> {
    let mut buffer = [0; 96];
    let runs = read(schedstat, &mut buffer)?
        .split_ascii_whitespace()
        .nth(2)?;
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
    use std::sync::mpsc::channel;

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
    fn a_sleeper_is_found_and_its_waking_noticed() {
        let (send_tid, tids) = channel();
        let (wake, woken) = channel();
        let (send_done, done) = channel();
        let thread = std::thread::spawn(move || {
            send_tid.send(gettid()).expect("the test listens");
            while woken.recv().is_ok() {
                send_done.send(()).expect("the test listens");
            }
        });
        let tid = tids.recv().expect("the thread says its id");
        // It may sleep for a moment somewhere else before it listens.
        let find = || loop {
            let sleeper = Sleeper::find(tid);
            std::thread::sleep(std::time::Duration::from_millis(10));
            if let Some(sleeper) = sleeper.filter(Sleeper::still_sleeps) {
                return sleeper;
            }
        };
        let sleeper = find();
        wake.send(()).expect("the thread listens");
        done.recv().expect("the thread answers");
        assert!(!sleeper.still_sleeps(), "it has run");
        assert!(
            Sleeper::find(gettid()).is_none(),
            "the caller does not sleep"
        );
        drop((wake, find()));
        thread.join().expect("the thread only waits");
        assert!(Sleeper::find(tid).is_none(), "it is gone");
    }
}
