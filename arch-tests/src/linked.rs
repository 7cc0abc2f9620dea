//! Patch objects of real compilers, brought into memory, and the same files linked by a real linker
//! to the same addresses: both must come to the same bytes.
//!
//! The linker is told not to change instructions (`--no-relax` and its like); where it does not
//! listen, ours must be what the object file has. Two things are looked at apart, for what stands there depends on where a linker puts what it makes itself:
//!
//! * References to slots. Ours must be what comes of one of our slots that holds the symbol's
//!   address, and the linker's what comes of one of its own, both worked out by the relocator.
//! * Calls that go through a veneer, which linkers need for other reasons than we: they must be what
//!   comes of a veneer to that function.
//!
//! Nothing is executed: the tests run on any machine that has the compilers and linkers. What is not
//! installed is said, and left out.

mod host;
mod program;

use host::Host;
use klp_core::addr::CodeAddr;
use klp_core::elf::view::{Home, Rela, SectionFlags, View};
use klp_core::elf::{self, names::SymbolName};
use klp_core::port::{Arch, Around, Code, Owner, Relocation, Relocator, Support, Via};
use klp_core::relocs;
use object::elf as abi;
use program::{Build, Linked};
use std::collections::BTreeMap;

/// Where the program begins: so low that 31 bits hold any address, or high.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// For code that is not position-independent.
    Low,
    /// For all other code.
    High,
}

/// The tools for one processor.
#[derive(Clone, Copy, Debug)]
pub struct Tools {
    /// What names of GNU's tools begin with.
    pub gnu: &'static str,
    /// What LLVM and rustc call the processor.
    pub llvm: &'static str,
    /// rustc's target.
    pub rust: &'static str,
    /// Options that keep the linker from changing instructions.
    pub no_relax: &'static [&'static str],
    /// Relocation types for which it changes eight bytes nevertheless.
    pub relaxed: &'static [u32],
}

/// Who compiles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compiler {
    /// GCC.
    Gcc,
    /// Clang.
    Clang,
    /// rustc.
    Rustc,
}

/// Has `compiler` compile with each of `ways`, which are options, and compares. Returns the
/// relocation types that were seen; `None` if a tool is not here.
///
/// # Panics
///
/// If anything differs; the message says what.
pub fn compare<A: Arch + Relocator>(
    tools: Tools,
    compiler: Compiler,
    ways: &[(Base, &[&str])],
) -> Option<Vec<u32>> {
    let mut kinds = Vec::new();
    for (base, options) in ways {
        let build = Build::new(tools, compiler, *base, options)?;
        let case = Case::<A>::new(&build);
        case.compare(&mut kinds);
    }
    kinds.sort_unstable();
    kinds.dedup();
    Some(kinds)
}

/// One patch object in memory, and linked.
struct Case<'a, A: Arch + Relocator> {
    what: String,
    tools: Tools,
    view: View<'a>,
    host: Host<A>,
    /// Addresses of sections in the image; by index.
    sections: BTreeMap<usize, u64>,
    linked: Linked,
    /// The base of the table of contents, if there is one.
    toc: Option<CodeAddr>,
}

impl<'a, A: Arch + Relocator> Case<'a, A> {
    fn new(build: &'a Build) -> Self {
        let view = View::parse(&build.patch, A::MACHINE, A::BIG_ENDIAN).expect("a patch object");
        let host = Host::<A>::new(&build.program);
        let file = elf::admit(&host, &build.patch, "patch").expect("nobody verifies");
        // SAFETY: nothing of it is executed.
        let loaded = unsafe { elf::load(&host, file, "patch") };
        let loaded = loaded.unwrap_or_else(|error| panic!("{build}: {error}"));
        for object in loaded.patch.objects() {
            // SAFETY: as above.
            unsafe { relocs::apply(&host, "patch", object) }
                .unwrap_or_else(|error| panic!("{build}: {error}"));
        }
        let (sections, slots) = places(&view, &host);
        for (name, range) in loaded.image.functions() {
            let place = function(&view, &sections, name);
            assert_eq!(place, Some(range.start().get()), "{build}: {name}");
        }
        let shared = A::SHARED_TOC.and_then(|name| Some((name, build.program.symbol(name)?)));
        let own = A::OWN_TOC.map(|_| slots);
        let toc = shared.map(|(_, base)| base).or(own).map(CodeAddr::new);
        let addresses = |index: usize| resolve(&view, &host, index);
        let linked = build.link(&sections, shared, slots, &addresses);
        Self {
            what: build.to_string(),
            tools: build.tools,
            view,
            host,
            sections,
            linked,
            toc,
        }
    }

