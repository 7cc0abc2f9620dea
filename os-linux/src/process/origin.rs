//! The file that an object was mapped from.
//!
//! What is mapped decides. A path may lead to another file by now, or to none: libraries are
//! replaced and deleted under programs that run, and relative paths lead elsewhere after a `chdir`.
//! So a file counts only if it is proven to be the one in memory: its mappings bear the same device
//! and inode, or its build-id is that in memory.

use super::maps::{self, FileId, Mapping};
use super::sys;
use core::ffi::c_void;
use core::ops::Range;
use core::ptr;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a file without a build-id was like when its object was first seen. It tells whether the
/// file was written to since: pages that are mapped from it change with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    path: PathBuf,
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path, inode: u64) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        (found.ino() == inode).then(|| Self {
            path: path.to_owned(),
            device: found.dev(),
            inode,
            len: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }

    /// The stamp of the object at `places`; `None` if no path leads to its file.
    pub(crate) fn of_mapped(maps: &[Mapping], places: &[Range<u64>]) -> Option<Self> {
        let mapping = only_file(&of_files(maps, places))?;
        Self::of(mapping.path(), mapping.file?.inode)
    }

    /// Whether the file was written to since the stamp was made. One that has taken its place is
    /// another file.
    pub(crate) fn is_overwritten(&self) -> bool {
        Self::of(&self.path, self.inode).is_some_and(|now| {
            now.device == self.device && (now.len, now.modified) != (self.len, self.modified)
        })
    }
}

/// A file that may be the one an object was mapped from.
pub(crate) struct Candidate {
    pub(crate) file: File,
    /// Its mappings bear the object's device and inode.
    pub(crate) is_mapped: bool,
}

/// The files that may be the one that the object at `places`, which the dynamic linker calls
/// `name`, was mapped from. If one is proven to be, there is only that.
pub(crate) fn candidates(name: &Path, places: &[Range<u64>]) -> Vec<Candidate> {
    // Without the list of mappings, only a build-id can prove anything.
    let maps = maps::mappings().unwrap_or_default();
    let mappings = of_files(&maps, places);
    let mapping = only_file(&mappings);
    if let Some(file) = mapping.and_then(open_mapped) {
        return vec![Candidate {
            file,
            is_mapped: true,
        }];
    }
    let id = mapping.and_then(|mapping| mapping.file);
    let paths = mappings.iter().map(|mapping| mapping.path());
    // Of the executable it is no path, but leads to what was executed.
    let name = if name.as_os_str().is_empty() {
        Path::new("/proc/self/exe")
    } else {
        name
    };
    let mut found = Vec::new();
    for file in paths.chain([name]).filter_map(open) {
        let is_mapped = id.is_some() && file_id(&file) == id;
        let candidate = Candidate { file, is_mapped };
        if is_mapped {
            return vec![candidate];
        }
        found.push(candidate);
    }
    found
}

/// The mappings of files at `places`, each file once.
fn of_files<'a>(maps: &'a [Mapping], places: &[Range<u64>]) -> Vec<&'a Mapping> {
    let mut found: Vec<&Mapping> = Vec::new();
    for mapping in maps.iter().filter(|mapping| mapping.file.is_some()) {
        let is_there = places.iter().any(|place| mapping.overlaps(place));
        if is_there && found.iter().all(|known| known.file != mapping.file) {
            found.push(mapping);
        }
    }
    found
}

/// The mapping that says which file it is. If there are several (code was copied to huge pages of
/// a file in memory), none does.
fn only_file<'a>(mappings: &[&'a Mapping]) -> Option<&'a Mapping> {
    match mappings {
        [mapping] => Some(mapping),
        _ => None,
    }
}

/// Opens the file that is mapped, wherever it is by now (`proc_pid_map_files(5)`): needs
/// `CAP_CHECKPOINT_RESTORE`.
fn open_mapped(mapping: &Mapping) -> Option<File> {
    let Range { start, end } = mapping.range;
    open(Path::new(&format!(
        "/proc/self/map_files/{start:x}-{end:x}"
    )))
}

/// Opens a regular file. Does not wait for what is none.
fn open(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// The file as its mappings show it: it is mapped for a moment.
fn file_id(file: &File) -> Option<FileId> {
    let page = Page::of(file)?;
    maps::mapping_at(page.0.addr() as u64)?.file
}

/// The first page of a file in memory.
struct Page(*mut c_void);

impl Page {
    fn of(file: &File) -> Option<Self> {
        let (fd, len) = (file.as_raw_fd(), sys::PAGE as usize);
        // SAFETY: a new mapping disturbs no old one. Nobody reads it.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_PRIVATE,
                fd,
                0,
            )
        };
        (at != libc::MAP_FAILED).then_some(Self(at))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody knows of it.
        unsafe { sys::unmap(self.0.addr(), sys::PAGE as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is in memory, and where.
    fn mapped(bytes: &[u8], name: &str) -> (PathBuf, Page, Range<u64>) {
        let path = std::env::temp_dir().join(format!("klp-origin-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("there is room");
        let page = Page::of(&File::open(&path).expect("just written")).expect("it is mapped");
        let start = page.0.addr() as u64;
        let place = start..start + bytes.len() as u64;
        (path, page, place)
    }

    fn contents(candidates: Vec<Candidate>) -> Vec<(String, bool)> {
        let read = |candidate: Candidate| {
            let text = std::io::read_to_string(candidate.file).expect("it can be read");
            (text, candidate.is_mapped)
        };
        candidates.into_iter().map(read).collect()
    }

    #[test]
    fn the_path_counts_only_if_it_leads_to_what_is_mapped() {
        let (path, _page, place) = mapped(b"old", "replaced");
        let places = [place];
        let found = candidates(Path::new("elsewhere"), &places);
        assert_eq!(contents(found), [("old".into(), true)]);

        let other = path.with_extension("new");
        std::fs::write(&other, "new").expect("there is room");
        std::fs::rename(&other, &path).expect("same folder");
        let found = contents(candidates(&path, &places));
        // By its path alone it is another; who may open what is mapped has the old one still.
        if found != [("old".into(), true)] {
            assert_eq!(found[0], ("new".into(), false));
        }
        std::fs::remove_file(&path).expect("just made");
    }

    #[test]
    fn a_stamp_notices_what_is_written_and_nothing_else() {
        let (path, _page, place) = mapped(b"old", "stamp");
        let maps = maps::mappings().expect("there is a /proc");
        let stamp = Stamp::of_mapped(&maps, core::slice::from_ref(&place));
        let Some(stamp) = stamp else {
            // The file system shows other numbers in mappings than in directories.
            return;
        };
        assert!(!stamp.is_overwritten());
        std::fs::write(&path, "longer").expect("there is room");
        assert!(stamp.is_overwritten());
        std::fs::remove_file(&path).expect("just made");
        assert!(!stamp.is_overwritten(), "what is mapped stays as it is");
    }

    #[test]
    fn of_two_files_in_one_object_none_is_proven() {
        let (one, _page, first) = mapped(b"one", "mixed-1");
        let (other, _page2, second) = mapped(b"other", "mixed-2");
        let found = candidates(&one, &[first, second]);
        assert!(found.len() >= 2 && found.iter().all(|found| !found.is_mapped));
        for path in [one, other] {
            std::fs::remove_file(path).expect("just made");
        }
    }
}
