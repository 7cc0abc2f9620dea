//! `seeds FOLDER`: makes the corpora that fuzzing begins with, of the sources in `seeds/`, by GCC
//! for every architecture.

// What is built with counters needs who reads them.
use libfuzzer_sys as _;

use klp_build::{PatchBuilder, convert, include_dir};
use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The compilers, in the order that targets number the machines in, and what they are told so that
/// functions can be patched.
const COMPILERS: [(&str, &[&str]); 3] = [
    (
        "x86_64-linux-gnu-gcc",
        &["-fpatchable-function-entry=16", "-fcf-protection=branch"],
    ),
    (
        "aarch64-linux-gnu-gcc",
        &[
            "-fpatchable-function-entry=2",
            "-mbranch-protection=standard",
        ],
    ),
    (
        "powerpc64le-linux-gnu-gcc",
        &["-pg", "-mprofile-kernel", "-mno-pcrel"],
    ),
];

const FLAGS: [&str; 4] = ["-O2", "-fPIC", "-ffunction-sections", "-fdata-sections"];

/// Where `.text` and `.eh_frame` of the library stand.
const TEXT: u64 = 0x1_0000;
const EH_FRAME: u64 = 0x2_0000;

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).ok_or("which folder?")?;
    fs::create_dir_all(&folder)?;
    let corpora = Corpora(fs::canonicalize(folder)?);
    for (machine, (compiler, flags)) in (0..).zip(COMPILERS) {
        let compiler = Compiler {
            name: compiler,
            entries: flags,
            out: corpora.0.join("objects").join(compiler),
        };
        corpora.add_machine(machine, &compiler)?;
    }
    corpora.add_lines("names", include_str!("../seeds/names.txt"))?;
    corpora.add_lines("protocol", include_str!("../seeds/protocol.txt"))?;
    for (name, diff) in [
        ("change", include_str!("../seeds/diffs/change.diff")),
        ("files", include_str!("../seeds/diffs/files.diff")),
    ] {
        // Names have one folder in front.
        corpora.add("diff", name, &[&[1], diff.as_bytes()].concat())?;
    }
    Ok(())
}

/// A compiler, what it is told, and where what it makes goes.
struct Compiler {
    name: &'static str,
    /// So that functions can be patched.
    entries: &'static [&'static str],
    out: PathBuf,
}

impl Compiler {
    /// Compiles a file of `seeds/`, and says what came of it.
    fn compile(&self, source: &str, flags: &[&str]) -> Result<Vec<u8>> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
        fs::create_dir_all(&self.out)?;
        let object = self.out.join("it.o");
        let mut gcc = Command::new(self.name);
        gcc.current_dir(sources).args(FLAGS).args(flags);
        gcc.arg("-I")
            .arg(include_dir())
            .arg("-o")
            .arg(&object)
            .arg(source);
        let status = gcc
            .status()
            .map_err(|error| format!("{}: {error}", self.name))?;
        if !status.success() {
            return Err(format!("{gcc:?} failed").into());
        }
        Ok(fs::read(object)?)
    }
}

/// The folder with a corpus for each target.
struct Corpora(PathBuf);

impl Corpora {
    fn add(&self, target: &str, name: &str, input: &[u8]) -> Result<()> {
        let folder = self.0.join(target);
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join(name), input)?)
    }

    fn add_lines(&self, target: &str, lines: &str) -> Result<()> {
        let mut numbered = (1..).zip(lines.lines());
        numbered.try_for_each(|(number, line)| {
            self.add(target, &format!("line-{number}"), line.as_bytes())
        })
    }

    fn add_machine(&self, machine: u8, compiler: &Compiler) -> Result<()> {
        let object = |source, flags: &[&str]| {
            compiler.compile(source, &[compiler.entries, flags, &["-c"]].concat())
        };
        let by_hand = object("patch.c", &[])?;
        let (original, fixed) = (object("shop.c", &[])?, object("shop.c", &["-DFIXED"])?);
        let mut patch = PatchBuilder::new("by_diff");
        patch.pair(Path::new("shop.o"), Some(&original), &fixed)?;
        let by_diff = patch.build()?.bytes;
        let converted = convert(&by_hand)?;
        for (name, object) in [
            ("by_hand", &by_hand),
            ("original", &original),
            ("fixed", &fixed),
        ] {
            let name = format!("{machine}-{name}");
            self.add("convert", &name, object)?;
            self.add("view", &name, object)?;
            self.add("code", &name, &code(machine, object)?)?;
        }
        for (name, patch) in [("converted", &converted), ("by_diff", &by_diff)] {
            let name = format!("{machine}-{name}");
            self.add("view", &name, patch)?;
            self.add("loader", &name, &[&[machine], &**patch].concat())?;
        }
        for (name, first, second) in [("fix", &original, &fixed), ("back", &fixed, &original)] {
            let len = u32::try_from(first.len())?.to_le_bytes();
            let pair = [&len, &**first, second].concat();
            self.add("pair", &format!("{machine}-{name}"), &pair)?;
        }
        self.add(
            "eh_frame",
            &format!("{machine}-shop"),
            &frames(machine, compiler)?,
        )
    }
}

/// An input of `code`: some function of the object file.
fn code(machine: u8, object: &[u8]) -> Result<Vec<u8>> {
    let elf = ElfFile64::<Endianness>::parse(object)?;
    let mut sections = elf.sections();
    let text = sections.find(|section| section.name().is_ok_and(|name| name.starts_with(".text.")));
    let text = text.ok_or("no code")?;
    let mut input = vec![machine];
    input.extend_from_slice(&[0x11; 12]);
    input.extend_from_slice(text.data()?);
    Ok(input)
}

/// An input of `eh_frame`: a library's section, and a task in its code.
fn frames(machine: u8, compiler: &Compiler) -> Result<Vec<u8>> {
    let places = [
        format!("-Wl,-Ttext={TEXT:#x}"),
        format!("-Wl,--section-start=.eh_frame={EH_FRAME:#x}"),
    ];
    let library = compiler.compile(
        "shop.c",
        &[
            "-shared",
            "-nostdlib",
            "-Wl,-z,undefs",
            &places[0],
            &places[1],
        ],
    )?;
    let elf = ElfFile64::<Endianness>::parse(&*library)?;
    let section = |name| elf.section_by_name(name).ok_or("no such section");
    let (text, eh_frame) = (section(".text")?, section(".eh_frame")?);
    let distance = i32::try_from(text.address() as i64 - eh_frame.address() as i64)?;
    let mut input = vec![machine];
    input.extend_from_slice(&distance.to_le_bytes());
    input.extend_from_slice(&u32::try_from(text.size())?.to_le_bytes());
    // Program counter, stack pointer, frame pointer, link; then the stack: code and addresses.
    let code = |nth: u64| u16::try_from(text.size() / 5 * nth << 2).unwrap_or(0);
    let stack = |word: u16| word << 2 | 1;
    input.extend(
        [code(1), stack(0), stack(9), code(2)]
            .iter()
            .flat_map(|word| word.to_le_bytes()),
    );
    let words: Vec<u16> = (0..40)
        .map(|word| {
            if word % 2 == 0 {
                stack(word + 4)
            } else {
                code(u64::from(word) / 8)
            }
        })
        .collect();
    input.push(u8::try_from(words.len())?);
    input.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    input.extend_from_slice(eh_frame.data()?);
    Ok(input)
}
