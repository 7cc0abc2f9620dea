//! `klp-build inspect PATCH`: what a patch object contains, as the engine reads it.

mod text;

use crate::sign;
use anyhow::{Context, Result, bail};
use klp_arch_aarch64::AArch64;
use klp_arch_ppc64le::Ppc64Le;
use klp_arch_x86_64::X86_64;
use klp_core::elf::PatchFile;
use klp_core::elf::manifest::{CALLBACKS, FuncEntry, ObjectEntry};
use klp_core::elf::names::{SymbolName, part_of};
use klp_core::elf::signature;
use klp_core::elf::view::{Home, SectionFlags};
use klp_core::mem::Name;
use klp_core::model::Replace;
use klp_core::port::{Distrust, Relocator};
use object::Endianness;
use object::elf::{FileHeader64, Machine, STT_FUNC};
use object::read::elf::FileHeader;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Show what a patch object contains
///
/// It is read as the engine reads it, so what is refused here is refused there. Whether it fits a
/// system is not known here: klp check asks that.
#[derive(clap::Args)]
pub(crate) struct Inspect {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The patch object
    file: PathBuf,
}

impl Inspect {
    /// What there is to say of the file.
    pub(crate) fn run(&self) -> Result<String> {
        let bytes = sign::read_with_signature(&self.file)?;
        let contents = Contents::of(&bytes, &self.file);
        let contents = contents.with_context(|| self.file.display().to_string())?;
        if self.json {
            return Ok(serde_json::to_string_pretty(&contents)? + "\n");
        }
        Ok(contents.to_string())
    }
}

/// What a patch object contains.
#[derive(Serialize)]
struct Contents {
    name: String,
    machine: &'static str,
    /// `None`: it has none.
    signature: Option<SignatureSaid>,
    labels: Vec<String>,
    descriptions: Vec<String>,
    authors: Vec<String>,
    /// The patches that must be enabled, too.
    depends: Vec<String>,
    /// Which enabled patches it takes the place of: `all`, `set:N`.
    replace: Option<String>,
    states: Vec<StateSaid>,
    objects: Vec<ObjectSaid>,
    /// Functions that replace none: parts of those that do, and what they call.
    other_functions: Vec<CodeSaid>,
    /// What it uses of the patched system, by the object that has it.
    symbols: BTreeMap<String, Vec<SymbolSaid>>,
    /// What the system must export to it.
    imports: BTreeSet<String>,
    /// It makes or reads shadow variables.
    shadow_variables: bool,
}

/// What its signature says; nobody has verified that here.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum SignatureSaid {
    /// The key that it is said to be signed with.
    Key(String),
    /// What is wrong with it.
    Damaged(String),
}

#[derive(Serialize)]
struct StateSaid {
    id: u64,
    version: u32,
}

#[derive(Serialize)]
struct ObjectSaid {
    name: String,
    /// The build that it is for.
    build_id: Option<String>,
    /// The digest of all code that it has there.
    code: Option<String>,
    functions: Vec<FunctionSaid>,
    callbacks: Vec<&'static str>,
}

#[derive(Serialize)]
struct FunctionSaid {
    name: String,
    /// Which of that name, counted from 1; 0: the only one.
    position: u32,
    /// The code that it has in the build that the patch is for.
    old_code: Option<OldCodeSaid>,
    replacement: CodeSaid,
}

#[derive(Serialize)]
struct OldCodeSaid {
    size: u64,
    digest: String,
}

#[derive(Serialize)]
struct CodeSaid {
    name: String,
    size: u64,
    /// The function that it was split off from.
    part_of: Option<String>,
}

#[derive(Serialize)]
struct SymbolSaid {
    name: String,
    /// Which of that name, counted from 1; 0: the only one.
    position: u32,
    /// How many relocations refer to it.
    relocations: usize,
}

impl Contents {
    fn of(bytes: &[u8], path: &Path) -> Result<Self> {
        let header = FileHeader64::<Endianness>::parse(bytes);
        let header = header.ok().context("not an ELF file of 64 bits")?;
        let machine = header.e_machine(header.endian()?);
        let name = path.file_stem().and_then(|stem| stem.to_str());
        let name = name.unwrap_or("patch");
        match machine {
            Machine(X86_64::MACHINE) => Self::read::<X86_64>("x86_64", bytes, name),
            Machine(AArch64::MACHINE) => Self::read::<AArch64>("aarch64", bytes, name),
            Machine(Ppc64Le::MACHINE) => Self::read::<Ppc64Le>("ppc64le", bytes, name),
            Machine(other) => bail!(
                "it is for ELF machine {other}; patches can be for x86_64 (62), aarch64 (183) and \
                 ppc64le (21)"
            ),
        }
    }

