//! A whole machine of another processor in QEMU: Debian's kernel for it, its files in memory, and
//! programs that run in it one after the other.
//!
//! Programs and what they need have the paths that they have here.

use crate::packages;
use crate::run::{quiet, run};
use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

const INIT: &str = include_str!("machine/init.sh");
/// What `init` prints before the status of a program, behind its name.
const ENDED: &str = "klp-guest: ended ";
/// What the shell and its tools are in.
const BUSYBOX: &str = "bin/busybox";
/// Compilers for C and C++: some tests compile programs.
const COMPILERS: [&str; 2] = ["gcc", "g++"];

/// Folders of ours with files that tests compile.
const SOURCES: [&str; 3] = ["klp-build/include", "libklp", "os-linux"];

/// What a machine is called.
pub(crate) struct Machine {
    /// Debian's name for the processor.
    pub(crate) debian: &'static str,
    /// That of the compiler.
    pub(crate) gnu: &'static str,
    /// Debian's package that depends on the newest kernel.
    pub(crate) kernel: &'static str,
    /// QEMU, and the machine that it is.
    pub(crate) qemu: &'static [&'static str],
    /// The package that has it.
    pub(crate) package: &'static str,
    /// How many processors it has.
    pub(crate) processors: u32,
    /// The kernel's name for the console.
    pub(crate) console: &'static str,
    /// What else the kernel is told.
    pub(crate) kernel_args: &'static str,
    /// What C and C++ are compiled with, here and there.
    pub(crate) c_flags: &'static str,
}

/// A program to be run.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    pub(crate) args: String,
    /// Where it is run.
    pub(crate) folder: PathBuf,
}

/// Unpacks the package `$1` into `$2`, without a kernel's modules, and without what compilers have
/// for whole programs and for sanitizers.
const UNPACK: &str = "dpkg-deb --fsys-tarfile \"$1\" | tar -x -C \"$2\" \
                      --exclude='./lib/modules*' --exclude='./usr/share*' \
                      --exclude='*/lto*' --exclude='*-lto-dump*' --exclude='*san.*'";
/// Seconds that one program may take.
const LIMIT_OF_ONE: u32 = 900;
/// What all of them may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// A machine with programs in it, to be switched on.
pub(crate) struct Loaded {
    machine: Machine,
    folder: PathBuf,
    kernel: PathBuf,
    image: PathBuf,
    programs: Vec<Program>,
}

impl Loaded {
    /// Boots the machine, runs its programs, and says which of them failed.
    pub(crate) fn run(&self) -> Result<()> {
        let (machine, programs) = (&self.machine, &self.programs);
        let console = self.folder.join("console.log");
        eprintln!(
            "xtask: boot Linux for {} (console: {})",
            machine.debian,
            console.display()
        );
        // A guest does not outlive us, even if we are killed. The processors run in turn: QEMU
        // before 8.1 can let one run into an instruction that another has already replaced.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL"]).args(machine.qemu);
        qemu.args(["-accel", "tcg,thread=single", "-m", "3G"]);
        qemu.arg("-smp").arg(machine.processors.to_string());
        qemu.args([
            "-nographic",
            "-no-reboot",
            "-nodefaults",
            "-serial",
            "stdio",
        ]);
        qemu.arg("-kernel").arg(&self.kernel);
        qemu.arg("-initrd").arg(&self.image);
        qemu.arg("-append").arg(format!(
            "console={} loglevel=4 oops=panic panic=-1 {}",
            machine.console, machine.kernel_args
        ));
        let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut guest = Guest(child.with_context(|| format!("cannot run {qemu:?}"))?);
        let mut ended = guest.watch(machine.debian, &console)?;
        let failed: Vec<_> = programs
            .iter()
            .filter_map(|program| match ended.remove(&program.name) {
                Some(0) => None,
                Some(status) => Some(format!("{}: status {status}", program.name)),
                None => Some(format!("{}: did not end", program.name)),
            })
            .collect();
        if !failed.is_empty() {
            bail!(
                "in the machine for {}, {} of {} failed:\n  {}",
                machine.debian,
                failed.len(),
                programs.len(),
                failed.join("\n  ")
            );
        }
        eprintln!(
            "xtask: all {} programs succeeded on {}",
            programs.len(),
            machine.debian
        );
        Ok(())
    }
}

