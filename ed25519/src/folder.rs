//! Keys in a folder of files.

use crate::keys::Keys;
use crate::public::{BadKey, PublicKey};
use alloc::borrow::ToOwned;
use alloc::vec::Vec;
use core::fmt;
use std::fs::Metadata;
use std::io::Error as IoError;
use std::path::{Path, PathBuf};

/// Why the keys of a folder were not read.
#[derive(Debug)]
pub enum KeysError {
    /// The file or folder cannot be read.
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: IoError,
    },
    /// A file is not a key.
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: BadKey,
    },
    /// Every user of the system may write to it, and so choose whom to trust.
    Writable {
        /// The file or folder.
        path: PathBuf,
    },
    /// The folder has none.
    NoKeys {
        /// The folder.
        path: PathBuf,
    },
    /// Memory ran out.
    OutOfMemory,
}

impl Keys {
    /// The keys in the files of `folder` whose names end in `.pub` (PEM, a key in each). Other files
    /// are not looked at.
    ///
    /// # Errors
    ///
    /// If one of them is no key, or there is none, or every user of the system could have put it
    /// there: who asks for keys must not get fewer, nor other ones.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self, KeysError> {
        let folder = folder.as_ref();
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| KeysError::Io { path, error }
        };
        guarded(folder, &std::fs::metadata(folder).map_err(io(folder))?)?;
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(io(folder))? {
            let path = entry.map_err(io(folder))?.path();
            if path.extension().is_some_and(|ending| ending == "pub") {
                files.push(path);
            }
        }
        files.sort();
        let mut keys = Self::new();
        for path in files {
            guarded(&path, &std::fs::metadata(&path).map_err(io(&path))?)?;
            let text = std::fs::read_to_string(&path).map_err(io(&path))?;
            match PublicKey::from_pem(&text) {
                Ok(key) => keys.add(key).map_err(|_| KeysError::OutOfMemory)?,
                Err(why) => return Err(KeysError::BadKey { path, why }),
            }
        }
        if keys.ids().next().is_none() {
            let path = folder.to_owned();
            return Err(KeysError::NoKeys { path });
        }
        Ok(keys)
    }
}

/// Whether not everybody may write there.
fn guarded(path: &Path, found: &Metadata) -> Result<(), KeysError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        const OTHERS_WRITE: u32 = 0o002;
        if found.permissions().mode() & OTHERS_WRITE != 0 {
            let path = path.to_owned();
            return Err(KeysError::Writable { path });
        }
    }
    let _ = (path, found);
    Ok(())
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::BadKey { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Writable { path } => write!(
                f,
                "{}: every user may write to it, so it does not say whom to trust",
                path.display()
            ),
            Self::NoKeys { path } => {
                write!(f, "{}: there are no keys in it (*.pub)", path.display())
            }
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

impl core::error::Error for KeysError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;
    use alloc::string::ToString;

    fn public(number: u8) -> PublicKey {
        let key = SecretKey::new([number; 32]).expect("a key");
        key.public().expect("a strong key")
    }

    #[test]
    fn the_keys_of_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("there is room");
        };
        let refused = |why: &str| {
            let error = Keys::read(folder.path()).expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
        };
        write("README", "how they were made");
        refused("there are no keys in it");
        write("two.pub", &public(2).to_pem());
        write("one.pub", &public(1).to_pem());
        let keys = Keys::read(folder.path()).expect("two keys");
        let ids: Vec<_> = keys.ids().collect();
        assert_eq!(ids, [public(1).id(), public(2).id()]);

        // One that cannot be read is not left out.
        write("three.pub", "not a key");
        refused("three.pub: it is not one ed25519 key");
        std::fs::remove_file(folder.path().join("three.pub")).expect("it is there");
        std::os::unix::fs::symlink("nowhere", folder.path().join("lost.pub")).expect("room");
        refused("lost.pub: No such file");
        let nowhere = Keys::read(folder.path().join("nowhere"));
        assert!(matches!(nowhere, Err(KeysError::Io { .. })));
    }

    #[test]
    fn who_may_write_there_decides() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let key = folder.path().join("one.pub");
        std::fs::write(&key, public(1).to_pem()).expect("there is room");
        let open = |path: &Path, mode| {
            let mode = PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path, mode).expect("it is ours");
        };
        let writable = |path: &Path| {
            let found = Keys::read(folder.path());
            assert!(
                matches!(&found, Err(KeysError::Writable { path: which }) if which == path),
                "{found:?}"
            );
        };
        open(folder.path(), 0o777);
        writable(folder.path());
        open(folder.path(), 0o755);
        open(&key, 0o666);
        writable(&key);
        open(&key, 0o644);
        assert!(Keys::read(folder.path()).is_ok());
    }
}
