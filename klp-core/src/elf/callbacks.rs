//! Callbacks of patch objects, which are C, as the engine's [`Callbacks`] (kernel:
//! `struct klp_callbacks`).

use crate::addr::CodeAddr;
use crate::mem::{OutOfMemory, try_box, try_vec};
use crate::model::{CallbackContext, Callbacks, VMLINUX};
use crate::port::CallC;
use crate::state::State;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::{c_char, c_int, c_void};
use core::ptr;

/// The callbacks of one object.
///
/// # Invariants
///
/// The addresses are those of functions with the types that `struct klp_callbacks` says, which can
/// be called as `call` does it. `name` ends with its only zero byte.
pub(super) struct CCallbacks {
    call: CallC,
    /// The object's name; none for the base image, as in Linux.
    name: Option<Vec<u8>>,
    pre_patch: Option<CodeAddr>,
    post_patch: Option<CodeAddr>,
    pre_unpatch: Option<CodeAddr>,
    post_unpatch: Option<CodeAddr>,
}

/// What a callback gets a pointer to, as `<klp/patch.h>` declares it: the beginning of Linux's
/// `struct klp_object`, and the way to the states. It comes back through that way, and not through
/// a lock: the engine's is held.
#[repr(C)]
struct CObject<'c, 'p> {
    name: *const c_char,
    state: GetState,
    prev_state: GetState,
    context: &'c CallbackContext<'p>,
}

/// `struct klp_state *(*)(struct klp_object *, unsigned long)`; of a [`State`], C writes the data
/// alone.
type GetState = unsafe extern "C" fn(object: *const CObject<'_, '_>, id: u64) -> *const State;

impl CCallbacks {
    /// The callbacks of the object called `name`, in the order of `struct klp_callbacks`.
    ///
    /// # Safety
    ///
    /// Each is null or a function of the type that it has there, and can be called, by `call`, as
    /// long as the result lives.
    pub(super) unsafe fn boxed(
        call: CallC,
        name: &str,
        [pre_patch, post_patch, pre_unpatch, post_unpatch]: [Option<CodeAddr>; 4],
    ) -> Result<Box<dyn Callbacks>, OutOfMemory> {
        let name = if name == VMLINUX {
            None
        } else {
            Some(c_text(name)?)
        };
        let callbacks = try_box(Self {
            call,
            name,
            pre_patch,
            post_patch,
            pre_unpatch,
            post_unpatch,
        })?;
        // SAFETY: an array of one has the layout of its element.
        Ok(unsafe { Box::from_raw(Box::into_raw(callbacks).cast::<Self>()) })
    }

    /// Calls `with` with what callbacks are given.
    fn with_object<R>(
        &self,
        context: &CallbackContext<'_>,
        with: impl FnOnce(*mut c_void) -> R,
    ) -> R {
        let name = self
            .name
            .as_ref()
            .map_or(ptr::null(), |name| name.as_ptr().cast());
        let mut object = CObject {
            name,
            state,
            prev_state,
            context,
        };
        with((&raw mut object).cast())
    }

    fn call_void(&self, callback: Option<CodeAddr>, context: &CallbackContext<'_>) {
        if let Some(callback) = callback {
            // SAFETY: by the invariant; the argument lives during the call.
            self.with_object(context, |object| unsafe {
                (self.call.void)(callback, object)
            });
        }
    }
}

impl Callbacks for CCallbacks {
    fn pre_patch(&self, context: &CallbackContext<'_>) -> Result<(), i32> {
        const EINVAL: c_int = 22;
        let Some(callback) = self.pre_patch else {
            return Ok(());
        };
        // SAFETY: by the invariant; the argument lives during the call.
        match self.with_object(context, |object| unsafe {
            (self.call.int)(callback, object)
        }) {
            0 => Ok(()),
            errno @ ..0 => Err(errno),
            // Linux vetoes, too, but lets a number through that does not read as an error.
            _ => Err(-EINVAL),
        }
    }

    fn post_patch(&self, context: &CallbackContext<'_>) {
        self.call_void(self.post_patch, context);
    }

    fn pre_unpatch(&self, context: &CallbackContext<'_>) {
        self.call_void(self.pre_unpatch, context);
    }

    fn post_unpatch(&self, context: &CallbackContext<'_>) {
        self.call_void(self.post_unpatch, context);
    }
}

/// `klp_get_state`
///
/// # Safety
///
/// `object` is what the callback was given that is running.
unsafe extern "C" fn state(object: *const CObject<'_, '_>, id: u64) -> *const State {
    // SAFETY: the caller's promise.
    let context = unsafe { &*object }.context;
    context.state(id).map_or(ptr::null(), ptr::from_ref)
}

/// `klp_get_prev_state`
///
/// # Safety
///
/// As for [`state`].
unsafe extern "C" fn prev_state(object: *const CObject<'_, '_>, id: u64) -> *const State {
    // SAFETY: the caller's promise.
    let context = unsafe { &*object }.context;
    context.prev_state(id).map_or(ptr::null(), ptr::from_ref)
}

fn c_text(text: &str) -> Result<Vec<u8>, OutOfMemory> {
    let mut bytes = try_vec(text.len() + 1)?;
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    Ok(bytes)
}
