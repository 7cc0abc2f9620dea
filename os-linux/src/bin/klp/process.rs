//! What `/proc` tells of a process (proc(5)).

use glob::Pattern;
use nix::unistd::{Uid, User};
use std::path::{Path, PathBuf};

fn file(pid: u32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

/// The name of the executable's file.
fn executable(pid: u32) -> Option<String> {
    let path = std::fs::read_link(file(pid, "exe")).ok()?;
    let name = path.file_name()?.to_string_lossy();
    Some(name.trim_end_matches(" (deleted)").to_owned())
}

/// What the process calls itself; at first, the beginning of its file's name.
fn own_name(pid: u32) -> Option<String> {
    let name = std::fs::read(file(pid, "comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// The name of the process's program.
pub(crate) fn program(pid: u32) -> String {
    executable(pid)
        .or_else(|| own_name(pid))
        .unwrap_or_else(|| "?".to_owned())
}

/// Whether the program, or what the process calls itself, is called so.
pub(crate) fn is_called(pid: u32, name: &Pattern) -> bool {
    [executable(pid), own_name(pid)]
        .into_iter()
        .flatten()
        .any(|own| name.matches(&own))
}

/// Whether a file called so, with or without its ending, is mapped.
pub(crate) fn has_loaded(pid: u32, library: &Pattern) -> bool {
    let maps = std::fs::read(file(pid, "maps")).unwrap_or_default();
    String::from_utf8_lossy(&maps).lines().any(|line| {
        // Range, permissions, offset, device, inode, path.
        let path = line.splitn(6, ' ').nth(5).unwrap_or_default();
        let path = path.trim_start().trim_end_matches(" (deleted)");
        let Some((_, name)) = path.rsplit_once('/') else {
            return false;
        };
        library.matches(name)
            || name.split_once(".so").is_some_and(|(stem, _)| {
                library.matches(stem) || library.matches(&format!("{stem}.so"))
            })
    })
}

/// The name of a user, or its number.
pub(crate) fn user(user: u32) -> String {
    match User::from_uid(Uid::from_raw(user)) {
        Ok(Some(user)) => user.name,
        _ => user.to_string(),
    }
}
