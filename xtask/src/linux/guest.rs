//! A kernel in QEMU, without KVM: what the guest prints, what its kernel logged, and how it ended.
//!
//! The first serial line is the kernel's console and goes to a file; the second one is the job's
//! output and comes here.

use super::initramfs::Initramfs;
use super::log::Log;
use super::which::Kernel;
use super::work::{dir, step};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

const INIT: &str = include_str!("guest/init.sh");
const SHELL: &str = include_str!("guest/shell.sh");
/// What `init` prints before the job's exit status.
const END: &str = "klp-guest: exit ";

/// A job for a guest: a script, the files that it needs and how long it may take.
pub(super) struct Job<'a> {
    pub(super) name: &'a str,
    pub(super) script: &'a str,
    /// Path in the guest to file here.
    pub(super) files: Vec<(String, PathBuf)>,
    pub(super) limit: Duration,
    /// How QEMU emulates the processors: [`PARALLEL`] or [`IN_TURN`].
    pub(super) processors: &'static str,
}

/// Each processor on a thread of its own.
pub(super) const PARALLEL: &str = "tcg,thread=multi";
/// All processors on one thread, in turn. QEMU before 8.1 can let a processor run into a breakpoint
/// that another one has already removed, which the kernel takes for a bug; jobs that change code
/// all the time meet that.
pub(super) const IN_TURN: &str = "tcg,thread=single";

/// What came of a job that ended with status 0.
pub(super) struct Outcome {
    /// The lines that it printed.
    pub(super) output: Vec<String>,
    /// What the kernel said meanwhile.
    pub(super) log: Log,
}

/// Boots the kernel that was built in `build` and runs the job; an error if the job fails, the
/// kernel dies or time runs out.
pub(super) fn run(which: Kernel, build: &Path, job: Job) -> Result<Outcome> {
    let folder = dir(&format!("guest-{which}-{}", job.name))?;
    let image = pack(build, &folder, &job)?;
    let console = folder.join("console.log");
    step(
        &format!(
            "run {} on the kernel `{which}` (kernel's log: {})",
            job.name,
            console.display()
        ),
        || {
            let mut command = qemu(build, &image, job.processors, &console, "stdio");
            let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
            let mut child = Running(child.with_context(|| format!("cannot run {command:?}"))?);
            let watched = watch(&mut child.0, job.limit);
            drop(child);
            let log = Log::read(&console)?;
            match watched {
                Ok((output, 0)) => Ok(Outcome { output, log }),
                Ok((_, status)) => bail!("the job failed with status {status}{}", log.trouble()),
                Err(error) => {
                    Err(error.context(format!("the kernel's last words:\n{}", log.end())))
                }
            }
        },
    )
}

/// Boots the kernel with a shell on this terminal, in a folder with `files`.
pub(super) fn shell(which: Kernel, build: &Path, files: Vec<(String, PathBuf)>) -> Result<()> {
    let folder = dir(&format!("guest-{which}-shell"))?;
    let job = Job {
        name: "shell",
        script: SHELL,
        files,
        limit: Duration::MAX,
        processors: PARALLEL,
    };
    let image = pack(build, &folder, &job)?;
    let console = folder.join("console.log");
    eprintln!(
        "linux: a shell on the kernel `{which}`; `exit` ends it, Ctrl-A X kills it (kernel's log: {})",
        console.display()
    );
    // Beside the guest's line the terminal gets QEMU's monitor, so that Ctrl-C is for the guest.
    let mut command = qemu(build, &image, job.processors, &console, "mon:stdio");
    let mut child = Running(
        command
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?,
    );
    child.0.wait()?;
    Ok(())
}

fn pack(build: &Path, folder: &Path, job: &Job) -> Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let (init, script, image) = (
        folder.join("init"),
        folder.join("job.sh"),
        folder.join("initramfs"),
    );
    std::fs::write(&init, INIT)?;
    std::fs::write(&script, job.script)?;
    let mut files = Initramfs::new(&init)?;
    files.add("job/job.sh", &script)?;
    for (path, file) in &job.files {
        files.add(path, file)?;
    }
    files.pack(build, &image)?;
    Ok(image)
}

/// The first serial line is the kernel's and goes to the file `console`, the second one is the
/// guest's and goes `to`.
fn qemu(build: &Path, image: &Path, processors: &str, console: &Path, to: &str) -> Command {
    // A guest does not outlive us, even if we are killed.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args([
        "-accel",
        processors,
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "2G",
        "-nographic",
        "-no-reboot",
        "-nodefaults",
    ]);
    qemu.arg("-kernel")
        .arg(build.join("arch/x86/boot/bzImage"))
        .arg("-initrd")
        .arg(image);
    qemu.arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", to]);
    // The check of the timer fails on a busy machine. An oops ends the guest at once, with the
    // report as the log's last words.
    qemu.args([
        "-append",
        "console=ttyS0 no_timer_check loglevel=7 log_buf_len=8M oops=panic panic=-1 sysctl.kernel.panic_on_oops=1",
    ]);
    qemu
}

/// Passes on what the guest prints until it names the job's exit status.
fn watch(child: &mut Child, limit: Duration) -> Result<(Vec<String>, i32)> {
    let output = child.stdout.take().context("QEMU has no output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let begin = Instant::now();
    let mut output = Vec::new();
    loop {
        match lines.recv_timeout(limit.saturating_sub(begin.elapsed())) {
            Ok(line) => {
                let line = line.trim_end().to_owned();
                if let Some(status) = line.strip_prefix(END) {
                    return Ok((
                        output,
                        status
                            .parse()
                            .context("the guest's init names no exit status")?,
                    ));
                }
                println!("{line}");
                std::io::stdout().flush()?;
                output.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest did not end within {} s", limit.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the guest died"),
        }
    }
}

/// QEMU, which does not outlive this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
