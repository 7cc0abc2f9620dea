//! What it takes to bring a large patch object into memory: its bytes are parsed, its symbols are
//! looked up in a library, its relocations applied. Rows grow tenfold and twofold: the time of one
//! relocation must not.
//!
//! Each round has a library of its own, whose symbol table nobody has read before; rounds of all
//! sizes alternate, and the median round counts. Times are the processor's, so that others on the
//! machine matter less. Other numbers of functions can be given as arguments.

use klp_core::elf;
use klp_core::elf::manifest::{FUNCS_SECTION, OBJECTS_SECTION, func_ext, object_ext};
use klp_core::port::Platform;
use klp_core::relocs;
use klp_os_linux::process::{Livepatch, Options};
use object::elf as abi;
use object::write::{
    Object, Relocation, SectionId, StandardSegment, Symbol, SymbolId, SymbolSection,
};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope,
};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

type Failure = Box<dyn std::error::Error>;

/// Functions of a patch; each has ten relocations, and the library ten symbols for each.
const SIZES: [usize; 3] = [1_000, 10_000, 20_000];
const PER_FUNCTION: usize = 10;
/// Of those of one function: to symbols of the library, and to the patch's own.
const TO_LIBRARY: usize = 8;
const ROUNDS: usize = 7;

/// One round's time.
#[derive(Clone, Copy)]
struct Round {
    /// The library's symbol table was read, too.
    first: Duration,
    again: Duration,
}

fn main() -> Result<(), Failure> {
    let livepatch = Livepatch::init(Options::default())?;
    let folder = tempfile::tempdir()?;
    let mut sizes: Vec<usize> = std::env::args()
        .filter_map(|size| size.parse().ok())
        .collect();
    if sizes.is_empty() {
        sizes.extend(SIZES);
    }
    let mut times = vec![Vec::with_capacity(ROUNDS); sizes.len()];
    let libraries: Vec<_> = sizes
        .iter()
        .map(|size| library(folder.path(), size * PER_FUNCTION))
        .collect::<Result<_, _>>()?;
    for round in 0..ROUNDS {
        for ((size, library), times) in sizes.iter().zip(&libraries).zip(&mut times) {
            let name = format!("library_{size}_{round}");
            let copy = folder.path().join(format!("{name}.so"));
            std::fs::copy(library, &copy)?;
            // SAFETY: it has no constructors, and nobody calls its functions.
            let library = unsafe { livepatch.open_library(&copy)? };
            let file = klp_build::convert(&patch(&name, *size)?)?;
            let first = bring(livepatch, &file)?;
            let again = bring(livepatch, &file)?;
            times.push(Round { first, again });
            // SAFETY: nobody used it but for its symbols.
            unsafe { library.close()? };
            std::fs::remove_file(copy)?;
        }
    }
    print(&sizes, &times);
    Ok(())
}

/// Brings a patch object into memory and takes it away again; says how long the first took.
fn bring(livepatch: &Livepatch, file: &[u8]) -> Result<Duration, Failure> {
    let host = livepatch.engine().host();
    let begin = processor_time();
    // SAFETY: nothing of it is called.
    let loaded = unsafe { elf::load(host, elf::admit(host, file, "patch")?, "patch")? };
    for object in loaded.patch.objects() {
        // SAFETY: as above; it was loaded just now.
        unsafe { relocs::apply(host, loaded.patch.name(), object)? };
    }
    let took = processor_time() - begin;
    // SAFETY: as above.
    unsafe { loaded.image.unload(host.text()) };
    Ok(took)
}

/// How long this thread has had a processor.
fn processor_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is written.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn print(sizes: &[usize], times: &[Vec<Round>]) {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let median = |rounds: &[Round], of: fn(&Round) -> Duration| {
        let mut times: Vec<_> = rounds.iter().map(of).collect();
        times.sort_unstable();
        millis(times[times.len() / 2])
    };
    println!(
        "{:>9}{:>12}{:>10}{:>11}{:>11}{:>15}{:>15}",
        "functions",
        "relocations",
        "symbols",
        "first, ms",
        "again, ms",
        "first, ns/rel",
        "again, ns/rel"
    );
    for (size, rounds) in sizes.iter().zip(times) {
        let relocations = size * PER_FUNCTION;
        let (first, again) = (
            median(rounds, |round| round.first),
            median(rounds, |round| round.again),
        );
        let each = |millis: f64| millis * 1e6 / relocations as f64;
        println!(
            "{size:>9}{relocations:>12}{relocations:>10}{first:>11.2}{again:>11.2}{:>15.0}{:>15.0}",
            each(first),
            each(again)
        );
    }
}

/// A shared library with so many functions; half of them it exports.
fn library(folder: &Path, functions: usize) -> Result<PathBuf, Failure> {
    let mut code = String::from(".text\n");
    for index in 0..functions {
        if index % 2 == 0 {
            writeln!(code, ".globl function_{index}")?;
        }
        writeln!(
            code,
            ".type function_{index}, @function\nfunction_{index}: ret\n\
             .size function_{index}, . - function_{index}"
        )?;
    }
    code.push_str(".section .note.GNU-stack, \"\", @progbits\n");
    let source = folder.join(format!("{functions}.s"));
    let library = source.with_extension("so");
    std::fs::write(&source, code)?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let linked = Command::new(compiler)
        .args(["-shared", "-nostdlib", "-Wl,--build-id", "-o"])
        .args([&library, &source])
        .status()?;
    if !linked.success() {
        return Err("the library could not be linked".into());
    }
    Ok(library)
}

