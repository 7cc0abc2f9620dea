//! Objects with their functions and symbols, and the code of patches.

use super::fault::SimError;
use super::loader::ModuleState;
use super::machine::{INSN, Insn};
use super::probe::Probe;
use super::shared::{Shared, World};
use crate::addr::{CodeAddr, TextRange};
use crate::mem::{Name, OutOfMemory};
use crate::model::VMLINUX;
use crate::port::{EntryHost, Extent, Symbol, SymbolResolver};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// The entry stub: calls the handler, goes where it says.
pub(super) const STUB: CodeAddr = CodeAddr::new(0x8000);
/// Where tasks are that are in no function.
pub(super) const REST: CodeAddr = CodeAddr::new(0x9000);
/// The base of the first object; each object has this much room.
const OBJECTS: u64 = 0x100_0000;
/// Near patch code, from the base of its object.
const NEAR: u64 = 0x8_0000;
/// Patch code that no jump of an entry reaches.
const FAR: u64 = 0x40_0000_0000;

/// A function of the simulated system; only [`SimOs`](super::SimOs) makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SimFunc(pub(super) usize);

/// What the entry of a function looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pad {
    /// One instruction that does nothing.
    Whole,
    /// Eight instructions that do nothing.
    Split,
    /// Nothing: it cannot be patched.
    None,
}

/// Where code of a patch is placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Within reach of the function that it replaces.
    Near,
    /// Out of reach: calls need a veneer.
    Far,
}

#[derive(Clone, Debug)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) object: usize,
    pub(super) range: TextRange,
    pub(super) pad: Pad,
    pub(super) notrace: bool,
    pub(super) counted_on: bool,
    /// It is called through a pointer: calls of it do not tell where they go.
    pub(super) by_pointer: bool,
    pub(super) probes: Vec<Probe>,
    /// Parts that the compiler split off.
    pub(super) cold: Vec<TextRange>,
    /// Jumps that it may end in.
    pub(super) ends: Vec<Insn>,
}

/// A way in which a function may end, beside its return: a sibling call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A jump to this function of the base image.
    In(SimFunc),
    /// A jump to a function that the code does not tell.
    Anywhere,
}

#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) state: ModuleState,
    /// How often it was loaded after the first time.
    pub(super) loads: usize,
    pub(super) symbols: Vec<(String, Symbol)>,
    /// Names that new code may be bound to.
    pub(super) exports: Vec<String>,
    pub(super) build_id: Option<Vec<u8>>,
    base: u64,
    pub(super) next: u64,
}

/// A stretch of code: a function, its cold part, or what a patch replaces it by.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub(super) name: String,
    pub(super) range: TextRange,
    /// What it is, or replaces; `None`: nothing that is called by name.
    pub(super) func: Option<SimFunc>,
    pub(super) patch: Option<String>,
    /// It was split off the function that begins here.
    pub(super) part_of: Option<CodeAddr>,
}

impl Function {
    /// Its text, as it was built.
    pub(super) fn built(&self) -> Vec<u8> {
        let mut code = match self.pad {
            Pad::Whole => Insn::Nop.encode().to_vec(),
            Pad::Split => Insn::ShortNop.encode().to_vec(),
            Pad::None => Vec::new(),
        };
        let ends = self.ends.len() as u64 * INSN;
        while (code.len() as u64) < self.range.len() - ends {
            code.extend(Insn::Body.encode());
        }
        code.extend(self.ends.iter().flat_map(|end| end.encode()));
        code
    }
}

impl Module {
    /// Whether its symbols are there.
    pub(super) fn is_loaded(&self) -> bool {
        self.state != ModuleState::Unloaded
    }

    /// The addresses of all symbols called `name`.
    pub(super) fn symbols_called<'a>(
        &'a self,
        name: &'a str,
    ) -> impl Iterator<Item = CodeAddr> + 'a {
        self.symbols
            .iter()
            .filter(move |(other, _)| other == name)
            .map(|(_, symbol)| symbol.addr)
    }
}

