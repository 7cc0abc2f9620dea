//! Binding a patch to what is loaded: symbols, sites, sizes, nodes (kernel: `klp_init_object_loaded`, `klp_patch_object`).

use super::sites::{SiteOf, Sites};
use crate::addr::TextRange;
use crate::error::{Error, PatchReason};
use crate::event::Event;
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::model::{Func, Object, Patch};
use crate::ops::{FuncNode, Nodes, Ops, Synchronized};
use crate::port::{Platform, PortError, PortErrorKind, SymbolResolver, TaskState, Tracer};
use crate::relocs;
use crate::sympos;
use crate::transition::{Affected, AffectedFunc};
use alloc::vec::Vec;

/// A patch bound to the objects that are loaded.
#[derive(Debug)]
pub(super) struct Bound<P: Platform> {
    funcs: Vec<BoundFunc<P>>,
    nodes: Nodes,
}

/// One function, bound: `nodes[i]` of [`Bound`] belongs to `funcs[i]`.
#[derive(Debug)]
struct BoundFunc<P: Platform> {
    at: AffectedFunc,
    site: SiteOf<P>,
    ops: &'static Ops,
    old: TextRange,
    /// The part that the compiler split off as unlikely: `NAME.cold`.
    cold: Vec<TextRange>,
}

impl<P: Platform> Bound<P> {
    /// Finds everything that `patch` names, and completes its code for the objects that are loaded; `relocated` remembers for
    /// which this was done. Nothing outside the patch is changed.
    #[allow(unsafe_code, reason = "relocations of the patch's own code")]
    pub(super) fn new(host: &P, sites: &mut Sites<P>, patch: &Patch, relocated: &mut [bool]) -> Result<Self, Error> {
        let loaded = |object: &&Object| host.symbols().is_loaded(object.name());
        let count = patch.objects().iter().filter(loaded).map(|object| object.funcs().len()).sum();
        let mut funcs = try_vec(count)?;
        let mut ranges = try_vec(count)?;
        for (object_index, object) in (0u32..).zip(patch.objects()).filter(|(_, object)| loaded(object)) {
            for (func_index, func) in (0u32..).zip(object.funcs()) {
                let finder = Finder { host, patch, object, func };
                let old = finder.old()?;
                let site = finder.site(old)?;
                ranges.push(finder.replacement()?);
                funcs.push(BoundFunc {
                    at: AffectedFunc { object: object_index, func: func_index },
                    site,
                    ops: sites.ops(host.tracer(), site)?,
                    old,
                    cold: finder.cold()?,
                });
            }
        }
        Self::check_distinct(patch, &funcs)?;
        let nodes = Nodes::new(ranges.into_iter())?;
        for (object, done) in patch.objects().iter().zip(relocated).filter(|(object, done)| loaded(object) && !**done) {
            // SAFETY: no function of the patch is on a stack of functions, so no task executes its code; `relocated` says
            // that this is the first time.
            unsafe { relocs::apply(host, patch.name(), object) }?;
            *done = true;
        }
        Ok(Self { funcs, nodes })
    }

    /// Two names for one function would put two nodes of the patch on one stack.
    fn check_distinct(patch: &Patch, funcs: &[BoundFunc<P>]) -> Result<(), Error> {
        let mut sorted = try_vec(funcs.len())?;
        sorted.extend(funcs.iter().map(|func| (core::ptr::from_ref(func.ops).addr(), func.at)));
        sorted.sort_unstable_by_key(|(ops, _)| *ops);
        match sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            None => Ok(()),
            Some(pair) => {
                let (object, func) = names(patch, pair[1].1);
                Err(Error::patch(patch.name(), Some(object), Some(func), PatchReason::ListedTwice))
            }
        }
    }

    /// The sites of all functions.
    pub(super) fn sites(&self) -> impl ExactSizeIterator<Item = SiteOf<P>> + '_ {
        self.funcs.iter().map(|func| func.site)
    }

    /// Puts every function on its stack (kernel: `klp_patch_func`).
    pub(super) fn push(&mut self) {
        for (index, func) in self.funcs.iter().enumerate() {
            func.ops.stack().push(&mut self.nodes, index);
        }
    }

    /// Takes every function off its stack (kernel: `klp_unpatch_func`).
    pub(super) fn remove(&mut self) {
        for (index, func) in self.funcs.iter().enumerate() {
            func.ops.stack().remove(&mut self.nodes, index);
        }
    }

    /// Makes the state of tasks decide, or not.
    pub(super) fn set_transition(&self, on: bool) {
        for node in &self.nodes {
            node.set_transition(on);
        }
    }

    /// Gives the memory back.
    pub(super) fn free(self, proof: &Synchronized) {
        self.nodes.free(proof);
    }

    /// The code of both sides of a transition of this patch, which is on the stacks, or will be on top of them.
    pub(super) fn affected(&self, patch: &Patch) -> Result<Affected, OutOfMemory> {
        let mut affected = Affected::default().with_code(patch.code());
        for (func, node) in self.funcs.iter().zip(&self.nodes) {
            affected.add(TaskState::Patched, node.range(), func.at)?;
            match func.previous(node) {
                Some(previous) => affected.add(TaskState::Unpatched, previous.range(), func.at)?,
                None => {
                    affected.add(TaskState::Unpatched, func.old, func.at)?;
                    for cold in &func.cold {
                        affected.add(TaskState::Unpatched, *cold, func.at)?;
                    }
                }
            }
        }
        Ok(affected.sorted())
    }
}

