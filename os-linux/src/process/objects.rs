//! The objects of the process: the executable, shared libraries, the vdso.

use super::arch::{Table, text};
use super::elf_file::{self, ElfFile, Sha256Digest};
use super::error::Error;
use super::loaded;
use super::lock::{self, FutexLock, Mutex};
use super::maps::{self, FileId, Mapping};
use super::origin::{self, Stamp};
use super::peek::Copied;
use super::symbol_table::Symbol;
use alloc::sync::Arc;
use core::ffi::CStr;
use core::ops::{ControlFlow, Range};
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::model::VMLINUX;
use klp_core::port::Extent;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

/// An object: an ELF file as the dynamic linker, or the kernel, mapped it.
#[derive(Debug)]
pub(crate) struct Object {
    /// As patches name it.
    pub(crate) name: String,
    /// As the dynamic linker calls it: a path, which may lead elsewhere by now.
    linker_name: CString,
    /// What is added to the file's addresses.
    pub(crate) bias: u64,
    pub(crate) segments: Vec<Segment>,
    /// Where `.eh_frame_hdr` is, if it is there.
    pub(crate) eh_frame_hdr: Option<TextRange>,
    /// What the dynamic linker has made read-only after it had relocated it.
    pub(crate) relro: Option<TextRange>,
    /// Its number for `__tls_get_addr`; 0 if it has no thread-local variables.
    pub(crate) tls_module: u64,
    build_id: Option<BuildId>,
    /// If its build-id [does not show](Self::id_shows_file) that its file was written to, and its
    /// file was there when it was first seen.
    stamp: Option<Stamp>,
    file: OnceLock<ElfFile>,
    /// Its unwind rules, once compiled.
    pub(crate) unwind: OnceLock<Option<Arc<Table>>>,
    /// Its entry sites, sorted, once read.
    pub(crate) sites: OnceLock<Vec<CodeAddr>>,
    /// Its functions that must not be redirected, sorted, once read.
    pub(crate) notrace: OnceLock<Vec<CodeAddr>>,
    /// Objects are numbered in the order in which they were first seen.
    pub(crate) arrival: u64,
    /// Whether patches may have to do with it (kernel: `mod->klp_alive`).
    life: AtomicU8,
    /// A patch did not let it in when it was last tried.
    refused: AtomicBool,
}

/// A part of an object in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) range: TextRange,
    pub(crate) readable: bool,
    pub(crate) executable: bool,
    /// What its pages are protected with beside that, if it is executable.
    pub(crate) guard: i32,
}

/// The build-id of an object, and where it is in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
struct BuildId {
    at: u64,
    bytes: Vec<u8>,
}

/// It is mapped: that is all.
const STRANGER: u8 = 0;
/// It is completely loaded, and held.
const ALIVE: u8 = 1;
/// Who held it is about to let go of it.
const LEAVING: u8 = 2;

impl Object {
    /// Whether patches may have to do with it. The dynamic linker shows an object as soon as it is
    /// mapped, before it is relocated.
    pub(crate) fn is_alive(&self) -> bool {
        self.life.load(Ordering::Acquire) == ALIVE
    }

    /// Whether nobody holds it for patches, or is about to let go of it.
    pub(crate) fn is_stranger(&self) -> bool {
        self.life.load(Ordering::Acquire) == STRANGER
    }

    /// Patches may have to do with it from here on. Who says so holds it in memory.
    pub(crate) fn set_alive(&self) {
        self.life.store(ALIVE, Ordering::Release);
    }

    /// Patches may not have to do with it any more. Who says so is about to let go of it, and says
    /// [`left`](Self::left) then.
    pub(crate) fn set_leaving(&self) {
        self.life.store(LEAVING, Ordering::Release);
    }

    /// Nobody holds it for patches any more, unless it was made alive again meanwhile.
    pub(crate) fn left(&self) {
        let _ = self
            .life
            .compare_exchange(LEAVING, STRANGER, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Whether a patch did not let it in when it was last tried.
    #[cfg(feature = "control")]
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Keeps whether a patch did not let it in.
    pub(crate) fn set_refused(&self, refused: bool) {
        self.refused.store(refused, Ordering::Relaxed);
    }

    /// The file that it was loaded from, as the dynamic linker calls it; empty for the executable.
    pub(crate) fn linker_name(&self) -> &CStr {
        &self.linker_name
    }

    /// Its build-id, as it was when it was loaded.
    pub(crate) fn build_id(&self) -> Option<&[u8]> {
        self.build_id.as_ref().map(|id| &*id.bytes)
    }

    /// The same, for people.
    pub(crate) fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(self.linker_name.to_bytes()))
    }

