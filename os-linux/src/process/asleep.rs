//! Looking at a thread that sleeps in a system call, without waking it.
//!
//! The kernel tells where such a thread stands, and how often it was given a processor
//! (`/proc/PID/task/TID/syscall` and `schedstat`, see proc(5)). If that number is the same before
//! and after a look, the thread has not run meanwhile, and its stack was what was looked at. Of its
//! registers only the stack pointer and the next instruction are told.
//!
//! As long as the number stays the same, nothing of that needs to be found again: where the thread
//! sleeps ([`Slept`]), and what is on its stack ([`LastWalk`]), is known. The number is read before
//! anything else. So if it is the same at any time after that, the thread has slept in between, and
//! what was found in between is so still.

use super::arch::{FORKS, registers};
use super::last_walk::LastWalk;
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
    /// How often it had been given a processor by then.
    runs: u64,
    place: Place,
    /// Whether the place was known before.
    known: bool,
    slept: &'static Slept,
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
pub(crate) struct Slept {
    /// The number of its `schedstat`, which no other thread's file has, also if that thread gets
    /// the id of this one when this one is gone. 0: nothing is known.
    inode: AtomicU64,
    runs: AtomicU64,
    sp: AtomicU64,
    pc: AtomicU64,
    resumed: AtomicBool,
    /// Of its stack, as it is there.
    walk: LastWalk,
}

impl Slept {
    pub(crate) const fn new() -> Self {
        Self {
            inode: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            sp: AtomicU64::new(0),
            pc: AtomicU64::new(0),
            resumed: AtomicBool::new(false),
            walk: LastWalk::new(),
        }
    }

    /// Nothing is known from here on.
    pub(crate) fn forget(&self) {
        self.inode.store(0, Ordering::SeqCst);
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
        self.forget();
        self.walk.forget();
        self.runs.store(runs, Ordering::Relaxed);
        self.sp.store(place.sp, Ordering::Relaxed);
        self.pc.store(place.pc, Ordering::Relaxed);
        self.resumed.store(place.resumed, Ordering::Relaxed);
        self.inode.store(inode, Ordering::SeqCst);
    }
}

impl<'a> Sleeper<'a> {
    /// Finds out where the thread `tid` of `threads` sleeps; `slept` is where it did the last time.
    /// `None`: it runs or may run, it sleeps elsewhere than in a system call, its stack is in use by
    /// a child of `vfork`, or nobody can tell.
    pub(crate) fn find(threads: &'a Threads, tid: u32, slept: &'static Slept) -> Option<Self> {
        // Of the caller, the kernel would tell where it asks.
        if tid == threads.caller() {
            return None;
        }
        let schedstat = threads.file(tid, "schedstat").ok()?;
        let runs = runs(&schedstat)?;
        let inode = sys::inode(&schedstat)?;
        let known = slept.get(inode, runs);
        let place = known.or_else(|| {
            let mut buffer = [0; 256];
            let syscall = threads.file(tid, "syscall").ok()?;
            let place = place(core::str::from_utf8(read(&syscall, &mut buffer)?).ok()?)?;
            slept.set(inode, runs, place);
            Some(place)
        })?;
        Some(Self {
            threads,
            schedstat,
            runs,
            place,
            known: known.is_some(),
            slept,
        })
    }

    /// Whether it has not run since it was found.
    pub(crate) fn still_sleeps(&self) -> bool {
        runs(&self.schedstat) == Some(self.runs) && self.threads.are_own()
    }

