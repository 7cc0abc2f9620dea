//! Binding a patch to what is loaded: symbols, sites, sizes, nodes (kernel:
//! `klp_init_object_loaded`, `klp_patch_object`).

use super::sites::{SiteOf, Sites};
use crate::addr::TextRange;
use crate::builds;
use crate::error::{Error, PatchReason};
use crate::event::Event;
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use crate::model::{Func, Object, Patch};
use crate::ops::{FuncNode, Nodes, Ops, Synchronized, Writer};
use crate::port::{Platform, PortError, PortErrorKind, SymbolResolver, Tracer};
use crate::relocs;
use crate::sympos;
use crate::transition::AffectedFunc;
use alloc::vec::Vec;
use core::ptr;

/// One object of a patch, as the engine keeps it (kernel: the internal part of
/// `struct klp_object`).
#[derive(Debug)]
pub(super) struct ObjectState<P: Platform> {
    /// Set while its functions are on stacks (kernel: `obj->patched`).
    pub(super) bound: Option<Bound<P>>,
    /// Its livepatch relocations.
    pub(super) relocated: Relocated,
    /// `pre_patch` ran, so `post_unpatch` is due (kernel: `post_unpatch_enabled`).
    pub(super) post_unpatch_due: bool,
}

/// Whether the livepatch relocations of an object are applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Relocated {
    No,
    Yes,
    /// They are, for the object as it was: it went, and they could not be cleared.
    Stale,
}

impl<P: Platform> ObjectState<P> {
    pub(super) fn new() -> Self {
        Self {
            bound: None,
            relocated: Relocated::No,
            post_unpatch_due: false,
        }
    }
}

/// Functions, bound to what is loaded: those of one object of a patch, or ones that go back to the
/// original.
#[derive(Debug)]
pub(super) struct Bound<P: Platform> {
    funcs: Vec<BoundFunc<P>>,
    nodes: Nodes,
}

/// One function, bound.
#[derive(Debug)]
pub(super) struct BoundFunc<P: Platform> {
    /// Which of the [nodes](Bound::nodes) is its own.
    node: usize,
    /// Which function of its patch; the patch has its number only in a transition.
    pub(super) at: AffectedFunc,
    pub(super) site: SiteOf<P>,
    pub(super) ops: &'static Ops,
    pub(super) old: TextRange,
    /// Parts that the compiler split off the original.
    pub(super) cold: Vec<TextRange>,
    /// Those of the replacement.
    pub(super) parts: Vec<TextRange>,
}

/// The names of the object and of the function of `patch` that `at` means.
pub(super) fn names_in(patch: &Patch, at: AffectedFunc) -> (&str, &str) {
    if at == AffectedFunc::other(at.patch) {
        return (patch.name(), "(other code of the patch)");
    }
    if at == AffectedFunc::older(at.patch) {
        return (patch.name(), "(code of an older patch)");
    }
    if at == AffectedFunc::nop(at.patch) {
        return (patch.name(), "(a function that goes back to the original)");
    }
    let object = patch.objects().get(at.object as usize);
    let func = object.and_then(|object| object.funcs().get(at.func as usize));
    (
        object.map_or("?", |object| object.name()),
        func.map_or("?", |func| func.old_name()),
    )
}

