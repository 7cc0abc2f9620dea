//! The command `klp` in a pseudo-terminal, on the example `server`; and who gets an answer from the
//! socket.

use klp_os_linux::control::{Reply, Request, ask};
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const KLP: &str = env!("CARGO_BIN_EXE_klp");
const NOBODY: u32 = 65534;

/// A folder of its own for each test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
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
struct Server {
    process: Child,
    socket: PathBuf,
    patch: String,
    folder: Folder,
}

impl Server {
    /// Starts it; `slowest` is how many milliseconds a thread stays in a patched function at most.
    fn start(slowest: u32) -> Self {
        let example = Path::new(KLP).with_file_name("examples").join("server");
        assert!(
            example.exists(),
            "build it first: cargo build -p klp-os-linux --example server"
        );
        let folder = Folder::new();
        let socket = folder.0.join("server.sock");
        let mut process = Command::new(example)
            .args([
                "--threads",
                "4",
                "--slowest",
                &slowest.to_string(),
                "--socket",
            ])
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example runs");
        let out = process.stdout.take().expect("it was asked for");
        let mut patch = None;
        let mut lines = BufReader::new(out).lines();
        for line in lines.by_ref() {
            let line = line.expect("text");
            patch = patch.or(line
                .strip_prefix("patch ")
                .map(|path| path.trim().to_owned()));
            if line.starts_with("End it") {
                break;
            }
        }
        // Its pipe must not fill up.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            process,
            socket,
            patch: patch.expect("it says where the patch is"),
            folder,
        }
    }

    fn klp(&self, args: &[&str]) -> Command {
        let mut command = Command::new(KLP);
        command.arg("--socket").arg(&self.socket).args(args);
        command
    }

    /// Runs `klp` where there is no terminal: what it says, and how it ends.
    fn plain(&self, args: &[&str]) -> (String, i32) {
        let output = self.klp(args).output().expect("klp runs");
        let said = [output.stdout, output.stderr].concat();
        (
            String::from_utf8_lossy(&said).into_owned(),
            output.status.code().expect("it ends by itself"),
        )
    }

    /// Runs `klp` in a pseudo-terminal: what appears there, and how it ends.
    fn terminal(&self, args: &[&str]) -> (String, i32) {
        in_terminal(self.klp(args))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn in_terminal(mut command: Command) -> (String, i32) {
    let (mut ours, mut theirs) = (-1, -1);
    let size = libc::winsize {
        ws_row: 24,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: both numbers are written, no name and no settings are given.
    let made = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            &raw const size,
        )
    };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptors are new, and nobody else has them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let end = || Stdio::from(theirs.try_clone().expect("descriptors can be had"));
    let mut child = command
        .env("TERM", "xterm")
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .expect("klp runs");
    // Once nobody has the other end, reading ends: with an error, as terminals do.
    drop((command, theirs));
    let (mut screen, mut part) = (Vec::new(), [0; 4096]);
    let mut terminal = std::fs::File::from(ours);
    while let Ok(len @ 1..) = terminal.read(&mut part) {
        screen.extend_from_slice(&part[..len]);
    }
    let status = child.wait().expect("it ends");
    (
        String::from_utf8_lossy(&screen).into_owned(),
        status.code().expect("it ends by itself"),
    )
}

