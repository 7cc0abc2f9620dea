//! The command `klp` in a pseudo-terminal, on the example `server`; and who gets an answer from the
//! socket.

mod server;

use klp_os_linux::control::{Reply, Request, ask};
use server::{Folder, KLP, Server};
use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const NOBODY: u32 = 65534;

impl Server {
    /// Runs `klp` in a pseudo-terminal: what appears there, and how it ends.
    fn terminal(&self, args: &[&str]) -> (String, i32) {
        in_terminal(self.klp(args))
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

/// What `run` shows when it shows `text`. All guests may go at once before anybody looks, and then
/// there is nothing to watch: so it is tried again, after `back`.
fn until_there_is(text: &str, run: impl Fn() -> String, back: impl Fn()) -> String {
    let mut screen = run();
    for _ in 0..20 {
        if screen.contains(text) {
            break;
        }
        back();
        screen = run();
    }
    assert!(screen.contains(text), "no {text}: {screen}");
    screen
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

    let screen = until_there_is(
        "enabling 'greeter_fix' [",
        || {
            let (screen, code) = server.terminal(&["enable", &patch]);
            assert_eq!(code, 0, "{screen}");
            screen
        },
        || {
            assert_eq!(server.plain(&["disable", "greeter_fix"]).1, 0);
            assert_eq!(server.plain(&["remove", "greeter_fix"]).1, 0);
        },
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

    let screen = until_there_is(
        "disabling 'greeter_fix' [",
        || {
            let (screen, code) = server.terminal(&["disable", "greeter_fix", "--no-wait"]);
            assert_eq!(code, 0, "{screen}");
            assert!(screen.contains("'greeter_fix': "), "{screen}");
            let (screen, code) = server.terminal(&["watch"]);
            assert_eq!(code, 0, "{screen}");
            screen
        },
        || assert_eq!(server.plain(&["enable", "greeter_fix"]).1, 0),
    );
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

/// A file that is loaded already is known by what is in it.
#[test]
fn a_file_is_enabled_again() {
    let server = Server::start(10);
    let enabled = ("'greeter_fix': enabled\n", 0);
    let enable = |file: &str| {
        let (said, code) = server.plain(&["enable", file]);
        let last = said.lines().last().unwrap_or_default().to_owned() + "\n";
        (last, code)
    };
    let copy = server.folder.0.join("copy.ko");
    std::fs::copy(&server.patch, &copy).expect("there is room");
    let copy = copy.to_string_lossy();
    for file in [&*server.patch, &*server.patch, &*copy] {
        let (said, code) = enable(file);
        assert_eq!((&*said, code), enabled);
        let (said, code) = server.plain(&["disable", "greeter_fix"]);
        assert_eq!(code, 0, "{said}");
        let (said, code) = server.plain(&["check", file]);
        assert!(code == 0 && said.contains("can be enabled"), "{said}");
    }
    let (said, _) = server.plain(&["list"]);
    assert_eq!(said.matches("greeter_fix").count(), 1, "{said}");

    // The same name, and other contents.
    let mut bytes = std::fs::read(&server.patch).expect("it was built");
    bytes.push(0);
    let other = server.folder.0.join("other.ko");
    std::fs::write(&other, bytes).expect("there is room");
    let other = other.to_string_lossy();
    for verb in ["check", "enable"] {
        let (said, code) = server.plain(&[verb, &other]);
        let why =
            format!("a patch of that name is there already, made of another file than {other}");
        assert!(code == 1 && said.contains(&why), "{said}");
    }
}

/// The same patch under another name, on top of the first.
#[test]
fn two_patches_as_one() {
    let (held, server) = (Server::start(600_000), Server::start(600));
    // Let the threads get into the function.
    std::thread::sleep(Duration::from_millis(200));
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
        ("klp: patch 'greeter_fix': it is listed twice\n", 1)
    );
    assert_eq!(
        server.plain(&["list"]),
        ("no patch is loaded\n".into(), 0),
        "the first is unloaded again"
    );

    let (said, code) = held.plain(&["enable", both[0], both[1], "--no-wait"]);
    assert_eq!(code, 0, "{said}");
    let moving = |name: &str, said: &str| said.contains(&format!("'{name}': being enabled, "));
    assert!(
        moving("greeter_fix", &said) && moving("greeter_two", &said),
        "{said}"
    );
    let (said, code) = held.plain(&["reverse", "greeter_two"]);
    assert_eq!(
        (code, said.contains("'greeter_two': disabled")),
        (0, true),
        "{said}"
    );
    let (said, code) = server.plain(&["enable", both[0], both[1]]);
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

    // Those who say nothing, have gone, or do not end are not waited for.
    let connect = || UnixStream::connect(&server.socket).expect("it serves");
    let _silent: Vec<UnixStream> = (0..100).map(|_| connect()).collect();
    drop(connect());
    let mut endless = connect();
    while endless.write_all(&[b' '; 4096]).is_ok() {}
    let begin = Instant::now();
    let reply = ask(&server.socket, &Request::Status).expect("it answers");
    assert!(
        matches!(&reply, Reply::Status { pid, .. } if *pid == server.process.id()),
        "{reply:?}"
    );
    let (said, code) = server.plain(&["enable", &server.patch]);
    assert_eq!(code, 0, "transitions are brought on meanwhile: {said}");
    assert!(
        begin.elapsed() < Duration::from_secs(100),
        "{:?}",
        begin.elapsed()
    );
}

/// It is asked again only when it goes on, and what it was asked meanwhile is not done.
#[test]
fn a_server_that_is_stopped() {
    let server = Server::start(10);
    let pid = libc::pid_t::try_from(server.process.id()).expect("it is one");
    let signal = |signal| {
        // SAFETY: numbers only; it is a child of this process that was not waited for.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0);
    };
    signal(libc::SIGSTOP);
    // SAFETY: it is a child; its status is of no interest.
    let stopped = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WUNTRACED) };
    assert_eq!(stopped, pid);
    for args in [&["list"][..], &["enable", &server.patch]] {
        let (said, code) = server.plain(args);
        assert!(code == 1 && said.contains("it does not answer"), "{said}");
    }
    // Not even if more have connected than the kernel keeps.
    let full: Vec<UnixStream> = (0..5000)
        .map_while(|_| {
            let socket = socket_that_does_not_wait();
            connect(&socket, &server.socket).then(|| socket.into())
        })
        .collect();
    let (said, code) = server.plain(&["list"]);
    assert!(code == 1 && said.contains("it does not answer"), "{said}");
    drop(full);
    signal(libc::SIGCONT);
    let end = Instant::now() + Duration::from_secs(20);
    while server.plain(&["list"]).1 != 0 && Instant::now() < end {}
    assert_eq!(
        server.plain(&["list"]),
        ("no patch is loaded\n".into(), 0),
        "who asked for one had gone"
    );
}

fn socket_that_does_not_wait() -> OwnedFd {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: numbers only.
    let socket = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    assert!(socket >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new.
    unsafe { OwnedFd::from_raw_fd(socket) }
}

/// Whether there was room.
fn connect(socket: &OwnedFd, path: &Path) -> bool {
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as libc::sa_family_t,
        sun_path: [0; 108],
    };
    let bytes = path.as_os_str().as_encoded_bytes();
    for (to, from) in address.sun_path[..107].iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the address is valid, of that length, and ends with a null.
    unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) == 0 }
}