    /// Where in memory what has the address `addr` in the file is.
    pub(crate) fn in_memory(&self, addr: u64) -> CodeAddr {
        CodeAddr::new(addr.wrapping_add(self.bias))
    }

    /// The code, from the first executable byte to the last.
    pub(crate) fn text(&self) -> Option<TextRange> {
        let code = || {
            self.segments
                .iter()
                .filter(|segment| segment.executable)
                .map(|segment| segment.range)
        };
        let start = code().map(TextRange::start).min()?;
        let end = code().map(TextRange::end).max()?;
        TextRange::new(start, end.get() - start.get())
    }

    /// The bytes of `range`; `None` if it does not lie in one readable segment.
    ///
    /// Only for parts that are not written to (headers, unwind information, relocated tables).
    pub(crate) fn bytes(&self, range: TextRange) -> Option<&[u8]> {
        let segment = self.segment(range.start())?;
        if !segment.readable || segment.range.end() < range.end() {
            return None;
        }
        // SAFETY: the segment is mapped and readable for as long as the object is loaded. Those
        // that patches have to do with are alive, so they are held; unwind information is read when
        // the object is first seen, while the dynamic linker keeps it from being unmapped.
        Some(unsafe {
            core::slice::from_raw_parts(
                range.start().get() as *const u8,
                usize::try_from(range.len()).ok()?,
            )
        })
    }

    /// The segment that `addr` lies in.
    pub(crate) fn segment(&self, addr: CodeAddr) -> Option<&Segment> {
        self.segments
            .iter()
            .find(|segment| segment.range.contains(addr))
    }

    /// The function that `addr` lies in: where it is, and its symbol.
    pub(crate) fn function_at(&self, addr: CodeAddr) -> Option<(TextRange, &Symbol)> {
        let in_file = addr.get().wrapping_sub(self.bias);
        let symbol = self.file().ok()?.symbols.function_at(in_file)?;
        let range = TextRange::new(self.in_memory(symbol.addr), symbol.len)?;
        Some((range, symbol))
    }

