//! The code of both sides of a transition: every byte that a task may be in because of the patches
//! that move, or of those that give way to them.
//!
//! A patch owns more code than its new functions: parts that the compiler split off them, and
//! whatever its image has beside. What of a patch can be attributed to a function counts for that
//! function; the rest counts for all of them.

use super::batch::{bounds, moving};
use super::inner::{Inner, Record};
use super::objects::{Bound, BoundFunc};
use crate::addr::{CodeAddr, TextRange};
use crate::mem::{OutOfMemory, try_push};
use crate::ops::{FuncNode, Switch, Writer};
use crate::port::{Arch, Moment, Platform, TaskState, Text};
use crate::transition::{Affected, AffectedFunc};
use alloc::vec::Vec;
use core::ptr;

/// Bytes of code that are looked at in one go for jumps.
const MAX_CODE: usize = 1 << 16;

/// When it is worked out at which entries tasks may switch themselves, which takes a look at every
/// instruction of the affected code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Judge {
    Now,
    /// Until then they may not.
    Later,
}

/// Whether tasks of the host switch themselves at entries.
pub(super) fn switch_at_entries<P: Platform>(host: &P) -> bool {
    host.self_switch()
        .is_some_and(|tasks| tasks.moment() == Moment::Entry)
}

impl<P: Platform> Inner<P> {
    /// The code of both sides of the transition, sorted. Says to each affected function's ops
    /// whether tasks may switch themselves at its entry.
    pub(super) fn affected(&self, host: &P, judge: Judge) -> Result<Affected, OutOfMemory> {
        let mut affected = Affected::default();
        affected.reserve(bounds(&self.patches).map(Bound::len).sum())?;
        let versions = Versions::of(&self.patches)?;
        let writer = &self.sites.writer;
        // Versions that tasks leave or come back to, of patches that stay.
        let mut below: Vec<usize> = Vec::new();
        for (number, record) in (0..).zip(moving(&self.patches)) {
            if let Some(code) = record.patch.code() {
                affected.add_code(TaskState::Patched, code, AffectedFunc::other(number))?;
            }
            for (bound, func) in record.bounds().flat_map(Bound::funcs_with_nodes) {
                let at = AffectedFunc {
                    patch: number,
                    ..func.at
                };
                affected.add_entry(func.entry(), at)?;
                if bound.target().is_some() {
                    affected.add(TaskState::Patched, bound.range(), at)?;
                    func.parts
                        .iter()
                        .try_for_each(|part| affected.add(TaskState::Patched, *part, at))?;
                    // What goes back to an older version runs code of that patch.
                    if let Some(older) = func.same_code_below(bound, writer) {
                        if let Some(version) = versions.find(older) {
                            let parts = &version.func.parts;
                            parts
                                .iter()
                                .try_for_each(|part| affected.add(TaskState::Patched, *part, at))?;
                            try_push(&mut below, ptr::from_ref(older).addr())?;
                        }
                    }
                } else {
                    func.add_original(&mut affected, TaskState::Patched, at)?;
                }
                match func
                    .previous(bound, writer)
                    .filter(|previous| previous.target().is_some())
                {
                    None => func.add_original(&mut affected, TaskState::Unpatched, at)?,
                    Some(previous) => {
                        affected.add(TaskState::Unpatched, previous.range(), at)?;
                        if let Some(version) = versions.find(previous) {
                            let parts = &version.func.parts;
                            parts.iter().try_for_each(|part| {
                                affected.add(TaskState::Unpatched, *part, at)
                            })?;
                            try_push(&mut below, ptr::from_ref(previous).addr())?;
                        }
                    }
                }
            }
        }
        below.sort_unstable();
        let last =
            u32::try_from(moving(&self.patches).count().saturating_sub(1)).unwrap_or(u32::MAX);
        let older = AffectedFunc::older(last);
        for (index, record) in self.patches.iter().enumerate() {
            if self.gives_way_now(index) {
                for (node, func) in record.bounds().flat_map(Bound::funcs_with_nodes) {
                    affected.add(TaskState::Unpatched, node.range(), older)?;
                    func.parts
                        .iter()
                        .try_for_each(|part| affected.add(TaskState::Unpatched, *part, older))?;
                }
                if let Some(code) = record.patch.code() {
                    affected.add_code(TaskState::Unpatched, code, older)?;
                }
            } else if !record.moves {
                add_rest(&mut affected, record, &below, older)?;
            }
        }
        let mut affected = affected.sorted();
        match (switch_at_entries(host), judge) {
            (true, Judge::Now) => self.judge_entries(host, &mut affected, &versions)?,
            (true, Judge::Later) => {}
            (false, _) => affected.set_lendable(true),
        }
        Ok(affected)
    }

