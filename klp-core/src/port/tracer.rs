//! Entry sites: where calls of a function are redirected.

use super::error::PortError;
use crate::addr::{CodeAddr, TextRange};

/// What the entry stub hands to [`crate::ops::handler`]: says whose site it was.
///
/// Made by the engine only; a tracer carries it to the stub and back as a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HandlerArg(u64);

impl HandlerArg {
    pub(crate) const fn new(arg: u64) -> Self {
        Self(arg)
    }

    /// The number to bring to the handler.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Where a site leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// The function as it was built; the site's bytes are exactly what they were before the first
    /// routing.
    Original,
    /// The handler, which decides for each call.
    Handler(HandlerArg),
    /// Straight to this function: a settled site.
    Direct(CodeAddr),
}

/// One element of a batch for [`Tracer::route`].
#[derive(Clone, Copy, Debug)]
pub struct Routing<S> {
    /// The site.
    pub site: S,
    /// Where it is to lead.
    pub to: Route,
}

/// Finds entry sites and routes them.
///
/// # Safety
///
/// When [`route`](Tracer::route) returns `Ok`, each call that begins afterwards goes where it says;
/// a call that began before went where the site led before or where it leads now. When
/// [`synchronize`](Tracer::synchronize) returns, no core is inside a run of the handler that began
/// before.
///
/// # For OS porters
///
/// With entry pads and a [`Text`](super::Text), [`EntryTracer`](super::EntryTracer) is the
/// implementation. A kernel with a tracer of its own (ftrace) implements this instead.
/// `klp_core::conformance::tracer` (feature `conformance`) is the test.
///
/// A machine that calls functions by way of a table, so that routing is one store to it. All runs
/// of the handler are on the one core that the engine runs on, too, so none is under way when it
/// asks:
///
/// ```
/// use core::sync::atomic::{AtomicU64, Ordering};
/// use klp_core::addr::{CodeAddr, TextRange};
/// use klp_core::port::{PortErrorKind, Route, Routing, Tracer};
///
/// /// What `call n` goes by: where the function is, and where calls of it go, or the handler's
/// /// argument.
/// struct Table(Vec<(CodeAddr, AtomicU64)>);
///
/// const HANDLER: u64 = 1 << 63;
///
/// // SAFETY: a call reads the table once; there is one core.
/// unsafe impl Tracer for Table {
///     type Site = usize;
///     type Error = PortErrorKind;
///     fn site_of(&self, func: TextRange) -> Result<usize, PortErrorKind> {
///         self.0.iter().position(|row| row.0 == func.start()).ok_or(PortErrorKind::NoSite)
///     }
///     fn original(&self, site: usize) -> CodeAddr {
///         self.0[site].0
///     }
///     unsafe fn route(&self, batch: &[Routing<usize>]) -> Result<(), PortErrorKind> {
///         for routing in batch {
///             let to = match routing.to {
///                 Route::Original => self.original(routing.site).get(),
///                 Route::Handler(arg) => HANDLER | arg.get(),
///                 Route::Direct(to) => to.get(),
///             };
///             self.0[routing.site].1.store(to, Ordering::Release);
///         }
///         Ok(())
///     }
///     unsafe fn forget(&self, _: usize) {}
///     fn synchronize(&self) {}
/// }
/// # let (old, new) = (CodeAddr::new(0x1000), CodeAddr::new(0x2000));
/// # let table = Table(vec![(old, AtomicU64::new(old.get()))]);
/// # let site = table.site_of(TextRange::new(old, 8).unwrap()).unwrap();
/// # // SAFETY: nobody calls.
/// # unsafe { table.route(&[Routing { site, to: Route::Direct(new) }]) }.unwrap();
/// # assert_eq!(table.0[0].1.load(Ordering::Relaxed), new.get());
/// ```
pub unsafe trait Tracer: Sync {
    /// A site: only [`site_of`](Tracer::site_of) makes one.
    type Site: Copy + Eq + core::hash::Hash + core::fmt::Debug + Send + Sync + 'static;
    /// What can go wrong.
    type Error: PortError;

    /// The entry site of the function that occupies `func`, checked to be as the compiler left it
    /// or as this tracer did.
    ///
    /// # Errors
    ///
    /// [`Notrace`](super::PortErrorKind::Notrace), [`NoSite`](super::PortErrorKind::NoSite) or
    /// [`Held`](super::PortErrorKind::Held).
    fn site_of(&self, func: TextRange) -> Result<Self::Site, Self::Error>;

    /// Where the original function goes on behind its site: what the handler answers for "the
    /// original".
    fn original(&self, site: Self::Site) -> CodeAddr;

    /// Routes sites, all of `batch` or none. No site occurs twice.
    ///
    /// # Errors
    ///
    /// Every site leads where it led before. [`Held`](super::PortErrorKind::Held) if somebody took
    /// one since it was found or last routed.
    ///
    /// # Safety
    ///
    /// Calls of the functions may go where it says; sites were not forgotten.
    unsafe fn route(&self, batch: &[Routing<Self::Site>]) -> Result<(), Self::Error>;

    /// Forgets a site: the code around it goes away, and other code may come to the same place. The
    /// site was routed to [`Route::Original`], unless that failed. What belongs to it stays: tasks
    /// may still be on their way.
    ///
    /// # Safety
    ///
    /// `site` is not used any more.
    unsafe fn forget(&self, site: Self::Site);

    /// The same, and what belonged to the site may serve others from here on, if it was routed to
    /// [`Route::Original`].
    ///
    /// # Safety
    ///
    /// No call that began at the site is on its way any more, neither to the handler nor from it,
    /// and none will begin. `site` is not used any more.
    unsafe fn reclaim(&self, site: Self::Site) {
        // SAFETY: the caller's promise.
        unsafe { self.forget(site) };
    }

    /// What led on from the site to other places than where it leads now may serve others.
    ///
    /// # Safety
    ///
    /// No call that began at the site while it led elsewhere is on its way any more, but for those
    /// on their way to the handler.
    unsafe fn retire(&self, site: Self::Site) {
        let _ = site;
    }

    /// Waits until every run of the handler that began before this call has ended (kernel:
    /// `klp_synchronize_transition`).
    fn synchronize(&self);
}
