//! Part two: what user-mode emulation cannot do (`membarrier`, `process_vm_readv`, programs that
//! start others), on a real kernel: Debian's for AArch64, in system emulation, with the tests in
//! its initial file system.

use crate::packages;
use crate::run::run;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Crates whose tests run there.
const CRATES: [&str; 2] = ["klp-arch-aarch64", "klp-os-linux"];

/// Tests for which the guest lacks a C compiler.
const NOT_THERE: [&str; 4] = [
    "tables_without_an_index_are_found_by_the_file",
    "the_engine_comes_by_dlopen",
    "the_engine_is_linked_to_a_static_executable",
    "a_program_whose_unwind_tables_cannot_be_found_is_told_so",
];

/// How long the guest may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// What `init` prints in front of a program's result, and at the end.
const RESULT: &str = "klp-guest: ";
const END: &str = "klp-guest: end";

/// The C library of the cross compiler, and what C++ and Rust need beside it.
const LIBRARIES: [&str; 8] = [
    "ld-linux-aarch64.so.1",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
];

/// Builds the tests, boots the kernel and runs them.
///
/// `cross` makes a command of cargo's for that processor.
pub(super) fn test(cross: &dyn Fn(&str) -> Command) -> Result<()> {
    let root = std::path::absolute("target/arch-guest")?;
    std::fs::create_dir_all(&root)?;
    packages::install(&["qemu-system-arm"], Path::new("target/arch-apt.log"))?;
    let (kernel, busybox) = (kernel(&root)?, busybox(&root)?);
    let programs = programs(cross)?;
    ensure!(!programs.is_empty(), "there are no tests");
    let image = root.join("initramfs");
    pack(&image, &busybox, &programs)?;
    watch(&mut qemu(&kernel, &image), programs.len())
}

/// Debian's kernel, unpacked on first use.
fn kernel(root: &Path) -> Result<PathBuf> {
    let folder = root.join("kernel");
    if !folder.join("boot").exists() {
        // A package without contents names the newest.
        let names = Command::new("apt-cache")
            .args(["depends", "linux-image-cloud-arm64:arm64"])
            .output()?;
        let names = String::from_utf8_lossy(&names.stdout).into_owned();
        let package = names
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .context("Debian has no kernel for arm64")?;
        unpack(&format!("linux-image-{package}"), &folder)?;
    }
    let mut files = std::fs::read_dir(folder.join("boot"))?;
    files
        .find_map(|file| {
            let path = file.ok()?.path();
            let name = path.file_name()?.to_str()?;
            name.starts_with("vmlinuz").then_some(path)
        })
        .context("the package has no kernel in it")
}

/// A shell, and commands for it, in one file.
fn busybox(root: &Path) -> Result<PathBuf> {
    let folder = root.join("busybox");
    if !folder.join("bin/busybox").exists() {
        unpack("busybox-static:arm64", &folder)?;
    }
    Ok(folder.join("bin/busybox"))
}

/// Unpacks the newest `package` into `folder`.
fn unpack(package: &str, folder: &Path) -> Result<()> {
    let download = folder.with_extension("packages");
    std::fs::create_dir_all(&download)?;
    run(Command::new("apt-get")
        .args(["download", "-qq", package])
        .current_dir(&download))?;
    for file in std::fs::read_dir(&download)? {
        run(Command::new("dpkg").arg("-x").arg(file?.path()).arg(folder))?;
    }
    std::fs::remove_dir_all(&download).context("cannot remove the downloaded package")
}

/// A test program.
struct Program {
    path: PathBuf,
    /// The folder that cargo would start it in.
    folder: PathBuf,
}

/// Builds the tests; the programs that come of it.
fn programs(cross: &dyn Fn(&str) -> Command) -> Result<Vec<Program>> {
    // Nobody debugs them there, and all of them have to fit into memory.
    let small = ("CARGO_PROFILE_DEV_DEBUG", "0");
    // A program that tests start.
    run(cross("build")
        .args(["--package", "klp-os-linux", "--example", "server"])
        .env(small.0, small.1))?;
    let mut build = cross("test");
    build.args([
        "--lib",
        "--tests",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    for package in CRATES {
        build.args(["--package", package]);
    }
    build.env(small.0, small.1);
    eprintln!("xtask: {build:?}");
    let output = build.stderr(Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "the tests cannot be built: {}",
        output.status
    );
    let mut programs = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
            continue;
        };
        let (Some(path), Some(manifest)) = (
            message["executable"].as_str(),
            message["manifest_path"].as_str(),
        ) else {
            continue;
        };
        if message["profile"]["test"] == true {
            programs.push(Program {
                path: path.into(),
                folder: Path::new(manifest).with_file_name(""),
            });
        }
    }
    Ok(programs)
}