    /// Finds out at which entries tasks may switch themselves: where it is certain that a task was
    /// called, so that whatever it is still in has a frame on its stack.
    ///
    /// * Everywhere but at entries that affected code jumps to, if that never jumps out of itself
    ///   or to where the code does not tell.
    /// * Otherwise, at the entry of a function that is only left by its return: if the call in
    ///   front of the task's return address is one of that function, nothing else has run since.
    fn judge_entries(
        &self,
        host: &P,
        affected: &mut Affected,
        versions: &Versions<'_, P>,
    ) -> Result<(), OutOfMemory> {
        // What stands at entries is the tracer's; there it leads to versions that are looked at
        // themselves.
        let funcs = || {
            moving(&self.patches)
                .flat_map(Record::bounds)
                .flat_map(Bound::funcs_with_nodes)
        };
        let mut entries = Vec::new();
        for (_, func) in funcs() {
            try_push(&mut entries, func.entry())?;
        }
        entries.sort_unstable_by_key(|entry| (entry.start(), entry.end()));
        let (mut all, mut buffer) = (Targets::new(), Vec::new());
        for range in affected.ranges() {
            let at = entries.partition_point(|entry| entry.start() < range.start());
            let entry = entries
                .get(at)
                .filter(|entry| entry.start() == range.start());
            if let Some(body) = behind(range, entry.copied()) {
                all.look::<P>(host, body, &mut buffer)?;
            }
        }
        all.known.sort_unstable();
        all.known.dedup();
        let everywhere = !all.unknown && all.known.iter().all(|target| affected.contains(*target));
        let mut lendable = everywhere;
        for (node, func) in funcs() {
            let entry = func.entry();
            let switch = if !everywhere {
                let closed =
                    func.is_closed(host, (node, &self.sites.writer), versions, &mut buffer)?;
                if closed {
                    Switch::IfCalled
                } else {
                    Switch::Never
                }
            } else {
                let from = all.known.partition_point(|target| *target < entry.start());
                let jumped_to = all
                    .known
                    .get(from)
                    .is_some_and(|target| entry.contains(*target));
                if jumped_to {
                    Switch::Never
                } else {
                    Switch::Always
                }
            };
            lendable |= switch != Switch::Never;
            func.ops.let_switch(switch, entry.start());
        }
        affected.set_lendable(lendable);
        Ok(())
    }
}

/// What of `range` lies behind `entry`, with which it begins.
fn behind(range: TextRange, entry: Option<TextRange>) -> Option<TextRange> {
    let from = entry.map_or(range.start(), TextRange::end);
    TextRange::new(from, range.end().get().checked_sub(from.get())?)
}

/// What of the code of `record`, which stays, belongs to none of its functions, if one of those is
/// among `below`: to be left, or to be come back to.
fn add_rest<P: Platform>(
    affected: &mut Affected,
    record: &Record<P>,
    below: &[usize],
    at: AffectedFunc,
) -> Result<(), OutOfMemory> {
    let Some(code) = record.patch.code() else {
        return Ok(());
    };
    let is_below = |node: &FuncNode| below.binary_search(&ptr::from_ref(node).addr()).is_ok();
    if !record
        .bounds()
        .flat_map(Bound::funcs_with_nodes)
        .any(|(node, _)| is_below(node))
    {
        return Ok(());
    }
    let mut others = Vec::new();
    for (node, func) in record
        .bounds()
        .flat_map(Bound::funcs_with_nodes)
        .filter(|(node, _)| !is_below(node))
    {
        try_push(&mut others, node.range())?;
        others.try_reserve(func.parts.len())?;
        others.extend_from_slice(&func.parts);
    }
    others.sort_unstable_by_key(|range| range.start());
    let mut from = code.start();
    let end = TextRange::new(code.end(), 0);
    for other in others.into_iter().chain(end) {
        let len = other.start().get().saturating_sub(from.get());
        if let Some(rest) =
            TextRange::new(from, len).filter(|rest| !rest.is_empty() && from < code.end())
        {
            affected.add_code(TaskState::Unpatched, rest, at)?;
            affected.add_code(TaskState::Patched, rest, at)?;
        }
        from = from.max(other.end());
    }
    Ok(())
}

/// Every version on a stack of functions, by its node.
struct Versions<'a, P: Platform>(Vec<Version<'a, P>>);

struct Version<'a, P: Platform> {
    node: usize,
    func: &'a BoundFunc<P>,
}