/// As in the README: check, enable, watch it finish, status, disable.
#[test]
fn a_new_user_in_a_terminal() {
    let server = Server::start(1200);
    let patch = server.patch.clone();

    let (screen, code) = server.terminal(&["check", &patch]);
    assert_eq!(
        (code, screen.trim_end()),
        (0, "'greeter_fix': 2 functions checked, it can be enabled")
    );
    assert_eq!(
        server.terminal(&["list"]),
        ("no patch is loaded\r\n".into(), 0),
        "checking leaves nothing behind"
    );

    let (screen, code) = server.terminal(&["enable", &patch]);
    assert_eq!(code, 0, "{screen}");
    assert!(
        screen.contains("enabling 'greeter_fix' ["),
        "a progress bar: {screen}"
    );
    assert!(screen.contains("threads switched"), "{screen}");
    assert!(
        screen.trim_end().ends_with("'greeter_fix': enabled"),
        "{screen}"
    );

    let (screen, code) = server.terminal(&["status"]);
    let lines: Vec<&str> = screen.lines().map(str::trim).collect();
    assert_eq!(code, 0);
    assert_eq!(
        lines,
        [
            "'greeter_fix': enabled",
            "number 1 in force",
            "vmlinux: patched",
            "greeting,1",
            "greeter_serve,1"
        ]
    );
    assert_eq!(
        server.terminal(&["watch"]),
        ("no patch is in transition\r\n".into(), 0)
    );

    let (screen, code) = server.terminal(&["disable", "greeter_fix", "--no-wait"]);
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains("being disabled"), "{screen}");
    let (screen, code) = server.terminal(&["watch"]);
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains("disabling 'greeter_fix' ["), "{screen}");
    assert!(
        screen.trim_end().ends_with("'greeter_fix': disabled"),
        "{screen}"
    );

    assert_eq!(
        server.terminal(&["remove", "greeter_fix"]),
        ("'greeter_fix': removed\r\n".into(), 0)
    );
}

