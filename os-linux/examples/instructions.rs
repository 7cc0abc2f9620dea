//! How many instructions a call takes on each way to its function, beyond a plain call: counted one
//! by one, in a process that is traced (ptrace(2)), so that the machine may be an emulated one.
//!
//! ```sh
//! cargo run --release -p klp-os-linux --example instructions
//! ```

use anyhow::{Context, Result, bail, ensure};
use core::ffi::c_int;
use core::hint::black_box;
use core::ptr;
use klp_core::Poll;
use klp_os_linux_fixtures::{
    add, addr_of_fn, enable, fx_first, fx_nopad, fx_read, fx_read_new, fx_second, fx_value,
    livepatch,
};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

type Function = unsafe extern "C" fn() -> c_int;

/// What is called: the first is the plain call.
const WAYS: [&str; 4] = [
    "plain call",
    "unpatched, through its pad",
    "settled",
    "during a transition",
];

/// Calls between two stops: the difference is what counts.
const CALLS: [u64; 2] = [10, 110];

/// How the traced process is told what it is.
const TRACED: &str = "--traced";

fn main() -> Result<()> {
    match std::env::args().nth(1) {
        None => trace(),
        Some(arg) if arg == TRACED => traced(),
        Some(_) => {
            println!("usage: instructions\n\nCounts the instructions of a call on each way.");
            Ok(())
        }
    }
}

/// Calls the function on every way, and stops before and behind.
fn traced() -> Result<()> {
    enable(add("settled", &[("fx_value", 0, addr_of_fn!(fx_nopad))]));
    // A thread that sleeps in a function of the patch keeps this transition open.
    let (read, write) = std::os::unix::net::UnixStream::pair()?;
    let fd = read.as_raw_fd();
    let holder = std::thread::spawn(move || fx_read(fd));
    std::thread::sleep(Duration::from_millis(200));
    let funcs = [
        ("fx_first", 0, addr_of_fn!(fx_nopad)),
        ("fx_read", 0, addr_of_fn!(fx_read_new)),
    ];
    let Poll::Waiting { .. } = livepatch().enable(add("open", &funcs))? else {
        bail!("the transition did not stay open");
    };
    // SAFETY: the parent waits for that.
    let traced = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
    ensure!(traced == 0, "ptrace: {}", std::io::Error::last_os_error());
    for way in [fx_nopad, fx_second, fx_value, fx_first] {
        for calls in CALLS {
            stop();
            call(black_box(way), black_box(calls));
            stop();
        }
    }
    drop(write);
    holder.join().ok().context("the holding thread panicked")?;
    Ok(())
}

fn stop() {
    // SAFETY: the parent has it go on.
    unsafe { libc::raise(libc::SIGSTOP) };
}

#[inline(never)]
fn call(function: Function, times: u64) {
    for _ in 0..times {
        // SAFETY: a function of no arguments that returns a number.
        unsafe { black_box(function()) };
    }
}

/// A process that is traced.
struct Child(std::process::Child);

impl Child {
    /// Has it go on, by one instruction if it is `single`; says which signal it stops for.
    fn go_on(&self, single: bool) -> Result<c_int> {
        let request = if single {
            libc::PTRACE_SINGLESTEP
        } else {
            libc::PTRACE_CONT
        };
        let pid = self.0.id() as libc::pid_t;
        // SAFETY: the process is ours, and stopped.
        let done =
            unsafe { libc::ptrace(request, pid, ptr::null_mut::<u8>(), ptr::null_mut::<u8>()) };
        ensure!(done == 0, "ptrace: {}", std::io::Error::last_os_error());
        self.stopped()
    }

    /// Waits until it is stopped; says for which signal.
    fn stopped(&self) -> Result<c_int> {
        let mut status = 0;
        // SAFETY: the process is ours, and the place too.
        let waited = unsafe { libc::waitpid(self.0.id() as libc::pid_t, &raw mut status, 0) };
        ensure!(waited > 0, "waitpid: {}", std::io::Error::last_os_error());
        ensure!(
            libc::WIFSTOPPED(status),
            "the traced process has ended: {status:#x}"
        );
        Ok(libc::WSTOPSIG(status))
    }

    /// The instructions between this stop and the next one that the process asks for.
    fn count(&self) -> Result<u64> {
        let mut instructions = 0;
        loop {
            match self.go_on(true)? {
                libc::SIGTRAP => instructions += 1,
                libc::SIGSTOP => return Ok(instructions),
                signal => bail!("the traced process got signal {signal}"),
            }
        }
    }
}

fn trace() -> Result<()> {
    let program = std::env::current_exe()?;
    let child = Command::new(program).arg(TRACED).spawn()?;
    let mut child = Child(child);
    // It stops before and behind each of the counts.
    ensure!(
        child.stopped()? == libc::SIGSTOP,
        "another signal came first"
    );
    let mut all = Vec::new();
    while all.len() < WAYS.len() * CALLS.len() {
        if !all.is_empty() {
            ensure!(child.go_on(false)? == libc::SIGSTOP, "another signal came");
        }
        all.push(child.count()?);
    }
    let beyond = |counts: &[u64]| (counts[1] - counts[0]) / (CALLS[1] - CALLS[0]);
    let counts: Vec<_> = all.chunks_exact(CALLS.len()).map(beyond).collect();
    println!("instructions of a call beyond a plain one");
    for (way, count) in WAYS.iter().zip(&counts) {
        println!("{way:<32}{:>6}", count.saturating_sub(counts[0]));
    }
    // SAFETY: the process is ours, and stopped.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, child.0.id() as libc::pid_t, 0, 0) };
    ensure!(child.0.wait()?.success(), "the traced process failed");
    Ok(())
}