impl<'a, P: Platform> Versions<'a, P> {
    fn of(patches: &'a [Record<P>]) -> Result<Self, OutOfMemory> {
        let mut versions = Vec::new();
        for record in patches
            .iter()
            .filter(|record| record.enabled && !record.moves)
        {
            for (node, func) in record.bounds().flat_map(Bound::funcs_with_nodes) {
                try_push(
                    &mut versions,
                    Version {
                        node: ptr::from_ref(node).addr(),
                        func,
                    },
                )?;
            }
        }
        versions.sort_unstable_by_key(|version| version.node);
        Ok(Self(versions))
    }

    fn find(&self, node: &FuncNode) -> Option<&Version<'a, P>> {
        let found = self
            .0
            .binary_search_by_key(&ptr::from_ref(node).addr(), |version| version.node);
        self.0.get(found.ok()?)
    }
}

/// Where code jumps to outside of itself.
struct Targets {
    known: Vec<CodeAddr>,
    /// Some jump does not tell, or some code could not be read.
    unknown: bool,
}

impl Targets {
    fn new() -> Self {
        Self {
            known: Vec::new(),
            unknown: false,
        }
    }

    /// Adds the jumps that leave `range`.
    fn look<P: Platform>(
        &mut self,
        host: &P,
        range: TextRange,
        buffer: &mut Vec<u8>,
    ) -> Result<(), OutOfMemory> {
        let Some(len) = usize::try_from(range.len())
            .ok()
            .filter(|len| *len <= MAX_CODE)
        else {
            self.unknown = true;
            return Ok(());
        };
        buffer.clear();
        buffer.try_reserve(len)?;
        buffer.resize(len, 0);
        if host.text().read(range.start(), buffer).is_err() {
            self.unknown = true;
            return Ok(());
        }
        let Self { known, unknown } = self;
        let mut full = Ok(());
        P::Arch::jumps(range.start(), buffer, &mut |to| match to {
            None => *unknown = true,
            Some(to) if range.contains(to) => {}
            Some(to) if full.is_ok() => full = try_push(known, to),
            Some(_) => {}
        });
        full
    }
}

impl<P: Platform> BoundFunc<P> {
    /// Whether tasks leave each version of the function, `node`'s and the one that runs where that
    /// does not, by its return only.
    fn is_closed(
        &self,
        host: &P,
        (node, writer): (&FuncNode, &Writer),
        versions: &Versions<'_, P>,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, OutOfMemory> {
        let mut own = Vec::new();
        let mut add =
            |range: Option<TextRange>| range.map_or(Ok(()), |range| try_push(&mut own, range));
        add(behind(self.old, Some(self.entry())))?;
        self.cold
            .iter()
            .chain(&self.parts)
            .try_for_each(|part| add(Some(*part)))?;
        let replacements = [
            Some(node),
            self.previous(node, writer),
            self.same_code_below(node, writer),
        ];
        for replacement in replacements
            .into_iter()
            .flatten()
            .filter(|node| node.target().is_some())
        {
            add(Some(replacement.range()))?;
            let parts = versions
                .find(replacement)
                .map_or(&[][..], |version| &version.func.parts);
            parts.iter().try_for_each(|part| add(Some(*part)))?;
        }
        let mut targets = Targets::new();
        for range in &own {
            targets.look::<P>(host, *range, buffer)?;
        }
        let within = |to: &CodeAddr| own.iter().any(|range| range.contains(*to));
        Ok(!targets.unknown && targets.known.iter().all(within))
    }

    /// The entry, where calls may be redirected: what lies in front of the body.
    fn entry(&self) -> TextRange {
        let len = self.old.start().distance_to(self.ops.original());
        let len = u64::try_from(len).unwrap_or(0).min(self.old.len());
        TextRange::new(self.old.start(), len).unwrap_or(self.old)
    }

    /// Adds the code of the original to one side.
    fn add_original(
        &self,
        affected: &mut Affected,
        side: TaskState,
        at: AffectedFunc,
    ) -> Result<(), OutOfMemory> {
        affected.add(side, self.old, at)?;
        self.cold
            .iter()
            .try_for_each(|part| affected.add(side, *part, at))
    }

    /// The older version whose code `node` runs, too: that which it goes back to.
    fn same_code_below<'a>(&self, node: &FuncNode, writer: &'a Writer) -> Option<&'a FuncNode> {
        let mut nodes = self.ops.stack().nodes(writer);
        nodes.find(|other| !ptr::eq(*other, node) && other.range() == node.range())
    }

    /// The replacement that runs where this one does not: the next one below that is not in
    /// transition with it, or the present top if this is not on the stack yet.
    fn previous<'a>(&self, node: &FuncNode, writer: &'a Writer) -> Option<&'a FuncNode> {
        let mut nodes = self.ops.stack().nodes(writer);
        match nodes.find(|other| ptr::eq(*other, node)) {
            Some(_) => nodes.find(|other| !other.in_transition()),
            None => self.ops.stack().nodes(writer).next(),
        }
    }
}
