// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Patches of modules, from `klp_enable_patch` until their module may go (kernel: `core.c`).
//!
//! The engine knows each as a [`klp_core::Patch`]; here is which `struct klp_patch` that is, and
//! what has to be done with modules, attributes and the poll that brings a transition on.

use crate::host::{self, errno, klp_object, klp_patch};
use crate::lock::PatchesLock;
use crate::platform::{Kernel, engine, make_engine};
use crate::{log, read};
use alloc::vec::Vec;
use core::ffi::{c_char, c_int};
use core::fmt::{self, Write};
use core::ptr;
use klp_core::engine::PatchStatus;
use klp_core::error::ApiMisuse;
use klp_core::{Engine, Error, PatchId, Poll};
use lock_api::{Mutex, MutexGuard, RawMutex};

/// The patches that are enabled or in transition, in the order of enabling (kernel: `klp_patches`).
struct Patches {
    known: Vec<Known>,
    /// The one in transition, or null (kernel: `klp_transition_patch`).
    transition: *mut klp_patch,
    /// Milliseconds until the next poll.
    delay: u32,
}

/// Between the polls of a transition: short at first, as most tasks that had to be left move at
/// once when they are woken; then as in Linux.
const FIRST_DELAY: u32 = 10;
const LAST_DELAY: u32 = 1000;

struct Known {
    patch: *mut klp_patch,
    id: PatchId,
}

// SAFETY: patches are used under the lock alone; their modules stay until `reap`.
unsafe impl Send for Patches {}

static PATCHES: Mutex<PatchesLock, Patches> =
    Mutex::const_new(PatchesLock::INIT, Patches { known: Vec::new(), transition: ptr::null_mut(), delay: FIRST_DELAY });

type KernelEngine = Engine<Kernel>;

/// The patches, unless the current task holds them already: then a callback of a patch calls, which
/// must not.
fn patches() -> Result<MutexGuard<'static, PatchesLock, Patches>, Error> {
    if PatchesLock::is_mine() {
        return Err(Error::ApiMisuse(ApiMisuse::InCallback));
    }
    Ok(PATCHES.lock())
}

/// Makes the engine, at boot.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_init() -> c_int {
    make_engine().map_or(-errno::ENOMEM, |()| 0)
}

/// Enables the patch of a module that is being loaded. 0, or a negative error number; the patch is
/// the module's alone again then.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_enable_patch(patch: *mut klp_patch) -> c_int {
    // SAFETY: the caller's patch is there, and zeros end its arrays. That its functions fit is its
    // author's word, whose module the superuser has loaded.
    match unsafe { enable(patch) } {
        Ok(()) => 0,
        Err(errno) => errno,
    }
}

/// # Safety
///
/// Null, or a patch as `include/linux/livepatch.h` has it, whose functions may be called in place
/// of those that it names.
unsafe fn enable(patch: *mut klp_patch) -> Result<(), c_int> {
    // SAFETY: the caller's promise.
    let model = unsafe {
        if patch.is_null() || (*patch).mod_.is_null() || (*patch).objs.is_null() {
            return Err(-errno::EINVAL);
        }
        if read::objects(&*patch).any(|object| (*object).funcs.is_null()) {
            return Err(-errno::EINVAL);
        }
        if !(*(*patch).mod_).klp {
            let name = host::module_name((*patch).mod_).unwrap_or("?");
            log::error!("module {name} is not marked as a livepatch module");
            return Err(-errno::EINVAL);
        }
        read::patch(&*patch)?
    };
    let engine = engine().ok_or(-errno::ENODEV)?;
    if !host::klp_host_reliable_stacks() {
        log::warning!("This architecture doesn't have support for the livepatch consistency model.");
        log::warning!("The livepatch transition may never complete.");
    }
    if patches().map_err(misuse)?.known.iter().any(|known| known.patch == patch) {
        return Err(-errno::EINVAL);
    }
    // SAFETY: the module is there: it calls.
    if !unsafe { host::try_module_get((*patch).mod_) } {
        return Err(-errno::ENODEV);
    }
    // SAFETY: the module is held until the attributes are gone.
    let added = match unsafe { host::klp_host_sysfs_add(patch) } {
        0 => add_and_enable(engine, patch, model),
        errno => Err(errno),
    };
    if added.is_err() {
        // No lock is held: who has an attribute open may wait for one.
        // SAFETY: nobody else knows the patch.
        unsafe {
            host::klp_host_sysfs_remove(patch);
            host::module_put((*patch).mod_);
        }
    }
    added
}