impl<P: Platform> Bound<P> {
    /// Finds everything that object number `index` of `patch` names, and completes the patch's code
    /// for it unless `relocated` says that this is done. Nothing outside the patch is changed.
    #[allow(unsafe_code, reason = "relocations of the patch's own code")]
    pub(super) fn new(
        host: &P,
        sites: &mut Sites<P>,
        patch: &Patch,
        index: usize,
        relocated: &mut Relocated,
    ) -> Result<Self, Error> {
        let object = patch
            .objects()
            .get(index)
            .ok_or(Error::Bug("an object that the patch does not have"))?;
        let build = (object.build(), object.text());
        builds::check(host.symbols(), patch.name(), object.name(), build)?;
        let mut funcs = try_vec(object.funcs().len())?;
        let mut ranges = try_vec(object.funcs().len())?;
        for (number, func) in (0u32..).zip(object.funcs()) {
            let finder = Finder {
                host,
                patch,
                object,
                func,
                quiet: false,
            };
            let old = finder.old()?;
            let new = finder.replacement()?;
            finder.fit(old, new)?;
            ranges.push(new);
            let cold = finder.parts(old, Some((object.name(), func.old_name())))?;
            let parts = finder.parts(new, None)?;
            let site = finder.site(old)?;
            finder.clones(&mut |clone| {
                host.event(&Event::Cloned {
                    patch: patch.name(),
                    object: object.name(),
                    func: func.old_name(),
                    clone,
                });
                Ok(())
            })?;
            #[allow(
                clippy::cast_possible_truncation,
                reason = "patches have fewer than 2^32 objects"
            )]
            let at = AffectedFunc {
                patch: 0,
                object: index as u32,
                func: number,
            };
            funcs.push(BoundFunc {
                node: funcs.len(),
                at,
                site,
                ops: sites.ops(host.tracer(), site, object.name())?,
                old,
                cold,
                parts,
            });
        }
        let olds = funcs.iter().map(|func| func.old).enumerate();
        let mut refused = Ok(());
        builds::check_functions(host.symbols(), patch.name(), object, olds, &mut |error| {
            refused = core::mem::replace(&mut refused, Ok(())).and(Err(error));
            Ok(())
        })?;
        refused?;
        Self::check_distinct(patch, &funcs)?;
        let nodes = Nodes::new(ranges.into_iter())?;
        // No function of the patch for this object is on a stack of functions, so no task executes
        // code of it that refers to the object; `relocated` says that they are, or are not,
        // applied.
        if *relocated == Relocated::Stale {
            // SAFETY: as above.
            unsafe { relocs::clear(host, patch.name(), object) }?;
            *relocated = Relocated::No;
        }
        if *relocated == Relocated::No {
            // SAFETY: as above.
            unsafe { relocs::apply(host, patch.name(), object) }?;
            *relocated = Relocated::Yes;
        }
        Ok(Self { funcs, nodes })
    }

    /// Functions of `old` that `new` does not have, going back to what stands below all of `old`,
    /// or to the original (kernel: `klp_add_nops`, where nothing can stand below).
    pub(super) fn nops<'a>(
        old: impl Iterator<Item = &'a Self> + Clone,
        new: &FuncSet,
        writer: &Writer,
    ) -> Result<Self, OutOfMemory>
    where
        P: 'a,
    {
        let mut going = Vec::new();
        for bound in old.clone() {
            going.try_reserve(bound.funcs.len())?;
            going.extend(bound.nodes.iter().map(|node| ptr::from_ref(node).addr()));
        }
        going.sort_unstable();
        let goes = |node: &&FuncNode| going.binary_search(&ptr::from_ref(*node).addr()).is_ok();
        let changes = |func: &&BoundFunc<P>| {
            func.ops
                .stack()
                .nodes(writer)
                .next()
                .as_ref()
                .is_some_and(goes)
        };
        let mut funcs: Vec<BoundFunc<P>> = Vec::new();
        for func in old
            .flat_map(|bound| &bound.funcs)
            .filter(|func| !new.contains(func.ops))
            .filter(changes)
        {
            let mut cold = try_vec(func.cold.len())?;
            cold.extend_from_slice(&func.cold);
            let (at, parts) = (AffectedFunc::nop(0), Vec::new());
            try_push(
                &mut funcs,
                BoundFunc {
                    node: 0,
                    at,
                    site: func.site,
                    ops: func.ops,
                    old: func.old,
                    cold,
                    parts,
                },
            )?;
        }
        funcs.sort_unstable_by_key(|func| ptr::from_ref(func.ops).addr());
        funcs.dedup_by_key(|func| ptr::from_ref(func.ops).addr());
        funcs
            .iter_mut()
            .enumerate()
            .for_each(|(node, func)| func.node = node);
        let nodes = Nodes::back(funcs.iter().map(|func| {
            let stays = func.ops.stack().nodes(writer).find(|node| !goes(node));
            (
                func.old,
                stays.and_then(|node| node.target().map(|_| node.range())),
            )
        }))?;
        Ok(Self { funcs, nodes })
    }

    /// Two names for one function would put two nodes of the patch on one stack.
    fn check_distinct(patch: &Patch, funcs: &[BoundFunc<P>]) -> Result<(), Error> {
        let mut sorted = try_vec(funcs.len())?;
        sorted.extend(
            funcs
                .iter()
                .map(|func| (ptr::from_ref(func.ops).addr(), func.at)),
        );
        sorted.sort_unstable_by_key(|(ops, _)| *ops);
        match sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            None => Ok(()),
            Some(pair) => {
                let (object, func) = names_in(patch, pair[1].1);
                Err(Error::patch(
                    patch.name(),
                    Some(object),
                    Some(func),
                    PatchReason::ListedTwice,
                ))
            }
        }
    }

    /// The sites of all functions.
    pub(super) fn sites(&self) -> impl ExactSizeIterator<Item = SiteOf<P>> + '_ {
        self.funcs.iter().map(|func| func.site)
    }

    /// Puts every function on its stack (kernel: `klp_patch_func`).
    pub(super) fn push(&mut self, writer: &mut Writer) {
        for func in &self.funcs {
            func.ops.stack().push(writer, &mut self.nodes, func.node);
        }
    }

    /// Takes every function off its stack (kernel: `klp_unpatch_func`).
    pub(super) fn remove(&mut self, writer: &mut Writer) {
        for func in &self.funcs {
            func.ops.stack().remove(writer, &mut self.nodes, func.node);
        }
    }

    /// Takes those functions off their stacks that `other` has too, and forgets them: their object
    /// goes.
    pub(super) fn forget_those_of(&mut self, writer: &mut Writer, other: &mut Self) {
        let key = |func: &BoundFunc<P>| ptr::from_ref(func.ops).addr();
        other.funcs.sort_unstable_by_key(key);
        let Self { funcs, nodes } = self;
        funcs.retain(|func| {
            let stays = other.funcs.binary_search_by_key(&key(func), key).is_err();
            if !stays {
                func.ops.stack().remove(writer, nodes, func.node);
            }
            stays
        });
    }

    /// Makes the state of tasks decide, or not.
    pub(super) fn set_transition(&self, writer: &mut Writer, on: bool) {
        for node in &self.nodes {
            node.set_transition(writer, on);
        }
    }

    /// Lets the memory go when this is dropped, if none of it is on a stack any more.
    pub(super) fn release(&mut self, proof: &Synchronized<'_>) {
        self.nodes.release(proof);
    }

    /// The functions.
    pub(super) fn funcs(&self) -> impl Iterator<Item = &BoundFunc<P>> {
        self.funcs.iter()
    }

    /// The functions, each with its node.
    pub(super) fn funcs_with_nodes(&self) -> impl Iterator<Item = (&FuncNode, &BoundFunc<P>)> {
        self.funcs
            .iter()
            .filter_map(|func| Some((self.nodes.get(func.node)?, func)))
    }

    /// Whether there is no function.
    pub(super) fn is_empty(&self) -> bool {
        self.funcs.is_empty()
    }

    /// How many functions there are.
    pub(super) fn len(&self) -> usize {
        self.funcs.len()
    }

    /// Whether one of the functions is in `set`.
    pub(super) fn shares_function_with(&self, set: &FuncSet) -> bool {
        self.funcs.iter().any(|func| set.contains(func.ops))
    }
}

