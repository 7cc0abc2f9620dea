//! The suite of [`Tracer`].

use crate::addr::TextRange;
use crate::mem::try_box;
use crate::ops::{Nodes, Ops, Writer};
use crate::port::{PortError, PortErrorKind, Route, Routing, Tracer};
use alloc::vec::Vec;

/// What the suite wants from the porter.
pub struct Bench<'a, T: Tracer> {
    /// The tracer.
    pub tracer: &'a T,
    /// At least two functions with entry sites that nobody else calls or patches, and for each what
    /// may run instead of it.
    pub funcs: &'a [(TextRange, TextRange)],
    /// A function without an entry site.
    pub without_site: TextRange,
    /// A function that is marked notrace.
    pub notrace: TextRange,
    /// The bytes of a function.
    pub bytes: &'a dyn Fn(TextRange) -> Vec<u8>,
    /// Calls the function with that index, and says whether the other one ran instead.
    pub replaced: &'a dyn Fn(usize) -> bool,
    /// Somebody else puts something into the entry of the first function that is no jump of the
    /// tracer's (`true`), or takes it out again, if the porter has a way. Nobody calls the function
    /// meanwhile.
    pub hold: Option<&'a dyn Fn(bool)>,
    /// Makes every routing fail from now on (`true`), or lets it succeed again, if the porter has a
    /// way.
    pub spoil: Option<&'a dyn Fn(bool)>,
}

impl<T: Tracer> core::fmt::Debug for Bench<'_, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Bench")
            .field("funcs", &self.funcs)
            .field("without_site", &self.without_site)
            .finish_non_exhaustive()
    }
}

/// Checks an implementation of [`Tracer`].
///
/// # Panics
///
/// If the implementation breaks the contract; the message says where.
///
/// # Safety
///
/// `funcs` are as [`Bench`] says; no engine uses the tracer while the suite runs.
pub unsafe fn check<T: Tracer>(bench: &Bench<'_, T>) {
    assert!(
        bench.funcs.len() >= 2,
        "batches need at least two functions"
    );
    let refused = bench
        .tracer
        .site_of(bench.without_site)
        .map_err(|error| error.kind());
    assert_eq!(
        refused.err(),
        Some(PortErrorKind::NoSite),
        "a function without a site"
    );
    let refused = bench
        .tracer
        .site_of(bench.notrace)
        .map_err(|error| error.kind());
    assert_eq!(
        refused.err(),
        Some(PortErrorKind::Notrace),
        "a function that is marked notrace"
    );
    let mut run = Run::new(bench);
    run.unpatched("before anything is routed");
    run.there_and_back();
    run.each_route();
    run.one_of_a_batch();
    run.all_or_nothing();
    run.held_by_somebody_else();
    run.forgotten();
    run.unpatched("at the end");
}

/// The sites with ops whose handlers answer "the other function".
struct Run<'a, T: Tracer> {
    bench: &'a Bench<'a, T>,
    sites: Vec<T::Site>,
    /// The bytes of the functions as they were built.
    built: Vec<Vec<u8>>,
    /// The same as the tracer leaves them when they are not patched any more.
    left: Vec<Vec<u8>>,
    ops: Vec<&'static Ops>,
    writer: Writer,
}

impl<'a, T: Tracer> Run<'a, T> {
    fn new(bench: &'a Bench<'a, T>) -> Self {
        let tracer = bench.tracer;
        let site = |func| {
            tracer
                .site_of(func)
                .unwrap_or_else(|error| panic!("the site of {func:?}: {error}"))
        };
        let sites: Vec<_> = bench.funcs.iter().map(|(old, _)| site(*old)).collect();
        for (index, (old, _)) in bench.funcs.iter().enumerate() {
            assert!(site(*old) == sites[index], "a function has one site");
            assert!(
                !sites[..index].contains(&sites[index]),
                "functions have sites of their own"
            );
            let body = tracer.original(sites[index]);
            assert!(
                old.contains(body),
                "{old:?} goes on at {body}, outside of it"
            );
        }
        let new_ops =
            |site: &T::Site| Ops::leak(try_box(Ops::new(tracer.original(*site))).expect("memory"));
        // SAFETY: the stacks and nodes are the suite's own, and it uses this tracer alone.
        let writer = unsafe { Writer::new() };
        let mut run = Self {
            bench,
            ops: sites.iter().map(new_ops).collect(),
            sites,
            built: Vec::new(),
            left: Vec::new(),
            writer,
        };
        run.built = run.bytes();
        run
    }

    fn batch(&self, to: impl Fn(usize) -> Route) -> Vec<Routing<T::Site>> {
        self.sites
            .iter()
            .enumerate()
            .map(|(index, site)| Routing {
                site: *site,
                to: to(index),
            })
            .collect()
    }

    fn route(&self, batch: &[Routing<T::Site>]) {
        // SAFETY: to what the porter says may run instead, also by way of the handler.
        unsafe { self.bench.tracer.route(batch) }
            .unwrap_or_else(|error| panic!("routing {batch:?}: {error}"));
        self.bench.tracer.synchronize();
    }

    fn handler(&self, index: usize) -> Route {
        Route::Handler(self.ops[index].arg())
    }

    fn direct(&self, index: usize) -> Route {
        Route::Direct(self.bench.funcs[index].1.start())
    }

    /// Every function is replaced, or none.
    fn expect(&self, replaced: bool, when: &str) {
        for (index, (old, _)) in self.bench.funcs.iter().enumerate() {
            assert_eq!(
                (self.bench.replaced)(index),
                replaced,
                "whether {old:?} is replaced {when}"
            );
        }
    }

    fn bytes(&self) -> Vec<Vec<u8>> {
        let funcs = self.bench.funcs.iter();
        funcs.map(|(old, _)| (self.bench.bytes)(*old)).collect()
    }