/// The error number, after a word in the log.
fn misuse(error: Error) -> c_int {
    log::error!("{error}");
    error.errno()
}

fn add_and_enable(engine: &KernelEngine, patch: *mut klp_patch, model: klp_core::Patch) -> Result<(), c_int> {
    let mut patches = patches().map_err(misuse)?;
    if patches.known.try_reserve(1).is_err() {
        return Err(-errno::ENOMEM);
    }
    let id = engine.add(model).map_err(|refused| refused.error.errno())?;
    patches.known.push(Known { patch, id });
    let done = patches.moving(patch, || engine.enable(id));
    if done.is_err() {
        patches.known.retain(|known| known.id != id);
        // It was not enabled, so nothing keeps it.
        let _ = engine.remove(id);
    }
    patches.after(engine, done)
}

/// Brings the transition on.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_poll() {
    let Some(engine) = engine() else { return };
    let mut patches = PATCHES.lock();
    let poll = engine.poll();
    let _ = patches.after(engine, Ok(poll));
}

impl Patches {
    /// Lets `act` begin or turn round a transition of `patch`.
    fn moving(&mut self, patch: *mut klp_patch, act: impl FnOnce() -> Result<Poll, Error>) -> Result<Poll, Error> {
        let before = core::mem::replace(&mut self.transition, patch);
        let done = act();
        match done {
            Ok(_) => self.delay = FIRST_DELAY,
            Err(_) => self.transition = before,
        }
        done
    }

    /// Sees to what follows from what the engine did.
    fn after(&mut self, engine: &KernelEngine, done: Result<Poll, Error>) -> Result<(), c_int> {
        match done.map_err(|error| error.errno())? {
            Poll::Waiting { .. } => {
                host::klp_host_poll_later(self.delay);
                self.delay = (self.delay * 2).min(LAST_DELAY);
            }
            Poll::Complete { .. } | Poll::Idle => {
                self.transition = ptr::null_mut();
                self.reap(engine);
            }
        }
        Ok(())
    }

    /// Gives patches that are not enabled any more back to their modules.
    fn reap(&mut self, engine: &KernelEngine) {
        let Ok(all) = engine.status() else {
            // No memory: the next poll tries again.
            host::klp_host_poll_later(LAST_DELAY);
            return;
        };
        self.known.retain(|known| {
            let status = all.iter().find(|status| status.id == known.id);
            if status.is_none_or(|status| status.enabled || status.transition.is_some()) {
                return true;
            }
            // The engine keeps what a forced transition pinned: tasks may be in it, so its module
            // must stay.
            let pinned = engine.remove(known.id).is_err();
            // SAFETY: the module is held, until the work that is begun here lets it go.
            unsafe {
                (*known.patch).forced = pinned;
                host::klp_host_free_later(known.patch);
            }
            false
        });
    }

    fn status(&self, engine: &KernelEngine, patch: *mut klp_patch) -> Result<PatchStatus, Error> {
        let known = self.known.iter().find(|known| known.patch == patch).ok_or(UNKNOWN)?;
        engine.status()?.into_iter().find(|status| status.id == known.id).ok_or(UNKNOWN)
    }
}

/// Shows each patch below the one in transition to `visit`; none outside of transitions.
///
/// # Safety
///
/// A callback of a patch calls: so the task that called the engine holds the lock, and only reads
/// until the callback returns.
pub(crate) unsafe fn each_below_transition(visit: impl FnMut(*mut klp_patch)) {
    // SAFETY: the caller's promise.
    let patches = unsafe { &*PATCHES.data_ptr() };
    if !patches.transition.is_null() {
        let below = patches.known.iter().map(|known| known.patch).take_while(|patch| *patch != patches.transition);
        below.for_each(visit);
    }
}

/// Lets `act` use the engine and a patch's status, under the lock: what attributes do.
fn with_status(
    patch: *mut klp_patch,
    act: impl FnOnce(&mut Patches, &KernelEngine, &PatchStatus) -> Result<c_int, Error>,
) -> Result<c_int, Error> {
    let engine = engine().ok_or(UNKNOWN)?;
    let mut patches = patches()?;
    let status = patches.status(engine, patch)?;
    act(&mut patches, engine, &status)
}