    /// What the file says beyond the part that is mapped. Read at the first call.
    ///
    /// # Errors
    ///
    /// [`Error::BadFile`], also if no file is proven to be the one that was mapped.
    pub(crate) fn file(&self) -> Result<&ElfFile, Error> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        if self.is_vdso() {
            return Ok(self.file.get_or_init(ElfFile::default));
        }
        let (file, ()) = self.proven(|file| Ok((ElfFile::read(file)?, ())))?;
        Ok(self.file.get_or_init(|| file))
    }

    /// SHA-256 digests of the code as it is in the file: of all of it, or of what is at these
    /// addresses in memory. In memory, entries may have been redirected meanwhile. `None` for what
    /// is no code of the file.
    ///
    /// # Errors
    ///
    /// As for [`file`](Self::file).
    pub(crate) fn digests(&self, of: &[Extent]) -> Result<Vec<Option<Sha256Digest>>, Error> {
        if self.is_vdso() {
            return Ok(Vec::new());
        }
        let in_file = |extent: &Extent| match extent {
            Extent::Object => None,
            Extent::Range(range) => {
                let start = range.start().get().wrapping_sub(self.bias);
                Some(start..start.wrapping_add(range.len()))
            }
        };
        let of: Vec<_> = of.iter().map(in_file).collect();
        let (_, digests) = self.proven(|file| ElfFile::digests(file, &of))?;
        Ok(digests)
    }

    /// What `read` makes of the file that was mapped.
    fn proven<T>(
        &self,
        read: impl Fn(File) -> Result<(ElfFile, T), &'static str>,
    ) -> Result<(ElfFile, T), Error> {
        let mut refused = "cannot be opened: it was replaced or deleted, or must not be read";
        for found in origin::candidates(self.path(), &self.places()) {
            // Looked at after it was read: so nobody has written to it meanwhile.
            let checked = read(found.file).and_then(|(file, read)| {
                self.check(&file, found.is_mapped)?;
                Ok((file, read))
            });
            match checked {
                Ok(read) => return Ok(read),
                Err(why) => refused = why,
            }
        }
        Err(self.bad_file(refused))
    }

    /// Refuses a file that is not proven to be the one in memory; `is_mapped` says that its
    /// mappings are this object's.
    fn check(&self, file: &ElfFile, is_mapped: bool) -> Result<(), &'static str> {
        let loaded = self.build_id.as_ref().map(|id| &id.bytes);
        if loaded != file.build_id.as_ref() {
            return Err("is not the one that was loaded: its build-id differs");
        }
        if loaded.is_none() && !is_mapped {
            return Err(
                "is not proven to be the one that was loaded: it has no build-id, and it is \
                        not the one that is mapped",
            );
        }
        if self.is_overwritten() {
            return Err(OVERWRITTEN);
        }
        let code = self.segments.iter().filter(|segment| segment.executable);
        let code = code.map(|segment| {
            let start = segment.range.start().get();
            (start.wrapping_sub(self.bias), segment.range.len())
        });
        if code.ne(file.code.iter().copied()) {
            return Err("is not the one that was loaded: its segments lie elsewhere");
        }
        Ok(())
    }

    /// Refuses an object whose file was written to since it was loaded: pages that are mapped from
    /// it have changed with it, so nobody knows what is in memory.
    pub(crate) fn check_intact(&self) -> Result<(), Error> {
        if self.is_overwritten() {
            return Err(self.bad_file(OVERWRITTEN));
        }
        Ok(())
    }

    fn is_overwritten(&self) -> bool {
        // The file may be shorter by now, and the object just being unloaded.
        let differs =
            |id: &BuildId| Copied::new().bytes(id.at, id.bytes.len()).as_ref() != Some(&id.bytes);
        self.build_id.as_ref().is_some_and(differs)
            || self.stamp.as_ref().is_some_and(Stamp::is_overwritten)
    }

    /// Whether the build-id in memory is what the file holds now. If it stands among code, as linkers
    /// for AArch64 have it, its page may be the process's own: code on it was changed.
    fn id_shows_file(&self) -> bool {
        let segment = |id: &BuildId| self.segment(CodeAddr::new(id.at));
        let id = self.build_id.as_ref();
        id.and_then(segment)
            .is_some_and(|segment| !segment.executable)
    }

    fn bad_file(&self, why: &'static str) -> Error {
        match klp_core::mem::Name::new(&self.name) {
            Ok(object) => Error::BadFile { object, why },
            Err(_) => Error::OutOfMemory,
        }
    }

    /// The kernel's own (`vdso(7)`): it has no file.
    fn is_vdso(&self) -> bool {
        // SAFETY: no memory is involved.
        let vdso = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
        vdso != 0 && self.segment(CodeAddr::new(vdso)).is_some()
    }

    /// Where its segments are.
    fn places(&self) -> Vec<Range<u64>> {
        let range = |segment: &Segment| segment.range.start().get()..segment.range.end().get();
        self.segments.iter().map(range).collect()
    }

    /// Whether a part of it is mapped by `mapping`.
    fn has(&self, mapping: &Mapping) -> bool {
        self.places().iter().any(|place| mapping.overlaps(place))
    }
}

const OVERWRITTEN: &str =
    "was written to since it was loaded, or what is mapped of it cannot be read";

/// A file that is mapped to be executed and is none of the [`Objects`]: the dynamic linker shows
/// those of its own namespace only (`dlmopen(3)`), and not everybody asks it.
#[derive(Debug)]
pub(crate) struct Outsider {
    /// As patches would call it.
    pub(crate) name: String,
    pub(crate) mapping: Mapping,
}

/// The objects that are mapped now.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    now: Mutex<Snapshot>,
}

#[derive(Debug, Default)]
struct Snapshot {
    objects: Vec<Arc<Object>>,
    /// The dynamic linker's counts of objects that came and went.
    counts: (u64, u64),
    /// The number of the next one that comes.
    next: u64,
}

impl Objects {
    /// Looks whether objects came or went. Says whether that was so. `came` is shown each new one,
    /// while it cannot be unmapped.
    pub(crate) fn refresh(&self, came: &mut dyn FnMut(&Object)) -> bool {
        let counts = dl_counts();
        let mut now = self.now.lock();
        // In a static executable, musl counts nothing.
        if now.counts == counts && !now.objects.is_empty() {
            return false;
        }
        let (mut objects, mut next) = (Vec::new(), now.next);
        // Read at most once, when the first object asks.
        let maps = OnceLock::new();
        dl_objects(&mut |mut fresh| {
            // Nobody writes to a file that is executed.
            if !fresh.id_shows_file() && fresh.name != VMLINUX {
                let maps = maps.get_or_init(|| maps::mappings().unwrap_or_default());
                fresh.stamp = Stamp::of_mapped(maps, &fresh.places());
            }
            let known = now.objects.iter().find(|old| old.is_same(&fresh));
            objects.push(known.map(Arc::clone).unwrap_or_else(|| {
                fresh.arrival = next;
                next += 1;
                came(&fresh);
                Arc::new(fresh)
            }));
        });
        *now = Snapshot {
            objects,
            counts,
            next,
        };
        true
    }

