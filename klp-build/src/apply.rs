//! Diffs of sources, as patch(1) applies them.

use core::fmt;
use diffy::patch_set::{FileOperation, ParseOptions, PatchKind, PatchSet};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What a diff of git's has in front of each file.
const GIT: &[u8] = b"diff --git ";

/// Applies `diff` to the files in `folder`, which names the files without `strip` of the folders
/// that they have in front. Returns the files that it changed, creates or removes.
///
/// # Errors
///
/// [`DiffError`]. Nothing is changed then, unless a file cannot be written.
pub fn apply(diff: &[u8], strip: usize, folder: &Path) -> Result<Vec<PathBuf>, DiffError> {
    let is_git = diff.windows(GIT.len()).any(|line| line == GIT);
    let options = if is_git {
        ParseOptions::gitdiff()
    } else {
        ParseOptions::unidiff()
    };
    // What each file is to have, or that it is to go. A diff may change a file twice.
    let mut files: BTreeMap<PathBuf, Option<Vec<u8>>> = BTreeMap::new();
    for patch in PatchSet::parse_bytes(diff, options) {
        let patch = patch.map_err(|why| DiffError::NoDiff(why.to_string()))?;
        let PatchKind::Text(change) = patch.patch() else {
            return Err(DiffError::NotText);
        };
        let operation = patch.operation().strip_prefix(strip);
        let (from, to): (Option<&[u8]>, Option<&[u8]>) = match &operation {
            FileOperation::Modify { modified, .. } => (Some(modified), Some(modified)),
            FileOperation::Create(path) => (None, Some(path)),
            FileOperation::Delete(path) => (Some(path), None),
            FileOperation::Rename { from, to } => (Some(from), Some(to)),
            FileOperation::Copy { from, to } => (Some(from), Some(to)),
        };
        let (from, to) = (from.map(inside).transpose()?, to.map(inside).transpose()?);
        let before = match &from {
            Some(file) => match files.get(file) {
                Some(Some(text)) => text.clone(),
                Some(None) => return Err(DiffError::missing(file)),
                None => read(folder, file)?,
            },
            None => Vec::new(),
        };
        let file = to.clone().or_else(|| from.clone()).unwrap_or_default();
        let after = diffy::apply_bytes(&before, change).map_err(|why| DiffError::Misfit {
            file,
            why: why.to_string(),
        })?;
        let stays = matches!(operation, FileOperation::Copy { .. });
        if let Some(file) = from.filter(|_| !stays) {
            files.insert(file, None);
        }
        if let Some(file) = to {
            files.insert(file, Some(after));
        }
    }
    if files.is_empty() {
        return Err(DiffError::Empty);
    }
    for (file, text) in &files {
        let write = write(&folder.join(file), text.as_deref());
        write.map_err(|error| DiffError::Io {
            file: file.clone(),
            error,
        })?;
    }
    Ok(files.into_keys().collect())
}

fn read(folder: &Path, file: &Path) -> Result<Vec<u8>, DiffError> {
    fs::read(folder.join(file)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DiffError::missing(file),
        _ => DiffError::Io {
            file: file.to_path_buf(),
            error,
        },
    })
}

fn write(path: &Path, text: Option<&[u8]>) -> io::Result<()> {
    match (text, path.parent()) {
        (None, _) => fs::remove_file(path),
        (Some(text), Some(folder)) => {
            fs::create_dir_all(folder)?;
            fs::write(path, text)
        }
        (Some(text), None) => fs::write(path, text),
    }
}

/// The file that a diff calls `name`, which must not lead out of a folder.
fn inside(name: &[u8]) -> Result<PathBuf, DiffError> {
    let file = PathBuf::from(OsStr::from_bytes(name));
    let mut parts = file.components();
    if parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        Ok(file)
    } else {
        Err(DiffError::Outside { file })
    }
}

/// Why a diff cannot be applied.
#[derive(Debug)]
#[non_exhaustive]
pub enum DiffError {
    /// It is no unified diff, or is damaged.
    NoDiff(String),
    /// It changes no file.
    Empty,
    /// It changes a file that is no text.
    NotText,
    /// It changes a file that is outside of the folder.
    Outside {
        /// The file.
        file: PathBuf,
    },
    /// It changes a file that is not there.
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The file is another one than the diff was made of.
    Misfit {
        /// The file.
        file: PathBuf,
        /// The part that does not fit.
        why: String,
    },
    /// The file cannot be read or written.
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl DiffError {
    fn missing(file: &Path) -> Self {
        Self::Missing {
            file: file.to_path_buf(),
        }
    }
}

impl fmt::Display for DiffError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDiff(why) => write!(f, "it is no diff: {why}"),
            Self::Empty => f.write_str("it is no diff, or changes nothing"),
            Self::NotText => f.write_str("it changes a file that is no text"),
            Self::Outside { file } => write!(
                f,
                "it changes a file outside of the sources: {}",
                file.display()
            ),
            Self::Missing { file } => write!(
                f,
                "it changes {}, which is not there: is it for other sources, or has it another \
                 number of folders in front of names (--strip)?",
                file.display()
            ),
            Self::Misfit { file, why } => {
                write!(f, "it does not fit {}: {why}", file.display())
            }
            Self::Io { file, error } => write!(f, "{}: {error}", file.display()),
        }
    }
}

impl core::error::Error for DiffError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, text) in [("one.c", "first\nsecond\n"), ("two.c", "second\n")] {
            fs::write(folder.path().join(file), text).expect("there is room");
        }
        folder
    }

    #[test]
    fn files_come_change_and_go() {
        let folder = files();
        let diff = "--- a/one.c\n+++ b/one.c\n@@ -1,2 +1,2 @@\n first\n-second\n+2nd\n\
                    --- a/two.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-second\n\
                    --- /dev/null\n+++ b/sub/new.c\n@@ -0,0 +1 @@\n+new\n";
        let changed = apply(diff.as_bytes(), 1, folder.path()).expect("it fits");
        assert_eq!(changed, ["one.c", "sub/new.c", "two.c"].map(PathBuf::from));
        let text = |file: &str| fs::read_to_string(folder.path().join(file)).ok();
        assert_eq!(text("one.c").as_deref(), Some("first\n2nd\n"));
        assert_eq!(text("sub/new.c").as_deref(), Some("new\n"));
        assert_eq!(text("two.c"), None);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let good = "--- a/one.c\n+++ b/one.c\n@@ -1,2 +1,2 @@\n first\n-second\n+2nd\n";
        for (bad, why) in [
            (
                "--- a/two.c\n+++ b/two.c\n@@ -1 +1 @@\n-third\n+3rd\n",
                "does not fit two.c",
            ),
            (
                "--- a/no.c\n+++ b/no.c\n@@ -1 +1 @@\n-x\n+y\n",
                "changes no.c, which is not there",
            ),
            (
                "--- a/../x.c\n+++ b/../x.c\n@@ -1 +1 @@\n-x\n+y\n",
                "outside of the sources",
            ),
        ] {
            let folder = files();
            let error = apply(format!("{good}{bad}").as_bytes(), 1, folder.path());
            let error = error.expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
            let text = fs::read_to_string(folder.path().join("one.c"));
            assert_eq!(text.ok().as_deref(), Some("first\nsecond\n"));
        }
        let folder = files();
        for nothing in ["", "no diff at all\n"] {
            let error = apply(nothing.as_bytes(), 1, folder.path());
            let error = error.expect_err("refused").to_string();
            assert!(error.contains("no diff"), "{error}");
        }
    }
}