const UNKNOWN: Error = Error::ApiMisuse(ApiMisuse::UnknownPatch);

/// What an attribute shows, or a negative error number. A patch that is not known any more is not
/// enabled, nor in transition.
fn shown(patch: *mut klp_patch, of: impl FnOnce(&KernelEngine, &PatchStatus) -> Result<c_int, Error>) -> c_int {
    match with_status(patch, |_, engine, status| of(engine, status)) {
        Ok(value) => value,
        Err(UNKNOWN) => 0,
        Err(error) => error.errno(),
    }
}

/// 0, or a negative error number, of what was done for an attribute that was written.
fn done(
    patch: *mut klp_patch,
    act: impl FnOnce(&mut Patches, &KernelEngine, &PatchStatus) -> Result<c_int, Error>,
) -> c_int {
    with_status(patch, act).unwrap_or_else(|error| error.errno())
}

/// `enabled` is read.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_is_enabled(patch: *mut klp_patch) -> c_int {
    shown(patch, |_, status| Ok(status.enabled.into()))
}

/// `transition` is read.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_in_transition(patch: *mut klp_patch) -> c_int {
    shown(patch, |_, status| Ok(status.transition.is_some().into()))
}

/// `stack_order` is read.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_stack_order(patch: *mut klp_patch) -> c_int {
    shown(patch, |_, status| Ok(c_int::try_from(status.stack_order).unwrap_or(c_int::MAX)))
}

/// `patched` of an object is read.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_engine_object_patched(patch: *mut klp_patch, object: *mut klp_object) -> c_int {
    shown(patch, |engine, status| {
        // SAFETY: the attribute of an object is open, so the object is there.
        let name = unsafe { read::object_name(object) };
        Ok(engine.object_patched(status.id, name)?.unwrap_or(false).into())
    })
}

/// `enabled` is written. A patch cannot be enabled again: it is gone when it is disabled.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_set_enabled(patch: *mut klp_patch, on: bool) -> c_int {
    done(patch, |patches, engine, status| {
        let id = status.id;
        let poll = match (status.enabled == on, status.transition, on) {
            (false, Some(_), _) => patches.moving(patch, || engine.reverse(id))?,
            (false, None, false) => patches.moving(patch, || engine.disable(id))?,
            _ => return Ok(-errno::EINVAL),
        };
        Ok(patches.after(engine, Ok(poll)).err().unwrap_or(0))
    })
}

/// 1 is written to `force`.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_force(patch: *mut klp_patch) -> c_int {
    done(patch, |patches, engine, status| {
        // SAFETY: the superuser's word, who alone may write there (mode 0200), and knows the patch.
        let poll = unsafe { engine.force(status.id) }?;
        Ok(patches.after(engine, Ok(poll)).err().unwrap_or(0))
    })
}

/// 1 is written to `signal`.
#[unsafe(no_mangle)]
extern "C" fn klp_engine_signal(patch: *mut klp_patch) -> c_int {
    done(patch, |_, engine, status| engine.kick(status.id).map(|()| 0))
}

/// `blockers` is read: who holds the transition back, and why. Empty outside of the patch's
/// transition.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_engine_blockers(patch: *mut klp_patch, page: *mut c_char, size: usize) -> isize {
    // SAFETY: the caller's buffer.
    let mut page = Page { room: unsafe { core::slice::from_raw_parts_mut(page.cast(), size) }, len: 0 };
    let errno = shown(patch, |engine, status| match engine.blockers(status.id) {
        Ok(blockers) => {
            // What finds no room is left out.
            let _ = blockers.iter().try_for_each(|blocker| writeln!(page, "{blocker}"));
            Ok(0)
        }
        Err(Error::ApiMisuse(ApiMisuse::NoTransition)) => Ok(0),
        Err(error) => Err(error),
    });
    if errno < 0 { errno as isize } else { page.len as isize }
}

/// Text in a buffer.
struct Page<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl Write for Page<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.room.get_mut(self.len..).and_then(|room| room.get_mut(..text.len())).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Runs `act` on the engine while no patch comes or goes.
pub(crate) fn locked<R>(act: impl FnOnce(&KernelEngine) -> R) -> Option<R> {
    let engine = engine()?;
    let _patches = PATCHES.lock();
    Some(act(engine))
}
