//! `klp run`: a program that knows nothing of klp, and can be patched all the same.

use anyhow::{Context, Error, Result, anyhow};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARY: &str = "libklp.so";

/// Becomes the program, with the library loaded into it. Comes back only with the reason why that
/// cannot be done.
pub(crate) fn run(library: Option<&Path>, program: &OsStr, args: &[OsString]) -> Error {
    let library = match find(library) {
        Ok(library) => library,
        Err(error) => return error,
    };
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let error = Command::new(program)
        .args(args)
        .env("LD_PRELOAD", preload)
        .exec();
    anyhow!("{}: {error}", program.to_string_lossy())
}

/// The library: where it was said to be, or beside this command, or in `../lib`.
fn find(named: Option<&Path>) -> Result<PathBuf> {
    let candidates = match named {
        Some(path) => vec![path.to_owned()],
        None => {
            let own = std::env::current_exe().context("where is klp?")?;
            let folder = own.parent().unwrap_or(Path::new("/"));
            vec![folder.join(LIBRARY), folder.join("../lib").join(LIBRARY)]
        }
    };
    let found = candidates.iter().find_map(|path| path.canonicalize().ok());
    let found = found.with_context(|| {
        let looked: Vec<String> = candidates
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        format!("there is no {}; say --libklp", looked.join(", nor "))
    })?;
    // ld.so(8) has no way to write these.
    let path = found.to_string_lossy();
    if path.contains([':', ' ']) {
        return Err(anyhow!(
            "{path}: LD_PRELOAD cannot name a file with a colon or a blank in its path"
        ));
    }
    Ok(found)
}