    fn read<R: Relocator>(machine: &'static str, bytes: &[u8], name: &str) -> Result<Self> {
        let file = PatchFile::read::<R>(bytes, name)?;
        let objects = file.objects().iter().map(|object| object_of(&file, object));
        let mut contents = Self {
            name: file.name().to_owned(),
            machine,
            signature: signature_of(bytes),
            labels: texts(&file.about().labels),
            descriptions: texts(&file.about().descriptions),
            authors: texts(&file.about().authors),
            depends: texts(file.depends()),
            replace: match file.replace() {
                Replace::None => None,
                Replace::All => Some("all".to_owned()),
                Replace::Set(set) => Some(format!("set:{set}")),
            },
            states: file.states().iter().map(state_of).collect(),
            objects: objects.collect::<Result<_>>()?,
            other_functions: other_functions(&file),
            symbols: symbols(&file)?,
            imports: imports::<R>(&file),
            shadow_variables: false,
        };
        contents.shadow_variables = contents
            .imports
            .iter()
            .any(|name| name.starts_with("klp_shadow_"));
        Ok(contents)
    }
}

fn signature_of(file: &[u8]) -> Option<SignatureSaid> {
    match signature::read(file) {
        Ok(signature) => Some(SignatureSaid::Key(signature.key.to_string())),
        Err(Distrust::NotSigned) => None,
        Err(why) => Some(SignatureSaid::Damaged(why.to_string())),
    }
}

