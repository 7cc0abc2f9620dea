//! Where sockets are: `PID.sock` in `$XDG_RUNTIME_DIR/klp`, or in `/tmp/klp-UID` if the variable is
//! not set.

use super::sys::user;
use std::fs::DirBuilder;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folder of this user's sockets. It need not exist.
#[must_use]
pub fn folder() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => Path::new(&dir).join("klp"),
        None => std::env::temp_dir().join(format!("klp-{}", user())),
    }
}

/// The socket of the process `pid`, if it serves at the default place.
#[must_use]
pub fn socket_of(pid: u32) -> PathBuf {
    folder().join(format!("{pid}.sock"))
}

/// The processes that have a socket at the default place, with it. Some may be gone.
///
/// # Errors
///
/// If the folder is there but cannot be read.
pub fn sockets() -> Result<Vec<(u32, PathBuf)>> {
    let files = match std::fs::read_dir(folder()) {
        Ok(files) => files,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for file in files {
        let path = file?.path();
        let pid = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(".sock")?.parse().ok());
        found.extend(pid.map(|pid| (pid, path)));
    }
    found.sort();
    Ok(found)
}

/// Makes the folder of this user's sockets, for nobody else to enter.
pub(super) fn make_folder() -> Result<PathBuf> {
    let folder = folder();
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // In /tmp, somebody else may have been faster.
    let found = std::fs::symlink_metadata(&folder)?;
    if !found.is_dir() || found.uid() != user() || found.mode() & 0o077 != 0 {
        let why = format!(
            "{} is not a folder that only this user may enter",
            folder.display()
        );
        return Err(Error::new(ErrorKind::PermissionDenied, why));
    }
    Ok(folder)
}