impl<P: Platform> BoundFunc<P> {
    /// The replacement that runs where this one does not: the one below, or the present top if this is not on the stack yet.
    fn previous<'a>(&'a self, node: &'a FuncNode) -> Option<&'a FuncNode> {
        let stack = self.ops.stack();
        let mut at = stack.top();
        while let Some(other) = at {
            if core::ptr::eq(other, node) {
                return stack.below(other);
            }
            at = stack.below(other);
        }
        stack.top()
    }
}

/// The names of a function of `patch`, by its position.
pub(super) fn names(patch: &Patch, at: AffectedFunc) -> (&str, &str) {
    if at == AffectedFunc::OTHER {
        return (patch.name(), "(other code of the patch)");
    }
    let object = patch.objects().get(at.object as usize);
    let func = object.and_then(|object| object.funcs().get(at.func as usize));
    (object.map_or("?", |object| object.name()), func.map_or("?", |func| func.old_name()))
}

/// Looks up what one function of a patch refers to.
struct Finder<'a, P> {
    host: &'a P,
    patch: &'a Patch,
    object: &'a Object,
    func: &'a Func,
}

impl<P: Platform> Finder<'_, P> {
    fn refuse(&self, reason: PatchReason) -> Error {
        Error::patch(self.patch.name(), Some(self.object.name()), Some(self.func.old_name()), reason)
    }

    fn symbols_failed(&self, error: &<P::Symbols as SymbolResolver>::Error) -> Error {
        Error::port("looking up symbols", self.patch.name(), error)
    }

    /// The code of the function that is replaced (kernel: `klp_find_object_symbol`).
    fn old(&self) -> Result<TextRange, Error> {
        let (object, symbol, sympos) = (&**self.object.name(), &**self.func.old_name(), self.func.position());
        let found = sympos::find(self.host.symbols(), object, symbol, sympos)
            .map_err(|error| self.symbols_failed(&error))?
            .map_err(|fault| {
                use crate::error::SymbolFault;
                self.host.event(&match fault {
                    SymbolFault::NotFound => Event::SymbolNotFound { symbol },
                    SymbolFault::Ambiguous => Event::SymbolAmbiguous { symbol, object },
                    SymbolFault::PositionNotFound(sympos) => Event::SymbolPositionNotFound { sympos, symbol, object },
                });
                self.refuse(fault.into())
            })?;
        TextRange::new(found.addr, found.len)
            .filter(|range| !range.is_empty())
            .ok_or_else(|| self.refuse(PatchReason::SymbolWithoutSize))
    }

    /// Parts of the function that the compiler moved away. Those of functions of the same name count too: that holds a
    /// transition back a little longer, and is never wrong.
    fn cold(&self) -> Result<Vec<TextRange>, Error> {
        let mut name = heapless::String::<{ crate::config::SYMBOL_NAME_LEN + 5 }>::new();
        if name.push_str(self.func.old_name()).and_then(|()| name.push_str(".cold")).is_err() {
            return Err(Error::Bug("the patch builder let a name pass that is too long"));
        }
        let mut cold = Vec::new();
        let mut full = Ok(());
        self.host
            .symbols()
            .symbols(self.object.name(), &name, &mut |symbol| {
                if let (Some(range), Ok(())) = (TextRange::new(symbol.addr, symbol.len), full) {
                    full = try_push(&mut cold, range);
                }
            })
            .map_err(|error| self.symbols_failed(&error))?;
        full?;
        Ok(cold)
    }

    /// The entry site.
    fn site(&self, old: TextRange) -> Result<SiteOf<P>, Error> {
        self.host.tracer().site_of(old).map_err(|error| {
            let reason = match error.kind() {
                PortErrorKind::NoSite => |detail| PatchReason::NoEntrySite { detail },
                PortErrorKind::Held => |detail| PatchReason::EntryHeld { detail },
                _ => return Error::port("looking at an entry site", self.patch.name(), &error),
            };
            self.host.event(&Event::NoLocation { func: self.func.old_name() });
            Name::display(&DisplayError(&error)).map_or(Error::OutOfMemory, |detail| self.refuse(reason(detail)))
        })
    }

    /// The code of the new function.
    fn replacement(&self) -> Result<TextRange, Error> {
        let start = self.func.new_addr();
        let range = match self.func.new_len() {
            Some(len) => TextRange::new(start, len),
            None => self.host.symbols().function_at(start).and_then(|found| {
                // From where calls go in, to the end of the symbol.
                TextRange::new(start, found.end().get().checked_sub(start.get())?)
            }),
        };
        range.filter(|range| !range.is_empty()).ok_or_else(|| {
            self.host.event(&Event::NewSizeUnknown { func: self.func.old_name() });
            self.refuse(PatchReason::NewFunctionUnknown)
        })
    }
}

struct DisplayError<'a, E>(&'a E);

impl<E: PortError> core::fmt::Display for DisplayError<'_, E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self.0, f)
    }
}