impl Machine {
    /// Puts `programs`, which need `files`, into the machine.
    pub(crate) fn load(self, programs: Vec<Program>, files: &BTreeSet<PathBuf>) -> Result<Loaded> {
        let folder = PathBuf::from(format!("target/machine-{}", self.debian));
        std::fs::create_dir_all(&folder)?;
        packages::install(&[self.package], &folder.join("apt.log"))?;
        let kernel = self.kernel(&folder)?;
        let image = folder.join("files.cpio");
        self.pack(&folder, &image, &programs, files)?;
        Ok(Loaded {
            machine: self,
            folder,
            kernel,
            image,
            programs,
        })
    }

    /// The kernel of the machine. With it come its shell, compilers and libraries; fetched on first
    /// use.
    fn kernel(&self, folder: &Path) -> Result<PathBuf> {
        let root = folder.join("root");
        let found = || -> Option<PathBuf> {
            let mut boot = std::fs::read_dir(root.join("boot")).ok()?.flatten();
            let kernel = boot.find(|file| file.file_name().to_string_lossy().starts_with("vmlinu"));
            Some(kernel?.path()).filter(|_| root.join(BUSYBOX).exists())
        };
        let complete = folder.join("complete");
        if let (true, Some(kernel)) = (complete.exists(), found()) {
            return Ok(kernel);
        }
        let package = |name: &str| format!("{name}:{}", self.debian);
        let newest = packages::depends(&package(self.kernel), false)?;
        let newest = newest.first();
        let newest = newest.with_context(|| format!("Debian has no {}", self.kernel))?;
        let mut wanted = vec![newest.to_owned(), package("busybox-static")];
        for compiler in COMPILERS.map(package) {
            wanted.extend(packages::depends(&compiler, true)?);
            wanted.push(compiler);
        }
        wanted.sort_unstable();
        wanted.dedup();
        let fetched = std::path::absolute(folder)?.join("packages");
        packages::download(&wanted, &fetched)?;
        for file in std::fs::read_dir(&fetched)? {
            let mut unpack = Command::new("sh");
            unpack.args(["-c", UNPACK, "unpack"]);
            std::fs::create_dir_all(&root)?;
            run(unpack.arg(file?.path()).arg(&root))?;
        }
        std::fs::remove_dir_all(fetched)?;
        File::create(complete)?;
        found().context("the kernel's package has no kernel")
    }

    /// Writes the machine's files to `image`.
    fn pack(
        &self,
        folder: &Path,
        image: &Path,
        programs: &[Program],
        files: &BTreeSet<PathBuf>,
    ) -> Result<()> {
        let mut list = String::new();
        let mut packed = Files::new(image)?;
        packed.add(Path::new("/init"), INIT.as_bytes())?;
        packed.tree(&folder.join("root"), Path::new("/"), &|path| {
            !path.starts_with("/boot")
        })?;
        for (name, compiler) in [("cc", "gcc"), ("c++", "g++")] {
            let script = format!("#!/bin/sh\nexec {compiler} {} \"$@\"\n", self.c_flags);
            packed.add(&Path::new("/usr/bin").join(name), script.as_bytes())?;
        }
        for ours in SOURCES {
            let ours = std::path::absolute(ours)?;
            packed.tree(&ours, &ours, &|path| {
                path.extension().is_none_or(|extension| extension != "rs")
            })?;
        }
        packed.add(
            Path::new("/etc/passwd"),
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )?;
        for folder in ["/dev", "/proc", "/sys", "/tmp", "/root"] {
            packed.folder(Path::new(folder))?;
        }
        let stripped = folder.join("stripped");
        for program in programs {
            packed.add(
                &program.file,
                &self.without_debug(&program.file, &stripped)?,
            )?;
            packed.folder(&program.folder)?;
            writeln!(
                list,
                "cd {} && run {} {LIMIT_OF_ONE} {} {}",
                program.folder.display(),
                program.name,
                program.file.display(),
                program.args
            )?;
        }
        for file in files {
            packed.add(file, &self.without_debug(file, &stripped)?)?;
        }
        packed.add(Path::new("/programs"), list.as_bytes())?;
        packed.end()
    }

