//! The tracer for entry pads: one implementation for every architecture and every host with a
//! [`Text`].

use super::arch::{Arch, Entry, Intruder};
use super::entry_error::{Holder, TracerError};
use super::error::{PortError, PortErrorKind};
use super::text::{Fill, Image, ImageLayout, Poke, Text};
use super::tracer::{Route, Routing, Tracer};
use crate::addr::{CodeAddr, TextRange};
use crate::mem::{Name, OutOfMemory, try_push, try_vec};
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use hashbrown::HashMap;

/// What [`EntryTracer`] wants from the host besides its [`Text`].
///
/// # Safety
///
/// * [`recorded_site`](EntryHost::recorded_site) comes from the compiler's or linker's own table of
///   entry pads.
/// * [`is_notrace`](EntryHost::is_notrace) is true of code that a run of the handler goes through:
///   redirected, it would call itself without end.
/// * Code at [`stub`](EntryHost::stub) calls [`crate::ops::handler`] with the argument of the thunk
///   that led there, and goes on at its answer with every argument of the patched function as it
///   was.
/// * [`synchronize`](EntryHost::synchronize) keeps the promise of [`Tracer::synchronize`].
pub unsafe trait EntryHost: Sync {
    /// The lock that the tracer keeps its sites in. It is only taken with the engine's lock held,
    /// and may sleep.
    type Lock: lock_api::RawMutex + Sync;

    /// The address of the entry pad that the compiler recorded for the function in `func`.
    fn recorded_site(&self, func: TextRange) -> Option<CodeAddr>;

    /// Whether the function in `func` is marked as one that must not be redirected (kernel:
    /// `notrace`).
    fn is_notrace(&self, func: TextRange) -> bool;

    /// Who else needs the site at `site` for himself, if the host keeps account of that (kernel:
    /// users of ftrace with `IPMODIFY`). A user that only looks on, and leaves the way of a call
    /// alone, is not meant.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`].
    fn user_of(&self, site: CodeAddr) -> Result<Option<Name>, OutOfMemory> {
        let _ = site;
        Ok(None)
    }

    /// Writes `addr` for people, as [`SymbolResolver::describe`](super::SymbolResolver::describe)
    /// does.
    ///
    /// # Errors
    ///
    /// Only those of `out`.
    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{addr}")
    }

    /// The entry stub.
    fn stub(&self) -> CodeAddr;

    /// Waits until every run of the handler that began before has ended.
    fn synchronize(&self);
}

/// A site of an [`EntryTracer`]; only [`Tracer::site_of`] makes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EntrySite(u32);

/// Slots that are asked for at least when a new arena is needed.
const ARENA_SLOTS: u64 = 128;
/// Bytes of an entry that are read at most.
const MAX_READ: usize = 128;
/// The bytes of an entry that are rewritten, of which there are few on every machine: there are
/// many sites.
type EntryBytes = heapless::Vec<u8, 16>;
/// Bytes that are shown of code that nobody knows.
const SHOWN: usize = 8;

/// Routes entry pads: [`Route::Handler`] is a jump to a thunk near the site, [`Route::Direct`] a
/// jump to the function, through a veneer if it is far.
#[derive(Debug)]
pub struct EntryTracer<A, T, H: EntryHost> {
    text: T,
    host: H,
    state: lock_api::Mutex<H::Lock, State>,
    arch: PhantomData<fn() -> A>,
}

#[derive(Debug, Default)]
struct State {
    sites: Vec<Site>,
    /// Sites that were forgotten: their numbers are for others.
    vacant: Vec<EntrySite>,
    by_addr: HashMap<CodeAddr, EntrySite>,
    arenas: Vec<Arena>,
}

impl State {
    /// Says whether the site was known.
    fn forget(&mut self, site: EntrySite) -> bool {
        let known = &self.sites[site.0 as usize];
        let recorded = known.at.wrapping_sub(known.entry.skip.into());
        self.by_addr.get(&recorded) == Some(&site) && self.by_addr.remove(&recorded).is_some()
    }
}