    /// Whether there is a dynamic linker that can load more of them. Without it, there are the
    /// executable and the vdso.
    pub(crate) fn are_linked_dynamically(&self) -> bool {
        let now = self.now.lock();
        now.objects
            .iter()
            .filter(|object| !object.is_vdso())
            .count()
            > 1
    }

    /// Keeps what is known of them as it is, while it is locked.
    pub(crate) fn lock(&self) -> &FutexLock {
        lock::of(&self.now)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Object>> {
        self.now.lock().objects.clone()
    }

    /// The dynamic linker's counts of objects that came and went, as of the last refresh.
    #[cfg(feature = "control")]
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.now.lock().counts
    }

    /// The number that the next one that comes will have.
    pub(crate) fn next_arrival(&self) -> u64 {
        self.now.lock().next
    }

    /// The one that patches call `name`, if it is alive.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Object>> {
        self.look_at_named(name, Arc::clone)
    }

    /// Shows `look` the one that patches call `name`, if it is alive, under the lock.
    pub(crate) fn look_at_named<R>(
        &self,
        name: &str,
        look: impl FnOnce(&Arc<Object>) -> R,
    ) -> Option<R> {
        let now = self.now.lock();
        let mut objects = now.objects.iter();
        objects
            .find(|object| object.name == name && object.is_alive())
            .map(look)
    }

    /// The files that are mapped to be executed without being of an object.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if nobody says what is mapped.
    pub(crate) fn outsiders(&self) -> Result<Vec<Outsider>, Error> {
        let maps = maps::mappings()?;
        let objects = self.all();
        let is_outside = |mapping: &Mapping| {
            let is_code = mapping.executable && mapping.file.is_some();
            is_code && !objects.iter().any(|object| object.has(mapping))
        };
        let outside = maps.iter().filter(|mapping| is_outside(mapping));
        // One that bears the file of an object is called like that, whatever its path is.
        let alike = |file: FileId| {
            let is_file = |mapping: &&Mapping| mapping.file == Some(file);
            let mut of_file = maps.iter().filter(is_file);
            of_file.find_map(|mapping| objects.iter().find(|object| object.has(mapping)))
        };
        let outsider = |mapping: &Mapping| {
            let alike = mapping.file.and_then(alike);
            let name =
                alike.map_or_else(|| object_name(mapping.path()), |object| object.name.clone());
            let mapping = mapping.clone();
            Outsider { name, mapping }
        };
        Ok(outside.map(outsider).collect())
    }

    /// The one that `addr` lies in.
    pub(crate) fn at(&self, addr: CodeAddr) -> Option<Arc<Object>> {
        self.look_at(addr, Arc::clone)
    }

    /// Shows `look` the one that `addr` lies in, under the lock.
    pub(crate) fn look_at<R>(
        &self,
        addr: CodeAddr,
        look: impl FnOnce(&Arc<Object>) -> R,
    ) -> Option<R> {
        let now = self.now.lock();
        let mut objects = now.objects.iter();
        objects
            .find(|object| object.segment(addr).is_some())
            .map(look)
    }

    /// The segment that `addr` lies in.
    pub(crate) fn segment(&self, addr: CodeAddr) -> Option<Segment> {
        self.now
            .lock()
            .objects
            .iter()
            .find_map(|object| object.segment(addr))
            .copied()
    }
}

impl Object {
    /// Whether `other` is this one, seen again. What is held has not been unloaded since, so it is
    /// the same even if its file was written to.
    fn is_same(&self, other: &Self) -> bool {
        self.bias == other.bias
            && self.linker_name == other.linker_name
            && self.segments == other.segments
            && self.tls_module == other.tls_module
            && (self.is_alive() || self.build_id == other.build_id && self.stamp == other.stamp)
    }
}

/// The name that patches use for the shared object at `path`: its file name up to `.so`, with `.`
/// and `-` turned into `_`, since names in the patch format contain no dots.
fn object_name(path: &Path) -> String {
    let file = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy();
    let stem = file.find(".so").map_or(&*file, |end| &file[..end]);
    stem.replace(['.', '-'], "_")
}

fn dl_counts() -> (u64, u64) {
    let mut counts = (0, 0);
    loaded::each(&mut |info| {
        counts = (info.dlpi_adds, info.dlpi_subs);
        ControlFlow::Break(())
    });
    counts
}

