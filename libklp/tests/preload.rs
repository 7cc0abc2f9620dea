//! Programs that know nothing of the library, and have it as `LD_PRELOAD`.

mod common;

use common::{PADS, Workshop, said};
use klp_os_linux::control::{Reply, Request, Source, ask};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that answers line by line, with the library loaded into it.
struct Guest {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    socket: PathBuf,
}

impl Guest {
    fn start(workshop: &Workshop, command: &mut Command) -> Self {
        let mut process = command
            .env("LD_PRELOAD", workshop.libklp())
            .env("XDG_RUNTIME_DIR", workshop.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be run");
        let input = process.stdin.take().expect("it was asked for");
        let output = BufReader::new(process.stdout.take().expect("it was asked for"));
        let socket = workshop.path(&format!("klp/{}.sock", process.id()));
        Self {
            process,
            input,
            output,
            socket,
        }
    }

    fn answer(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("it reads");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("it writes");
        answer.trim_end().to_owned()
    }

    fn end(mut self) -> Option<i32> {
        drop(self.input);
        self.process.wait().expect("it ends").code()
    }
}

/// Has the server at `socket` do something and brings it to its end.
fn request(socket: &Path, request: &Request) {
    let reply = wait_for(|| ask(socket, request).ok(), "it serves");
    assert!(!matches!(reply, Reply::Refused { .. }), "{reply:?}");
    let is_settled = || match ask(socket, &Request::Status).expect("it serves") {
        Reply::Status { patches, .. } => patches
            .iter()
            .all(|patch| patch.transition.is_none())
            .then_some(()),
        other => panic!("{other:?}"),
    };
    wait_for(is_settled, "the transition ends");
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>, why: &str) -> T {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match what() {
            Some(result) => return result,
            None => assert!(Instant::now() < end, "{why}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn enable(file: &Path) -> Request {
    Request::Enable {
        patches: vec![Source::File(file.to_owned())],
    }
}

fn disable(name: &str) -> Request {
    Request::Disable {
        patches: vec![name.to_owned()],
    }
}

fn unaware(workshop: &Workshop) -> PathBuf {
    let greeter = workshop.patchable("examples/greeter.c");
    workshop.compile("cc", "examples/unaware.c", "unaware", [greeter])
}

#[test]
fn a_program_that_knows_nothing() {
    let workshop = Workshop::new();
    let fix = workshop.patch("examples/greeter_fix.c");
    let mut guest = Guest::start(&workshop, &mut Command::new(unaware(&workshop)));
    assert_eq!(guest.answer("ann"), "helo ann");
    request(&guest.socket, &enable(&fix));
    assert_eq!(guest.answer("bob"), "hello bob");
    request(&guest.socket, &disable("greeter_fix"));
    assert_eq!(guest.answer("eve"), "helo eve");
    let socket = guest.socket.clone();
    assert!(socket.exists());
    assert_eq!(guest.end(), Some(42));
    assert!(!socket.exists(), "it leaves nothing behind");
}

/// Patches for it are signed, or refused; without its keys it is not served.
#[test]
fn keys_of_a_program_that_knows_nothing() {
    let workshop = Workshop::new();
    let fix = workshop.patch("examples/greeter_fix.c");
    let (keys, sign) = workshop.keys();
    let program = unaware(&workshop);
    let mut guest = Guest::start(&workshop, Command::new(&program).env("KLP_KEYS", &keys));
    let reply = wait_for(|| ask(&guest.socket, &enable(&fix)).ok(), "it serves");
    assert!(
        matches!(&reply, Reply::Refused { errno, .. } if *errno == -libc::ENODATA),
        "{reply:?}"
    );
    assert_eq!(guest.answer("ann"), "helo ann");
    request(&guest.socket, &enable(&sign(&fix)));
    assert_eq!(guest.answer("bob"), "hello bob");
    guest.end();

    let run = |keys: &Path| {
        let mut command = Command::new(&program);
        command
            .env("LD_PRELOAD", workshop.libklp())
            .env("XDG_RUNTIME_DIR", workshop.path(""))
            .env("KLP_PRELOAD_VERBOSE", "1")
            .env("KLP_KEYS", keys);
        said_by(command.stdin(Stdio::null()).output())
    };
    let said = run(Path::new("/nowhere"));
    assert!(
        said.contains("not served: KLP_KEYS: /nowhere: No such"),
        "{said}"
    );
    let said = run(&keys);
    assert!(
        said.contains("served at") && !said.contains("no keys"),
        "{said}"
    );
}

/// Debian's interpreter, and a module in C that it loads while it runs.
#[test]
fn a_python_interpreter() {
    const PYTHON: &str = "/usr/bin/python3";
    let paths = "import sysconfig; print(sysconfig.get_paths()['include'])";
    let include = match Command::new(PYTHON).args(["-c", paths]).output() {
        Ok(output) => PathBuf::from(said(&output).trim()),
        Err(error) => return println!("skipped: {PYTHON}: {error}"),
    };
    if !include.join("Python.h").exists() {
        return println!(
            "skipped: there is no {}",
            include.join("Python.h").display()
        );
    }
    let workshop = Workshop::new();
    let include = format!("-I{}", include.display());
    let args = [&PADS[..], &["-shared", "-fPIC", &include]].concat();
    workshop.compile("cc", "examples/question.c", "question.so", args);
    let fix = workshop.patch("examples/question_fix.c");

    let program = "import sys\nfor line in sys.stdin:\n    print(eval(line), flush=True)";
    let mut command = Command::new(PYTHON);
    command
        .args(["-c", program])
        .env("PYTHONPATH", workshop.path(""));
    let mut guest = Guest::start(&workshop, &mut command);
    assert_eq!(guest.answer("__import__('question').ask()"), "41");
    request(&guest.socket, &enable(&fix));
    assert_eq!(guest.answer("__import__('question').ask()"), "42");
    // The interpreter is what it was.
    let subprocess = "__import__('subprocess').run(['sh', '-c', 'exit 3']).returncode";
    assert_eq!(guest.answer(subprocess), "3");
    let threads = "__import__('threading').active_count()";
    assert_eq!(guest.answer(threads), "1");
    let fork = "[p := __import__('os').fork(), p or __import__('os')._exit(5)] and \
                __import__('os').waitstatus_to_exitcode(__import__('os').waitpid(p, 0)[1])";
    assert_eq!(guest.answer(fork), "5");
    request(&guest.socket, &disable("question_fix"));
    assert_eq!(guest.answer("__import__('question').ask()"), "41");

    // One that comes when the patch is there already.
    let mut late = Guest::start(&workshop, &mut command);
    assert_eq!(late.answer("1 + 1"), "2");
    request(&late.socket, &enable(&fix));
    let ask = || (late.answer("__import__('question').ask()") == "42").then_some(());
    wait_for(ask, "the server takes notice of the module");
    assert_eq!((guest.end(), late.end()), (Some(0), Some(0)));
}

/// Its signals are its own, and it closes descriptors that it does not know.
#[test]
fn a_daemon_that_forks() {
    let workshop = Workshop::new();
    let greeter = workshop.patchable("examples/greeter.c");
    let daemon = workshop.compile("cc", "tests/c/daemon.c", "daemon", [greeter]);
    let fix = workshop.patch("examples/greeter_fix.c");
    let log = workshop.path("log");
    let status = Command::new(daemon)
        .arg(&log)
        .env("LD_PRELOAD", workshop.libklp())
        .env("XDG_RUNTIME_DIR", workshop.path(""))
        .status()
        .expect("it can be run");
    assert_eq!(status.code(), Some(0));
    let lines = |count: usize| {
        let text = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            (lines.len() == count).then_some(lines)
        };
        wait_for(text, "it writes")
    };
    let pid = lines(1)[0].replace(" helo", "");
    let kill = |signal| {
        let status = Command::new("kill").args([signal, &*pid]).status();
        assert!(status.expect("there is a kill").success());
    };
    let socket = workshop.path(&format!("klp/{pid}.sock"));
    request(&socket, &enable(&fix));
    kill("-HUP");
    assert_eq!(lines(2)[1], format!("{pid} hello"));
    kill("-TERM");
    let gone = || (!Path::new("/proc").join(&pid).exists()).then_some(());
    wait_for(gone, "SIGTERM ends it as it meant it to");
    assert!(!socket.exists(), "it ended by itself");
}

#[test]
fn programs_that_are_left_alone() {
    let workshop = Workshop::new();
    let plain = workshop.path("plain.c");
    std::fs::write(&plain, "int main(void) { return 7; }\n").expect("there is room");
    let plain = workshop.compile("cc", &plain.to_string_lossy(), "plain", ["-O1"]);
    let run = |program: &Path, variables: &[(&str, &str)]| {
        let output = Command::new(program)
            .env("LD_PRELOAD", workshop.libklp())
            .env("XDG_RUNTIME_DIR", workshop.path(""))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .output()
            .expect("it can be run");
        (said(&output), output.status.code())
    };
    let verbose = ("KLP_PRELOAD_VERBOSE", "1");
    assert_eq!(run(&plain, &[]), (String::new(), Some(7)));
    let (said, code) = run(&plain, &[verbose]);
    assert!(
        code == Some(7) && said.contains("nothing in the program can be patched"),
        "{said}"
    );
    let (said, _) = run(&plain, &[verbose, ("KLP_SERVE", "1")]);
    assert!(
        said.contains("served at") && said.contains("signatures of patch objects are not verified"),
        "unless it is asked for: {said}"
    );

    // Whatever goes wrong, the program does not notice.
    let unaware = unaware(&workshop);
    assert_eq!(
        run(&unaware, &[("KLP_SERVE", "0"), verbose]),
        (String::new(), Some(42))
    );
    let nowhere = [("XDG_RUNTIME_DIR", "/nowhere"), ("TMPDIR", "/nowhere")];
    assert_eq!(run(&unaware, &nowhere), (String::new(), Some(42)));
    let (said, code) = run(&unaware, &[&nowhere[..], &[verbose]].concat());
    assert!(
        code == Some(42) && said.contains("not served: /nowhere/klp-"),
        "{said}"
    );
    let (said, code) = run(&unaware, &[("KLP_STOP_SIGNAL", "9"), verbose]);
    assert!(
        code == Some(42) && said.contains("KLP_STOP_SIGNAL is no real-time signal"),
        "{said}"
    );
    // A program that is only linked with the library serves nobody by itself.
    let greeter = workshop.path("greeter.o");
    let embed = workshop.shared("examples/embed.c", &greeter);
    let output = Command::new(embed).env(verbose.0, verbose.1).output();
    assert!(!said_by(output).contains("served"));
}

fn said_by(output: std::io::Result<std::process::Output>) -> String {
    said(&output.expect("it can be run"))
}

/// `klp run`, with the library where it is installed.
#[test]
fn the_command_run() {
    let own = std::env::current_exe().expect("it runs");
    let klp = own
        .parent()
        .and_then(Path::parent)
        .map(|folder| folder.join("klp"))
        .filter(|klp| klp.exists())
        .expect("build it first: cargo build -p klp-os-linux --bin klp");
    let workshop = Workshop::new();
    for folder in ["bin", "lib"] {
        std::fs::create_dir(workshop.path(folder)).expect("there is room");
    }
    let installed = workshop.path("bin/klp");
    std::fs::copy(&klp, &installed).expect("there is room");
    std::fs::set_permissions(&installed, std::fs::Permissions::from_mode(0o755))
        .expect("it is ours");
    let unaware = unaware(&workshop);
    let run = |args: &[&str], program: &Path| {
        let output = Command::new(&installed)
            .arg("run")
            .args(args)
            .arg(program)
            .args(["--pid", "1", "--", "x"])
            .env("XDG_RUNTIME_DIR", workshop.path(""))
            .env("KLP_PRELOAD_VERBOSE", "1")
            .stdin(Stdio::null())
            .output()
            .expect("klp runs");
        (said(&output), output.status.code())
    };
    let (said, code) = run(&[], &unaware);
    assert!(
        code == Some(127) && said.contains("lib/libklp.so; say --libklp"),
        "{said}"
    );
    let named = workshop.libklp().display().to_string();
    let (said, code) = run(&["--libklp", &named], &unaware);
    assert!(code == Some(42) && said.contains("served at"), "{said}");
    std::fs::copy(workshop.libklp(), workshop.path("lib/libklp.so")).expect("there is room");
    let (said, code) = run(&[], &unaware);
    assert!(code == Some(42) && said.contains("served at"), "{said}");
    let (said, code) = run(&[], Path::new("/nowhere/program"));
    assert!(
        code == Some(127) && said.contains("/nowhere/program"),
        "{said}"
    );
}
