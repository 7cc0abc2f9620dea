//! A little server to try the command `klp` on.
//!
//! ```sh
//! cargo run -p klp-os-linux --example server
//! ```
//!
//! Threads greet guests, with a spelling mistake. Each guest takes a while to go away, and keeps a
//! thread inside the function that a patch object replaces: so the transition takes a while, too.
//! The program prints what to type in another terminal.

use anyhow::{Context, Result};
use clap::Parser;
use klp_core::port::Verifier;
use klp_demo_greeter::{PATCH, PATCH_NAME, serve};
use klp_ed25519::Keys;
use klp_os_linux::process::{Livepatch, Options};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A little server to try the command `klp` on
#[derive(Parser)]
struct Args {
    /// Threads that greet guests
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    threads: u32,
    /// Milliseconds that the slowest guest takes to go away
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=3_600_000))]
    slowest: u32,
    /// Where to put the socket, instead of the default place
    #[arg(long)]
    socket: Option<PathBuf>,
    /// A folder with the keys of those who may sign patches (NAME.pub)
    #[arg(long)]
    keys: Option<PathBuf>,
    /// Print the engine's log
    #[arg(long)]
    log: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let sink = || -> klp_os_linux::process::EventSink {
        Box::new(|event| println!("    livepatch: {event}"))
    };
    let verifier = args.keys.map(|folder| -> Result<Box<dyn Verifier>> {
        Ok(Box::new(Keys::read(folder).context("--keys")?))
    });
    let livepatch = Livepatch::init(Options {
        events: args.log.then(sink),
        verifier: verifier.transpose()?,
        ..Options::default()
    })
    .context("livepatching cannot be set up")?;
    let socket = livepatch
        .serve(args.socket.as_deref())
        .context("the socket cannot be made")?;
    let pid = std::process::id();
    println!("pid    {pid}");
    println!("socket {}", socket.display());
    println!("patch  {PATCH}");
    println!(
        "
Try, in another terminal, in the folder of the repository:

    alias klp='cargo run --quiet -p klp-os-linux --bin klp -- --socket {}'
    klp check {PATCH}
    klp enable {PATCH}
    klp status
    klp disable {PATCH_NAME}
    klp --help

End it with Ctrl-C.
",
        socket.display()
    );

    let guests = Arc::new(AtomicU32::new(0));
    let last = Arc::new(Mutex::new(String::new()));
    for thread in 0..args.threads {
        let (guests, last) = (Arc::clone(&guests), Arc::clone(&last));
        // From almost no time to the slowest.
        let time = Duration::from_millis(
            (u64::from(args.slowest) * u64::from(thread + 1) / u64::from(args.threads)).max(1),
        );
        std::thread::Builder::new()
            .name(format!("greeter-{thread}"))
            .spawn(move || {
                loop {
                    let said = serve(guests.fetch_add(1, Relaxed), time);
                    if let Ok(mut last) = last.lock() {
                        *last = said;
                    }
                }
            })?;
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let said = last.lock().map(|said| said.clone()).unwrap_or_default();
        if !said.is_empty() {
            println!(
                "{} guests; the last one heard: {said}",
                guests.load(Relaxed)
            );
        }
    }
}