/// Shows every object that is mapped. None of them is unmapped meanwhile.
fn dl_objects(show: &mut dyn FnMut(Object)) {
    let mut first = true;
    loaded::each(&mut |info| {
        // SAFETY: the dynamic linker's data is valid during the callback.
        let (path, headers) = unsafe {
            let path = if info.dlpi_name.is_null() {
                c""
            } else {
                CStr::from_ptr(info.dlpi_name)
            };
            (
                path,
                core::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()),
            )
        };
        let mut object = dl_object(first, path, info.dlpi_addr, headers);
        object.tls_module = info.dlpi_tls_modid as u64;
        show(object);
        first = false;
        ControlFlow::Continue(())
    });
}

/// "Linux Extensions to gABI", "Program property".
const PT_GNU_PROPERTY: u32 = 0x6474_e553;

fn dl_object(first: bool, linker_name: &CStr, bias: u64, headers: &[libc::Elf64_Phdr]) -> Object {
    let name = if first {
        VMLINUX.to_owned()
    } else {
        object_name(Path::new(OsStr::from_bytes(linker_name.to_bytes())))
    };
    let range = |header: &libc::Elf64_Phdr| {
        TextRange::new(
            CodeAddr::new(bias.wrapping_add(header.p_vaddr)),
            header.p_memsz,
        )
    };
    let of_type = |kind| headers.iter().filter(move |header| header.p_type == kind);
    let bytes = |range: TextRange| {
        let len = usize::try_from(range.len()).ok()?;
        // SAFETY: notes and properties are loaded, readable, and stay as long as the object; the
        // dynamic linker holds it now.
        Some(unsafe { core::slice::from_raw_parts(range.start().get() as *const u8, len) })
    };
    let properties = of_type(PT_GNU_PROPERTY).filter_map(range).find_map(bytes);
    let guard = properties.map_or(0, text::guard);
    let segments = of_type(libc::PT_LOAD)
        .filter_map(|header| {
            Some(Segment {
                range: range(header)?,
                readable: header.p_flags & libc::PF_R != 0,
                executable: header.p_flags & libc::PF_X != 0,
                guard,
            })
        })
        .collect();
    let build_id = of_type(libc::PT_NOTE).filter_map(range).find_map(|note| {
        let (offset, id) = elf_file::build_id(bytes(note)?)?;
        Some(BuildId {
            at: note.start().get() + offset as u64,
            bytes: id.to_vec(),
        })
    });
    let eh_frame_hdr = of_type(libc::PT_GNU_EH_FRAME).find_map(range);
    Object {
        name,
        linker_name: linker_name.to_owned(),
        bias,
        segments,
        eh_frame_hdr,
        relro: of_type(libc::PT_GNU_RELRO).find_map(range),
        tls_module: 0,
        build_id,
        stamp: None,
        file: OnceLock::new(),
        unwind: OnceLock::new(),
        sites: OnceLock::new(),
        notrace: OnceLock::new(),
        arrival: 0,
        // The executable is there from beginning to end.
        life: AtomicU8::new(if first { ALIVE } else { STRANGER }),
        refused: AtomicBool::new(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_dots() {
        assert_eq!(
            object_name(Path::new("/lib/x86_64-linux-gnu/libc.so.6")),
            "libc"
        );
        assert_eq!(object_name(Path::new("linux-vdso.so.1")), "linux_vdso");
        assert_eq!(object_name(Path::new("/opt/libfoo-1.2.so.3")), "libfoo_1_2");
        assert_eq!(object_name(Path::new("/opt/plugin")), "plugin");
    }

    #[test]
    fn this_process_has_an_executable_and_a_libc() {
        let objects = Objects::default();
        let mut came = 0;
        assert!(objects.refresh(&mut |_| came += 1));
        assert_eq!(came, objects.all().len());
        assert!(!objects.refresh(&mut |_| ()), "nothing came or went");
        let executable = objects.named(VMLINUX).expect("there is an executable");
        let here = CodeAddr::new(names_have_no_dots as *const () as u64);
        assert!(
            executable
                .segment(here)
                .expect("this code is in it")
                .executable
        );
        let libc_at = objects
            .at(CodeAddr::new(libc::getpid as *const () as u64))
            .expect("libc is mapped");
        assert_eq!(libc_at.name, "libc");
        assert!(
            objects.named("libc").is_none(),
            "nobody holds it for patches yet"
        );
        libc_at.set_alive();
        assert!(objects.named("libc").is_some());
        assert!(objects.named("no_such_object").is_none());
    }
}