pub(super) fn range(start: u64, len: u64) -> TextRange {
    TextRange::new(CodeAddr::new(start), len).expect("toy addresses are small")
}

impl World {
    /// Maps the stub and the place where tasks rest.
    pub(super) fn boot(&mut self) {
        self.memory
            .map(STUB, [Insn::Stub.encode(), Insn::Go.encode()].concat());
        self.memory
            .map(REST, [Insn::Body.encode(), Insn::Body.encode()].concat());
        self.define("rest", range(REST.get(), 2 * INSN), None, None, None);
        self.module(VMLINUX);
    }

    pub(super) fn module(&mut self, name: &str) -> usize {
        if let Some(known) = self.modules.iter().position(|module| module.name == name) {
            return known;
        }
        let base = OBJECTS * (self.modules.len() as u64 + 1);
        self.modules.push(Module {
            name: name.to_string(),
            state: ModuleState::Live,
            loads: 0,
            symbols: Vec::new(),
            exports: Vec::new(),
            build_id: None,
            base,
            next: base,
        });
        self.modules.len() - 1
    }

    pub(super) fn define(
        &mut self,
        name: &str,
        range: TextRange,
        func: Option<SimFunc>,
        patch: Option<&str>,
        part_of: Option<CodeAddr>,
    ) {
        let code = Code {
            name: name.to_string(),
            range,
            func,
            patch: patch.map(ToString::to_string),
            part_of,
        };
        self.code.insert(range.start(), code);
    }

    pub(super) fn symbol(&mut self, object: usize, name: &str, range: TextRange, len: u64) {
        self.modules[object].symbols.push((
            name.to_string(),
            Symbol {
                addr: range.start(),
                len,
            },
        ));
    }

    fn jumps(&self, ends: &[End]) -> Vec<Insn> {
        let jump = |end: &End| match *end {
            End::In(func) => Insn::Jump(self.functions[func.0].range.start()),
            End::Anywhere => Insn::JumpAnywhere,
        };
        ends.iter().map(jump).collect()
    }

    pub(super) fn function(&mut self, object: &str, name: &str, pad: Pad, ends: &[End]) -> SimFunc {
        let ends = self.jumps(ends);
        let object = self.module(object);
        let func = SimFunc(self.functions.len());
        // Every other function ends with its call: the return address lies behind it.
        let bodies = 1 + func.0 as u64 % 2;
        let len = INSN * (bodies + u64::from(pad != Pad::None) + ends.len() as u64);
        let range = range(self.modules[object].next, len);
        self.modules[object].next += len.next_multiple_of(16);
        self.symbol(object, name, range, range.len());
        self.functions.push(Function {
            name: name.to_string(),
            object,
            range,
            pad,
            notrace: false,
            counted_on: false,
            by_pointer: false,
            probes: Vec::new(),
            cold: Vec::new(),
            ends,
        });
        self.map_function(func);
        func
    }

    pub(super) fn cold_part(&mut self, func: SimFunc) {
        let object = self.functions[func.0].object;
        let name = part_name(
            &self.functions[func.0].name,
            self.functions[func.0].cold.len(),
        );
        let part = range(self.modules[object].next, INSN);
        self.modules[object].next += 16;
        self.symbol(object, &name, part, INSN);
        self.functions[func.0].cold.push(part);
        self.map_function(func);
    }

    /// Splits a part off the replacement that begins at `new`.
    pub(super) fn cold_part_of(&mut self, new: CodeAddr) -> TextRange {
        let Some(Code {
            name, func, patch, ..
        }) = self.code.get(&new).cloned()
        else {
            return range(0, 0);
        };
        let parts = self
            .code
            .values()
            .filter(|code| code.part_of == Some(new))
            .count();
        let part = self.patch_code(new.get(), 1, &[]);
        self.define(
            &part_name(&name, parts),
            part,
            func,
            patch.as_deref(),
            Some(new),
        );
        part
    }

    /// Code of the patch called `patch` that replaces nothing: its functions end in it, behind
    /// `new`.
    pub(super) fn helper(&mut self, patch: &str, new: CodeAddr) -> TextRange {
        let helper = self.patch_code(new.get(), 1, &[]);
        self.define(&format!("{patch}_helper"), helper, None, Some(patch), None);
        helper
    }

