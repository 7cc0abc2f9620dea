//! What docs/authoring.md says is true: its files are written, its commands are run, and what they
//! print is compared.
#![cfg(target_arch = "x86_64")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: &str = include_str!("../../docs/authoring.md");

/// Commands that only look. What they show comes in a while, so they are repeated.
const LOOKING: [&str; 3] = ["klp ps", "klp status ", "tail "];

/// How long, on a machine that has other work.
const A_WHILE: Duration = Duration::from_secs(60);

/// What stands between fences.
#[derive(Debug)]
enum Block {
    /// ```` ```c price.c ````
    File(PathBuf, String),
    /// ```` ```sh ````
    Commands(String),
    /// ```` ```text ````: what the commands before it print. `…` is anything.
    Printed(String),
    /// A part of something.
    Excerpt,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(words) = line.strip_prefix("```") else {
            continue;
        };
        let inside = lines.by_ref().take_while(|line| *line != "```");
        let text: String = inside.map(|line| format!("{line}\n")).collect();
        blocks.push(match (words, words.split_once(' ')) {
            ("sh", _) => Block::Commands(text),
            ("text", _) => Block::Printed(text),
            (_, Some((_, file))) => Block::File(file.into(), text),
            (_, None) => Block::Excerpt,
        });
    }
    blocks
}

/// Whether a line is as the page shows it.
fn is_shown(shown: &str, line: &str) -> bool {
    let Some((before, after)) = shown.split_once('…') else {
        return shown == line;
    };
    line.strip_prefix(before).is_some_and(|rest| {
        let mut ends = rest.char_indices().map(|(at, _)| &rest[at..]);
        ends.any(|end| is_shown(after, end)) || is_shown(after, "")
    })
}

/// A reader's folder, and what the reader has installed.
struct Reader {
    folder: tempfile::TempDir,
    tools: tempfile::TempDir,
}

impl Reader {
    fn new() -> Self {
        let (folder, tools) = (tempfile::tempdir(), tempfile::tempdir());
        let (folder, tools) = (
            folder.expect("there is room"),
            tools.expect("there is room"),
        );
        // Cargo makes programs in one folder, and libraries in the next.
        let klp = Path::new(env!("CARGO_BIN_EXE_klp"));
        for place in ["klp", "klp-build", "klp-convert", "deps/libklp.so"] {
            let made = klp.with_file_name(place);
            let name = made.file_name().expect("it has a name");
            assert!(
                made.exists(),
                "there is no {}: cargo build -p klp-build -p libklp --bins --lib",
                made.display()
            );
            // The command looks for the library beside itself, wherever a link leads to.
            fs::copy(&made, tools.path().join(name)).expect("there is room");
        }
        let reader = Self { folder, tools };
        reader.prepare_cargo();
        reader
    }

    /// Has cargo take the crate from here, with what it needs as that is here.
    fn prepare_cargo(&self) {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = |name: &str| self.folder.path().join(name);
        fs::create_dir(path(".cargo")).expect("it is empty");
        let config = format!(
            "[patch.crates-io]\nklp-os-linux = {{ path = {:?} }}\n[net]\noffline = true\n\
             [profile.dev]\ndebug = false\n",
            here
        );
        fs::write(path(".cargo/config.toml"), config).expect("there is room");
        fs::copy(here.join("../Cargo.lock"), path("Cargo.lock")).expect("there is room");
        // Of what was compiled for the page before, most is still good.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("authoring");
        fs::create_dir_all(&target).expect("there is room");
        std::os::unix::fs::symlink(target, path("target")).expect("it is empty");
    }

    /// Writes a file of the page's.
    fn write(&self, file: &Path, text: &str) {
        let path = self.folder.path().join(file);
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("there is room");
        fs::write(path, text).expect("there is room");
    }

    /// Runs commands of the page's. Returns whether each of them did well, and what they print.
    fn run(&self, commands: &str) -> (bool, String) {
        let said = self.tools.path().join("said");
        let output = fs::File::create(&said).expect("there is room");
        let include = |package: &str| {
            let path = format!("{}/../{package}/include", env!("CARGO_MANIFEST_DIR"));
            path
        };
        let path = std::env::var("PATH").expect("there is one");
        let status = Command::new("bash")
            .args(["-e", "-c", commands])
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{path}", self.tools.path().display()))
            .env(
                "CPATH",
                [include("klp-build"), include("os-linux")].join(":"),
            )
            .env("XDG_RUNTIME_DIR", self.tools.path())
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("MAKEFLAGS")
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file"))
            .stderr(output)
            .status()
            .expect("there is a shell");
        let said = fs::read_to_string(said).expect("it was written");
        // Who waits for a transition is told how far it is.
        let lines = said.lines().filter(|line| !line.ends_with(" to go"));
        let said = lines.map(|line| format!("{line}\n")).collect();
        (status.success(), said)
    }

    /// Runs commands that print what is `shown`.
    fn follow(&self, commands: &str, shown: &str) {
        let only_look = commands
            .lines()
            .all(|line| LOOKING.iter().any(|looking| line.starts_with(looking)));
        let end = Instant::now() + A_WHILE;
        loop {
            let (is_well, said) = self.run(commands);
            let is_same = is_well
                && said.lines().count() == shown.lines().count()
                && shown.lines().zip(said.lines()).all(|(a, b)| is_shown(a, b));
            if is_same {
                return;
            }
            assert!(
                only_look && Instant::now() < end,
                "{commands}\nprints (all is well: {is_well})\n\n{said}\nbut the page shows\n\n{shown}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Reader {
    /// Ends what the page has started, if it came to no end.
    fn drop(&mut self) {
        for name in ["shop.pid", "till.pid"] {
            let text = fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
            let Ok(pid) = text.trim().parse::<i32>() else {
                continue;
            };
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            if exe
                .file_name()
                .is_some_and(|program| *program == *name.replace(".pid", ""))
            {
                // SAFETY: signals touch no memory; the process is one of the page's.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
    }
}

#[test]
fn every_command_on_the_page_works_as_it_is_shown() {
    let reader = Reader::new();
    let blocks = blocks(PAGE);
    let mut commands = 0;
    for (index, block) in blocks.iter().enumerate() {
        match block {
            Block::File(file, text) => reader.write(file, text),
            Block::Commands(text) => {
                commands += 1;
                match blocks.get(index + 1) {
                    Some(Block::Printed(shown)) => reader.follow(text, shown),
                    _ => reader.follow(text, ""),
                }
            }
            Block::Printed(_) | Block::Excerpt => {}
        }
    }
    assert!(commands > 10, "the page has few commands: {blocks:?}");
}

#[test]
fn what_is_shown_is_compared() {
    assert!(is_shown("… shop -", "  11 root shop -"));
    assert!(is_shown("price", "price"));
    assert!(!is_shown("price", "prices"));
    assert!(!is_shown("… shop -", "  11 root till -"));
    assert!(is_shown(
        "price, … bytes becomes …",
        "price, 59 bytes becomes other"
    ));
    assert!(is_shown("price…", "price"));
    assert!(!is_shown(
        "price, … bytes becomes … bytes",
        "price, 59 bytes becomes 45"
    ));
    let page =
        "```c price.c\nint a;\n```\ntext\n```sh\nmake\n```\n\n```text\ncc\n```\n```c\nx\n```\n";
    let blocks = blocks(page);
    assert!(matches!(
        &blocks[..],
        [Block::File(file, text), Block::Commands(make), Block::Printed(cc), Block::Excerpt]
            if file == Path::new("price.c") && text == "int a;\n" && make == "make\n" && cc == "cc\n"
    ));
}
