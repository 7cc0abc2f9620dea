//! The main job: a server of Lua interpreters is repaired while it works, and put back.
//!
//! ```sh
//! cargo run --release -p klp-os-linux --example lua_cve
//! ```
//!
//! Interpreters of Lua 5.4.0 serve requests from a queue. CVE-2020-24370 is in them: one line of
//! Lua kills the process. The run shows that line killing a child of this process; enables a patch
//! that was made of a source diff (`os-linux/demo/lua/c/cve-2020-24370.diff`) while all interpreters
//! work; runs the same line in this process; disables the patch; and shows the line killing a child
//! again.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use klp_core::Poll;
use klp_core::engine::PatchId;
use klp_demo_lua::{CHECK, EXPLOIT, Interpreter, PATCH};
use klp_os_linux::process::{Livepatch, Options, Ways};
use std::ffi::CString;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Repairs Lua's CVE-2020-24370 in this running process, and puts it back.
#[derive(Parser)]
struct Args {
    /// Lua interpreters, each in a thread of its own
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    interpreters: u32,
    /// Seconds of work before, between and after the two transitions
    #[arg(long, default_value_t = 1.0)]
    work: f64,
    /// The patch object to enable
    #[arg(long, default_value = PATCH)]
    patch: std::path::PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let work = Duration::try_from_secs_f64(args.work).context("--work")?;
    let show = Show::new();
    let log = show.clone();
    let events = Box::new(move |event: &klp_core::event::Event<'_>| {
        log.line(&format!("    livepatch: {event}"))
    });
    let livepatch = Livepatch::init(Options {
        events: Some(events),
        ..Options::default()
    })
    .context("livepatching cannot be set up")?;

    let server = Server::start(args.interpreters)?;
    show.line(&format!(
        "{} Lua interpreters serve requests",
        args.interpreters
    ));
    show.wait("serving", work, &server);

    show.line("before: the exploit, in a child of this process");
    expect_death(&show)?;

    show.line(&format!("enabling {}", args.patch.display()));
    let patch = livepatch
        .load_file(&args.patch)
        .context("the patch cannot be loaded")?;
    transition(livepatch, &show, &server, || livepatch.enable(patch))?;
    show.wait("serving, patched", work, &server);

    show.line("after: the exploit, in this process");
    let answer = server.ask(EXPLOIT)?;
    show.line(&format!("    survived; Lua's answer: {answer}"));
    ensure!(
        answer == "nil",
        "the repaired function should have answered nil"
    );
    expect_check(&server, &show)?;

    show.line("disabling");
    transition(livepatch, &show, &server, || livepatch.disable(patch))?;
    unload(livepatch, patch, &show)?;
    show.wait("serving, as before", work, &server);

    show.line("again: the exploit, in a child of this process");
    expect_death(&show)?;
    expect_check(&server, &show)?;

    let totals = server.stop()?;
    show.finish();
    println!("requests served              {}", totals.served);
    println!("requests failed              {}", totals.failed);
    println!(
        "longest pause of a request   {:?} in transitions, {:?} otherwise",
        totals.in_transition, totals.otherwise
    );
    ensure!(totals.failed == 0, "requests failed");
    Ok(())
}