    /// Maps code of `bodies` instructions and `ends` behind all that is there from `base` on.
    fn patch_code(&mut self, base: u64, bodies: u64, ends: &[Insn]) -> TextRange {
        let before = self.code.range(..CodeAddr::new(base + NEAR)).next_back();
        let start = before.map_or(base, |(_, code)| {
            code.range.end().get().next_multiple_of(16).max(base)
        });
        let insns = (0..bodies).map(|_| Insn::Body).chain(ends.iter().copied());
        self.memory
            .map(CodeAddr::new(start), insns.flat_map(Insn::encode).collect());
        range(start, INSN * (bodies + ends.len() as u64))
    }

    /// New code for `func`, of the patch called `patch`.
    pub(super) fn replacement(
        &mut self,
        patch: &str,
        func: SimFunc,
        place: Place,
        ends: &[End],
    ) -> TextRange {
        let base = match place {
            Place::Near => self.modules[self.functions[func.0].object].base + NEAR,
            Place::Far => FAR,
        };
        let (bodies, ends) = (1 + self.code.len() as u64 % 2, self.jumps(ends));
        let code = self.patch_code(base, bodies, &ends);
        self.adopt(patch, func, code);
        code
    }

    /// Notes that the code in `range` is what `patch` replaces `func` by.
    pub(super) fn adopt(&mut self, patch: &str, func: SimFunc, range: TextRange) {
        let name = format!("{patch}_{}", self.functions[func.0].name);
        self.define(&name, range, Some(func), Some(patch), None);
        self.versions.add(func, patch);
    }
}

/// What GCC calls part number `number` of the function called `name`.
pub(super) fn part_name(name: &str, number: usize) -> String {
    if number == 0 {
        format!("{name}.cold")
    } else {
        format!("{name}.cold.{number}")
    }
}

/// The simulated OS's [`SymbolResolver`].
#[derive(Clone, Debug)]
pub struct SimSymbols(pub(super) Arc<Shared>);

// SAFETY: the simulated modules' own tables.
unsafe impl SymbolResolver for SimSymbols {
    type Error = SimError;

    fn is_loaded(&self, object: &str) -> bool {
        let _inside = self.0.inside();
        self.0
            .world()
            .modules
            .iter()
            .any(|module| module.name == object && module.is_loaded())
    }

    fn symbols(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), SimError> {
        let inside = self.0.enter("SymbolResolver::symbols")?;
        let world = self.0.world();
        let module = world
            .modules
            .iter()
            .find(|module| module.name == object && module.is_loaded());
        let all = module.map_or(&[][..], |module| &module.symbols);
        let hits: Vec<Symbol> = all
            .iter()
            .filter(|(other, _)| other == name)
            .map(|(_, symbol)| *symbol)
            .collect();
        drop(world);
        inside.outside(|| hits.iter().for_each(|symbol| found(*symbol)));
        Ok(())
    }

    fn build_id(&self, object: &str, is: &mut dyn FnMut(&[u8])) -> Result<(), SimError> {
        let inside = self.0.enter("SymbolResolver::build_id")?;
        let world = self.0.world();
        let mut modules = world.modules.iter();
        let module = modules.find(|module| module.name == object && module.is_loaded());
        let id = module.and_then(|module| module.build_id.clone());
        drop(world);
        inside.outside(|| id.iter().for_each(|id| is(id)));
        Ok(())
    }

    /// The algorithm is called `sum`: all bytes added up.
    fn digests(
        &self,
        object: &str,
        algorithm: &str,
        of: &[Extent],
        is: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), SimError> {
        let inside = self.0.enter("SymbolResolver::digests")?;
        let world = self.0.world();
        let mut sums = Vec::new();
        for (index, extent) in of.iter().enumerate().filter(|_| algorithm == "sum") {
            let has = |function: &&Function| {
                world.modules[function.object].name == object
                    && match extent {
                        Extent::Object => true,
                        Extent::Range(range) => function.range == *range,
                    }
            };
            let functions = world.functions.iter().filter(has);
            let bytes = functions.flat_map(Function::built);
            sums.push((index, bytes.map(u32::from).sum::<u32>()));
        }
        drop(world);
        inside.outside(|| {
            sums.iter()
                .for_each(|(index, sum)| is(*index, &sum.to_be_bytes()));
        });
        Ok(())
    }