/// Functions, by their ops. Sorted.
#[derive(Debug)]
pub(super) struct FuncSet(Vec<usize>);

impl FuncSet {
    /// Those that sites have already.
    pub(super) fn of_ops(ops: impl Iterator<Item = &'static Ops>) -> Result<Self, OutOfMemory> {
        let mut set = Vec::new();
        for ops in ops {
            try_push(&mut set, ptr::from_ref(ops).addr())?;
        }
        set.sort_unstable();
        Ok(Self(set))
    }

    pub(super) fn new<'a, P: Platform>(
        bounds: impl Iterator<Item = &'a Bound<P>>,
    ) -> Result<Self, OutOfMemory> {
        let mut set = Vec::new();
        for bound in bounds {
            set.try_reserve(bound.funcs.len())?;
            set.extend(
                bound
                    .funcs
                    .iter()
                    .map(|func| ptr::from_ref(func.ops).addr()),
            );
        }
        set.sort_unstable();
        Ok(Self(set))
    }

    fn contains(&self, ops: &'static Ops) -> bool {
        self.0.binary_search(&ptr::from_ref(ops).addr()).is_ok()
    }
}

/// Looks up what one function of a patch refers to.
pub(super) struct Finder<'a, P> {
    pub(super) host: &'a P,
    pub(super) patch: &'a Patch,
    pub(super) object: &'a Object,
    pub(super) func: &'a Func,
    /// Whether the log stays silent about what is not found.
    pub(super) quiet: bool,
}