#[test]
fn a_transition_that_is_held_back() {
    let server = Server::start(600_000);
    let patch = server.patch.clone();
    // Let the threads get into the function.
    std::thread::sleep(Duration::from_millis(200));

    let (said, code) = server.plain(&["enable", &patch, "--timeout", "0.3"]);
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("enabling 'greeter_fix': 4 threads to go"),
        "plain lines: {said}"
    );
    assert!(
        said.contains("is in function 'greeter_serve' of 'vmlinux'"),
        "{said}"
    );

    let (said, code) = server.plain(&["blockers"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("greeter-0:") && said.contains("        greeter_serve+0x"),
        "{said}"
    );

    let (said, code) = server.plain(&["enable", "greeter_fix"]);
    assert_eq!(
        (said.as_str(), code),
        ("klp: the patch is enabled already\n", 1)
    );
    let (said, code) = server.plain(&["disable", "greeter_fix"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is in transition"), "{said}");

    assert_eq!(
        server.plain(&["cat", "livepatch/greeter_fix/transition"]),
        ("1\n".into(), 0)
    );
    assert_eq!(server.plain(&["signal", "greeter_fix"]).1, 0);
    // No thread has moved, so the way back is short.
    let (said, code) = server.plain(&["reverse", "greeter_fix"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.ends_with("'greeter_fix': disabled\n"), "{said}");
    assert_eq!(
        server.plain(&["cat", "livepatch/greeter_fix/enabled"]),
        ("0\n".into(), 0)
    );

    // By the attribute tree, then by force.
    assert_eq!(
        server.plain(&["set", "livepatch/greeter_fix/enabled", "1"]),
        ("1\n".into(), 0)
    );
    assert_eq!(
        server.plain(&["cat", "livepatch/greeter_fix/transition"]),
        ("1\n".into(), 0)
    );
    assert_eq!(
        server.plain(&["force", "greeter_fix"]).1,
        2,
        "without --vouch, that is wrong usage"
    );
    let (said, code) = server.plain(&["force", "greeter_fix", "--vouch"]);
    assert_eq!((said.as_str(), code), ("'greeter_fix': enabled\n", 0));
}

/// The same patch under another name, on top of the first.
#[test]
fn two_patches_as_one() {
    let server = Server::start(600);
    let mut file = std::fs::read(&server.patch).expect("it was built");
    let (name, other) = (b"greeter_fix", b"greeter_two");
    while let Some(at) = file.windows(name.len()).position(|bytes| bytes == name) {
        file[at..at + name.len()].copy_from_slice(other);
    }
    let second = server.folder.0.join("two.ko");
    std::fs::write(&second, file).expect("there is room");
    let second = second.to_string_lossy();

    let both = [&*server.patch, &second];
    let (said, code) = server.plain(&["enable", both[0], both[0]]);
    assert_eq!(
        (said.as_str(), code),
        ("klp: a patch of that name is there already\n", 1)
    );
    assert_eq!(
        server.plain(&["list"]),
        ("no patch is loaded\n".into(), 0),
        "the first is unloaded again"
    );

    let (said, code) = server.plain(&["enable", both[0], both[1], "--no-wait"]);
    assert_eq!(code, 0, "{said}");
    let moving = |name: &str, said: &str| said.contains(&format!("'{name}': being enabled, "));
    assert!(
        moving("greeter_fix", &said) && moving("greeter_two", &said),
        "{said}"
    );
    let (said, code) = server.plain(&["reverse", "greeter_two"]);
    assert_eq!(
        (code, said.contains("'greeter_two': disabled")),
        (0, true),
        "{said}"
    );
    let (said, code) = server.plain(&["enable", "greeter_fix", "greeter_two"]);
    assert!(
        code == 0 && said.ends_with("'greeter_fix': enabled\n'greeter_two': enabled\n"),
        "{said}"
    );
    let (said, _) = server.plain(&["status", "greeter_two"]);
    assert!(said.contains("number 2 in force"), "{said}");
    let (said, code) = server.plain(&["disable", "greeter_two", "greeter_fix"]);
    assert!(
        code == 0 && said.ends_with("'greeter_two': disabled\n'greeter_fix': disabled\n"),
        "{said}"
    );
    let (said, code) = server.plain(&["enable", "greeter_two", "greeter_two"]);
    assert_eq!(
        (said.as_str(), code),
        ("klp: patch 'greeter_two': it is listed twice\n", 1)
    );
}

#[test]
fn refusals_and_exit_codes() {
    let server = Server::start(10);
    for args in [
        &["nonsense"][..],
        &["enable"],
        &["disable"],
        &["list", "--timeout", "soon"],
        &["list", "--pid", "1"],
    ] {
        assert_eq!(server.plain(args).1, 2, "{args:?}");
    }
    for args in [
        &["disable", "unknown"][..],
        &["status", "unknown"],
        &["blockers"],
        &["enable", "unknown"],
    ] {
        let (said, code) = server.plain(args);
        assert_eq!(code, 1, "{args:?}: {said}");
        assert!(said.starts_with("klp: "), "{said}");
    }
    let garbage = server.folder.0.join("garbage.ko");
    std::fs::write(&garbage, "not an ELF file").expect("there is room");
    for verb in ["check", "enable"] {
        let (said, code) = server.plain(&[verb, &garbage.to_string_lossy()]);
        assert_eq!(code, 1, "{said}");
        assert!(said.starts_with("klp: patch 'garbage': "), "{said}");
    }
    let (said, code) = server.plain(&["--json", "disable", "unknown"]);
    let json: serde_json::Value = serde_json::from_str(&said).expect("one object");
    assert_eq!(
        (json["reply"].as_str(), json["errno"].as_i64(), code),
        (Some("refused"), Some(-2), 1)
    );
    let (said, code) = server.plain(&["--json", "enable", &server.patch]);
    let last = said.lines().last().unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(last).expect("one object in each line");
    assert_eq!(
        (
            json["patch"]["name"].as_str(),
            json["patch"]["enabled"].as_bool(),
            code
        ),
        (Some("greeter_fix"), Some(true), 0)
    );
    assert_eq!(
        server.plain(&["remove", "greeter_fix"]).1,
        1,
        "it is enabled"
    );

    let (said, code) = server.plain(&["--help"]);
    assert_eq!(code, 0);
    assert!(
        said.contains("Examples:") && said.contains("Exit codes:"),
        "{said}"
    );

    let nobody_there = server.folder.0.join("nothing.sock");
    let output = Command::new(KLP)
        .arg("--socket")
        .arg(nobody_there)
        .arg("list")
        .output()
        .expect("klp runs");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn clients_that_do_not_keep_to_the_protocol() {
    let server = Server::start(10);
    let mut answer = String::new();
    let mut stream = UnixStream::connect(&server.socket).expect("it serves");
    stream
        .write_all(b"{\"request\":\"dance\"}\n")
        .expect("it listens");
    BufReader::new(stream)
        .read_line(&mut answer)
        .expect("it answers");
    assert!(
        answer.starts_with("{\"reply\":\"refused\",\"error\":\"not a request: "),
        "{answer}"
    );

    // One that says nothing, and one that has gone, hold others up for a second each at most.
    let _silent = UnixStream::connect(&server.socket).expect("it serves");
    drop(UnixStream::connect(&server.socket).expect("it serves"));
    let begin = Instant::now();
    let reply = ask(&server.socket, &Request::Status).expect("it answers");
    assert!(
        matches!(&reply, Reply::Status { pid, .. } if *pid == server.process.id()),
        "{reply:?}"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn another_user_gets_nothing() {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        println!("skipped: only root can become another user");
        return;
    }
    let server = Server::start(10);
    let mode = std::fs::metadata(&server.socket)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // A copy that others may execute, wherever the original is.
    let klp = server.folder.0.join("klp");
    std::fs::copy(KLP, &klp).expect("there is room");
    let open = |path: &Path| {
        std::fs::set_permissions(path, Permissions::from_mode(0o777)).expect("it is ours")
    };
    open(&server.folder.0);
    open(&klp);
    let try_list = |user| {
        let mut command = Command::new(&klp);
        command
            .arg("--socket")
            .arg(&server.socket)
            .arg("list")
            .current_dir("/")
            .uid(user)
            .gid(user);
        let output = command.output().expect("klp runs");
        (
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            output.status.code(),
        )
    };
    let (said, code) = try_list(NOBODY);
    assert!(
        code == Some(1) && said.contains("Permission denied"),
        "the file's mode: {said}"
    );
    // Even if the file's mode lets them connect, they get no answer.
    open(&server.socket);
    let (said, code) = try_list(NOBODY);
    assert!(
        code == Some(1) && said.contains("no answer"),
        "the server's check: {said}"
    );
    assert_eq!(
        try_list(0),
        ("no patch is loaded\n".into(), Some(0)),
        "its owner does get one"
    );
}

#[test]
fn the_default_place_and_a_socket_left_behind() {
    let folder = Folder::new();
    let klp = |args: &[&str]| {
        let output = Command::new(KLP)
            .env("XDG_RUNTIME_DIR", &folder.0)
            .args(args)
            .output()
            .expect("klp runs");
        (
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            output.status.code(),
        )
    };
    let start = || {
        let example = Path::new(KLP).with_file_name("examples").join("server");
        let mut command = Command::new(example);
        let mut process = command
            .args(["--threads", "1", "--slowest", "10"])
            .env("XDG_RUNTIME_DIR", &folder.0)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example runs");
        let mut out = BufReader::new(process.stdout.take().expect("it was asked for"));
        let ready = out
            .by_ref()
            .lines()
            .any(|line| line.is_ok_and(|line| line.starts_with("socket ")));
        assert!(ready);
        // The example would die of a closed pipe.
        (process, out)
    };
    assert!(
        klp(&["list"])
            .0
            .contains("no process of yours can be patched")
    );
    let (mut first, _out) = start();
    assert_eq!(
        klp(&["list"]),
        ("no patch is loaded\n".into(), Some(0)),
        "there is only one"
    );
    assert_eq!(klp(&["--pid", &first.id().to_string(), "list"]).1, Some(0));
    first.kill().expect("it is ours");
    first.wait().expect("it ends");
    let socket = folder.0.join("klp").join(format!("{}.sock", first.id()));
    assert!(socket.exists(), "nobody tidied up");
    assert!(
        klp(&["list"])
            .0
            .contains("no process of yours can be patched"),
        "but nobody serves"
    );
}
