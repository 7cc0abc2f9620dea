//! Two builds by a project's own command: of its sources as they are, and with a diff applied.
//!
//! Both are made in a copy of the sources, at the same place, so nothing of the project's is
//! touched, and paths that the compiler notes are the same.

use anyhow::{Context, Result, bail, ensure};
use diffy::patch_set::{FileOperation, ParseOptions, PatchKind, PatchSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What the object files must be compiled with, to be compared.
const FLAGS: &str = "-ffunction-sections -fdata-sections";

/// What compilers are called, behind the name of the processor that they compile for.
const COMPILERS: [&str; 6] = ["cc", "gcc", "clang", "c++", "g++", "clang++"];

/// What a build makes, and must make anew: old object files were compiled without the flags.
const MADE: [&str; 3] = ["o", "lo", "a"];

/// Where version control keeps its own.
const HISTORY: [&str; 3] = [".git", ".hg", ".svn"];

/// Lines of a failed build's output that are shown.
const SHOWN: usize = 30;

/// What to build, and how.
pub(crate) struct Project<'a> {
    pub(crate) source: &'a Path,
    pub(crate) diff: &'a Path,
    /// Components that the names in the diff have in front.
    pub(crate) strip: usize,
    pub(crate) command: &'a [OsString],
}

/// The object files of both builds, until this is dropped.
pub(crate) struct Builds(TempDir);

impl Builds {
    pub(crate) fn original(&self) -> PathBuf {
        self.0.path().join("original")
    }

    pub(crate) fn patched(&self) -> PathBuf {
        self.0.path().join("patched")
    }
}

impl Project<'_> {
    /// Makes both builds, and says what it does.
    pub(crate) fn build(&self) -> Result<Builds> {
        let diff = fs::read(self.diff).with_context(|| self.diff.display().to_string())?;
        let builds = Builds(tempfile::tempdir().context("no room for a copy of the sources")?);
        let (copy, tools) = (
            builds.0.path().join("source"),
            builds.0.path().join("tools"),
        );
        copy_tree(self.source, &copy)?;
        wrap_compilers(&tools)?;
        eprintln!("building the original: {}", self.shown_command());
        self.run(&copy, &tools)?;
        let made = collect(&copy, &builds.original())?;
        ensure!(
            made > 0,
            "{} made no object files that are kept",
            self.shown_command()
        );
        for file in self.apply(&diff, &copy)? {
            eprintln!("applying {}: {file}", self.diff.display());
        }
        eprintln!("building the patched one");
        self.run(&copy, &tools)?;
        collect(&copy, &builds.patched())?;
        Ok(builds)
    }

    fn shown_command(&self) -> String {
        shown(self.command.iter().map(OsString::as_os_str))
    }

    fn run(&self, folder: &Path, tools: &Path) -> Result<()> {
        let [program, arguments @ ..] = self.command else {
            bail!("no command builds the project: say one behind --");
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [tools.to_path_buf()]
            .into_iter()
            .chain(std::env::split_paths(&path));
        run(Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .env("PATH", std::env::join_paths(path)?))
    }

    /// Applies the diff to the files in `folder`. Returns their names.
    fn apply(&self, diff: &[u8], folder: &Path) -> Result<Vec<String>> {
        let shown = self.diff.display();
        let is_git = diff.windows(GIT.len()).any(|line| line == GIT);
        let options = if is_git {
            ParseOptions::gitdiff()
        } else {
            ParseOptions::unidiff()
        };
        let mut files = Vec::new();
        for patch in PatchSet::parse_bytes(diff, options) {
            let patch = patch.with_context(|| format!("{shown} is no diff"))?;
            let operation = patch.operation().strip_prefix(self.strip);
            let PatchKind::Text(change) = patch.patch() else {
                bail!("{shown} changes a binary file");
            };
            let (from, to): (Option<&[u8]>, Option<&[u8]>) = match &operation {
                FileOperation::Modify { modified, .. } => (Some(modified), Some(modified)),
                FileOperation::Create(path) => (None, Some(path)),
                FileOperation::Delete(path) => (Some(path), None),
                FileOperation::Rename { from, to } => (Some(from), Some(to)),
                FileOperation::Copy { .. } => bail!("{shown} copies a file"),
            };
            let before = match from {
                Some(name) => {
                    let path = inside(folder, name)?;
                    let text = fs::read(&path);
                    let text = text.with_context(|| {
                        let name = String::from_utf8_lossy(name);
                        format!("{shown} changes {name}, which is not there (see --strip)")
                    })?;
                    if from != to {
                        fs::remove_file(path)?;
                    }
                    text
                }
                None => Vec::new(),
            };
            let name = String::from_utf8_lossy(to.or(from).unwrap_or_default()).into_owned();
            let after = diffy::apply_bytes(&before, change)
                .with_context(|| format!("{shown} does not fit {name}"))?;
            if let Some(name) = to {
                let path = inside(folder, name)?;
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::write(path, after)?;
            }
            files.push(name);
        }
        ensure!(!files.is_empty(), "{shown} changes nothing");
        Ok(files)
    }
}