#[derive(Debug)]
struct Site {
    at: CodeAddr,
    entry: Entry,
    /// The entry as it was found.
    built: EntryBytes,
    /// The entry as it is left when nothing is patched any more.
    rest: EntryBytes,
    /// The entry as it is now.
    now: EntryBytes,
    /// Slots that lead on from here, one for each place that this site ever led to.
    slots: Vec<Slot>,
}

impl Site {
    fn body(&self) -> CodeAddr {
        self.at.wrapping_add(self.entry.resume.into())
    }

    /// Whether the original function runs.
    fn is_original(&self) -> bool {
        self.now == self.built || self.now == self.rest
    }

    /// Whether the entry is a jump to `slot` now.
    fn leads_through<A: Arch>(&self, slot: &Slot) -> bool {
        A::jump(self.at, slot.at, self.entry.len).is_ok_and(|jump| jump == self.now)
    }

    fn slot_to(&self, to: Onward) -> Option<CodeAddr> {
        self.slots
            .iter()
            .find(|slot| slot.to == to)
            .map(|slot| slot.at)
    }
}

/// A thunk or a veneer. Once filled it stays as it is until its site is forgotten: a task may be on
/// its way through it at any time.
#[derive(Clone, Copy, Debug)]
struct Slot {
    at: CodeAddr,
    to: Onward,
}

/// Where a slot leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Onward {
    /// To the stub, with this argument.
    Stub(u64),
    /// To this function.
    Func(CodeAddr),
}

/// Executable memory for slots.
#[derive(Debug)]
struct Arena {
    image: Image,
    /// Slots that lead nowhere yet. There is room for all of the arena's.
    free: Vec<CodeAddr>,
    /// How many of them, from behind, the routing under way has taken. If it fails they are free
    /// again.
    taken: usize,
}

impl Arena {
    /// Divides `image` into slots of `slot` bytes.
    fn new(image: Image, slot: u64) -> Result<Self, (Image, OutOfMemory)> {
        let (start, len) = (image.text.start(), image.text.len() / slot);
        match try_vec(usize::try_from(len).unwrap_or(usize::MAX)) {
            Ok(mut free) => {
                // The first one is taken first.
                free.extend((0..len).rev().map(|index| start.wrapping_add(index * slot)));
                Ok(Self {
                    image,
                    free,
                    taken: 0,
                })
            }
            Err(error) => Err((image, error)),
        }
    }

    fn take(&mut self) -> Option<CodeAddr> {
        let slot = *self.free.iter().rev().nth(self.taken)?;
        self.taken += 1;
        Some(slot)
    }

    /// What was taken is in use from here on.
    fn keep_taken(&mut self) {
        self.free
            .truncate(self.free.len() - core::mem::take(&mut self.taken));
    }
}

/// What one site will be, once nothing can fail any more.
struct Plan {
    site: EntrySite,
    at: CodeAddr,
    bytes: EntryBytes,
    resume: CodeAddr,
    /// A slot to be filled.
    fill: Option<Slot>,
}

impl<A: Arch, T: Text, H: EntryHost> EntryTracer<A, T, H> {
    /// A tracer on `text` and `host`, with no site yet.
    pub fn new(text: T, host: H) -> Self {
        Self {
            text,
            host,
            state: lock_api::Mutex::new(State::default()),
            arch: PhantomData,
        }
    }

    /// The host's text.
    pub fn text(&self) -> &T {
        &self.text
    }

    /// The rest of the host.
    pub fn host(&self) -> &H {
        &self.host
    }

    /// Veneers of the site recorded at `recorded` that it does not lead through.
    #[cfg(feature = "sim")]
    pub(crate) fn spare_veneers(&self, recorded: CodeAddr) -> usize {
        let state = self.state.lock();
        let Some(site) = state.by_addr.get(&recorded) else {
            return 0;
        };
        let site = &state.sites[site.0 as usize];
        let veneers = site
            .slots
            .iter()
            .filter(|slot| matches!(slot.to, Onward::Func(_)));
        veneers
            .filter(|slot| !site.leads_through::<A>(slot))
            .count()
    }