fn texts(names: &[Name]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn state_of(state: &klp_core::state::State) -> StateSaid {
    StateSaid {
        id: state.id(),
        version: state.version(),
    }
}

fn object_of(file: &PatchFile<'_>, object: &ObjectEntry<'_>) -> Result<ObjectSaid> {
    let functions = object.funcs.iter().map(|func| {
        let (name, position) = (func.old_name.to_owned(), func.sympos);
        let replacement = replacement(file, func)
            .with_context(|| format!("nothing tells the new version of function '{name}'"))?;
        Ok(FunctionSaid {
            name,
            position,
            old_code: func.old_code.as_ref().map(|old| OldCodeSaid {
                size: old.len,
                digest: old.digest.to_string(),
            }),
            replacement,
        })
    });
    let callbacks = CALLBACKS.into_iter().zip(&object.callbacks);
    Ok(ObjectSaid {
        name: object.name.to_owned(),
        build_id: object.build.as_ref().map(ToString::to_string),
        code: object.text.as_ref().map(ToString::to_string),
        functions: functions.collect::<Result<_>>()?,
        callbacks: callbacks
            .filter_map(|(name, there)| there.map(|_| name))
            .collect(),
    })
}

fn replacement(file: &PatchFile<'_>, func: &FuncEntry<'_>) -> Option<CodeSaid> {
    Some(code(file, file.function_at(func.new)?))
}

fn code(file: &PatchFile<'_>, symbol: usize) -> CodeSaid {
    let symbol = &file.view().symbols()[symbol];
    CodeSaid {
        name: symbol.name.to_owned(),
        size: symbol.len,
        part_of: part_of(symbol.name).map(ToOwned::to_owned),
    }
}

/// The functions of the file that replace none, by their names.
fn other_functions(file: &PatchFile<'_>) -> Vec<CodeSaid> {
    let funcs = file.objects().iter().flat_map(|object| &object.funcs);
    let replacing: BTreeSet<(usize, u64)> = funcs
        .map(|func| (func.new.section, func.new.offset))
        .collect();
    let is_other = |index: &usize| {
        let symbol = &file.view().symbols()[*index];
        match symbol.home {
            Home::Section(home) => {
                symbol.kind == STT_FUNC.0 && !replacing.contains(&(home, symbol.value))
            }
            _ => false,
        }
    };
    let all = (0..file.view().symbols().len()).filter(is_other);
    let mut all: Vec<_> = all.map(|symbol| code(file, symbol)).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

/// What the livepatch relocations refer to.
fn symbols(file: &PatchFile<'_>) -> Result<BTreeMap<String, Vec<SymbolSaid>>> {
    let view = file.view();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for section in view.sections() {
        if section.flags.contains(SectionFlags::RELA_LIVEPATCH) {
            for rela in section.relas() {
                *counts.entry(view.symbol_name(rela.symbol)).or_default() += 1;
            }
        }
    }
    let mut symbols: BTreeMap<String, Vec<SymbolSaid>> = BTreeMap::new();
    for (symbol, relocations) in counts {
        let parsed = SymbolName::parse(symbol).map_err(|why| {
            anyhow::anyhow!("symbol {symbol} has an incorrectly formatted name: {why}")
        })?;
        let said = SymbolSaid {
            name: parsed.name.to_owned(),
            position: parsed.pos,
            relocations,
        };
        let of_object = symbols.entry(parsed.object.to_owned()).or_default();
        of_object.push(said);
    }
    Ok(symbols)
}

/// The symbols that are in no object yet, by their names. A table of contents is none: the loader
/// knows where it is.
fn imports<R: Relocator>(file: &PatchFile<'_>) -> BTreeSet<String> {
    let symbols = file.view().symbols().iter();
    let names = symbols
        .filter(|symbol| symbol.home == Home::Undefined && !symbol.name.is_empty())
        .map(|symbol| symbol.name);
    names
        .filter(|name| ![R::OWN_TOC, R::SHARED_TOC].contains(&Some(*name)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::run;
    use std::process::Command;

    const FIX: &str = r#"
#include <klp/patch.h>
#include <klp/shadow.h>

KLP_PATCH("answer_fix");
KLP_REPLACE_SET(7);
KLP_STATE(3, 4);
KLP_LABEL("CVE-2024-1234");
KLP_LABEL("shop-77");
KLP_DESCRIPTION("Answers what is asked");
KLP_AUTHOR("A. Author");

extern int target_question(int) KLP_SYMBOL(vmlinux, question, 0);
extern int target_twin(int) KLP_SYMBOL(vmlinux, twin, 2);
extern int target_of_library(int) KLP_SYMBOL(libshop, price, 0);

__attribute__((noinline)) static int helper(int n) { return target_question(n) + 1; }
static int new_answer(int n) { return helper(n) + target_question(n + 1) * target_twin(n); }
static int new_total(int n)
{
	klp_shadow_get(0, n);
	return target_of_library(n) + 1;
}
static int check(struct klp_object *object) { return object->name ? -1 : 0; }

KLP_REPLACE_WITH(base, KLP_VMLINUX, KLP_CALLBACKS(.pre_patch = check),
		 KLP_FUNC_AT(answer, 2, new_answer));
KLP_REPLACE(shop, "libshop", KLP_FUNC(total, new_total));
"#;

    struct Shop(tempfile::TempDir);

    impl Shop {
        fn path(&self, name: &str) -> String {
            let path = self.0.path().join(name);
            path.to_str().expect("plain").to_owned()
        }

        /// A compiler's object file of `source`.
        fn compile(source: &str) -> (Self, Vec<u8>) {
            let shop = Self(tempfile::tempdir().expect("a folder"));
            std::fs::write(shop.path("fix.c"), source).expect("there is room");
            let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
            let status = Command::new(compiler)
                .args(["-O2", "-fPIC", "-ffunction-sections", "-c", "-I"])
                .arg(klp_build::include_dir())
                .args([shop.path("fix.c"), "-o".into(), shop.path("fix.o")])
                .status();
            assert!(status.expect("a C compiler").success());
            let object = std::fs::read(shop.path("fix.o")).expect("compiled");
            (shop, object)
        }

        fn inspect(&self, bytes: &[u8], json: bool) -> Result<String, String> {
            let fix = self.path("fix.ko");
            std::fs::write(&fix, bytes).expect("there is room");
            let options = if json { &["--json"][..] } else { &[] };
            run(&[&["inspect"], options, &[&fix]].concat())
        }
    }

    #[test]
    fn a_patch_says_what_it_contains() {
        let (shop, object) = Shop::compile(FIX);
        let mut patch = klp_build::convert(&object).expect("a patch");
        let said = shop.inspect(&patch, false).expect("it can be read");
        let sizes = |line: &str| match line.rsplit_once(", ") {
            Some((front, size)) if size.ends_with(" bytes") => front.to_owned(),
            _ => line.to_owned(),
        };
        let lines: Vec<String> = said.lines().map(sizes).collect();
        let first = lines[0].rsplit_once(", ").map(|(front, _)| front);
        assert_eq!(first, Some("patch 'answer_fix'"));
        assert_eq!(
            lines[1..],
            [
                "    not signed",
                "    label: CVE-2024-1234",
                "    label: shop-77",
                "    description: Answers what is asked",
                "    author: A. Author",
                "    takes the place of the patches of set:7",
                "    state 3, version 4",
                "object 'vmlinux', any build",
                "    answer,2 becomes new_answer",
                "    callbacks: pre_patch",
                "object 'libshop', any build",
                "    total becomes new_total",
                "other code",
                "    check",
                "    helper",
                "uses of 'libshop'",
                "    price, 1 relocation",
                "uses of 'vmlinux'",
                "    question, 2 relocations",
                "    twin,2, 1 relocation",
                "uses of what is exported",
                "    klp_shadow_get",
                "uses shadow variables",
            ],
            "{said}"
        );
        // What is no signature may follow.
        patch.extend_from_slice(b"what is no part of the ELF file");
        assert_eq!(shop.inspect(&patch, false), Ok(said));

        let json = shop.inspect(&patch, true).expect("it can be read");
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(json["name"], "answer_fix");
        assert_eq!(json["replace"], "set:7");
        assert_eq!(json["labels"][1], "shop-77");
        assert_eq!(json["states"][0]["version"], 4);
        let answer = &json["objects"][0]["functions"][0];
        assert_eq!(
            (&answer["name"], &answer["position"]),
            (&"answer".into(), &2.into())
        );
        assert!(answer["replacement"]["size"].as_u64() > Some(0), "{json}");
        assert_eq!(json["symbols"]["vmlinux"][1]["relocations"], 1);
    }

    #[test]
    fn a_patch_says_which_key_it_is_signed_with() {
        let (shop, object) = Shop::compile(FIX);
        let patch = klp_build::convert(&object).expect("a patch");
        let [fix, key, keys] = ["fix.ko", "release.key", "release"].map(|name| shop.path(name));
        let made = run(&["keygen", &keys]).expect("a key");
        let id = made.trim_end().rsplit(' ').next().expect("its id");
        let json = |patch: &[u8]| {
            let said = shop.inspect(patch, true).expect("it can be read");
            serde_json::from_str::<serde_json::Value>(&said).expect("JSON")["signature"].clone()
        };
        assert!(json(&patch).is_null());
        let by_key = format!("\n    signed with key {id} (not verified)\n");
        // Beside it, and behind it.
        for options in [&["--detached"][..], &[]] {
            std::fs::write(&fix, &patch).expect("there is room");
            let sign = [&["sign", "--key", &key], options, &[&fix]].concat();
            run(&sign).expect("signed");
            let signed = std::fs::read(&fix).expect("it is there");
            assert_eq!(signed == patch, !options.is_empty());
            let said = shop.inspect(&signed, false).expect("it can be read");
            assert!(said.contains(&by_key), "{said}");
            assert_eq!(json(&signed)["key"], id);
        }
        let mut damaged = std::fs::read(&fix).expect("it is there");
        damaged.pop();
        let said = shop.inspect(&damaged, false).expect("it can be read");
        assert!(said.contains("\n    its signature is damaged: "), "{said}");
        assert!(json(&damaged)["damaged"].is_string());
    }

    #[test]
    fn what_is_no_patch_object_is_refused_by_name() {
        let (shop, object) = Shop::compile("int answer(int n) { return n; }");
        let refused = |bytes: &[u8], why: &str| {
            let said = shop.inspect(bytes, false).expect_err("refused");
            assert!(said.contains("fix.ko: ") && said.contains(why), "{said}");
        };
        refused(b"fix", "not an ELF file");
        refused(&object, "livepatch=Y is missing");
        let mut foreign = object;
        foreign[18..20].copy_from_slice(&8_u16.to_le_bytes());
        refused(&foreign, "it is for ELF machine 8");
        let said = run(&["inspect", "nowhere.ko"]).expect_err("no file");
        assert!(said.contains("cannot read nowhere.ko"), "{said}");
    }

    #[test]
    fn cut_files_are_refused_and_terminals_obey_nobody() {
        let (shop, object) = Shop::compile(&FIX.replace("answer_fix", "\\033[31m"));
        let patch = klp_build::convert(&object).expect("a patch");
        let said = shop.inspect(&patch, false).expect("it can be read");
        assert!(said.starts_with("patch '\\u{1b}[31m', "), "{said}");
        for len in (0..patch.len()).step_by(97) {
            assert!(shop.inspect(&patch[..len], false).is_err(), "{len} bytes");
        }
    }
}
