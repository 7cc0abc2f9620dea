//! What is mapped where, and from which file: `/proc/self/maps` (`proc_pid_maps(5)`).

use super::arch;
use super::error::Error;
use super::sys::page_size;
use core::ops::Range;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// All mappings of this process, as they were at one moment, to be asked often.
pub(crate) struct Maps {
    /// Sorted.
    all: Vec<Mapping>,
    /// Where there is code, sorted.
    code: Vec<Range<u64>>,
    /// A bit for each block of addresses in which there may be code, several blocks to a bit: most
    /// words are told from addresses of code by it.
    blocks: [u64; BLOCKS / 64],
}

/// Bits of [`Maps::blocks`].
const BLOCKS: usize = 4096;
/// Bytes of a block.
const BLOCK: u64 = 2 << 20;

/// Which bit stands for the block that `addr` is in: its place in the array, and its value.
fn block(addr: u64) -> (usize, u64) {
    let number = (addr / BLOCK).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52;
    (number as usize / 64 % (BLOCKS / 64), 1 << (number % 64))
}

/// One above the highest address that is used. The last page is the kernel's, for the code of probes
/// (`xol_add_vma` in `kernel/events/uprobes.c`).
pub(crate) fn highest() -> u64 {
    arch::TOP - page_size()
}

impl Maps {
    /// # Errors
    ///
    /// Those of [`mappings`].
    pub(crate) fn now() -> Result<Self, Error> {
        let all = mappings()?;
        let code = all.iter().filter(|mapping| mapping.is_code());
        let code = code.map(|mapping| mapping.range.clone());
        // Where the kernel puts the code of probes, at any moment.
        let last_page = highest()..arch::TOP;
        let mut code: Vec<_> = code.chain([last_page]).collect();
        code.sort_unstable_by_key(|range| range.start);
        let mut blocks = [0; BLOCKS / 64];
        for range in &code {
            if (range.end - range.start) / BLOCK >= BLOCKS as u64 {
                // Room that somebody has reserved for code: it may be half of all addresses.
                blocks = [u64::MAX; BLOCKS / 64];
                break;
            }
            for addr in (range.start / BLOCK * BLOCK..range.end).step_by(BLOCK as usize) {
                let (place, bit) = block(addr);
                blocks[place] |= bit;
            }
        }
        Ok(Self { all, code, blocks })
    }

    /// The mapping that `addr` lies in.
    pub(crate) fn at(&self, addr: u64) -> Option<&Mapping> {
        let behind = self
            .all
            .partition_point(|mapping| mapping.range.start <= addr);
        let mapping = self.all.get(behind.checked_sub(1)?)?;
        (addr < mapping.range.end).then_some(mapping)
    }

    /// Whether there may be code at `addr`.
    pub(crate) fn is_code(&self, addr: u64) -> bool {
        let (place, bit) = block(addr);
        if self.blocks[place] & bit == 0 {
            return false;
        }
        let behind = self.code.partition_point(|range| range.start <= addr);
        behind > 0 && addr < self.code[behind - 1].end
    }
}

/// One mapping.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    pub(crate) range: Range<u64>,
    pub(crate) executable: bool,
    /// The file that it is of; none if it is of no file.
    pub(crate) file: Option<FileId>,
    /// As the kernel writes it.
    name: Vec<u8>,
}

/// A file, as mappings tell it from others. What `stat` says of it is another number on some file
/// systems (overlayfs, btrfs): compare mappings with mappings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileId {
    device: (u32, u32),
    pub(crate) inode: u64,
}

/// All mappings of this process, by address.
///
/// # Errors
///
/// If `/proc/self/maps` cannot be read.
pub(crate) fn mappings() -> Result<Vec<Mapping>, Error> {
    let maps = read().map_err(|error| Error::io("read /proc/self/maps", &error))?;
    let lines = maps.split(|&byte| byte == b'\n');
    Ok(lines.filter_map(Mapping::parse).collect())
}

