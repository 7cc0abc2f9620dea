//! What compilers and linkers make: a program, a patch object for it, and that linked.

use super::{Base, Compiler, Tools};
use core::fmt;
use klp_build::{PatchBuilder, Target};
use klp_core::elf::{SHF_RELA_LIVEPATCH, SHN_LIVEPATCH};
use object::build::Id;
use object::build::elf::{Builder, SectionData};
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{LittleEndian, elf};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Where linkers put addresses for code to find there.
const TABLES: [&str; 3] = [".got", ".plt", ".branch_lt"];

const LE: LittleEndian = LittleEndian;
const C: &str = include_str!("code.c");
const RUST: &str = include_str!("code.rs");
const OUTSIDE: &str = include_str!("outside.c");

/// A program, and a patch for it.
pub(super) struct Build {
    what: String,
    pub(super) tools: Tools,
    folder: TempDir,
    pub(super) patch: Vec<u8>,
    pub(super) program: Program,
}

/// The build-id of programs, as a number of eight digits.
pub(super) const BUILD_ID: u32 = 0xc0ff_ee11;

/// A program's symbols.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) symbols: Vec<Symbol>,
    /// Behind everything.
    pub(super) end: u64,
}

#[derive(Clone)]
pub(super) struct Symbol {
    pub(super) name: String,
    pub(super) addr: u64,
    pub(super) len: u64,
    pub(super) local: bool,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl Build {
    /// Makes both; `None` if a tool is not here.
    pub(super) fn new(
        tools: Tools,
        compiler: Compiler,
        base: Base,
        options: &[&str],
    ) -> Option<Self> {
        let what = format!("{compiler:?} {} {base:?}", options.join(" "));
        let folder = tempfile::tempdir().expect("a folder");
        let at = folder.path();
        let objects = match compiler {
            Compiler::Rustc => rustc(tools, at, options)?,
            Compiler::Gcc => {
                let gcc = format!("{}gcc", tools.gnu);
                [false, true].map(|patched| c(&gcc, &[], at, C, patched, options))
            }
            Compiler::Clang => {
                let target = format!("--target={}-linux-gnu", tools.llvm);
                let clang = clang()?;
                [false, true].map(|patched| c(&clang, &[&target], at, C, patched, options))
            }
        };
        let [original, patched] = objects;
        let objects = [original?, patched?];
        let outside = c(&format!("{}gcc", tools.gnu), &[], at, OUTSIDE, false, &[])?;
        let start = match base {
            Base::Low => 0x40_0000_u64,
            Base::High => 0x12_3400_0000,
        };
        let program = at.join("program");
        let segments = format!("-Ttext-segment={start:#x}");
        let mut arguments = vec![
            segments.into(),
            format!("--build-id={BUILD_ID:#x}").into(),
            "-o".into(),
            program.clone().into_os_string(),
        ];
        arguments.extend([&objects[0], &outside].map(|path| path.clone().into_os_string()));
        ld(tools, &what, arguments)?;
        let program = std::fs::read(program).expect("linked");
        let [original, patched] = [0, 1].map(|index| read(&objects[index]));
        let mut builder = PatchBuilder::new("patch");
        builder.target(Target::read(&program).expect("a program"));
        builder
            .pair(Path::new("code.o"), Some(&original), &patched)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let built = builder.build();
        let built = built.unwrap_or_else(|error| panic!("{what}: {error}"));
        Some(Self {
            what,
            tools,
            folder,
            patch: built.bytes,
            program: Program::read(&program),
        })
    }

    /// Links the patch object with each section where `sections` says, the linker's slots at
    /// `slots`, and the program's table of contents; `address` tells where its symbols are.
    pub(super) fn link(
        &self,
        sections: &BTreeMap<usize, u64>,
        shared_toc: Option<(&str, u64)>,
        slots: u64,
        address: &dyn Fn(usize) -> Option<u64>,
    ) -> Linked {
        let at = self.folder.path();
        let (plain, script, out) = (at.join("plain.o"), at.join("script"), at.join("linked"));
        std::fs::write(&plain, plain_object(&self.patch, address)).expect("written");
        let mut text = String::from("SECTIONS {\n");
        // What is at the same place behind it is not loaded.
        for (index, address) in sections {
            let name = neutral(*index);
            writeln!(text, "{name} {address:#x} : {{ *({name}) }}").expect("to memory");
        }
        writeln!(text, ".got.plt {slots:#x} : {{ *(.got.plt) }}").expect("to memory");
        for table in TABLES {
            writeln!(text, "{table} : {{ *({table}) }}").expect("to memory");
        }
        if let Some((name, base)) = shared_toc {
            writeln!(text, "{name} = {base:#x};").expect("to memory");
        }
        text.push_str("/DISCARD/ : { *(*) }\n}\n");
        std::fs::write(&script, text).expect("written");
        let mut arguments: Vec<OsString> = vec!["--no-check-sections".into(), "-T".into()];
        arguments.extend([script, "-o".into(), out.clone(), plain].map(PathBuf::into_os_string));
        ld(self.tools, &self.what, arguments).expect("it linked the program");
        Linked { file: read(&out) }
    }
}

/// A patch object as compilers write objects: what is livepatch in it is plain, with known
/// addresses, and its sections have names that mean nothing to linkers.
fn plain_object(patch: &[u8], address: &dyn Fn(usize) -> Option<u64>) -> Vec<u8> {
    let patch = without_alloc(patch);
    let mut file = Builder::read(&*patch).expect("an ELF file");
    for symbol in &mut file.symbols {
        let is_ours =
            symbol.section.is_none() && symbol.st_shndx == elf::SymbolSection(SHN_LIVEPATCH);
        let address = address(symbol.id().index() + 1);
        if let (true, Some(address)) = (is_ours || symbol.st_shndx == elf::SHN_UNDEF, address) {
            symbol.st_shndx = elf::SHN_ABS;
            symbol.st_value = address;
        }
    }
    let mut relas = BTreeMap::<usize, Vec<_>>::new();
    for section in &mut file.sections {
        let is_ours = section.sh_flags.0 & SHF_RELA_LIVEPATCH != 0;
        if let (true, SectionData::Relocation(its), Some(target)) =
            (is_ours, &section.data, section.sh_info_section)
        {
            relas
                .entry(target.index())
                .or_default()
                .extend_from_slice(its);
            section.delete = true;
        }
    }
    let symtab = file
        .sections
        .iter()
        .find_map(|section| matches!(section.data, SectionData::Symbol).then(|| section.id()));
    for section in &mut file.sections {
        let target = section.sh_info_section.map(|target| target.index());
        if let (SectionData::Relocation(its), Some(target), false) =
            (&mut section.data, target, section.delete)
        {
            its.extend(relas.remove(&target).unwrap_or_default());
        }
    }
    let targets: BTreeMap<_, _> = file
        .sections
        .iter()
        .map(|each| (each.id().index(), each.id()))
        .collect();
    for (target, its) in relas {
        let section = file.sections.add();
        section.name = format!(".rela{}", neutral(target + 1)).into_bytes().into();
        section.sh_type = elf::SHT_RELA;
        section.sh_flags = elf::SHF_INFO_LINK;
        section.sh_link_section = symtab;
        section.sh_info_section = targets.get(&target).copied();
        section.sh_entsize = 24;
        section.sh_addralign = 8;
        section.data = SectionData::Relocation(its);
    }
    for section in &mut file.sections {
        let merged = elf::SHF_MERGE.0 | elf::SHF_STRINGS.0;
        if section.sh_flags.0 & elf::SHF_ALLOC.0 != 0 {
            section.name = neutral(section.id().index() + 1).into_bytes().into();
            section.sh_flags = elf::SectionFlags(section.sh_flags.0 & !merged);
        }
    }
    let mut bytes = Vec::new();
    file.write(&mut bytes).expect("an ELF file again");
    bytes
}

/// The same with livepatch relocations that are not in memory: the builder would take them for a
/// dynamic linker's.
fn without_alloc(patch: &[u8]) -> Vec<u8> {
    let header = elf::FileHeader64::<LittleEndian>::parse(patch).expect("ELF");
    let sections = header.section_headers(LE, patch).expect("sections");
    let (size, flags) = (
        size_of::<elf::SectionHeader64<LittleEndian>>(),
        core::mem::offset_of!(elf::SectionHeader64<LittleEndian>, sh_flags),
    );
    let mut bytes = patch.to_vec();
    for (index, section) in sections.iter().enumerate() {
        let has = section.sh_flags(LE).0;
        if has & SHF_RELA_LIVEPATCH != 0 {
            let at = header.e_shoff(LE) as usize + index * size + flags;
            bytes[at..at + 8].copy_from_slice(&(has & !elf::SHF_ALLOC.0).to_le_bytes());
        }
    }
    bytes
}

/// What a section is called while it is linked.
fn neutral(index: usize) -> String {
    format!(".section_{index}")
}

/// What the linker made.
pub(super) struct Linked {
    file: Vec<u8>,
}

impl Linked {
    pub(super) fn section(&self, index: usize) -> &[u8] {
        let name = neutral(index);
        let found = self.named(&name).map(|(_, bytes)| bytes);
        found.unwrap_or_else(|| panic!("the linker left {name} out"))
    }

