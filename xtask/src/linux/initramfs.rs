//! A guest's file system: tools of this machine, packed by the kernel's own `gen_init_cpio` (which
//! needs no root).

use crate::run::quiet;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the selftests and our scripts call.
const TOOLS: &str = "awk bash basename cat chmod cmp cp cut date diff dirname dmesg echo env expr false getconf grep head id insmod kill ln ls \
    lsmod mkdir modinfo mount mv nproc printf ps readlink realpath rm rmmod sed seq setsid sh sleep sort stat stty sysctl tail tee touch \
    tr true uname uniq wc";
const FOLDERS: &str =
    "dev etc job proc root run sys tmp usr usr/bin usr/lib usr/lib64 usr/lib/x86_64-linux-gnu";

/// The files of a guest.
pub(super) struct Initramfs {
    /// Path in the guest (without the slash in front) to file here.
    files: BTreeMap<String, PathBuf>,
}

impl Initramfs {
    /// The tools and `init`, which the kernel starts.
    pub(super) fn new(init: &Path) -> Result<Self> {
        let mut packed = Self {
            files: BTreeMap::new(),
        };
        packed.add("init", init)?;
        for tool in TOOLS.split_whitespace() {
            let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
                .map(|folder| Path::new(folder).join(tool));
            let found = found.iter().find(|path| path.exists());
            packed.add(
                &format!("usr/bin/{tool}"),
                found.with_context(|| format!("this machine has no `{tool}`"))?,
            )?;
        }
        Ok(packed)
    }

    /// Adds a file, and the shared libraries that it needs.
    pub(super) fn add(&mut self, path: &str, file: &Path) -> Result<()> {
        let file = file
            .canonicalize()
            .with_context(|| format!("there is no {}", file.display()))?;
        let magic = {
            let mut start = [0; 18];
            std::io::Read::read(&mut File::open(&file)?, &mut start)?;
            start
        };
        // A program or a shared library; relocatable files (modules) need none.
        if magic.starts_with(b"\x7fELF") && magic[16] != 1 {
            self.add_libraries(&file)?;
        }
        self.files.insert(path.to_owned(), file);
        Ok(())
    }

    fn add_libraries(&mut self, program: &Path) -> Result<()> {
        let listed = Command::new("ldd")
            .arg(program)
            .output()
            .context("cannot run ldd")?;
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" or "/lib64/ld-linux-x86-64.so.2
            // (0x…)"
            let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else {
                continue;
            };
            let library = Path::new(library);
            let (Some(folder), Some(name)) = (library.parent(), library.file_name()) else {
                bail!("ldd wrote {line:?}");
            };
            // The folder without links (/lib is one to /usr/lib), the name as the linker looks for
            // it.
            let inside = folder.canonicalize()?.join(name);
            let inside = inside.strip_prefix("/")?.to_string_lossy().into_owned();
            self.files.insert(inside, library.canonicalize()?);
        }
        Ok(())
    }

    /// Packs everything for a kernel that was built in `build`.
    pub(super) fn pack(&self, build: &Path, into: &Path) -> Result<()> {
        let mut list = String::new();
        for folder in FOLDERS.split_whitespace() {
            writeln!(list, "dir /{folder} 755 0 0")?;
        }
        for (link, target) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/bin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            writeln!(list, "slink /{link} {target} 777 0 0")?;
        }
        writeln!(list, "nod /dev/console 600 0 0 c 5 1")?;
        for folder in self.folders() {
            writeln!(list, "dir /{folder} 755 0 0")?;
        }
        for (path, file) in &self.files {
            let shown = file.display().to_string();
            if shown.contains(char::is_whitespace) {
                bail!("{shown:?} has a space in its path, which gen_init_cpio cannot read");
            }
            writeln!(list, "file /{path} {shown} 755 0 0")?;
        }
        let listed = into.with_extension("list");
        std::fs::write(&listed, list)?;
        let log = into.with_extension("log");
        let mut pack = Command::new("sh");
        pack.args(["-c", "exec \"$1\" \"$2\" >\"$3\"", "pack"])
            .arg(build.join("usr/gen_init_cpio"))
            .arg(listed)
            .arg(into);
        quiet(&mut pack, &log)
    }

    /// Folders of added files, outermost first.
    fn folders(&self) -> Vec<String> {
        let mut folders = Vec::new();
        for path in self.files.keys() {
            let parents: Vec<_> = Path::new(path)
                .ancestors()
                .skip(1)
                .map(|parent| parent.display().to_string())
                .collect();
            for parent in parents.into_iter().rev() {
                if !parent.is_empty()
                    && !FOLDERS.split_whitespace().any(|known| known == parent)
                    && !folders.contains(&parent)
                {
                    folders.push(parent);
                }
            }
        }
        folders
    }
}