impl<P: Platform> Finder<'_, P> {
    pub(super) fn refuse(&self, reason: PatchReason) -> Error {
        Error::patch(
            self.patch.name(),
            Some(self.object.name()),
            Some(self.func.old_name()),
            reason,
        )
    }

    fn log(&self, event: &Event<'_>) {
        if !self.quiet {
            self.host.event(event);
        }
    }

    fn symbols_failed(&self, error: &<P::Symbols as SymbolResolver>::Error) -> Error {
        Error::port("looking up symbols", self.patch.name(), error)
    }

    /// The code of the function that is replaced (kernel: `klp_find_object_symbol`).
    pub(super) fn old(&self) -> Result<TextRange, Error> {
        let (object, symbol, sympos) = (
            &**self.object.name(),
            &**self.func.old_name(),
            self.func.position(),
        );
        let found = sympos::find(self.host.symbols(), object, symbol, sympos)
            .map_err(|error| self.symbols_failed(&error))?
            .map_err(|fault| {
                use crate::error::SymbolFault;
                self.log(&match fault {
                    SymbolFault::NotFound => Event::SymbolNotFound { symbol },
                    SymbolFault::Ambiguous => Event::SymbolAmbiguous { symbol, object },
                    SymbolFault::PositionNotFound(sympos) => Event::SymbolPositionNotFound {
                        sympos,
                        symbol,
                        object,
                    },
                });
                self.refuse(fault.into())
            })?;
        TextRange::new(found.addr, found.len)
            .filter(|range| !range.is_empty())
            .ok_or_else(|| {
                self.log(&Event::OldSizeUnknown { func: symbol });
                self.refuse(PatchReason::SymbolWithoutSize)
            })
    }

    /// Parts that the compiler split off `func`.
    fn parts(
        &self,
        func: TextRange,
        known_as: Option<(&str, &str)>,
    ) -> Result<Vec<TextRange>, Error> {
        let (mut parts, mut full) = (Vec::new(), Ok(()));
        self.host
            .symbols()
            .parts(func, known_as, &mut |part| {
                if full.is_ok() {
                    full = try_push(&mut parts, part);
                }
            })
            .map_err(|error| self.symbols_failed(&error))?;
        full?;
        Ok(parts)
    }

    /// Shows `found` the clones of the function that the patch does not replace, too.
    pub(super) fn clones(
        &self,
        found: &mut dyn FnMut(&str) -> Result<(), OutOfMemory>,
    ) -> Result<(), Error> {
        let mut full = Ok(());
        let mut show = |clone: &str| {
            let mut funcs = self.object.funcs().iter();
            if full.is_ok() && !funcs.any(|func| &**func.old_name() == clone) {
                full = found(clone);
            }
        };
        self.host
            .symbols()
            .clones(self.object.name(), self.func.old_name(), &mut show)
            .map_err(|error| self.symbols_failed(&error))?;
        Ok(full?)
    }

    /// The entry site.
    pub(super) fn site(&self, old: TextRange) -> Result<SiteOf<P>, Error> {
        self.host.tracer().site_of(old).map_err(|error| {
            let detail = || Name::display(&DisplayError(&error));
            let reason = match error.kind() {
                PortErrorKind::Notrace => Ok(PatchReason::Notrace),
                PortErrorKind::NoSite => detail().map(|detail| PatchReason::NoEntrySite { detail }),
                PortErrorKind::Held => detail().map(|detail| PatchReason::EntryHeld { detail }),
                _ => return Error::port("looking at an entry site", self.patch.name(), &error),
            };
            let refused = reason.map_or(Error::OutOfMemory, |reason| self.refuse(reason));
            let func = self.func.old_name();
            self.log(&match error.kind() {
                PortErrorKind::Held => Event::NotRegistered {
                    func,
                    errno: refused.errno(),
                },
                _ => Event::NoLocation { func },
            });
            refused
        })
    }

    /// The code of the new function.
    pub(super) fn replacement(&self) -> Result<TextRange, Error> {
        let start = self.func.new_addr();
        let range = match self.func.new_len() {
            Some(len) => TextRange::new(start, len),
            None => self.host.symbols().function_at(start).and_then(|found| {
                // From where calls go in, to the end of the symbol.
                TextRange::new(start, found.end().get().checked_sub(start.get())?)
            }),
        };
        range.filter(|range| !range.is_empty()).ok_or_else(|| {
            self.log(&Event::NewSizeUnknown {
                func: self.func.old_name(),
            });
            self.refuse(PatchReason::NewFunctionUnknown)
        })
    }

    /// Whether callers of the function in `old` go on as they should after `new`.
    pub(super) fn fit(&self, old: TextRange, new: TextRange) -> Result<(), Error> {
        let misfit = self.host.symbols().misfit(old, new, self.func.new_other());
        match misfit.map_err(|error| self.symbols_failed(&error))? {
            None => Ok(()),
            Some(why) => Err(self.refuse(PatchReason::Misfit { why })),
        }
    }
}

struct DisplayError<'a, E>(&'a E);

impl<E: PortError> core::fmt::Display for DisplayError<'_, E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self.0, f)
    }
}
