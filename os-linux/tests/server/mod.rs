//! The example `server` as a process of its own, and the command `klp` on it.
#![allow(dead_code, reason = "not every test needs everything")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) const KLP: &str = env!("CARGO_BIN_EXE_klp");

/// The program.
pub(crate) fn example() -> PathBuf {
    let example = Path::new(KLP).with_file_name("examples").join("server");
    assert!(
        example.exists(),
        "build it first: cargo build -p klp-os-linux --example server"
    );
    example
}

/// A folder of its own for each test, removed at the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("klp-control-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).expect("there is room for files");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The example `server`, at work.
pub(crate) struct Server {
    pub(crate) process: Child,
    pub(crate) socket: PathBuf,
    /// The patch object that comes with it.
    pub(crate) patch: String,
    pub(crate) folder: Folder,
    /// What it said at its beginning.
    pub(crate) said: Vec<String>,
}

impl Server {
    /// Starts it; `slowest` is how many milliseconds a thread stays in a patched function at most.
    pub(crate) fn start(slowest: u32) -> Self {
        Self::start_with(slowest, &[])
    }

    /// The same with more options.
    pub(crate) fn start_with(slowest: u32, options: &[&OsStr]) -> Self {
        Self::begin(&example(), slowest, options)
    }

    /// The same with a copy of the program.
    pub(crate) fn start_program(program: &Path, slowest: u32) -> Self {
        Self::begin(program, slowest, &[])
    }

    fn begin(program: &Path, slowest: u32, options: &[&OsStr]) -> Self {
        let folder = Folder::new();
        let socket = folder.0.join("server.sock");
        let mut process = Command::new(program)
            .args([
                "--threads",
                "4",
                "--slowest",
                &slowest.to_string(),
                "--socket",
            ])
            .arg(&socket)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example runs");
        let out = process.stdout.take().expect("it was asked for");
        let mut lines = BufReader::new(out).lines();
        let text = lines.by_ref().map(|line| line.expect("text"));
        let said: Vec<String> = text
            .take_while(|line| !line.starts_with("End it"))
            .collect();
        let patch = said.iter().find_map(|line| line.strip_prefix("patch "));
        let patch = patch.expect("it says where the patch is").trim().to_owned();
        // Its pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            process,
            socket,
            patch,
            folder,
            said,
        }
    }

    pub(crate) fn klp(&self, args: &[&str]) -> Command {
        let mut command = Command::new(KLP);
        command.arg("--socket").arg(&self.socket).args(args);
        command
    }

    /// Runs `klp` where there is no terminal: what it says, and how it ends.
    pub(crate) fn plain(&self, args: &[&str]) -> (String, i32) {
        let output = self.klp(args).output().expect("klp runs");
        let said = [output.stdout, output.stderr].concat();
        (
            String::from_utf8_lossy(&said).into_owned(),
            output.status.code().expect("it ends by itself"),
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
