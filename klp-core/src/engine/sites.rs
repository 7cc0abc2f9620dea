//! The ops of every site that was ever patched, and how calls at them are routed.

use crate::error::Error;
use crate::mem::{Name, OutOfMemory, try_box, try_push, try_vec};
use crate::model::VMLINUX;
use crate::ops::{Ops, Writer};
use crate::port::{Platform, Route, Routing, Tracer};
use alloc::vec::Vec;
use hashbrown::HashMap;

/// The site type of a platform's tracer.
pub(super) type SiteOf<P> = <<P as Platform>::Tracer as Tracer>::Site;
/// The error of a platform's tracer.
pub(super) type TracerErrorOf<P> = <<P as Platform>::Tracer as Tracer>::Error;

/// One site's ops, and where the tracer sends its calls now.
#[derive(Debug)]
struct Routed {
    ops: &'static Ops,
    route: Route,
    /// The object that the site is in; `None`: the base image, which never goes.
    object: Option<Name>,
}

/// Every site that was ever patched in what is loaded. An ops stays for ever, so a site keeps its
/// own, and when it goes, another site gets it.
#[derive(Debug)]
pub(super) struct Sites<P: Platform> {
    by_site: HashMap<SiteOf<P>, Routed>,
    /// Ops of sites that are gone.
    spare: Vec<&'static Ops>,
    /// Whether some site goes through the handler though it need not.
    unsettled: bool,
    /// The engine's.
    pub(super) writer: Writer,
}