    /// Works out what `batch` makes of its sites, sorted by address, and fills the slots that they
    /// will lead to.
    fn plan(
        &self,
        state: &mut State,
        batch: &[Routing<EntrySite>],
    ) -> Result<Vec<Plan>, TracerError<T::Error>> {
        let mut plans = try_vec(batch.len())?;
        for routing in batch {
            plans.push(self.plan_one(state, routing, batch.len() as u64)?);
        }
        plans.sort_unstable_by_key(|plan: &Plan| plan.at);

        let mut codes = try_vec(plans.len())?;
        codes.extend(plans.iter().filter_map(|plan| plan.fill).map(|slot| {
            let code = match slot.to {
                Onward::Stub(arg) => A::thunk(slot.at, arg, self.host.stub()),
                Onward::Func(to) => A::veneer(slot.at, to),
            };
            (slot.at, code)
        }));
        if !codes.is_empty() {
            let mut fills = try_vec(codes.len())?;
            fills.extend(codes.iter().map(|(at, code)| Fill {
                at: *at,
                bytes: code,
            }));
            // SAFETY: the slots are in arenas of ours, and nothing leads to them: nothing ever did,
            // or it was forgotten with its site.
            unsafe { self.text.fill(&fills) }.map_err(TracerError::Text)?;
        }
        Ok(plans)
    }

    /// Works out the bytes of one site. Makes room to remember its new slot, if it needs one.
    fn plan_one(
        &self,
        state: &mut State,
        routing: &Routing<EntrySite>,
        hint: u64,
    ) -> Result<Plan, TracerError<T::Error>> {
        let State { sites, arenas, .. } = state;
        let site = &mut sites[routing.site.0 as usize];
        let mut plan = Plan {
            site: routing.site,
            at: site.at,
            bytes: site.rest.clone(),
            resume: site.body(),
            fill: None,
        };
        let onward = match routing.to {
            Route::Original => {
                if site.is_original() {
                    plan.bytes = site.now.clone();
                }
                return Ok(plan);
            }
            Route::Handler(arg) => Onward::Stub(arg.get()),
            Route::Direct(to) => Onward::Func(to),
        };
        plan.resume = match (routing.to, site.slot_to(onward)) {
            (Route::Direct(to), _)
                if A::JUMP_ENTERS && A::jump(site.at, to, site.entry.len).is_ok() =>
            {
                to
            }
            (_, Some(at)) => at,
            (_, None) => {
                site.slots
                    .try_reserve(1)
                    .map_err(|_| TracerError::OutOfMemory)?;
                let at = self.slot(arenas, site, hint)?;
                plan.fill = Some(Slot { at, to: onward });
                at
            }
        };
        let jump =
            A::jump(site.at, plan.resume, site.entry.len).map_err(TracerError::OutOfReach)?;
        plan.bytes = EntryBytes::from_slice(&jump).map_err(|()| TracerError::NoSite)?;
        Ok(plan)
    }

    /// Rewrites the sites, all or none.
    fn rewrite(&self, state: &mut State, plans: Vec<Plan>) -> Result<(), TracerError<T::Error>> {
        let mut pokes = try_vec(plans.len())?;
        pokes.extend(plans.iter().map(|plan| {
            let site = &state.sites[plan.site.0 as usize];
            Poke {
                at: plan.at,
                old: &site.now,
                new: &plan.bytes,
                resume: plan.resume,
                split: site.entry.split && site.now == site.built && site.now != site.rest,
                body: site.body(),
            }
        }));
        // SAFETY: each is an entry site; the old bytes and the new ones lead on to the function, or
        // where `route` was told.
        unsafe { self.text.poke(&pokes) }.map_err(|error| match error.kind() {
            PortErrorKind::Held => self
                .holder_among(&pokes)
                .unwrap_or(TracerError::Text(error)),
            _ => TracerError::Text(error),
        })?;
        for plan in plans {
            state.sites[plan.site.0 as usize].now = plan.bytes;
        }
        Ok(())
    }