/// Reads at offsets of its own: a signal handler may fork, and the child share the file's.
fn read() -> std::io::Result<Vec<u8>> {
    let file = File::open("/proc/self/maps")?;
    let (mut text, mut len) = (vec![0; 16 * 1024], 0);
    loop {
        match file.read_at(&mut text[len..], len as u64)? {
            0 => break,
            more => len += more,
        }
        if len == text.len() {
            text.resize(2 * len, 0);
        }
    }
    text.truncate(len);
    Ok(text)
}

/// The mapping that `addr` lies in.
pub(crate) fn mapping_at(addr: u64) -> Option<Mapping> {
    let mut maps = mappings().ok()?.into_iter();
    maps.find(|mapping| mapping.range.contains(&addr))
}

impl Mapping {
    /// `START-END rwxp OFFSET MAJOR:MINOR INODE     NAME`, numbers in hexadecimal but for the
    /// inode's.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let mut field = || core::str::from_utf8(fields.next()?).ok();
        let (start, end) = field()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let range = hex(start)?..hex(end)?;
        let executable = field()?.as_bytes().get(2) == Some(&b'x');
        field()?;
        let (major, minor) = field()?.split_once(':')?;
        let number = |text| u32::from_str_radix(text, 16).ok();
        let device = (number(major)?, number(minor)?);
        let inode = field()?.parse().ok()?;
        Some(Self {
            range,
            executable,
            file: (inode != 0).then_some(FileId { device, inode }),
            name: fields
                .next()
                .unwrap_or_default()
                .trim_ascii_start()
                .to_vec(),
        })
    }

    /// Its name: a path, `[stack]`, …; empty if it has none.
    pub(crate) fn name(&self) -> &OsStr {
        OsStr::from_bytes(&self.name)
    }

    /// Where the file is, or was if it is not there any more.
    pub(crate) fn path(&self) -> &Path {
        let gone = self.name.strip_suffix(b" (deleted)");
        Path::new(OsStr::from_bytes(gone.unwrap_or(&self.name)))
    }

    /// Whether it is code. Of the vDSO that cannot be said: all of it is executable, also what is
    /// none.
    pub(crate) fn is_code(&self) -> bool {
        self.executable && self.name != b"[vdso]"
    }

    /// Whether it has a byte of `range`.
    pub(crate) fn overlaps(&self, range: &Range<u64>) -> bool {
        self.range.start < range.end && range.start < self.range.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let line = b"00400000-00452000 r-xp 00000000 fe:02 173521      /usr/bin/a b (deleted)";
        let mapping = Mapping::parse(line).expect("it is one");
        assert_eq!(mapping.range, 0x40_0000..0x45_2000);
        assert!(mapping.executable);
        let file = FileId {
            device: (0xfe, 2),
            inode: 173_521,
        };
        assert_eq!(mapping.file, Some(file));
        assert_eq!(mapping.path(), Path::new("/usr/bin/a b"));
        let stack = b"7ffd0a000000-7ffd0a021000 rw-p 00000000 00:00 0        [stack]";
        let stack = Mapping::parse(stack).expect("it is one");
        assert_eq!((stack.file, stack.executable), (None, false));
        assert_eq!(stack.name(), "[stack]");
        let nameless = Mapping::parse(b"1000-2000 rw-p 00000000 00:00 0 ").expect("it is one");
        assert_eq!(nameless.name(), "");
        assert_eq!(Mapping::parse(b"nonsense"), None);
        assert_eq!(Mapping::parse(b""), None);
    }

    #[test]
    fn this_code_is_in_an_executable_mapping_of_a_file() {
        let here = lines_are_understood as *const () as u64;
        let mapping = mapping_at(here).expect("it is mapped");
        assert!(mapping.executable && mapping.overlaps(&(here..here + 1)));
        assert!(!mapping.overlaps(&(mapping.range.end..mapping.range.end + 1)));
        assert_eq!(
            mapping.path(),
            std::fs::read_link("/proc/self/exe").expect("there is a /proc")
        );
    }
}
