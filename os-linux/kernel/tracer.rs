// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Entry sites, by ftrace (kernel: `patch.c`).
//!
//! One ftrace_ops has all sites, so a batch costs one pass over the kernel's text. Its trampoline
//! is ours (`entry.S`) and asks the table of `sites.rs`: while a site is redirected, routing it
//! elsewhere is one store, and no instruction changes. A site that others trace too comes here by
//! way of ftrace's own trampoline.

use crate::host::{self, errno};
use crate::lock::SitesLock;
use crate::log::{self, Errno};
use crate::sites::{Sites, Way};
use crate::symbols;
use alloc::vec::Vec;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::{OutOfMemory, try_push, try_vec};
use klp_core::port::{Route, Routing, Tracer};
use lock_api::Mutex;

/// Bytes of the call at a site.
const CALL_LEN: u64 = 5;

/// The address of the call that ftrace knows of a function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Site(u64);

impl Site {
    /// The address behind the call: what the table is keyed by, and where the old function goes on.
    fn behind(self) -> u64 {
        self.0.wrapping_add(CALL_LEN)
    }
}

/// The tracer.
pub(crate) struct FtraceTracer {
    sites: Mutex<SitesLock, Sites>,
}

impl FtraceTracer {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        Ok(Self { sites: Mutex::new(Sites::new()?) })
    }
}

// SAFETY: the table says where calls go from the moment of its store on, and it knows a site before
// ftrace leads calls there. Each run of the handler has preemption off, so none is left when each
// CPU has scheduled.
unsafe impl Tracer for FtraceTracer {
    type Site = Site;
    type Error = Errno;

    fn site_of(&self, func: TextRange) -> Result<Site, Errno> {
        // SAFETY: it looks the address up and reads nothing there.
        match unsafe { host::ftrace_location(func.start().get() as usize) } {
            0 => Err(Errno { what: "ftrace knows no call at its entry", errno: -errno::EINVAL }),
            site => Ok(Site(site as u64)),
        }
    }

    fn original(&self, site: Site) -> CodeAddr {
        CodeAddr::new(site.behind())
    }

    unsafe fn route(&self, batch: &[Routing<Site>]) -> Result<(), Errno> {
        let mut sites = self.sites.lock();
        let no_memory = |OutOfMemory| Errno { what: "no memory for sites", errno: -errno::ENOMEM };
        sites.reserve(batch.len()).map_err(no_memory)?;
        // What comes to ftrace's sites, what goes from them, and where all of them led until now.
        let (mut coming, mut going) = (Vec::new(), Vec::new());
        let mut before = try_vec(batch.len()).map_err(no_memory)?;
        for Routing { site, to } in batch {
            let way = sites.get(site.behind());
            before.push(way);
            match (way, to) {
                (Way::Original, Route::Original) => {}
                (Way::Original, _) => try_push(&mut coming, site.0 as usize).map_err(no_memory)?,
                (_, Route::Original) => try_push(&mut going, site.0 as usize).map_err(no_memory)?,
                _ => {}
            }
        }
        for Routing { site, to } in batch {
            let way = match *to {
                Route::Original => Way::Original,
                Route::Handler(arg) => Way::Ask(arg.get()),
                Route::Direct(target) => Way::To(target.get()),
            };
            sites.set(site.behind(), way);
        }
        let done = register(&mut coming).and_then(|()| {
            // In this order nothing has to be undone that can fail: what stays with ftrace goes
            // where the table says.
            register_undone(&mut going, &mut coming)
        });
        if done.is_err() {
            for (Routing { site, .. }, way) in batch.iter().zip(before) {
                sites.set(site.behind(), way);
            }
        }
        done
    }

    unsafe fn forget(&self, site: Site) {
        self.sites.lock().forget(site.behind());
    }

    fn synchronize(&self) {
        host::klp_host_synchronize();
    }
}

/// Has ftrace lead calls at `sites` to us, all or none.
fn register(sites: &mut [usize]) -> Result<(), Errno> {
    let Some(first) = sites.first().copied() else { return Ok(()) };
    let count = sites.len() as u32;
    // SAFETY: there are as many sites as it says; they are ftrace's, and it checks that.
    let errno = unsafe { host::klp_host_route(sites.as_mut_ptr().cast(), count, false) };
    if errno == 0 {
        return Ok(());
    }
    symbols::with_name_at(first, |name| {
        log::error!("failed to register ftrace handler for function '{name}' ({errno})");
    });
    Err(Errno { what: "ftrace refuses", errno })
}

/// Ends that for `sites`, all or none; if that fails, for `new` ones too.
fn register_undone(sites: &mut [usize], new: &mut [usize]) -> Result<(), Errno> {
    let remove = |sites: &mut [usize]| match sites.len() as u32 {
        0 => 0,
        // SAFETY: as in `register`.
        count => unsafe { host::klp_host_route(sites.as_mut_ptr().cast(), count, true) },
    };
    match remove(sites) {
        0 => Ok(()),
        errno => {
            // They lead on to the old functions in any case.
            let _ = remove(new);
            Err(Errno { what: "ftrace does not let go", errno })
        }
    }
}