    /// Whether walks from `stopped`, which is [of this](Self::stopped), have told the truth: it has
    /// not run since it was found, or all that they told was known by then.
    pub(crate) fn confirms(&self, stopped: &Stopped) -> bool {
        if self.known && !stopped.was_read() {
            self.threads.are_own()
        } else {
            self.still_sleeps()
        }
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
        let regs = registers::asleep(self.place.pc, self.place.sp);
        Stopped::from_outside(regs, &self.slept.walk)
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
    use super::super::objects::Objects;
    use super::super::unwind::Stacks;
    use super::*;
    use core::hint::black_box;
    use core::ops::ControlFlow;
    use klp_core::port::{Frame, FrameKind, Unwinder};
    use std::sync::mpsc::{Receiver, RecvError, Sender, channel};
    use std::thread::JoinHandle;

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
        let last = Slept::new();
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

    /// A thread that sleeps.
    struct Asleep {
        thread: JoinHandle<()>,
        tid: u32,
        wake: Sender<usize>,
        done: Receiver<()>,
        threads: Threads,
        slept: &'static Slept,
    }

    impl Asleep {
        fn new(slept: &'static Slept) -> Self {
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
            Self {
                thread,
                tid: tids.recv().expect("the thread says its id"),
                wake,
                done,
                threads: Threads::open().expect("`/proc` is there"),
                slept,
            }
        }

        fn find(&self) -> Sleeper<'_> {
            self.find_by(self.slept)
        }

        fn find_by(&self, slept: &'static Slept) -> Sleeper<'_> {
            loop {
                let sleeper = Sleeper::find(&self.threads, self.tid, slept);
                // It may sleep for a moment somewhere else before it listens.
                std::thread::sleep(std::time::Duration::from_millis(10));
                if let Some(sleeper) = sleeper.filter(Sleeper::still_sleeps) {
                    return sleeper;
                }
            }
        }

        /// Has it sleep again, so many calls deep.
        fn wake(&self, depth: usize) {
            self.wake.send(depth).expect("the thread listens");
            self.done.recv().expect("the thread answers");
        }

        fn end(self) -> Option<Place> {
            drop(self.wake);
            self.thread.join().expect("the thread only waits");
            let found = Sleeper::find(&self.threads, self.tid, self.slept);
            found.map(|sleeper| sleeper.place)
        }
    }

    #[test]
    fn a_sleeper_is_found_and_its_waking_noticed() {
        static SLEPT: Slept = Slept::new();
        let thread = Asleep::new(&SLEPT);
        let sleeper = thread.find();
        assert_eq!(thread.find().place, sleeper.place, "it sleeps on");
        thread.wake(10);
        assert!(!sleeper.still_sleeps(), "it has run");
        assert!(thread.find().sp() < sleeper.sp(), "it sleeps elsewhere");
        assert!(
            Sleeper::find(&thread.threads, sys::gettid(), &SLEPT).is_none(),
            "the caller does not sleep"
        );
        assert_eq!(thread.end(), None, "it is gone");
    }

    /// Walks the stack of `sleeper`; what is guessed more than once counts once.
    fn walk(stacks: &Stacks, sleeper: &Sleeper<'_>) -> (Stopped, Vec<Frame>) {
        let (stopped, mut frames) = (sleeper.stopped(), Vec::new());
        let walked = stacks.walk(&stopped, &mut |frame| {
            if frame.kind != FrameKind::PerhapsCall || !frames.contains(&frame) {
                frames.push(frame);
            }
            ControlFlow::Continue(())
        });
        assert_eq!(walked, Ok(()));
        (stopped, frames)
    }

    /// The same; says whether it was read for that.
    fn look(stacks: &Stacks, sleeper: &Sleeper<'_>) -> (bool, Vec<Frame>) {
        let (stopped, frames) = walk(stacks, sleeper);
        assert!(sleeper.confirms(&stopped));
        (stopped.was_read(), frames)
    }

    #[test]
    #[cfg_attr(
        not(target_arch = "x86_64"),
        ignore = "what `syscall` returns to is in a register there: such a thread is stopped instead"
    )]
    fn a_stack_is_read_again_only_when_its_thread_has_run_or_tables_have_changed() {
        static SLEPT: Slept = Slept::new();
        let (objects, stacks) = (Objects::default(), Stacks::default());
        objects.refresh(&mut |_| ());
        let update = || stacks.update(&objects, &[]).expect("memory");
        update();
        let thread = Asleep::new(&SLEPT);

        let (read, frames) = look(&stacks, &thread.find());
        assert!(read && frames.len() > 3);
        for _ in 0..3 {
            let again = look(&stacks, &thread.find());
            assert_eq!(again, (false, frames.clone()), "it sleeps on");
        }

        thread.wake(10);
        let (read, deeper) = look(&stacks, &thread.find());
        assert!(read, "it has run");
        assert!(deeper.iter().any(|frame| !frames.contains(frame)));
        assert_eq!(look(&stacks, &thread.find()), (false, deeper.clone()));

        update();
        let again = look(&stacks, &thread.find());
        assert_eq!(again, (true, deeper.clone()), "by other tables");
        assert_eq!(look(&stacks, &thread.find()), (false, deeper));

        SLEPT.forget();
        assert!(look(&stacks, &thread.find()).0, "nothing is known");
        assert_eq!(thread.end(), None);
    }

    #[test]
    #[cfg_attr(
        not(target_arch = "x86_64"),
        ignore = "what `syscall` returns to is in a register there: such a thread is stopped instead"
    )]
    fn what_was_read_from_a_thread_that_has_woken_up_counts_for_nothing() {
        static SLEPT: Slept = Slept::new();
        static OTHER: Slept = Slept::new();
        let (objects, stacks) = (Objects::default(), Stacks::default());
        objects.refresh(&mut |_| ());
        stacks.update(&objects, &[]).expect("memory");
        let thread = Asleep::new(&SLEPT);

        // It sleeps at the same place again, with the same calls on its stack; also if the place
        // was known before, and the stack was not.
        for twice in [false, true] {
            if twice {
                thread.find();
            }
            let sleeper = thread.find();
            assert!(sleeper.known || !twice);
            thread.wake(0);
            assert_eq!(thread.find_by(&OTHER).place, sleeper.place);
            let (stopped, _) = walk(&stacks, &sleeper);
            assert!(stopped.was_read() && !sleeper.confirms(&stopped));
        }
        let (read, frames) = look(&stacks, &thread.find());
        assert!(read);

        // What was known when it was found was so then, whatever it does now.
        let sleeper = thread.find();
        thread.wake(10);
        assert!(thread.find_by(&OTHER).sp() < sleeper.sp());
        let (stopped, before) = walk(&stacks, &sleeper);
        assert!(!stopped.was_read() && sleeper.confirms(&stopped));
        assert_eq!(before, frames);
        let (read, deeper) = look(&stacks, &thread.find());
        assert!(read && deeper.iter().any(|frame| !frames.contains(frame)));
        assert_eq!(thread.end(), None);
    }
}