    fn exported(&self, name: &str) -> Result<Option<CodeAddr>, Self::Error> {
        let _inside = self.0.enter("SymbolResolver::exported")?;
        let world = self.0.world();
        let exports = |module: &&Module| {
            module.is_loaded() && module.exports.iter().any(|export| export == name)
        };
        let module = world.modules.iter().find(exports);
        Ok(module.and_then(|module| module.symbols_called(name).next()))
    }

    fn function_at(&self, addr: CodeAddr) -> Option<TextRange> {
        let _inside = self.0.enter("SymbolResolver::function_at").ok()?;
        self.0.world().code_at(addr).map(|code| code.range)
    }

    fn misfit(
        &self,
        old: TextRange,
        _: TextRange,
        _: Option<u8>,
    ) -> Result<Option<&'static str>, SimError> {
        let _inside = self.0.enter("SymbolResolver::misfit")?;
        let world = self.0.world();
        let old = world.functions.iter().find(|known| known.range == old);
        let counted_on = old.is_some_and(|old| old.counted_on);
        Ok(counted_on.then_some("its callers count on a register"))
    }

    fn parts(
        &self,
        func: TextRange,
        _: Option<(&str, &str)>,
        found: &mut dyn FnMut(TextRange),
    ) -> Result<(), SimError> {
        let inside = self.0.enter("SymbolResolver::parts")?;
        let world = self.0.world();
        let parts = world
            .code
            .values()
            .filter(|code| code.part_of == Some(func.start()));
        let parts: Vec<TextRange> = parts.map(|code| code.range).collect();
        drop(world);
        inside.outside(|| parts.iter().for_each(|part| found(*part)));
        Ok(())
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        let inside = self.0.inside();
        let name = self.0.world().code_at(addr).map(|code| {
            let offset = addr.get() - code.range.start().get();
            format!("{}+{offset:#x}/{:#x}", code.name, code.range.len())
        });
        inside.outside(|| match &name {
            Some(name) => out.write_str(name),
            None => write!(out, "{addr}"),
        })
    }
}

/// What the simulated OS tells its [`EntryTracer`](crate::port::EntryTracer).
#[derive(Clone, Debug)]
pub struct SimEntries(pub(super) Arc<Shared>);

// SAFETY: sites come from the functions as they were made; the code at the stub calls the handler
// (`Insn::Stub`) and goes where it says; a run of the handler is one step of the simulation, so it
// has always ended when the engine runs.
unsafe impl EntryHost for SimEntries {
    type Lock = spin::Mutex<()>;

    fn recorded_site(&self, func: TextRange) -> Option<CodeAddr> {
        let _inside = self.0.enter("EntryHost::recorded_site").ok()?;
        let world = self.0.world();
        let known = world.functions.iter().find(|known| {
            known.range == func && known.pad != Pad::None && world.modules[known.object].is_loaded()
        })?;
        Some(known.range.start())
    }

    fn is_notrace(&self, func: TextRange) -> bool {
        let _inside = self.0.inside();
        self.0
            .world()
            .functions
            .iter()
            .any(|known| known.range == func && known.notrace)
    }

    fn user_of(&self, site: CodeAddr) -> Result<Option<Name>, OutOfMemory> {
        let _inside = self.0.inside();
        let user = self.0.world().owner(site);
        user.as_deref().map(Name::new).transpose()
    }

    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        SimSymbols(self.0.clone()).describe(addr, out)
    }

    fn stub(&self) -> CodeAddr {
        STUB
    }

    fn synchronize(&self) {
        let _inside = self.0.inside();
        self.0.make_noise();
    }
}