    /// Where in the linker's tables eight bytes hold `value`.
    pub(super) fn slots(&self, value: u64) -> Vec<u64> {
        let tables = TABLES.iter().filter_map(|name| self.named(name));
        tables
            .flat_map(|(at, bytes)| slots_in(bytes, at, value))
            .collect()
    }

    fn named(&self, name: &str) -> Option<(u64, &[u8])> {
        let file = &*self.file;
        let header = elf::FileHeader64::<LittleEndian>::parse(file).expect("ELF");
        let sections = header.sections(LE, file).expect("sections");
        let (_, section) = sections.section_by_name(LE, name.as_bytes())?;
        Some((section.sh_addr(LE), section.data(LE, file).expect("bytes")))
    }
}

/// Where in `bytes`, which are at `start`, eight bytes hold `value`.
pub(super) fn slots_in(bytes: &[u8], start: u64, value: u64) -> Vec<u64> {
    let words = bytes.chunks_exact(8).zip((start..).step_by(8));
    let holds = |(bytes, _): &(&[u8], u64)| *bytes == value.to_le_bytes();
    words.filter(holds).map(|(_, at)| at).collect()
}

impl Program {
    fn read(file: &[u8]) -> Self {
        let header = elf::FileHeader64::<LittleEndian>::parse(file).expect("ELF");
        let sections = header.sections(LE, file).expect("sections");
        let table = sections
            .symbols(LE, file, elf::SHT_SYMTAB)
            .expect("symbols");
        let is_thing = |symbol: &&elf::Sym64<LittleEndian>| {
            ![elf::STT_FILE, elf::STT_SECTION].contains(&symbol.st_type())
                && symbol.st_shndx(LE) != elf::SHN_UNDEF
        };
        let symbols = table.iter().filter(is_thing).map(|symbol| Symbol {
            name: String::from_utf8_lossy(symbol.name(LE, table.strings()).expect("a name"))
                .into_owned(),
            addr: symbol.st_value(LE),
            len: symbol.st_size(LE),
            local: symbol.st_bind() == elf::STB_LOCAL,
        });
        let ends = sections
            .iter()
            .map(|section| section.sh_addr(LE) + section.sh_size(LE));
        Self {
            symbols: symbols.collect(),
            end: ends.max().unwrap_or_default(),
        }
    }

