//! What the program is that the library was loaded into.

use core::ffi::{CStr, c_int, c_void};
use object::read::{File, Object, ObjectSection, ObjectSymbol, ReadCache};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Sections with the entries of functions that can be patched.
const PADS: [&str; 2] = ["__patchable_function_entries", "__mcount_loc"];
/// Functions by which libraries come later.
const LOADERS: [&[u8]; 2] = [b"dlopen", b"dlmopen"];

/// Whether `LD_PRELOAD` names the file that the code at `place` is in.
pub(super) fn is_preloaded(place: *const c_void) -> bool {
    let (Some(list), Some(own)) = (std::env::var_os("LD_PRELOAD"), file_of(place)) else {
        return false;
    };
    // Names are parted by blanks or colons.
    let names = list.as_bytes().split(|byte| matches!(byte, b' ' | b':'));
    names
        .map(|name| Path::new(OsStr::from_bytes(name)))
        .any(|name| {
            // Without a slash, it was looked for where libraries are.
            let is_searched = name.components().count() == 1;
            if is_searched {
                return name.file_name() == own.file_name();
            }
            match (std::fs::metadata(name), std::fs::metadata(&own)) {
                (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
                _ => name == own,
            }
        })
}

/// The file that the code at `place` was loaded from.
fn file_of(place: *const c_void) -> Option<PathBuf> {
    // SAFETY: all-zero is a valid value of this plain struct.
    let mut found: libc::Dl_info = unsafe { core::mem::zeroed() };
    // SAFETY: `found` has room.
    if unsafe { libc::dladdr(place, &raw mut found) } == 0 || found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: it is the dynamic linker's own string, which stays as long as the file is loaded.
    let name = unsafe { CStr::from_ptr(found.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// Whether something of the program has entry pads, or may load what has. What cannot be read may.
pub(super) fn may_be_patched() -> bool {
    let own = file_of(may_be_patched as *const c_void);
    files()
        .iter()
        .filter(|file| Some(*file) != own.as_ref() && !is_loader(file))
        .any(|file| may_file_be_patched(file).unwrap_or(true))
}

/// What defines `dlopen`, and uses it for what is its own (libc, the dynamic linker).
fn is_loader(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().as_bytes();
    name.starts_with(b"libc.so") || name.starts_with(b"ld-") || name.starts_with(b"libdl.so")
}

/// The executable and its libraries.
fn files() -> Vec<PathBuf> {
    extern "C" fn note(info: *mut libc::dl_phdr_info, _: usize, files: *mut c_void) -> c_int {
        // SAFETY: `files` is the vector below, which nobody else uses meanwhile; the name is a
        // string of the dynamic linker's.
        let (files, name) = unsafe {
            (
                &mut *files.cast::<Vec<PathBuf>>(),
                CStr::from_ptr((*info).dlpi_name),
            )
        };
        files.push(PathBuf::from(OsStr::from_bytes(name.to_bytes())));
        0
    }
    let mut files: Vec<PathBuf> = Vec::new();
    // SAFETY: the function gets the vector, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut files).cast()) };
    // The executable has no name there, and the kernel's own object (vdso(7)) no file.
    if let Some(executable) = files.first_mut() {
        *executable = PathBuf::from("/proc/self/exe");
    }
    files.retain(|file| file.is_absolute() || file.exists());
    files
}

fn may_file_be_patched(file: &Path) -> Option<bool> {
    let cache = ReadCache::new(std::fs::File::open(file).ok()?);
    let file = File::parse(&cache).ok()?;
    let has_pads = file
        .sections()
        .any(|section| section.name().is_ok_and(|name| PADS.contains(&name)));
    let may_load = || {
        file.dynamic_symbols()
            .filter(|symbol| symbol.is_undefined())
            .any(|symbol| {
                symbol
                    .name_bytes()
                    .is_ok_and(|name| LOADERS.contains(&name))
            })
    };
    Some(has_pads || may_load())
}