/// Starts a transition with `start` and brings it to its end.
fn transition(
    livepatch: &Livepatch,
    show: &Show,
    server: &Server,
    start: impl Fn() -> Result<Poll, klp_core::Error>,
) -> Result<()> {
    let before = livepatch.ways();
    server.counts.in_transition.store(true, Relaxed);
    let begin = Instant::now();
    let mut poll = start()?;
    let mut last = None;
    while let Poll::Waiting { patch, pending } = poll {
        if last != Some(pending) {
            last = Some(pending);
            show.line(&format!(
                "    {:>8.3} ms: {} switched, {pending} to go",
                millis(begin),
                switched(livepatch, before)
            ));
        }
        if begin.elapsed() > Duration::from_secs(30) {
            for blocker in livepatch.engine().blockers(patch)? {
                show.line(&format!("    {blocker}"));
            }
            bail!("the transition does not finish");
        }
        std::thread::sleep(Duration::from_micros(100));
        poll = livepatch.engine().poll();
    }
    show.line(&format!("    {:>8.3} ms: complete", millis(begin)));
    // Requests that were under way when it ended count as its own, too.
    std::thread::sleep(Duration::from_millis(2));
    server.counts.in_transition.store(false, Relaxed);
    let ways = livepatch.ways();
    show.line(&format!(
        "    threads switched: {} while blocked in a system call, {} while running, {} by themselves; {} were new to the engine",
        ways.in_system_call - before.in_system_call,
        ways.running - before.running,
        ways.entering - before.entering,
        ways.joined - before.joined,
    ));
    Ok(())
}

fn switched(livepatch: &Livepatch, before: Ways) -> u64 {
    let now = livepatch.ways();
    let sum = |ways: Ways| ways.in_system_call + ways.running + ways.entering;
    sum(now) - sum(before)
}

fn millis(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1e3
}

fn unload(livepatch: &Livepatch, patch: PatchId, show: &Show) -> Result<()> {
    livepatch.unload(patch)?;
    show.line("    the patch's memory is freed");
    Ok(())
}

/// Runs the exploit in a child of this process, which must die of it.
fn expect_death(show: &Show) -> Result<()> {
    let exploit = CString::new(EXPLOIT)?;
    // SAFETY: the child runs an interpreter of its own and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        if let Some(mut lua) = Interpreter::new() {
            let _ = lua.run(&exploit);
        }
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    ensure!(child > 0, "no child: {}", std::io::Error::last_os_error());
    let mut status = 0;
    // SAFETY: the child is ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(
        waited == child,
        "the child is lost: {}",
        std::io::Error::last_os_error()
    );
    ensure!(libc::WIFSIGNALED(status), "the child survived the exploit");
    show.line(&format!(
        "    the child died of signal {} (SIGSEGV is {})",
        libc::WTERMSIG(status),
        libc::SIGSEGV
    ));
    Ok(())
}

/// The patched function does what it is for, patched or not.
fn expect_check(server: &Server, show: &Show) -> Result<()> {
    let answer = server.ask(CHECK)?;
    ensure!(answer == "ok", "debug.getlocal is broken: {answer}");
    show.line("    debug.getlocal finds locals, varargs and temporaries as it should");
    Ok(())
}

/// What is asked of the interpreters all the time, and the right answers.
const REQUESTS: [(&str, &str); 4] = [
    (CHECK, "ok"),
    (
        "local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end return fib(12)",
        "144",
    ),
    (
        "local t = {} for i = 1, 200 do t[i] = (i * 7919) % 1009 end table.sort(t) \
         for i = 2, #t do if t[i - 1] > t[i] then return 'unsorted' end end return 'sorted'",
        "sorted",
    ),
    (
        "local function locals(a, b) local sum = 0 for i = 1, 20 do \
         local name, value = debug.getlocal(1, i % 3 + 1) if name then sum = sum + 1 end end return sum end \
         return locals(1, 2)",
        "20",
    ),
];

struct Request {
    source: CString,
    expected: Option<&'static str>,
    answer: Option<Sender<Result<String, String>>>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    in_transition: AtomicBool,
    served: AtomicU64,
    failed: AtomicU64,
    /// The longest request in nanoseconds: outside of transitions, and in them.
    longest: [AtomicU64; 2],
}

struct Totals {
    served: u64,
    failed: u64,
    in_transition: Duration,
    otherwise: Duration,
}