    pub(super) fn symbol(&self, name: &str) -> Option<u64> {
        let mut named = self.symbols.iter().filter(|symbol| symbol.name == name);
        named.next().map(|symbol| symbol.addr)
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("it was written")
}

fn c(
    compiler: &str,
    first: &[&str],
    folder: &Path,
    source: &str,
    patched: bool,
    options: &[&str],
) -> Option<PathBuf> {
    let name = format!("{}_{patched}", source.len());
    let (file, out) = (
        folder.join(&name).with_extension("c"),
        folder.join(name).with_extension("o"),
    );
    std::fs::write(&file, source).expect("written");
    let mut command = Command::new(compiler);
    command.args(first).args([
        "-O2",
        "-ffunction-sections",
        "-fdata-sections",
        "-ffreestanding",
    ]);
    command.args(options).args(patched.then_some("-DPATCHED"));
    command.arg("-c").arg(file).arg("-o").arg(&out);
    run(command).then_some(out)
}

fn rustc(tools: Tools, folder: &Path, options: &[&str]) -> Option<[Option<PathBuf>; 2]> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut libraries = Command::new(&rustc);
    libraries.args(["--print", "target-libdir", "--target", tools.rust]);
    let output = libraries.output().ok()?.stdout;
    if !Path::new(String::from_utf8_lossy(&output).trim()).exists() {
        eprintln!("rustc has no libraries for {}: not tested", tools.rust);
        return None;
    }
    Some([false, true].map(|patched| {
        let (file, out) = (
            folder.join("code.rs"),
            folder.join(format!("rust_{patched}.o")),
        );
        std::fs::write(&file, RUST).expect("written");
        let mut command = Command::new(&rustc);
        command.args([
            "--edition=2024",
            "--emit=obj",
            "-O",
            "-Ccodegen-units=1",
            "--target",
            tools.rust,
        ]);
        command
            .args(options)
            .args(patched.then_some("--cfg=patched"));
        command
            .arg("--check-cfg=cfg(patched)")
            .arg(file)
            .arg("-o")
            .arg(&out);
        run(command).then_some(out)
    }))
}

/// A clang, if one is installed.
fn clang() -> Option<String> {
    let names = (11..30).rev().map(|version| format!("clang-{version}"));
    let mut names = core::iter::once("clang".to_owned()).chain(names);
    // An emulator of single programs starts a process for one that is not there, too.
    let runs = |name: &String| {
        let output = Command::new(name).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    let found = names.find(runs);
    if found.is_none() {
        eprintln!("clang is not installed: what it compiles was not tested");
    }
    found
}

fn ld(tools: Tools, what: &str, arguments: Vec<OsString>) -> Option<()> {
    let mut command = Command::new(format!("{}ld", tools.gnu));
    command.args(["-static", "-e", "0", "-z", "noexecstack"]);
    command.args(tools.no_relax).args(arguments);
    let output = command.output().ok()?;
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {command:?}: {words}");
    Some(())
}

/// `false` if the program is not here.
fn run(mut command: Command) -> bool {
    match command.output() {
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {words}");
            true
        }
        Err(_) => {
            eprintln!("{:?} is not installed: not tested", command.get_program());
            false
        }
    }
}