fn shown<'a>(words: impl Iterator<Item = &'a OsStr>) -> String {
    let words = words.map(OsStr::to_string_lossy);
    words.collect::<Vec<_>>().join(" ")
}

/// Runs what builds something. If it fails, the error shows the end of what it said.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let program = command.get_program();
    let output = output.with_context(|| format!("cannot run {}", program.to_string_lossy()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    bail!(
        "{} failed ({}):\n{last}",
        shown([program].into_iter().chain(command.get_args())),
        output.status
    )
}

/// What a diff of git's has in front of each file.
const GIT: &[u8] = b"diff --git ";

/// The file called `name` in `folder`.
fn inside(folder: &Path, name: &[u8]) -> Result<PathBuf> {
    let name = Path::new(OsStr::from_bytes(name));
    let mut parts = name.components();
    let is_plain = parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    ensure!(
        is_plain,
        "the diff changes a file outside of the sources: {}",
        name.display()
    );
    Ok(folder.join(name))
}

/// Copies the sources. Their times stay, so that what was generated from them is not older.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let shown = || format!("cannot copy {}", from.display());
    fs::create_dir(to).with_context(shown)?;
    for entry in fs::read_dir(from).with_context(shown)? {
        let entry = entry.with_context(shown)?;
        let (path, name) = (entry.path(), entry.file_name());
        let is_made = path
            .extension()
            .is_some_and(|ending| MADE.iter().any(|made| ending == *made));
        let kind = entry.file_type().with_context(shown)?;
        let place = to.join(&name);
        let shown = || format!("cannot copy {}", path.display());
        if kind.is_dir() {
            if !HISTORY.iter().any(|history| name == *history) {
                copy_tree(&path, &place)?;
            }
        } else if kind.is_symlink() {
            symlink(fs::read_link(&path).with_context(shown)?, &place).with_context(shown)?;
        } else if kind.is_file() && !is_made {
            fs::copy(&path, &place).with_context(shown)?;
            let time = entry.metadata().with_context(shown)?.modified()?;
            let copy = fs::File::options().append(true).open(&place);
            // One that must not be written to keeps its new time.
            if let Ok(copy) = copy {
                copy.set_modified(time).with_context(shown)?;
            }
        }
    }
    Ok(())
}

/// Makes programs in `tools` that stand before all compilers, and add the flags.
fn wrap_compilers(tools: &Path) -> Result<()> {
    fs::create_dir(tools)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    for folder in std::env::split_paths(&path) {
        // Not every folder is there.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let (name, program) = (entry.file_name(), entry.path());
            let wrapper = tools.join(&name);
            if is_compiler(&name.to_string_lossy()) && !wrapper.exists() {
                let program = program.to_string_lossy().replace('\'', "'\\''");
                fs::write(
                    &wrapper,
                    format!("#!/bin/sh\nexec '{program}' \"$@\" {FLAGS}\n"),
                )?;
                fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
            }
        }
    }
    Ok(())
}

/// Whether a program of this name compiles C or C++: `aarch64-linux-gnu-gcc-12`.
fn is_compiler(name: &str) -> bool {
    let is_version = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let mut parts = name.rsplit('-').skip_while(|part| is_version(part));
    parts.next().is_some_and(|last| COMPILERS.contains(&last))
}

/// Moves the object files of `from` to the same places in `to`, and counts them. They are copied:
/// the next build may do without compiling what did not change.
fn collect(from: &Path, to: &Path) -> Result<usize> {
    let mut files = Default::default();
    crate::collect(from, Path::new(""), &mut files)?;
    for file in &files {
        let place = to.join(file);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from.join(file), place).with_context(|| file.display().to_string())?;
    }
    Ok(files.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_are_known_by_their_names() {
        for name in [
            "cc",
            "gcc-12",
            "aarch64-linux-gnu-g++",
            "clang++-14.0",
            "x86_64-linux-gnu-gcc-12",
        ] {
            assert!(is_compiler(name), "{name}");
        }
        for name in ["gcc-ar", "gcc-nm-12", "ccache", "make", "12", ""] {
            assert!(!is_compiler(name), "{name}");
        }
    }

    #[test]
    fn nothing_outside_of_the_sources_is_changed() {
        for name in ["../other.c", "/etc/passwd", "src/../../other.c"] {
            assert!(
                inside(Path::new("/work"), name.as_bytes()).is_err(),
                "{name}"
            );
        }
        let path = inside(Path::new("/work"), b"src/shop.c").expect("inside");
        assert_eq!(path, Path::new("/work/src/shop.c"));
    }
}