    /// Who holds one of the places of `pokes`, if one is not as it should be.
    fn holder_among(&self, pokes: &[Poke<'_>]) -> Option<TracerError<T::Error>> {
        pokes.iter().find_map(|poke| {
            let mut found = [0; MAX_READ];
            let found = found.get_mut(..poke.old.len())?;
            self.text.read(poke.at, found).ok()?;
            (*found != *poke.old).then(|| self.held(poke.at, found))
        })
    }

    /// Says who holds the entry at `at`, where `found` stands.
    fn held(&self, at: CodeAddr, found: &[u8]) -> TracerError<T::Error> {
        let name = |addr| Name::display(&Described(&self.host, addr));
        let held = || -> Result<_, OutOfMemory> {
            let (at, by) = match A::intruder(at, found) {
                Some(Intruder::Breakpoint { at }) => (at, Holder::Breakpoint),
                Some(Intruder::Jump { at, to }) => (
                    at,
                    Holder::Jump {
                        to: to.map(name).transpose()?,
                    },
                ),
                Some(Intruder::Call { at, to }) => (at, Holder::Call { to: name(to)? }),
                None => (
                    at,
                    Holder::Code(found.iter().copied().take(SHOWN).collect()),
                ),
            };
            Ok(TracerError::Held { at: name(at)?, by })
        };
        held().unwrap_or(TracerError::OutOfMemory)
    }

    /// A free slot that a jump in `site` reaches.
    fn slot(
        &self,
        arenas: &mut Vec<Arena>,
        site: &Site,
        hint: u64,
    ) -> Result<CodeAddr, TracerError<T::Error>> {
        let in_reach = |arena: &Arena| {
            let (low, high) = (arena.image.text.start(), arena.image.text.end());
            [low, high]
                .iter()
                .all(|end| site.at.distance_to(*end).unsigned_abs() < A::REACH)
        };
        // The newest arena is likely to have room; search backwards.
        if let Some(slot) = arenas
            .iter_mut()
            .rev()
            .filter(|arena| in_reach(arena))
            .find_map(Arena::take)
        {
            return Ok(slot);
        }
        let near = TextRange::new(site.at, site.entry.len.into()).ok_or(TracerError::NoSite)?;
        let layout = ImageLayout {
            text: A::SLOT * hint.max(ARENA_SLOTS),
            ..ImageLayout::default()
        };
        arenas
            .try_reserve(1)
            .map_err(|_| TracerError::OutOfMemory)?;
        let image = self
            .text
            .alloc(near, A::REACH, layout)
            .map_err(TracerError::Text)?;
        let mut arena = Arena::new(image, A::SLOT).map_err(|(image, error)| {
            // SAFETY: it was just made, and nothing leads into it.
            unsafe { self.text.free(image) };
            error
        })?;
        let slot = arena.take().ok_or(TracerError::OutOfMemory)?;
        arenas.push(arena);
        Ok(slot)
    }
}

// SAFETY: `route` changes sites only through `Text::poke`, whose contract makes the change atomic
// for every core, and `synchronize` is the host's, which promises the same.
unsafe impl<A: Arch, T: Text, H: EntryHost> Tracer for EntryTracer<A, T, H> {
    type Site = EntrySite;
    type Error = TracerError<T::Error>;