    /// A program or library without what only debuggers read.
    fn without_debug(&self, file: &Path, stripped: &Path) -> Result<Vec<u8>> {
        let bytes =
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        // Small ones may be about what would be taken away.
        if bytes.len() < 1 << 20 {
            return Ok(bytes);
        }
        let mut strip = Command::new(format!("{}-strip", self.gnu));
        strip.arg("--strip-debug").arg("-o").arg(stripped).arg(file);
        quiet(&mut strip, &stripped.with_extension("log"))?;
        Ok(std::fs::read(stripped)?)
    }
}

/// An archive of files for the kernel, in the form "newc".
struct Files {
    to: Option<BufWriter<File>>,
    folders: BTreeSet<PathBuf>,
    count: u32,
}

impl Files {
    fn new(image: &Path) -> Result<Self> {
        let mut files = Self {
            to: Some(BufWriter::new(File::create(image)?)),
            folders: BTreeSet::new(),
            count: 0,
        };
        files.folder(Path::new("/dev"))?;
        // The first process writes to it before anything is mounted.
        let console = files
            .entry("/dev/console", 0o600, ModeFileType::Char)
            .rdev_major(5)
            .rdev_minor(1);
        files.write(console, b"")?;
        Ok(files)
    }

    fn entry(&mut self, path: &str, mode: u32, kind: ModeFileType) -> Builder {
        self.count += 1;
        Builder::new(path.trim_start_matches('/'))
            .ino(self.count)
            .mode(mode)
            .set_mode_file_type(kind)
    }

    fn write(&mut self, entry: Builder, bytes: &[u8]) -> Result<()> {
        let to = self.to.take().context("the archive has ended")?;
        let mut entry = entry.write(to, u32::try_from(bytes.len())?);
        entry.write_all(bytes)?;
        self.to = Some(entry.finish()?);
        Ok(())
    }

    fn folder(&mut self, path: &Path) -> Result<()> {
        if path.parent().is_none() || !self.folders.insert(path.to_owned()) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        let entry = self.entry(&path.to_string_lossy(), 0o755, ModeFileType::Directory);
        self.write(entry, b"")
    }

    fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        let entry = self.entry(&path.to_string_lossy(), 0o755, ModeFileType::Regular);
        self.write(entry, bytes)
    }

    fn link(&mut self, path: &Path, to: &Path) -> Result<()> {
        let entry = self.entry(&path.to_string_lossy(), 0o777, ModeFileType::Symlink);
        self.write(entry, to.as_os_str().as_encoded_bytes())
    }

    /// Adds what is in the folder `from` to the folder `to`: all whose path `wanted` lets through.
    fn tree(&mut self, from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
        self.folder(to)?;
        for file in std::fs::read_dir(from)? {
            let file = file?;
            let (path, to) = (file.path(), to.join(file.file_name()));
            let kind = file.file_type()?;
            if !wanted(&to) {
                continue;
            }
            if kind.is_dir() {
                self.tree(&path, &to, wanted)?;
            } else if kind.is_symlink() {
                self.link(&to, &std::fs::read_link(&path)?)?;
            } else {
                self.add(&to, &std::fs::read(&path)?)?;
            }
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        let to = self.to.take().context("the archive has ended")?;
        trailer(to)?.flush()?;
        Ok(())
    }
}

/// QEMU, which does not outlive this value.
struct Guest(Child);

impl Guest {
    /// Passes on what the guest prints until it ends, for [`LIMIT`] at most, each line behind the
    /// machine's `name`; says how its programs ended.
    fn watch(&mut self, name: &str, console: &Path) -> Result<BTreeMap<String, i32>> {
        let mut log = File::create(console)?;
        let output = self.0.stdout.take().context("QEMU has no output")?;
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            for line in lines {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let (begin, mut ended) = (Instant::now(), BTreeMap::new());
        loop {
            match lines.recv_timeout(LIMIT.saturating_sub(begin.elapsed())) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    println!("{name}: {line}");
                    let end = line.strip_prefix(ENDED).and_then(|end| end.split_once(' '));
                    if let Some((name, status)) = end {
                        ended.insert(name.to_owned(), status.parse()?);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the machine did not end within {} s", LIMIT.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(ended),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