    /// Routes everything away and back once, and notes how that leaves the functions.
    fn there_and_back(&mut self) {
        self.route(&self.batch(|index| self.direct(index)));
        self.expect(true, "by the first direct jump");
        self.route(&self.batch(|_| Route::Original));
        self.left = self.bytes();
        self.unpatched("after the first way back");
    }

    /// No function is replaced, and each is as it was built, or as the first way back has left it.
    fn unpatched(&self, when: &str) {
        self.expect(false, when);
        for (index, now) in self.bytes().iter().enumerate() {
            assert!(
                *now == self.built[index] || self.left.get(index) == Some(now),
                "the bytes of a function {when} are {now:x?}, built as {:x?}, left as {:x?}",
                self.built[index],
                self.left.get(index),
            );
        }
    }

    /// From every route to every other one.
    fn each_route(&mut self) {
        let original = |_: usize| Route::Original;
        // The handler with an empty stack answers as if nothing were routed; it is asked
        // nevertheless.
        self.route(&self.batch(|index| self.handler(index)));
        self.expect(false, "by a handler that knows of no replacement");
        let mut nodes = Nodes::new(self.bench.funcs.iter().map(|(_, new)| *new)).expect("memory");
        (0..self.ops.len()).for_each(|index| {
            self.ops[index]
                .stack()
                .push(&mut self.writer, &mut nodes, index)
        });
        self.expect(true, "by a handler that knows a replacement");
        self.route(&self.batch(|index| self.direct(index)));
        self.expect(true, "by a direct jump");
        self.route(&self.batch(|index| self.handler(index)));
        self.expect(true, "by the handler again");
        self.route(&self.batch(original));
        self.unpatched("after routing to the original");
        self.route(&self.batch(|index| self.direct(index)));
        self.expect(true, "by a direct jump from the original");
        self.route(&self.batch(original));
        self.route(&self.batch(original));
        self.unpatched("after routing twice to the original");
        (0..self.ops.len()).for_each(|index| {
            self.ops[index]
                .stack()
                .remove(&mut self.writer, &mut nodes, index)
        });
        nodes.release(&self.writer.synchronize(self.bench.tracer));
    }

    fn one_of_a_batch(&self) {
        self.route(&self.batch(|index| self.direct(index))[1..]);
        assert!(
            !(self.bench.replaced)(0),
            "a site that was not in the batch"
        );
        assert!((self.bench.replaced)(1), "a site that was in the batch");
        self.route(&self.batch(|_| Route::Original));
        self.unpatched("after routing one to the original");
    }

    fn all_or_nothing(&self) {
        let Some(spoil) = self.bench.spoil else {
            return;
        };
        let fail = |batch: &[Routing<T::Site>]| {
            spoil(true);
            // SAFETY: as in `route`.
            let routed = unsafe { self.bench.tracer.route(batch) };
            assert!(routed.is_err(), "a routing that was spoilt succeeds");
            spoil(false);
        };
        let (there, back) = (
            self.batch(|index| self.direct(index)),
            self.batch(|_| Route::Original),
        );
        fail(&there);
        self.unpatched("after a routing away from it failed");
        self.route(&there);
        fail(&back);
        self.expect(true, "after the way back failed");
        self.route(&back);
    }

    /// A site that somebody else took is refused, at first sight and later, and whoever took it
    /// keeps it.
    fn held_by_somebody_else(&self) {
        let Some(hold) = self.bench.hold else { return };
        let bytes = || self.bytes();
        let refused = |batch: &[Routing<T::Site>]| {
            let free = bytes();
            hold(true);
            let held = bytes();
            assert_ne!(
                held, free,
                "the porter's word that somebody holds the first function"
            );
            let found = self
                .bench
                .tracer
                .site_of(self.bench.funcs[0].0)
                .map_err(|error| error.kind());
            assert_eq!(
                found.err(),
                Some(PortErrorKind::Held),
                "finding a site that is held"
            );
            // SAFETY: as in `route`.
            let routed = unsafe { self.bench.tracer.route(batch) }.map_err(|error| error.kind());
            assert_eq!(
                routed,
                Err(PortErrorKind::Held),
                "routing a site that is held"
            );
            assert_eq!(bytes(), held, "after the refusal");
            hold(false);
        };
        let (there, back) = (
            self.batch(|index| self.direct(index)),
            self.batch(|_| Route::Original),
        );
        refused(&there);
        self.unpatched("after somebody held one");
        self.route(&there);
        refused(&back);
        self.expect(true, "after somebody held one");
        self.route(&back);
    }

    /// Sites that were forgotten are found again, as if for the first time, whatever else uses by
    /// then what they had.
    fn forgotten(&mut self) {
        let tracer = self.bench.tracer;
        for round in 0..3 {
            for site in &self.sites {
                if round == 0 {
                    // SAFETY: it is found anew below.
                    unsafe { tracer.forget(*site) };
                    continue;
                }
                // SAFETY: nobody but this suite calls the functions, no call of it is under way,
                // and it finds the sites anew.
                unsafe { tracer.reclaim(*site) };
            }
            // In another order each time, so that what is used again is used for another site.
            let count = self.sites.len();
            for index in (0..count).map(|index| (index + round) % count).rev() {
                let (old, _) = self.bench.funcs[index];
                let site = tracer
                    .site_of(old)
                    .unwrap_or_else(|error| panic!("{old:?}, forgotten: {error}"));
                assert!(
                    old.contains(tracer.original(site)),
                    "{old:?}, forgotten, goes on outside of it"
                );
                self.sites[index] = site;
            }
            self.each_route();
            self.one_of_a_batch();
        }
    }
}
