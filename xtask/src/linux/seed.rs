//! The start of a build from another one: the two kernels differ in one folder, so one is compiled
//! and the other begins as its copy.
//!
//! Kbuild compiles a file again if a source is newer or the command line differs. The overlay's
//! unpatched files have the times of the unmodified source, and the patched ones are touched
//! before, so it is enough to tell the copy's records (`.*.cmd`) the new paths.

use crate::run::quiet;
use anyhow::Result;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// A source tree and where it was built.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) source: &'a Path,
    pub(super) build: &'a Path,
}

/// Makes `new.build` a copy of the finished build `old`, as if it had been made from `new.source`.
pub(super) fn seed(old: Place, new: Place) -> Result<()> {
    let partial = new.build.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)?;
    }
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"])
        .arg(old.build)
        .arg(&partial);
    quiet(&mut copy, &new.build.with_extension("copy.log"))?;
    // The longer path first: one may begin like the other.
    let mut paths = [(old.build, new.build), (old.source, new.source)]
        .map(|(from, to)| (from.display().to_string(), to.display().to_string()));
    paths.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    rewrite(&partial, &paths)?;
    Ok(std::fs::rename(partial, new.build)?)
}

fn rewrite(folder: &Path, paths: &[(String, String)]) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            rewrite(&path, paths)?;
        } else if kind.is_file() && path.extension() == Some(OsStr::new("cmd")) {
            let mut record = std::fs::read_to_string(&path)?;
            for (from, to) in paths {
                record = replace_path(&record, from, to);
            }
            std::fs::write(&path, record)?;
        }
    }
    Ok(())
}

/// Replaces a path, alone or with more behind a slash, but not one that merely begins with the same
/// letters.
fn replace_path(text: &str, from: &str, to: &str) -> String {
    let mut parts = text.split(from);
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let name_goes_on =
            part.starts_with(|next: char| next.is_alphanumeric() || "-_.".contains(next));
        replaced += if name_goes_on { from } else { to };
        replaced += part;
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::replace_path;

    #[test]
    fn only_the_whole_path_is_replaced() {
        let text = "OBJTREE=/t/src /t/src/a.c -I/t/src-rust/b /t/source -fmap=/t/src=";
        let replaced = "OBJTREE=/new /new/a.c -I/t/src-rust/b /t/source -fmap=/new=";
        assert_eq!(replace_path(text, "/t/src", "/new"), replaced);
    }
}