    fn compare(&self, kinds: &mut Vec<u32>) {
        let mut compared = 0;
        for (&index, &start) in &self.sections {
            let section = &self.view.sections()[index];
            if section.bytes.is_empty() {
                continue;
            }
            let mut ours = self.host.bytes(start, section.bytes.len());
            let mut theirs = self.linked.section(index).to_vec();
            assert_eq!(ours.len(), theirs.len(), "{}: {}", self.what, section.name);
            for rela in self.relas(index) {
                kinds.push(rela.kind);
                let at = rela.offset as usize;
                if self.tools.relaxed.contains(&rela.kind) {
                    assert_eq!(ours[at..at + 8], section.bytes[at..at + 8], "{}", self.what);
                    theirs[at..at + 8].copy_from_slice(&ours[at..at + 8]);
                    continue;
                }
                self.check_detour(&rela, start, &mut ours, &mut theirs);
            }
            let differ = ours
                .iter()
                .zip(&theirs)
                .position(|(our, their)| our != their);
            if let Some(at) = differ {
                let near = at & !7..(at & !7) + 16;
                panic!(
                    "{}: {} at {at:#x}: {:x?}, and {:x?} of the linker; relocations there: {:x?}",
                    self.what,
                    section.name,
                    &ours[near.start..near.end.min(ours.len())],
                    &theirs[near.start..near.end.min(theirs.len())],
                    self.relas(index)
                        .filter(|rela| near.contains(&(rela.offset as usize)))
                        .collect::<Vec<_>>()
                );
            }
            compared += section.bytes.len();
        }
        assert!(compared > 0, "{}: nothing was compared", self.what);
    }

    fn relas(&self, target: usize) -> impl Iterator<Item = Rela> {
        let sections = self.view.sections().iter();
        let its = sections.filter(move |relas| relas.target() == target);
        its.flat_map(|relas| relas.relas())
    }

    /// Checks a reference that goes by a slot or a veneer on either side, and makes it the same on
    /// both.
    fn check_detour(&self, rela: &Rela, section: u64, ours: &mut [u8], theirs: &mut [u8]) {
        let home = self.view.symbols()[rela.symbol].home;
        let outside = matches!(home, Home::Undefined | Home::Livepatch);
        let Some(support) = A::support(rela.kind) else {
            panic!("{}: type {} was applied", self.what, rela.kind)
        };
        let at = rela.offset as usize;
        let len = A::MAX_LEN.min(ours.len() - at);
        let fields = [&mut ours[at..at + len], &mut theirs[at..at + len]];
        match support {
            Support::AddressSlot => {
                let symbol = self.symbol(rela.symbol);
                let slots = [self.host.slots(symbol), self.linked.slots(symbol)];
                for (field, slots) in fields.into_iter().zip(slots) {
                    self.check_one_of(rela, section, field, Via::Slot, &slots);
                }
            }
            // Elsewhere both are branches to the function, if it is near.
            Support::Veneer if outside && A::SHARED_TOC.is_some() => {
                let symbol = CodeAddr::new(self.symbol(rela.symbol));
                let is_veneer = |at| -> Code { A::call_veneer(at, symbol) };
                let veneers = self.host.veneers(A::SLOT, &is_veneer);
                let [ours, theirs] = fields;
                self.check_one_of(rela, section, ours, Via::Veneer, &veneers);
                A::clear(rela.kind, theirs).expect("it was applied");
            }
            Support::Veneer | Support::None => {}
            Support::ThreadLocal(_) => panic!("{}: thread-local variables", self.what),
        }
    }