    fn site_of(&self, func: TextRange) -> Result<EntrySite, Self::Error> {
        if self.host.is_notrace(func) {
            return Err(TracerError::Notrace);
        }
        let recorded = self.host.recorded_site(func).ok_or(TracerError::NoSite)?;
        if let Some(user) = self.host.user_of(recorded)? {
            let at = Name::display(&Described(&self.host, recorded))?;
            return Err(TracerError::Held {
                at,
                by: Holder::User(user),
            });
        }
        let mut bytes = [0; MAX_READ];
        let len = func
            .end()
            .get()
            .saturating_sub(recorded.get())
            .min(A::MAX_ENTRY.min(MAX_READ) as u64);
        #[allow(clippy::cast_possible_truncation, reason = "at most 128")]
        let bytes = &mut bytes[..len as usize];
        self.text.read(recorded, bytes).map_err(TracerError::Text)?;

        let mut state = self.state.lock();
        if let Some(&known) = state.by_addr.get(&recorded) {
            let site = &state.sites[known.0 as usize];
            let now = bytes.get(site.entry.skip.into()..).unwrap_or_default();
            return if now.starts_with(&site.now) {
                Ok(known)
            } else {
                Err(self.held(site.at, now))
            };
        }
        let entry = A::entry(recorded, bytes).ok_or_else(|| self.held(recorded, bytes))?;
        let built = bytes
            .get(entry.skip.into()..usize::from(entry.skip) + usize::from(entry.len))
            .and_then(|built| EntryBytes::from_slice(built).ok())
            .ok_or(TracerError::NoSite)?;

        state
            .by_addr
            .try_reserve(1)
            .map_err(|_| TracerError::OutOfMemory)?;
        let rest = if entry.split { A::nop(entry.len) } else { None };
        let rest = rest.and_then(|rest| EntryBytes::from_slice(&rest).ok());
        let site = Site {
            at: recorded.wrapping_add(entry.skip.into()),
            entry,
            rest: rest.unwrap_or_else(|| built.clone()),
            now: built.clone(),
            built,
            slots: Vec::new(),
        };
        let token = match state.vacant.pop() {
            Some(token) => {
                state.sites[token.0 as usize] = site;
                token
            }
            None => {
                let token = EntrySite(
                    u32::try_from(state.sites.len()).map_err(|_| TracerError::OutOfMemory)?,
                );
                try_push(&mut state.sites, site)?;
                token
            }
        };
        state.by_addr.insert(recorded, token);
        Ok(token)
    }

    fn original(&self, site: EntrySite) -> CodeAddr {
        self.state.lock().sites[site.0 as usize].body()
    }

    unsafe fn route(&self, batch: &[Routing<EntrySite>]) -> Result<(), Self::Error> {
        let mut state = self.state.lock();
        let arenas = state.arenas.len();
        let plans = self.plan(&mut state, batch).inspect_err(|_| {
            for arena in state.arenas.drain(arenas..) {
                // SAFETY: this call made the arena, and nothing leads into it.
                unsafe { self.text.free(arena.image) };
            }
            state.arenas.iter_mut().for_each(|arena| arena.taken = 0);
        })?;
        // From here on the slots stay, whatever happens: tasks may be sent through them while sites
        // are rewritten.
        state.arenas.iter_mut().for_each(Arena::keep_taken);
        for plan in &plans {
            // `plan_one` made room for it.
            state.sites[plan.site.0 as usize].slots.extend(plan.fill);
        }
        self.rewrite(&mut state, plans)
    }

    unsafe fn forget(&self, site: EntrySite) {
        self.state.lock().forget(site);
    }

    unsafe fn reclaim(&self, site: EntrySite) {
        let mut state = self.state.lock();
        if !state.forget(site) {
            return;
        }
        let State {
            sites,
            vacant,
            arenas,
            ..
        } = &mut *state;
        let known = &mut sites[site.0 as usize];
        // A site that could not be routed back leads somewhere, and keeps what it leads through. So
        // it does without memory for the list.
        if !known.is_original() || vacant.try_reserve(1).is_err() {
            return;
        }
        for slot in core::mem::take(&mut known.slots) {
            if let Some(arena) = arenas
                .iter_mut()
                .find(|arena| arena.image.text.contains(slot.at))
            {
                arena.free.push(slot.at);
            }
        }
        vacant.push(site);
    }

    unsafe fn retire(&self, site: EntrySite) {
        let State { sites, arenas, .. } = &mut *self.state.lock();
        let site = &mut sites[site.0 as usize];
        let is_idle = |site: &Site, slot: &Slot| {
            matches!(slot.to, Onward::Func(_)) && !site.leads_through::<A>(slot)
        };
        while let Some(idle) = site.slots.iter().position(|slot| is_idle(site, slot)) {
            let slot = site.slots.swap_remove(idle);
            if let Some(arena) = arenas
                .iter_mut()
                .find(|arena| arena.image.text.contains(slot.at))
            {
                arena.free.push(slot.at);
            }
        }
    }

    fn synchronize(&self) {
        self.host.synchronize();
    }
}

/// An address in the words of the host.
struct Described<'a, H>(&'a H, CodeAddr);

impl<H: EntryHost> fmt::Display for Described<'_, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(self.1, f)
    }
}