/// Writes the guest's initial file system: the programs, with what they name by its path here.
fn pack(image: &Path, busybox: &Path, programs: &[Program]) -> Result<()> {
    let mut files = BTreeMap::new();
    files.insert(PathBuf::from("/bin/busybox"), busybox.to_owned());
    for library in LIBRARIES {
        let file = Path::new("/usr/aarch64-linux-gnu/lib").join(library);
        files.insert(Path::new("/lib").join(library), file);
    }
    let mut add = |path: &Path| files.insert(path.to_owned(), path.to_owned());
    for program in programs {
        add(&program.path);
    }
    // Below deps/, all is there twice.
    let target = programs[0]
        .path
        .ancestors()
        .nth(2)
        .context("it lies in a folder of cargo's")?;
    add(&target.join("klp"));
    add(&target.join("examples/server"));
    each_file(&target.join("build"), &mut |path| {
        if ["so", "ko"]
            .iter()
            .any(|end| path.extension().is_some_and(|it| it == *end))
        {
            add(path);
        }
    })?;
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp", "etc", "run"] {
        archive.folder(Path::new(folder));
    }
    for program in programs {
        archive.folder(program.folder.strip_prefix("/")?);
    }
    archive.file(Path::new("init"), init(programs)?.as_bytes());
    archive.file(
        Path::new("etc/passwd"),
        b"root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    );
    for (path, file) in files {
        let bytes =
            std::fs::read(&file).with_context(|| format!("there is no {}", file.display()))?;
        archive.file(path.strip_prefix("/")?, &bytes);
    }
    std::fs::write(image, archive.end())?;
    Ok(())
}

/// The guest's first process.
fn init(programs: &[Program]) -> Result<String> {
    let mut init = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin HOME=/tmp\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         ip link set lo up\n\
         mkdir -p /dev/pts\n\
         mount -t devpts devpts /dev/pts\n\
         ulimit -n 65536\n",
    );
    let skip = NOT_THERE.map(|test| format!("--skip {test}"));
    for Program { path, folder } in programs {
        let name = path.file_name().context("a program has a name")?;
        writeln!(
            init,
            "cd {}; timeout 900 {} --test-threads=2 {}; echo \"{RESULT}$? {}\"",
            folder.display(),
            path.display(),
            skip.join(" "),
            Path::new(name).display(),
        )?;
    }
    init += "echo '";
    init += END;
    init += "'; poweroff -f\n";
    Ok(init)
}

fn each_file(folder: &Path, each: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            each_file(&entry.path(), each)?;
        } else {
            each(&entry.path());
        }
    }
    Ok(())
}

/// An archive of files as the kernel takes it (its document "initramfs buffer format").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    /// Folders that are in it.
    folders: Vec<PathBuf>,
    entries: u32,
}

impl Archive {
    const FOLDER: u32 = 0o040_755;
    const PROGRAM: u32 = 0o100_755;

    /// Adds a folder, and those that it lies in.
    fn folder(&mut self, path: &Path) {
        if path.as_os_str().is_empty() || self.folders.iter().any(|folder| folder == path) {
            return;
        }
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
        self.entry(&path.to_string_lossy(), Self::FOLDER, &[]);
        self.folders.push(path.to_owned());
    }

    fn file(&mut self, path: &Path, bytes: &[u8]) {
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
        self.entry(&path.to_string_lossy(), Self::PROGRAM, bytes);
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) {
        self.entries += 1;
        let name_len = name.len() as u32 + 1;
        // inode, mode, owner, group, links, time, size, four numbers of devices, length of the
        // name, sum
        let numbers = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            bytes.len() as u32,
            0,
            0,
            0,
            0,
            name_len,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes
                .extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(bytes);
        self.align();
    }

    fn align(&mut self) {
        let len = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(len, 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// All that the emulator has, BTI, pointer authentication and SVE among it. The processors run in
/// turn: QEMU before 8.1 can let one run into an instruction that another has already replaced.
fn qemu(kernel: &Path, image: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-aarch64");
    qemu.args(["-machine", "virt", "-cpu", "max", "-smp", "2", "-m", "4G"]);
    qemu.args(["-accel", "tcg,thread=single", "-nographic", "-no-reboot"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    qemu.args(["-append", "console=ttyAMA0 loglevel=4 oops=panic panic=-1"]);
    qemu
}

/// Passes on what the guest prints; an error if a program failed, or not all of them ran.
fn watch(qemu: &mut Command, programs: usize) -> Result<()> {
    eprintln!("xtask: {qemu:?}");
    for test in NOT_THERE {
        eprintln!("xtask: NOT TESTED there, for want of a C compiler: {test}");
    }
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("QEMU has no output")?;
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        for line in lines {
            if send
                .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                .is_err()
            {
                return;
            }
        }
    });
    let (begin, mut passed, mut failed, mut ended) = (Instant::now(), 0, Vec::new(), false);
    while let Ok(line) = lines.recv_timeout(LIMIT.saturating_sub(begin.elapsed())) {
        println!("{line}");
        ended |= line == END;
        match line
            .strip_prefix(RESULT)
            .and_then(|result| result.split_once(' '))
        {
            Some(("0", _)) => passed += 1,
            Some((_, program)) => failed.push(program.to_owned()),
            None => {}
        }
    }
    // It may have ended already.
    let _ = child.kill();
    child.wait()?;
    if !ended || passed + failed.len() != programs {
        bail!("the guest died, or took longer than {} s", LIMIT.as_secs());
    }
    ensure!(failed.is_empty(), "these failed: {}", failed.join(", "));
    eprintln!("xtask: {passed} programs passed on the kernel for AArch64");
    Ok(())
}