    /// Checks that a field is what comes of one of `detours`, and clears it.
    fn check_one_of(&self, rela: &Rela, section: u64, field: &mut [u8], via: Via, detours: &[u64]) {
        let found = field.to_vec();
        A::clear(rela.kind, field).expect("it was applied");
        let symbol = &self.view.symbols()[rela.symbol];
        let owner = match symbol.home {
            Home::Undefined | Home::Livepatch => Owner::System,
            _ => Owner::Image {
                other: symbol.other,
            },
        };
        let comes_to = |detour: &u64| {
            let mut bytes = field.to_vec();
            let reloc = Relocation {
                kind: rela.kind,
                place: CodeAddr::new(section + rela.offset),
                symbol: *detour,
                addend: rela.addend,
                via,
                around: Around {
                    owner,
                    toc: self.toc,
                    pair: None,
                },
            };
            A::apply(&reloc, &mut bytes).is_ok() && bytes == found
        };
        assert!(
            detours.iter().any(comes_to),
            "{}: type {} at {:#x}, symbol {}: {found:x?}; {via:?}s: {detours:x?}",
            self.what,
            rela.kind,
            section + rela.offset,
            self.view.symbol_name(rela.symbol)
        );
    }

    fn symbol(&self, index: usize) -> u64 {
        let symbol = &self.view.symbols()[index];
        match symbol.home {
            Home::Section(section) => self.sections[&section] + symbol.value,
            Home::Absolute => symbol.value,
            _ => resolve(&self.view, &self.host, index).unwrap_or(0),
        }
    }
}

/// The address of a symbol of the program; `None` if there is none.
fn resolve<A: Arch + Relocator>(view: &View<'_>, host: &Host<A>, index: usize) -> Option<u64> {
    let symbol = &view.symbols()[index];
    match symbol.home {
        Home::Livepatch => {
            let name = SymbolName::parse(symbol.name).expect("a livepatch symbol");
            Some(host.symbol(name.name, name.pos))
        }
        Home::Undefined => host.exported_at(symbol.name),
        _ => None,
    }
}

/// Where each section is, and the slots begin: as they follow each other in the image's parts, what
/// is only zeros behind the rest, the rarely executed part of a function behind the function.
fn places<A: Arch + Relocator>(view: &View<'_>, host: &Host<A>) -> (BTreeMap<usize, u64>, u64) {
    let image = host.image();
    let mut order: Vec<_> = view.sections().iter().enumerate().collect();
    order.retain(|(_, section)| {
        let ours = [
            ".modinfo",
            elf::manifest::OBJECTS_SECTION,
            elf::manifest::FUNCS_SECTION,
        ];
        section.flags.contains(SectionFlags::ALLOC)
            && section.kind != abi::SHT_RELA.0
            && !ours.contains(&section.name)
    });
    order.sort_by_key(|(index, section)| {
        let function = section.name.strip_prefix(".text.unlikely");
        let rank =
            function.unwrap_or_else(|| section.name.strip_prefix(".text").unwrap_or(section.name));
        (
            section.kind == abi::SHT_NOBITS.0,
            rank,
            function.is_some(),
            *index,
        )
    });
    let mut ends = [image.text, image.rodata, image.data].map(|part| part.start().get());
    let mut places = BTreeMap::new();
    for (index, section) in order {
        let has = |flag| section.flags.contains(flag);
        let part = match (has(SectionFlags::EXECINSTR), has(SectionFlags::WRITE)) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        };
        let start = ends[part].next_multiple_of(section.align);
        places.insert(index, start);
        let terminator = if section.name == ".eh_frame" { 4 } else { 0 };
        ends[part] = start + section.len + terminator;
    }
    (places, ends[1].next_multiple_of(8))
}

fn function(view: &View<'_>, sections: &BTreeMap<usize, u64>, name: &str) -> Option<u64> {
    let mut named = view.symbols().iter().filter(|symbol| symbol.name == name);
    named.find_map(|symbol| match symbol.home {
        Home::Section(section) => Some(sections.get(&section)? + symbol.value),
        _ => None,
    })
}
