//! A server takes notice of libraries that come by a plain `dlopen`. In a program of its own: the
//! server would adopt those of other tests.
#![cfg(feature = "control")]

use klp_os_linux::control::{Reply, Request, ask};
use klp_os_linux::process::Options;
use klp_os_linux_fixtures::libraries::*;
use klp_os_linux_fixtures::*;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[test]
fn a_server_takes_notice_by_itself() {
    let path = copy("libadopt_served");
    let patch = patch_of("served", "libadopt_served");
    enable(patch);
    let socket = livepatch()
        .serve(Some(&path.with_extension("sock")))
        .expect("there is a socket");
    signals_are_the_programs();
    let plain = Plain::open(&path);
    let end = Instant::now() + Duration::from_secs(10);
    while plain.answer()() == 1 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(plain.answer()(), 2);
    disable(patch);

    // By the attribute tree, too: it was there before the patch.
    let plain = Plain::open(&copy("libadopt_tree"));
    let patch = patch_of("tree", "libadopt_tree");
    let write = Request::Write {
        path: "livepatch/tree/enabled".into(),
        value: "1".into(),
    };
    let reply = ask(&socket, &write).expect("it answers");
    assert!(matches!(reply, Reply::Value { .. }), "{reply:?}");
    settle(patch);
    assert_eq!(plain.answer()(), 2);
    disable(patch);

    // What was refused is not tried again, whatever else comes and goes.
    let veto = Veto::default();
    let patch = patch_with("veto", "libadopt_veto", veto.clone());
    enable(patch);
    veto.0.store(100, Ordering::Relaxed);
    let plain = Plain::open(&copy("libadopt_veto"));
    let end = Instant::now() + Duration::from_secs(10);
    while veto.0.load(Ordering::Relaxed) == 100 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    for _ in 0..3 {
        Plain::open(&copy("libadopt_other")).close();
        std::thread::sleep(Duration::from_millis(250));
    }
    assert_eq!((veto.0.load(Ordering::Relaxed), plain.answer()()), (99, 1));
    assert!(livepatch().adopt().is_err(), "unless somebody asks for it");
    assert_eq!(veto.0.load(Ordering::Relaxed), 98);
    disable(patch);

    // Daemons close all descriptors that they do not know, and get their numbers for others.
    let own = close_unknown_sockets();
    let end = Instant::now() + Duration::from_secs(10);
    while ask(&socket, &Request::Status).is_err() && Instant::now() < end {}
    let reply = ask(&socket, &Request::Status).expect("it serves again");
    assert!(matches!(reply, Reply::Status { .. }), "{reply:?}");
    own.set_nonblocking(true).expect("it is there");
    let _client = TcpStream::connect(own.local_addr().expect("it has one")).expect("it listens");
    // The kernel may still be at it.
    let end = Instant::now() + Duration::from_secs(10);
    while own.accept().is_err() {
        assert!(Instant::now() < end, "nobody else has taken the connection");
    }

    // The server is the parent's.
    let in_parent = sockets();
    let in_child = in_child(|| sockets() < in_parent && livepatch().adopt().is_ok());
    assert_eq!(in_child, 0, "the child does not have its socket");
}

/// The server's threads block all signals that are not their own: what is sent to the process goes to
/// a thread that the program meant to have it.
fn signals_are_the_programs() {
    let find = |name: &str| {
        let tasks = std::fs::read_dir("/proc/self/task").expect("there is a /proc");
        tasks.flatten().find_map(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).ok();
            let status = (read("comm")?.trim() == name).then(|| read("status"))??;
            let blocked = status
                .lines()
                .find_map(|line| line.strip_prefix("SigBlk:"))?;
            let blocked = u64::from_str_radix(blocked.trim(), 16).expect("a set");
            // While it has a certain lock, it blocks every signal.
            (blocked >> (libc::SIGSEGV - 1) & 1 == 0).then_some(blocked)
        })
    };
    // A thread gives itself its name.
    let mask_of = |name: &str| {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match find(name) {
                Some(mask) => return mask,
                None => assert!(Instant::now() < end, "no thread {name}"),
            }
        }
    };
    for name in ["klp-control", "klp-engine"] {
        let blocked = mask_of(name);
        let blocks = |signal: i32| blocked >> (signal - 1) & 1 == 1;
        for signal in [
            libc::SIGHUP,
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGCHLD,
            libc::SIGALRM,
            libc::SIGPROF,
            libc::SIGUSR1,
            libc::SIGRTMAX(),
        ] {
            assert!(blocks(signal), "{name} takes signal {signal}");
        }
        let stop_signal = Options::default().stop_signal;
        for signal in [stop_signal, libc::SIGSEGV, libc::SIGSYS] {
            assert!(!blocks(signal), "{name} does not take signal {signal}");
        }
    }
}

/// Closes the listening Unix sockets of this process, and puts another socket in the place of each.
fn close_unknown_sockets() -> TcpListener {
    let own = TcpListener::bind("127.0.0.1:0").expect("there are ports");
    for fd in 3..1024 {
        let mut listens = 0_i32;
        let mut domain = 0_i32;
        let get = |name, value: &mut i32| {
            let mut len = size_of::<i32>() as libc::socklen_t;
            let value = (&raw mut *value).cast();
            // SAFETY: there is room for the answer.
            unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, value, &raw mut len) == 0 }
        };
        let known = get(libc::SO_ACCEPTCONN, &mut listens) && get(libc::SO_DOMAIN, &mut domain);
        if known && listens == 1 && domain == libc::AF_UNIX {
            // SAFETY: whose it is finds out that it is gone.
            unsafe { libc::dup2(own.as_raw_fd(), fd) };
        }
    }
    own
}

/// How many sockets this process has.
fn sockets() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").expect("there is a /proc");
    let is_socket = |file: std::io::Result<std::fs::DirEntry>| {
        let link = std::fs::read_link(file.expect("it can be listed").path());
        link.is_ok_and(|link| link.to_string_lossy().starts_with("socket:"))
    };
    files.map(is_socket).filter(|socket| *socket).count()
}