/// A patch of so many functions of the library called `object`, as a compiler would write it, each
/// function in a section of its own.
fn patch(object: &str, functions: usize) -> Result<Vec<u8>, Failure> {
    let mut patch = Patch {
        file: Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little),
        names: Vec::new(),
    };
    let texts = patch.section(".rodata.names", SectionKind::ReadOnlyData);
    let texts_symbol = patch.file.section_symbol(texts);
    let own: Vec<_> = (0..functions).map(|index| patch.function(index)).collect();
    let library: Vec<_> = (0..functions * PER_FUNCTION)
        .map(|index| patch.symbol(&format!(".klp.sym.{object}.function_{index},0")))
        .collect();
    for (index, &(section, _)) in own.iter().enumerate() {
        for number in 0..PER_FUNCTION {
            let place = index * PER_FUNCTION + number;
            let (kind, symbol) = match number {
                // All over the library's table.
                0..TO_LIBRARY => (
                    [abi::R_X86_64_PLT32, abi::R_X86_64_REX_GOTPCRELX][number % 2],
                    library[place * 7919 % library.len()],
                ),
                TO_LIBRARY => (abi::R_X86_64_PLT32, own[(index + 1) % functions].1),
                _ => (abi::R_X86_64_PC32, texts_symbol),
            };
            patch.relocate(section, number as u64 * 8 + 3, kind, symbol, -4)?;
        }
    }
    let funcs = patch.section(FUNCS_SECTION, SectionKind::ReadOnlyData);
    let funcs_symbol = patch.file.section_symbol(funcs);
    patch
        .file
        .append_section_data(funcs, &vec![0; functions * func_ext::LEN as usize], 8);
    for (index, (_, symbol)) in own.iter().enumerate() {
        let at = index as u64 * func_ext::LEN;
        let name = patch.name(&format!("function_{index}"));
        patch.point(funcs, at + func_ext::OLD_NAME, texts_symbol, name)?;
        patch.point(funcs, at + func_ext::NEW_FUNC, *symbol, 0)?;
    }
    let objects = patch.section(OBJECTS_SECTION, SectionKind::ReadOnlyData);
    let mut entry = vec![0; object_ext::LEN as usize];
    entry[object_ext::NR_FUNCS as usize..][..4].copy_from_slice(&(functions as u32).to_le_bytes());
    patch.file.append_section_data(objects, &entry, 8);
    let name = patch.name(object);
    patch.point(objects, object_ext::NAME, texts_symbol, name)?;
    patch.point(objects, object_ext::FUNCS, funcs_symbol, 0)?;
    let Patch { mut file, names } = patch;
    file.append_section_data(texts, &names, 1);
    Ok(file.write()?)
}

/// A patch object that is being written.
struct Patch {
    file: Object<'static>,
    /// Texts that its description refers to.
    names: Vec<u8>,
}

impl Patch {
    fn section(&mut self, name: &str, kind: SectionKind) -> SectionId {
        let segment = self.file.segment_name(StandardSegment::Data).to_vec();
        self.file.add_section(segment, name.into(), kind)
    }

    /// A function with room for its relocations: ten instructions of eight bytes.
    fn function(&mut self, index: usize) -> (SectionId, SymbolId) {
        let section = self.section(&format!(".text.new_{index}"), SectionKind::Text);
        let code = [0; PER_FUNCTION * 8];
        self.file.append_section_data(section, &code, 16);
        let symbol = self.add(&format!("new_{index}"), SymbolSection::Section(section));
        self.file.symbol_mut(symbol).size = code.len() as u64;
        self.file.symbol_mut(symbol).kind = SymbolKind::Text;
        (section, symbol)
    }

    fn symbol(&mut self, name: &str) -> SymbolId {
        self.add(name, SymbolSection::Undefined)
    }

    fn add(&mut self, name: &str, section: SymbolSection) -> SymbolId {
        self.file.add_symbol(Symbol {
            name: name.into(),
            value: 0,
            size: 0,
            kind: SymbolKind::Unknown,
            scope: SymbolScope::Linkage,
            weak: false,
            section,
            flags: SymbolFlags::None,
        })
    }

    /// Where the text `name` is among [`names`](Self::names).
    fn name(&mut self, name: &str) -> i64 {
        let at = self.names.len();
        self.names.extend_from_slice(name.as_bytes());
        self.names.push(0);
        at as i64
    }

    fn point(
        &mut self,
        from: SectionId,
        at: u64,
        symbol: SymbolId,
        addend: i64,
    ) -> Result<(), Failure> {
        self.relocate(from, at, abi::R_X86_64_64, symbol, addend)
    }

    fn relocate(
        &mut self,
        section: SectionId,
        offset: u64,
        kind: abi::RelocationType,
        symbol: SymbolId,
        addend: i64,
    ) -> Result<(), Failure> {
        let flags = RelocationFlags::Elf { r_type: kind };
        let relocation = Relocation {
            offset,
            symbol,
            addend,
            flags,
        };
        Ok(self.file.add_relocation(section, relocation)?)
    }
}