/// Interpreters that serve a queue, and a client that keeps it full.
struct Server {
    counts: Arc<Counts>,
    queue: SyncSender<Request>,
    client: JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    fn start(interpreters: u32) -> Result<Self> {
        let counts = Arc::new(Counts::default());
        let (queue, requests) = sync_channel(4 * interpreters as usize);
        let requests = Arc::new(Mutex::new(requests));
        let workers = (0..interpreters).map(|index| {
            let lua = Interpreter::new().context("no memory for an interpreter")?;
            let (counts, requests) = (Arc::clone(&counts), Arc::clone(&requests));
            let thread = std::thread::Builder::new().name(format!("lua-{index}"));
            Ok(thread.spawn(move || serve(lua, &requests, &counts))?)
        });
        let workers = workers.collect::<Result<Vec<_>>>()?;
        let client = {
            let (counts, queue) = (Arc::clone(&counts), queue.clone());
            std::thread::Builder::new()
                .name("client".into())
                .spawn(move || fill(&queue, &counts))?
        };
        Ok(Self {
            counts,
            queue,
            client,
            workers,
        })
    }

    /// Asks for one thing and waits for the answer.
    fn ask(&self, source: &str) -> Result<String> {
        let (answer, answers) = channel();
        self.queue.send(Request {
            source: CString::new(source)?,
            expected: None,
            answer: Some(answer),
        })?;
        answers
            .recv()?
            .map_err(|error| anyhow::anyhow!("Lua: {error}"))
    }

    fn stop(self) -> Result<Totals> {
        self.counts.stop.store(true, Relaxed);
        self.client
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))?;
        drop(self.queue);
        for worker in self.workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("an interpreter's thread panicked"))?;
        }
        let [otherwise, in_transition] =
            [0, 1].map(|index| Duration::from_nanos(self.counts.longest[index].load(Relaxed)));
        let (served, failed) = (
            self.counts.served.load(Relaxed),
            self.counts.failed.load(Relaxed),
        );
        Ok(Totals {
            served,
            failed,
            in_transition,
            otherwise,
        })
    }
}

/// Keeps the queue full, with a rest now and then so that interpreters also wait.
fn fill(queue: &SyncSender<Request>, counts: &Counts) {
    for round in 0.. {
        for (source, expected) in REQUESTS {
            let source = CString::new(source).expect("no NUL in the requests");
            if counts.stop.load(Relaxed)
                || queue
                    .send(Request {
                        source,
                        expected: Some(expected),
                        answer: None,
                    })
                    .is_err()
            {
                return;
            }
        }
        if round % 64 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn serve(mut lua: Interpreter, requests: &Mutex<Receiver<Request>>, counts: &Counts) {
    loop {
        let request = match requests.lock() {
            Ok(requests) => requests.recv(),
            Err(_) => return,
        };
        let Ok(request) = request else { return };
        let begin = Instant::now();
        let result = lua.run(&request.source);
        let time = begin.elapsed().as_nanos() as u64;
        counts.longest[usize::from(counts.in_transition.load(Relaxed))].fetch_max(time, Relaxed);
        counts.served.fetch_add(1, Relaxed);
        if request
            .expected
            .is_some_and(|expected| result.as_deref() != Ok(expected))
        {
            counts.failed.fetch_add(1, Relaxed);
        }
        if let Some(answer) = request.answer {
            let _ = answer.send(result);
        }
    }
}

/// Shows what happens: lines, and below them on a terminal what is under way.
#[derive(Clone)]
struct Show(ProgressBar);

impl Show {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is valid");
        let bar = ProgressBar::new_spinner().with_style(style);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    fn line(&self, text: &str) {
        if self.0.is_hidden() {
            println!("{text}");
        } else {
            self.0.println(text);
        }
    }

    /// Shows the server at work for `time`.
    fn wait(&self, what: &str, time: Duration, server: &Server) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let (served, failed) = (
                server.counts.served.load(Relaxed),
                server.counts.failed.load(Relaxed),
            );
            self.0
                .set_message(format!("{what}: {served} requests, {failed} failed"));
            std::thread::sleep(Duration::from_millis(50).min(time));
        }
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