/// A copy of the example `server` under a name of its own, which others of the machine do not have,
/// with its socket at the default place for the variables in its environment.
struct Named {
    process: Child,
    patch: String,
    _out: BufReader<ChildStdout>,
}

impl Named {
    fn start(command: &mut Command) -> Self {
        let mut process = command
            .args(["--threads", "1", "--slowest", "10"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example runs");
        let mut out = BufReader::new(process.stdout.take().expect("it was asked for"));
        let patch = out
            .by_ref()
            .lines()
            .find_map(|line| Some(line.ok()?.strip_prefix("patch ")?.trim().to_owned()));
        Self {
            process,
            patch: patch.expect("it serves"),
            // The example would die of a closed pipe.
            _out: out,
        }
    }

    fn pid(&self) -> String {
        self.process.id().to_string()
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Copies the example, for everybody to execute.
fn copy_of_server(folder: &Folder, name: &str) -> PathBuf {
    let copy = folder.0.join(format!("{name}-{}", std::process::id()));
    let example = Path::new(KLP).with_file_name("examples").join("server");
    // By another process: whoever is forked by another test meanwhile would hold the file open, and
    // nobody could execute it.
    let copied = Command::new("cp").arg(example).arg(&copy).status();
    assert!(copied.expect("`cp` runs").success(), "there is room");
    for path in [&folder.0, &copy] {
        std::fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");
    }
    copy
}

/// A folder in the first one, of a user.
fn folder_of(folder: &Folder, name: &str, user: u32) -> PathBuf {
    let path = folder.0.join(name);
    std::fs::create_dir(&path).expect("there is room");
    std::fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("it is ours");
    std::os::unix::fs::chown(&path, Some(user), Some(user)).expect("it may be given away");
    path
}

fn klp(args: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(KLP).args(args).output().expect("klp runs");
    let said = [output.stdout, output.stderr].concat();
    (
        String::from_utf8_lossy(&said).into_owned(),
        output.status.code(),
    )
}

fn is_root() -> bool {
    // SAFETY: no arguments, cannot fail.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("skipped: only root can become another user");
    }
    root
}

/// Wherever the environment of each has put its socket.
#[test]
fn several_processes() {
    let folder = Folder::new();
    let own = folder_of(&folder, "run", user());
    let server = copy_of_server(&folder, "many");
    let glob = format!("many-{}*", std::process::id());
    let many = |args: &[&str]| klp(&[&["--name", &glob], args].concat());
    assert_eq!(
        many(&["list"]),
        (
            "klp: no process that can be patched is as asked for\n".into(),
            Some(1)
        )
    );
    let one = Named::start(Command::new(&server).env("XDG_RUNTIME_DIR", &own));
    let at_tmpdir = || {
        let mut command = Command::new(&server);
        command
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", &folder.0);
        command
    };
    let two = Named::start(&mut at_tmpdir());
    let name = server.file_name().expect("it has one").to_string_lossy();
    let lines = |what: &str| {
        let mut pids = [one.process.id(), two.process.id()];
        pids.sort_unstable();
        format!("{} {name}: {what}\n{} {name}: {what}\n", pids[0], pids[1])
    };

    let check = many(&["check", &one.patch]);
    let fits = "'greeter_fix': 2 functions checked, it can be enabled";
    assert_eq!(check, (lines(fits), Some(0)));
    assert_eq!(
        many(&["enable", &one.patch]),
        (lines("'greeter_fix': enabled"), Some(0))
    );
    assert_eq!(
        many(&["--library", "libc", "list"]),
        (lines("'greeter_fix': enabled"), Some(0))
    );
    assert_eq!(many(&["--library", "libnothing*", "list"]).1, Some(1));
    // One refuses, the other does it.
    assert_eq!(
        klp(&["--pid", &one.pid(), "disable", "greeter_fix"]).1,
        Some(0)
    );
    let (said, code) = many(&["disable", "greeter_fix"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&format!("{} {name}: the patch is not enabled\n", one.pid()))
            && said.contains(&format!("{} {name}: 'greeter_fix': disabled\n", two.pid())),
        "{said}"
    );
    let (said, code) = many(&["--json", "list"]);
    assert_eq!(code, Some(0), "{said}");
    for line in said.lines() {
        let json: serde_json::Value = serde_json::from_str(line).expect("an object");
        assert_eq!(json["program"].as_str(), Some(&*name));
        assert_eq!(json["patches"][0]["name"].as_str(), Some("greeter_fix"));
    }

    assert_eq!(
        klp(&["--pid", &two.pid(), "enable", "greeter_fix"]).1,
        Some(0)
    );
    let (said, code) = many(&["ps"]);
    assert_eq!(code, Some(0), "{said}");
    let row = |named: &Named| {
        let is_of = |line: &&str| line.split_whitespace().next() == Some(&*named.pid());
        said.lines().find(is_of).expect("it is listed").to_owned()
    };
    assert!(row(&one).ends_with(" -"), "{said}");
    assert!(row(&two).ends_with(" 'greeter_fix': enabled"), "{said}");
    let gone = two.pid();
    drop(two);
    let (said, code) = many(&["list"]);
    assert_eq!(
        (said, code),
        (
            format!("{} {name}: 'greeter_fix': disabled\n", one.pid()),
            Some(0)
        ),
        "dead ones vanish"
    );
    assert!(
        klp(&["--pid", &gone, "list"])
            .0
            .contains("there is no process")
    );
    assert_eq!(
        many(&["--pid", &gone, "list"]).1,
        Some(2),
        "one or the other"
    );

    // Who comes next tidies up.
    let of_two = folder
        .0
        .join(format!("klp-{}", user()))
        .join(format!("{gone}.sock"));
    assert!(of_two.exists());
    let three = Named::start(&mut at_tmpdir());
    assert!(!of_two.exists());
    drop(three);
}

/// The caller's effective user.
fn user() -> u32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::geteuid() }
}

#[test]
fn who_serves_is_who_should() {
    let folder = Folder::new();
    let server = copy_of_server(&folder, "who");
    // One process in the name of another: of this one, which serves nobody.
    let own = folder_of(&folder, "klp", user());
    let socket = own.join(format!("{}.sock", std::process::id()));
    let other = Named::start(Command::new(&server).arg("--socket").arg(&socket));
    let (said, code) = klp(&["--pid", &std::process::id().to_string(), "list"]);
    let who = format!("process {} of user {} serves there", other.pid(), user());
    assert!(code == Some(1) && said.contains(&who), "{said}");
    // A folder that others may enter.
    let open = |mode| {
        std::fs::set_permissions(&own, Permissions::from_mode(mode)).expect("it is ours");
    };
    open(0o711);
    let (said, code) = klp(&["--pid", &std::process::id().to_string(), "list"]);
    let why = "others than its owner may enter the folder";
    assert!(code == Some(1) && said.contains(why), "{said}");
}

#[test]
fn the_superuser_and_others() {
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    let server = copy_of_server(&folder, "other");
    let theirs = folder_of(&folder, "theirs", NOBODY);
    let mut command = Command::new(&server);
    command
        .env("XDG_RUNTIME_DIR", &theirs)
        .uid(NOBODY)
        .gid(NOBODY);
    let right = Named::start(&mut command);
    assert_eq!(
        klp(&["--pid", &right.pid(), "list"]),
        ("no patch is loaded\n".into(), Some(0)),
        "root may ask"
    );
    let (said, _) = klp(&["ps"]);
    let listed = |line: &str| line.contains(&right.pid()) && line.contains("nobody");
    assert!(said.lines().any(listed), "{said}");

    // A folder that another user has made in root's name.
    let fake = folder_of(&folder, "klp-0", NOBODY);
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            r#"s=$0; d=$1; shift; exec "$s" --socket "$d/$$.sock" "$@""#,
        ])
        .args([&server, &fake])
        .uid(NOBODY)
        .gid(NOBODY);
    let wrong = Named::start(&mut command);
    let (said, code) = klp(&["--pid", &wrong.pid(), "list"]);
    let whose = format!("the folder belongs to user {NOBODY}");
    assert!(code == Some(1) && said.contains(&whose), "{said}");
    let (said, _) = klp(&["ps"]);
    assert!(!said.contains(&wrong.pid()), "{said}");
    // And root does not serve there.
    let mut command = Command::new(&server);
    command
        .env_remove("XDG_RUNTIME_DIR")
        .env("TMPDIR", &folder.0);
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(&whose), "{said}");

    // Root's are not for others, nor do they see them.
    let klp = folder.0.join("klp");
    // By another process: a child of another test's could have the file open for writing.
    let copied = Command::new("cp").arg(KLP).arg(&klp).status();
    assert!(copied.expect("there is cp").success());
    let own = folder_of(&folder, "own", 0);
    let roots = Named::start(Command::new(&server).env("XDG_RUNTIME_DIR", &own));
    let as_other = |args: &[&str]| {
        let mut command = Command::new(&klp);
        let output = command
            .args(args)
            .current_dir("/")
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .expect("klp runs");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    };
    assert!(as_other(&["--pid", &roots.pid(), "list"]).contains("Permission denied"));
    assert!(!as_other(&["ps"]).contains(&roots.pid()));
    assert!(as_other(&["ps"]).contains(&right.pid()), "its own it does");
}