impl<P: Platform> Sites<P> {
    /// `writer` is the engine's.
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            by_site: HashMap::new(),
            spare: Vec::new(),
            unsettled: false,
            writer,
        }
    }

    /// The ops of `site`, which is in `object`, made if it is new.
    pub(super) fn ops(
        &mut self,
        tracer: &P::Tracer,
        site: SiteOf<P>,
        object: &str,
    ) -> Result<&'static Ops, OutOfMemory> {
        if let Some(routed) = self.by_site.get(&site) {
            return Ok(routed.ops);
        }
        self.add(tracer, site, object)
            .inspect_err(|_| self.overlook(tracer, site))
    }

    #[allow(unsafe_code, reason = "an ops that nobody uses")]
    fn add(
        &mut self,
        tracer: &P::Tracer,
        site: SiteOf<P>,
        object: &str,
    ) -> Result<&'static Ops, OutOfMemory> {
        self.by_site.try_reserve(1)?;
        let object = if object == VMLINUX {
            None
        } else {
            Some(Name::new(object)?)
        };
        let original = tracer.original(site);
        let ops = match self.spare.pop() {
            // SAFETY: a spare one's site was reclaimed when it led to the original, and nothing was
            // on the stack.
            Some(spare) => unsafe { spare.serve(original) },
            None => Ops::leak(try_box(Ops::new(original))?),
        };
        self.by_site.insert(
            site,
            Routed {
                ops,
                route: Route::Original,
                object,
            },
        );
        Ok(ops)
    }

    /// Has the tracer forget a site that was only looked at: nobody would when its object goes.
    #[allow(unsafe_code, reason = "a site that was never routed")]
    pub(super) fn overlook(&self, tracer: &P::Tracer, site: SiteOf<P>) {
        if !self.by_site.contains_key(&site) {
            // SAFETY: it was never routed, so no call has come from it, and nobody remembers it.
            unsafe { tracer.reclaim(site) };
        }
    }

    /// The ops of `site`, if it was ever patched.
    pub(super) fn known(&self, site: SiteOf<P>) -> Option<&'static Ops> {
        self.by_site.get(&site).map(|routed| routed.ops)
    }

    /// Routes each of `sites` to where its stack says: the handler while the state of tasks
    /// matters, straight to the newest function otherwise. All or nothing.
    #[allow(unsafe_code, reason = "patches say where calls may go")]
    pub(super) fn reroute(
        &mut self,
        tracer: &P::Tracer,
        sites: impl Iterator<Item = SiteOf<P>>,
    ) -> Result<(), RerouteError<P>> {
        let (mut batch, mut before) = (Vec::new(), Vec::new());
        // Several patches may have the same function: only the first time it leads elsewhere.
        let routed = self
            .plan(sites, &mut batch, &mut before)
            .map_err(RerouteError::from)
            .and_then(|()| match &*batch {
                [] => Ok(()),
                // SAFETY: each leads to the top of its stack of functions, or to the handler, or
                // back.
                batch => unsafe { tracer.route(batch) }.map_err(RerouteError::Tracer),
            });
        if routed.is_err() {
            for (routing, route) in batch.iter().zip(before) {
                if let Some(routed) = self.by_site.get_mut(&routing.site) {
                    routed.route = route;
                }
            }
        }
        routed
    }

    /// Notes where each of `sites` is to lead. Those that led elsewhere, to `before`, go to `batch`.
    fn plan(
        &mut self,
        sites: impl Iterator<Item = SiteOf<P>>,
        batch: &mut Vec<Routing<SiteOf<P>>>,
        before: &mut Vec<Route>,
    ) -> Result<(), OutOfMemory> {
        batch.try_reserve(sites.size_hint().0)?;
        before.try_reserve(sites.size_hint().0)?;
        for site in sites {
            let Some(routed) = self.by_site.get_mut(&site) else {
                continue;
            };
            let to = wanted(routed.ops, &self.writer);
            if to != routed.route {
                before.try_reserve(1)?;
                try_push(batch, Routing { site, to })?;
                before.push(core::mem::replace(&mut routed.route, to));
            }
        }
        Ok(())
    }

    /// Forgets the sites of an object that may not come: no patch is on them any more. Those that
    /// were left to be settled are routed back first, if that works: their code may be there for a
    /// while.
    #[allow(unsafe_code, reason = "sites that are not used any more")]
    pub(super) fn forget_object(&mut self, tracer: &P::Tracer, object: &str) {
        // SAFETY: the site is not known any more when this returns.
        self.let_object_go(tracer, object, |_, site, _| unsafe { tracer.forget(site) });
    }

    /// The same for an object that goes away; what belongs to the sites may serve others.
    ///
    /// # Safety
    ///
    /// No call of the object's functions is under way, and none begins before it is gone or has
    /// come again.
    #[allow(unsafe_code, reason = "a promise of the host is passed on")]
    pub(super) unsafe fn reclaim_object(&mut self, tracer: &P::Tracer, object: &str) {
        self.let_object_go(tracer, object, |spare, site, routed| {
            // SAFETY: the caller's promise; the site is not known any more when this returns.
            unsafe { tracer.reclaim(site) };
            // One that still leads to the handler keeps its ops.
            if routed.route == Route::Original && spare.try_reserve(1).is_ok() {
                spare.push(routed.ops);
            }
        });
    }

    /// Removes an object's sites; `let_go` has the tracer do so, and may take their ops.
    fn let_object_go(
        &mut self,
        tracer: &P::Tracer,
        object: &str,
        mut let_go: impl FnMut(&mut Vec<&'static Ops>, SiteOf<P>, &Routed),
    ) {
        let its = |routed: &Routed| {
            routed.object.as_deref() == Some(object) && routed.ops.stack().is_empty()
        };
        let unsettled = |(site, routed): (&SiteOf<P>, &Routed)| {
            (its(routed) && routed.route != Route::Original).then_some(*site)
        };
        if let Ok(mut sites) = try_vec(self.by_site.len()) {
            sites.extend(self.by_site.iter().filter_map(unsettled));
            let _ = self.reroute(tracer, sites.into_iter());
        }
        if !self.by_site.values().any(its) {
            return;
        }
        // Nobody should be in the handler because of the object. Those that were have left it for
        // certain now.
        tracer.synchronize();
        let Self { by_site, spare, .. } = self;
        by_site.retain(|site, routed| {
            let goes = its(routed);
            if goes {
                let_go(spare, *site, routed);
            }
            !goes
        });
    }

    /// Lets go of what `sites` led through before they were routed to the handler, for those that
    /// do not lead there any more.
    ///
    /// # Safety
    ///
    /// Every task was seen outside of veneers since then, or was born later.
    #[allow(unsafe_code, reason = "a promise of the transition is passed on")]
    pub(super) unsafe fn retire(&self, tracer: &P::Tracer, sites: impl Iterator<Item = SiteOf<P>>) {
        for site in sites {
            if self
                .by_site
                .get(&site)
                .is_some_and(|routed| !matches!(routed.route, Route::Handler(_)))
            {
                // SAFETY: the caller's promise.
                unsafe { tracer.retire(site) };
            }
        }
    }

    /// Notes that a site goes through the handler longer than it need.
    pub(super) fn leave_unsettled(&mut self) {
        self.unsettled = true;
    }

    /// Tries again to settle what [`leave_unsettled`](Sites::leave_unsettled) left. No function
    /// is in transition.
    pub(super) fn settle(&mut self, tracer: &P::Tracer) {
        if self.unsettled {
            let sites: Result<Vec<_>, OutOfMemory> =
                try_vec(self.by_site.len()).map(|mut sites| {
                    sites.extend(self.by_site.keys().copied());
                    sites
                });
            self.unsettled = match sites {
                Ok(sites) => self.reroute(tracer, sites.into_iter()).is_err(),
                Err(OutOfMemory) => true,
            };
        }
    }
}

/// Where calls at a site with this stack should go.
fn wanted(ops: &'static Ops, writer: &Writer) -> Route {
    match ops.stack().nodes(writer).next() {
        None => Route::Original,
        Some(top) if top.in_transition() => Route::Handler(ops.arg()),
        Some(top) => top.target().map_or(Route::Original, Route::Direct),
    }
}

/// Why sites could not be routed.
#[derive(Debug)]
pub(super) enum RerouteError<P: Platform> {
    OutOfMemory,
    Tracer(TracerErrorOf<P>),
}

impl<P: Platform> From<OutOfMemory> for RerouteError<P> {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl<P: Platform> RerouteError<P> {
    pub(super) fn into_error(self, patch: &str) -> Error {
        match self {
            Self::OutOfMemory => Error::OutOfMemory,
            Self::Tracer(error) => Error::port("routing entry sites", patch, &error),
        }
    }
}
