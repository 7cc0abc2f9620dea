//! Threads that have nothing to do with a patch: who sleeps is not woken, who runs is not in the
//! way.

use klp_os_linux_fixtures::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How often the thread `tid` was given a processor (`proc(5)`, `schedstat`).
fn runs(tid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat"));
    let text = text.expect("the thread is there");
    let runs = text.split_whitespace().nth(2).expect("three numbers");
    runs.parse().expect("a number")
}

/// Begins threads that sleep, each in its own way, until the process ends; returns their ids.
fn begin(sleeps: impl IntoIterator<Item = (&'static str, fn())>) -> BTreeMap<i32, &'static str> {
    let begin = |(name, sleep): (&'static str, fn())| {
        let (send, tids) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().stack_size(64 * 1024);
        let thread = thread.spawn(move || {
            send.send(tid()).expect("the test listens");
            sleep();
            panic!("{name} was disturbed: {}", std::io::Error::last_os_error());
        });
        drop(thread.expect("threads can be had"));
        let tid = tids.recv().expect("the thread says its id");
        wait_asleep(tid);
        (tid, name)
    };
    sleeps.into_iter().map(begin).collect()
}

/// Has a patch come and go, its memory too, and checks that none of `sleepers` has run meanwhile.
fn nobody_runs(sleepers: &BTreeMap<i32, &'static str>, rounds: u32) {
    let before: Vec<u64> = sleepers.keys().map(|tid| runs(*tid)).collect();
    for _ in 0..rounds {
        let patch = add("around", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
        enable(patch);
        assert_eq!(fx_value(), 2);
        disable(patch);
        livepatch().unload(patch).expect("it is disabled");
        let patch = livepatch()
            .load_file(ONLY_CALLBACKS)
            .expect("a patch object");
        enable(patch);
        assert_ne!(code_of_patch(), 0);
        disable(patch);
        livepatch().unload(patch).expect("it is disabled");
    }
    diary();
    for ((tid, name), before) in sleepers.iter().zip(before) {
        assert_eq!(runs(*tid), before, "{name} ran");
    }
}

fn zeroed<T>() -> T {
    // SAFETY: the tests' types are plain structs of C, for which all-zero is a valid value.
    unsafe { core::mem::zeroed() }
}

fn hour() -> libc::timespec {
    libc::timespec {
        tv_sec: 3600,
        tv_nsec: 0,
    }
}

fn in_an_hour(clock: libc::clockid_t) -> libc::timespec {
    let mut time = zeroed();
    // SAFETY: there is room for the answer.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec += 3600;
    time
}

fn sockets() -> [i32; 2] {
    let mut pair = [0; 2];
    let hour = libc::timeval {
        tv_sec: 3600,
        tv_usec: 0,
    };
    // SAFETY: there is room for two descriptors, and the option has the size that is said.
    unsafe {
        let done = libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr());
        assert_eq!(done, 0);
        libc::setsockopt(
            pair[0],
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const hour).cast(),
            size_of_val(&hour) as libc::socklen_t,
        );
    }
    pair
}

fn usr1() -> libc::sigset_t {
    let mut set = zeroed();
    // SAFETY: the set is valid, and the mask is this thread's.
    unsafe {
        libc::sigaddset(&raw mut set, libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, core::ptr::null_mut());
    }
    set
}

/// Ways to sleep; most of them end if a signal is handled (`signal(7)`).
const SLEEPS: [(&str, fn()); 17] = [
    // SAFETY: what the calls read and write is the closure's own.
    ("epoll_wait", || unsafe {
        let (epoll, mut event) = (libc::epoll_create1(0), zeroed());
        libc::epoll_wait(epoll, &raw mut event, 1, -1);
    }),
    // SAFETY: no memory is involved.
    ("poll", || unsafe {
        libc::poll(core::ptr::null_mut(), 0, 3_600_000);
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("select", || unsafe {
        let (mut time, none) = (
            libc::timeval {
                tv_sec: 3600,
                tv_usec: 0,
            },
            core::ptr::null_mut(),
        );
        libc::select(0, none, none, none, &raw mut time);
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("nanosleep", || unsafe {
        let time = hour();
        libc::nanosleep(&raw const time, core::ptr::null_mut());
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("clock_nanosleep", || unsafe {
        let (clock, flags) = (libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME);
        let until = in_an_hour(clock);
        libc::clock_nanosleep(clock, flags, &raw const until, core::ptr::null_mut());
    }),
    // SAFETY: no memory is involved.
    ("usleep", || unsafe {
        libc::usleep(999_999_999);
    }),
    // SAFETY: no memory is involved.
    ("sleep", || unsafe {
        libc::sleep(3600);
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("sem_timedwait", || unsafe {
        let (mut semaphore, until) = (zeroed(), in_an_hour(libc::CLOCK_REALTIME));
        libc::sem_init(&raw mut semaphore, 0, 0);
        libc::sem_timedwait(&raw mut semaphore, &raw const until);
    }),
    ("pthread_cond_timedwait", || {
        let (mutex, condition) = (Mutex::new(()), Condvar::new());
        let guard = mutex.lock().expect("nobody panicked");
        let _ = condition.wait_timeout(guard, Duration::from_secs(3600));
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("recv with SO_RCVTIMEO", || unsafe {
        let mut byte = 0_u8;
        libc::recv(sockets()[0], (&raw mut byte).cast(), 1, 0);
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("accept", || unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
        let mut address: libc::sockaddr_un = zeroed();
        address.sun_family = libc::AF_UNIX as u16;
        libc::bind(socket, (&raw const address).cast(), 2);
        libc::listen(socket, 1);
        libc::accept(socket, core::ptr::null_mut(), core::ptr::null_mut());
    }),
    ("read", || {
        fx_read(pipe().0);
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("msgrcv", || unsafe {
        let queue = libc::msgget(libc::IPC_PRIVATE, 0o600);
        let mut message = [0_u64; 2];
        // Nobody finds it any more, and it goes with the process: it has no name.
        libc::msgrcv(queue, message.as_mut_ptr().cast(), 8, 0, 0);
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("sigtimedwait", || unsafe {
        let (set, time) = (usr1(), hour());
        libc::sigtimedwait(&raw const set, core::ptr::null_mut(), &raw const time);
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("sigwaitinfo of every signal", || unsafe {
        let mut all = zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, core::ptr::null_mut());
        libc::sigwaitinfo(&raw const all, core::ptr::null_mut());
    }),
    // SAFETY: no memory is involved.
    ("pause", || unsafe {
        libc::pause();
    }),
    // SAFETY: what the calls read and write is the closure's own.
    ("a futex without a timeout", || unsafe {
        let word = AtomicI32::new(0);
        let (call, wait) = (libc::SYS_futex, libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG);
        libc::syscall(
            call,
            word.as_ptr(),
            wait,
            0,
            core::ptr::null::<libc::timespec>(),
        );
    }),
];

#[test]
fn who_sleeps_does_not_run_while_patches_come_and_go() {
    let _alone = alone();
    livepatch();
    // Where a call leaves its return address in a register, nobody can tell from outside who has
    // called a function that has not saved it, as the C library's `syscall`: such a thread is stopped
    // for a look.
    let by_syscall = ["pthread_cond_timedwait", "a futex without a timeout"];
    let seen =
        |(name, _): &(&str, fn())| machine::LEAVES_HAVE_CALLERS || !by_syscall.contains(name);
    // A thread that is still to be freed of something else would be a reason to wake others.
    let status = in_child(|| {
        nobody_runs(&begin(SLEEPS.into_iter().filter(seen)), 100);
        true
    });
    assert_eq!(status, 0);
}

#[test]
fn thousands_that_sleep_do_not_run() {
    let _alone = alone();
    livepatch();
    let status = in_child(|| {
        let sleep = SLEEPS[0];
        nobody_runs(&begin(std::iter::repeat_n(sleep, 3000)), 1);
        true
    });
    assert_eq!(status, 0);
}

#[test]
fn threads_that_never_sleep_are_in_nobodys_way() {
    let _alone = alone();
    livepatch();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..64)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    assert!(matches!(fx_value(), 1 | 2));
                }
            })
        })
        .collect();
    for _ in 0..2 {
        let patch = add("busy", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
        enable(patch);
        assert_eq!(fx_value(), 2);
        disable(patch);
        assert_eq!(fx_value(), 1);
        livepatch().unload(patch).expect("it is disabled");
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("the thread only calls");
    }
}

/// Threads that the kernel makes in a process (`io_uring_setup(2)`, `IORING_SETUP_SQPOLL`) never run
/// its code.
#[test]
fn threads_of_the_kernels_are_no_tasks() {
    const SQPOLL: u32 = 1 << 1;
    let _alone = alone();
    livepatch();
    // `struct io_uring_params`: `flags` is the third of its words, `sq_thread_idle` the fifth.
    let mut params = [0_u32; 30];
    (params[2], params[4]) = (SQPOLL, 10_000);
    // SAFETY: the structure is as long as the kernel's.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4_usize, params.as_mut_ptr()) };
    if ring < 0 {
        let why = std::io::Error::last_os_error();
        eprintln!("not tested: the kernel makes no ring here: {why}");
        return;
    }
    // It gives itself its name.
    let is_there = || {
        let tasks = std::fs::read_dir("/proc/self/task").expect("there is a /proc");
        tasks.flatten().any(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.starts_with("iou-sqp")
        })
    };
    let end = Instant::now() + Duration::from_secs(10);
    while !is_there() {
        assert!(Instant::now() < end, "the kernel has made no thread");
        std::thread::yield_now();
    }
    let patch = add("ring", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
    enable(patch);
    assert_eq!(fx_value(), 2);
    disable(patch);
    // SAFETY: it is ours.
    unsafe { libc::close(i32::try_from(ring).expect("a descriptor")) };
}