#[test]
fn completions_and_manual_pages_know_all_commands() {
    let folder = Folder::new();
    let (said, code) = klp(&["completions", "bash"]);
    assert!(code == Some(0) && said.contains("--library"), "{said}");
    assert_eq!(klp(&["man", &folder.0.to_string_lossy()]).1, Some(0));
    for page in ["klp.1", "klp-ps.1", "klp-run.1", "klp-enable.1"] {
        assert!(folder.0.join(page).exists(), "{page}");
    }
}

#[test]
fn another_user_gets_nothing() {
    if !is_root() {
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
    // By another process: a child of another test's could have the file open for writing.
    let copied = Command::new("cp").arg(KLP).arg(&klp).status();
    assert!(copied.expect("there is cp").success());
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

/// As a user who has nothing else.
#[test]
fn the_only_process_there_is() {
    if !is_root() {
        return;
    }
    let alone = 1_000_000_000 + std::process::id();
    let folder = Folder::new();
    let server = copy_of_server(&folder, "only");
    let own = folder_of(&folder, "run", alone);
    let klp = folder.0.join("klp");
    // By another process: a child of another test's could have the file open for writing.
    let copied = Command::new("cp").arg(KLP).arg(&klp).status();
    assert!(copied.expect("there is cp").success());
    let as_user = |program: &Path| {
        let mut command = Command::new(program);
        command.env("XDG_RUNTIME_DIR", &own).uid(alone).gid(alone);
        command
    };
    let list = || {
        let output = as_user(&klp).arg("list").output().expect("klp runs");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    };
    assert!(list().contains("no process of yours can be patched"));
    let first = Named::start(&mut as_user(&server));
    assert_eq!(list(), "no patch is loaded\n");
    let second = Named::start(&mut as_user(&server));
    assert!(list().contains("several processes can be patched"));
    drop(first);
    assert_eq!(list(), "no patch is loaded\n");
    let socket = own.join("klp").join(format!("{}.sock", second.pid()));
    drop(second);
    assert!(socket.exists(), "nobody tidied up");
    assert!(
        list().contains("no process of yours can be patched"),
        "but nobody serves"
    );
}
