//! The file of a patch object, and the one beside it with its signature.

use super::error::LoadError;
use klp_core::elf::signature;
use klp_core::error::{Error, PatchReason};
use klp_core::port::Distrust;
use std::borrow::Cow;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// What the patch in a file is called, if it does not say it itself.
pub(crate) fn name(path: &Path) -> Cow<'_, str> {
    path.file_stem().unwrap_or_default().to_string_lossy()
}

/// Reads a patch object; `with_signature`: if it has none of its own, the detached one, too, if
/// there is one, which is put behind it.
///
/// Each file is read once: what takes its place meanwhile, or later, changes nothing in what was
/// read.
///
/// # Errors
///
/// [`LoadError::File`]; [`LoadError::Engine`] if the detached signature is something else.
pub(crate) fn read(path: &Path, with_signature: bool) -> Result<Vec<u8>, LoadError> {
    let mut file = std::fs::read(path).map_err(in_file(path))?;
    if with_signature && signature::read(&file) == Err(Distrust::NotSigned) {
        file.extend(detached(path)?);
    }
    Ok(file)
}

/// The signature of `path` in the file beside it; nothing if there is none.
fn detached(path: &Path) -> Result<Vec<u8>, LoadError> {
    /// No more is read of what is no signature.
    const ENOUGH: u64 = signature::LEN as u64 + 1;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".sig");
    let beside = Path::new(&beside);
    let mut trailer = Vec::new();
    match File::open(beside) {
        Ok(found) => found.take(ENOUGH).read_to_end(&mut trailer),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(trailer),
        Err(error) => Err(error),
    }
    .map_err(in_file(beside))?;
    if trailer.len() == signature::LEN && signature::read(&trailer).is_ok() {
        return Ok(trailer);
    }
    let why = Distrust::Damaged("there is something else in the file beside it (.sig)");
    let reason = PatchReason::Untrusted { why };
    Err(Error::patch(&name(path), None, None, reason).into())
}

fn in_file(path: &Path) -> impl FnOnce(std::io::Error) -> LoadError {
    |error| LoadError::File {
        path: path.to_owned(),
        error,
    }
}
