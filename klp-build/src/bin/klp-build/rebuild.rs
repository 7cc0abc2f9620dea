//! Two builds of a project: of its sources as they are, and with a diff applied. By its own command,
//! or as `units.rs` does.
//!
//! Both are made in a copy of the sources, at the same place, so nothing of the project's is
//! touched, and paths that the compiler notes are the same.

use crate::step::Step;
use crate::units::Units;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What the object files must be compiled with, to be compared.
pub(crate) const FLAGS: [&str; 2] = ["-ffunction-sections", "-fdata-sections"];

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
    /// What builds it; if empty, its compile_commands.json says how its files are compiled.
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
        let builds = Builds(tempfile::tempdir().context("no room for a copy of the sources")?);
        let out = builds.0.path().canonicalize()?;
        let copy = out.join("source");
        copy_tree(self.source, &copy)?;
        if !self.command.is_empty() {
            self.run_twice(&copy, &out)?;
        } else if let Some(units) = Units::find(self.source, &copy)? {
            units.build(self, &copy, &out)?;
        } else {
            bail!(
                "{} has no compile_commands.json: make one (CMake: \
                 -DCMAKE_EXPORT_COMPILE_COMMANDS=ON; make: bear -- make), or say behind -- what \
                 builds the project",
                self.source.display()
            );
        }
        Ok(builds)
    }

    /// Applies the diff to the copy of the sources. Returns the files that it changes.
    pub(crate) fn apply(&self, copy: &Path) -> Result<Vec<PathBuf>> {
        let shown = self.diff.display();
        let diff = fs::read(self.diff).with_context(|| shown.to_string())?;
        let files = klp_build::apply(&diff, self.strip, copy);
        let files = files.with_context(|| shown.to_string())?;
        for file in &files {
            eprintln!("applying {shown}: {}", file.display());
        }
        Ok(files)
    }

    /// Runs the project's own command before and after the diff.
    fn run_twice(&self, copy: &Path, out: &Path) -> Result<()> {
        let tools = out.join("tools");
        wrap_compilers(&tools)?;
        let words = self.command.iter().map(|word| word.to_string_lossy());
        let shown = words.collect::<Vec<_>>().join(" ");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [tools].into_iter().chain(std::env::split_paths(&path));
        let path = std::env::join_paths(path)?;
        let build = || {
            let [program, arguments @ ..] = self.command else {
                bail!("no command builds the project: say one behind --");
            };
            let mut command = Command::new(program);
            command.args(arguments).current_dir(copy).env("PATH", &path);
            run(&mut command, &shown)
        };
        let step = Step::new(&format!("building the original: {shown}"));
        build()?;
        drop(step);
        let made = collect(copy, &out.join("original"))?;
        ensure!(made > 0, "{shown} made no object files that are kept");
        self.apply(copy)?;
        let step = Step::new("building the patched one");
        build()?;
        drop(step);
        collect(copy, &out.join("patched"))?;
        Ok(())
    }
}

/// Runs a command that builds something, and is `shown` so to people.
pub(crate) fn run(command: &mut Command, shown: &str) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<_> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    bail!("{shown} failed ({}):\n{last}", output.status)
}

/// Copies a file, into a folder that may not be there yet.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
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
                    format!("#!/bin/sh\nexec '{program}' \"$@\" {}\n", FLAGS.join(" ")),
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
        copy(&from.join(file), &to.join(file))?;
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
}
