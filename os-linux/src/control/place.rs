//! Where sockets are: `PID.sock` in a folder that only its user may enter.

use super::listener::is_abandoned;
use super::sys::{self, user};
use std::fs::DirBuilder;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where the sockets of a process are that has this one's environment and user: in
/// `$XDG_RUNTIME_DIR/klp`; if that cannot be had, in `klp-UID` in `$TMPDIR`, or else in `/tmp`.
#[must_use]
pub fn folders() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let own = own.map(|dir| Path::new(&dir).join("klp"));
    let shared = std::env::temp_dir().join(format!("klp-{}", user()));
    let absolute = |folder| std::path::absolute(folder).ok();
    own.into_iter()
        .chain([shared])
        .filter_map(absolute)
        .collect()
}

/// Makes the folder of this user's sockets, for nobody else to enter.
pub(super) fn make_folder() -> Result<PathBuf> {
    let mut why = Error::from(ErrorKind::NotFound);
    for folder in folders() {
        match make(&folder) {
            Ok(()) => {
                tidy(&folder);
                return Ok(folder);
            }
            Err(error) => why = Error::new(error.kind(), format!("{}: {error}", folder.display())),
        }
    }
    Err(why)
}

fn make(folder: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // In /tmp, somebody else may have been faster.
    match owner(&sys::open_folder(folder)?)? {
        owner if owner == user() => Ok(()),
        other => Err(belongs_to(other)),
    }
}

/// The user whose folder it is, and who alone may enter it.
pub(super) fn owner(folder: &OwnedFd) -> Result<u32> {
    let found = rustix::fs::fstat(folder)?;
    if found.st_mode & 0o077 != 0 {
        let why = "others than its owner may enter the folder";
        return Err(Error::new(ErrorKind::PermissionDenied, why));
    }
    Ok(found.st_uid)
}

pub(super) fn belongs_to(user: u32) -> Error {
    let why = format!("the folder belongs to user {user}");
    Error::new(ErrorKind::PermissionDenied, why)
}

/// Removes sockets that processes have left behind. That is no duty: who cannot be removed stays.
fn tidy(folder: &Path) {
    let Ok(files) = std::fs::read_dir(folder) else {
        return;
    };
    for path in files.flatten().map(|file| file.path()) {
        if path.extension().is_some_and(|end| end == "sock") && is_abandoned(&path) {
            let _ = std::fs::remove_file(path);
        }
    }
}
