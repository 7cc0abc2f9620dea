// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! What a patch module says, in klp-core's words: `struct klp_patch` → [`Patch`] (kernel:
//! `klp_init_patch`).

use crate::host::{self, errno, klp_func, klp_object, klp_patch, klp_state, mod_mem_type_MOD_TEXT, module};
use alloc::boxed::Box;
use core::ffi::c_int;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::mem::try_box;
use klp_core::model::{CallbackContext, Callbacks, Replace, VMLINUX};
use klp_core::state::State;
use klp_core::{Func, Object, Patch};

/// Reads `patch`. Errors are negative error numbers.
///
/// # Safety
///
/// A patch as `include/linux/livepatch.h` has it, with module and objects; its module stays as long
/// as what is made of it. Its functions may be called in place of those that it names.
pub(crate) unsafe fn patch(patch: &klp_patch) -> Result<Patch, c_int> {
    // SAFETY: the caller's promise.
    let name = unsafe { host::module_name(patch.mod_) }.ok_or(-errno::EINVAL)?;
    let mut builder = Patch::builder(name);
    // SAFETY: the caller's promise.
    if let Some(code) = unsafe { code(patch.mod_) } {
        builder = builder.code(code);
    }
    // SAFETY: the caller's promise.
    for c_object in unsafe { objects(patch) } {
        // SAFETY: it is one of the patch's.
        builder = builder.object(unsafe { object(c_object) });
    }
    // SAFETY: the caller's promise.
    for state in unsafe { states(patch) } {
        builder = builder.state(State::new(state.id as u64, state.version));
    }
    let replace = if patch.replace { Replace::All } else { Replace::None };
    builder.replace(replace).build().map_err(|error| error.errno())
}

/// All code of a module that stays, if it has any. What runs once, while the module is loaded, is
/// elsewhere.
///
/// # Safety
///
/// `module` is a module.
unsafe fn code(module: *const module) -> Option<TextRange> {
    // SAFETY: the caller's promise; the loader has laid the module out before any code of it runs.
    let (base, size) = unsafe {
        let text = &raw const (*module).mem[mod_mem_type_MOD_TEXT as usize];
        ((*text).base, (*text).size)
    };
    TextRange::new(CodeAddr::new(base.addr() as u64), size.into()).filter(|code| !code.is_empty())
}

/// The objects of a patch: an array that ends with one that has neither name nor functions.
///
/// # Safety
///
/// As for [`patch`].
pub(crate) unsafe fn objects(patch: &klp_patch) -> impl Iterator<Item = *mut klp_object> {
    let mut at = patch.objs;
    core::iter::from_fn(move || {
        let object = at;
        // SAFETY: `at` is in the array.
        let there = unsafe { !(*object).name.is_null() || !(*object).funcs.is_null() };
        at = at.wrapping_add(usize::from(there));
        there.then_some(object)
    })
}

/// The states of `patch`: an array that ends with the id 0.
///
/// # Safety
///
/// `patch` is one, and stays for `'a`.
pub(crate) unsafe fn states<'a>(patch: *const klp_patch) -> impl Iterator<Item = &'a klp_state> {
    // SAFETY: the caller's promise.
    let mut at: *const klp_state = unsafe { (*patch).states };
    core::iter::from_fn(move || {
        // SAFETY: null, or a state of the array.
        let state = unsafe { at.as_ref::<'a>() }.filter(|state| state.id != 0)?;
        at = at.wrapping_add(1);
        Some(state)
    })
}

/// # Safety
///
/// An object of a patch; it stays as long as what is made of it, and its functions are as for
/// [`patch`].
unsafe fn object(c_object: *mut klp_object) -> Result<Object, klp_core::Error> {
    // SAFETY: the caller's promise.
    let mut object = Object::module(unsafe { object_name(c_object) })?;
    // SAFETY: the caller's promise: an array that ends with zeros, or null.
    unsafe {
        let mut at: *const klp_func = (*c_object).funcs;
        while !at.is_null() && (!(*at).old_name.is_null() || !(*at).new_func.is_null() || (*at).old_sympos != 0) {
            object = object.func(func(&*at)?)?;
            at = at.add(1);
        }
    }
    let [callbacks] = Box::leak(try_box(CCallbacks { object: c_object })?);
    // SAFETY: just leaked from a box of one.
    Ok(object.with_callbacks(unsafe { Box::from_raw(core::ptr::from_mut(callbacks)) }))
}

/// # Safety
///
/// A function of an object; its name stays, and so does the new function, which may be called in
/// place of the old one.
unsafe fn func(func: &klp_func) -> Result<Func, klp_core::Error> {
    // A name or an address that is missing is refused as a bad name.
    // SAFETY: the caller's promise.
    let name = unsafe { host::str_at(func.old_name.cast()) }.filter(|_| !func.new_func.is_null()).unwrap_or("");
    // No table of symbols has so many of a name: a position above is not found.
    let sympos = u32::try_from(func.old_sympos).unwrap_or(u32::MAX);
    // SAFETY: the caller's promise; what is missing has an empty name, with which no patch is made.
    Ok(unsafe { Func::new(name, CodeAddr::new(func.new_func as u64)) }?.sympos(sympos))
}

/// The name of an object.
///
/// # Safety
///
/// An object of a patch, that stays for `'a`.
pub(crate) unsafe fn object_name<'a>(object: *const klp_object) -> &'a str {
    // SAFETY: the caller's promise.
    unsafe {
        let name = (*object).name;
        if name.is_null() { VMLINUX } else { host::str_at(name.cast()).unwrap_or("") }
    }
}

/// The callbacks of an object.
struct CCallbacks {
    object: *mut klp_object,
}

// SAFETY: the engine calls them under its lock, and the module stays as long as its patch is known.
unsafe impl Send for CCallbacks {}
// SAFETY: as above.
unsafe impl Sync for CCallbacks {}

impl CCallbacks {
    /// Shows the callbacks their object's module, as far as it is there.
    fn prepared(&self) -> host::klp_callbacks {
        // SAFETY: see `Send`.
        unsafe {
            let name = (*self.object).name;
            (*self.object).mod_ =
                if name.is_null() { core::ptr::null_mut() } else { host::klp_host_module(name.cast()) };
            (*self.object).callbacks
        }
    }
}

impl Callbacks for CCallbacks {
    fn pre_patch(&self, _context: &CallbackContext<'_>) -> Result<(), i32> {
        let Some(pre_patch) = self.prepared().pre_patch else { return Ok(()) };
        // SAFETY: the author's function, with its object.
        match unsafe { pre_patch(self.object) } {
            0 => Ok(()),
            errno => Err(errno),
        }
    }

    fn post_patch(&self, _context: &CallbackContext<'_>) {
        if let Some(post_patch) = self.prepared().post_patch {
            // SAFETY: as in `pre_patch`.
            unsafe { post_patch(self.object) }
        }
    }

    fn pre_unpatch(&self, _context: &CallbackContext<'_>) {
        if let Some(pre_unpatch) = self.prepared().pre_unpatch {
            // SAFETY: as in `pre_patch`.
            unsafe { pre_unpatch(self.object) }
        }
    }

    fn post_unpatch(&self, _context: &CallbackContext<'_>) {
        if let Some(post_unpatch) = self.prepared().post_unpatch {
            // SAFETY: as in `pre_patch`.
            unsafe { post_unpatch(self.object) }
        }
    }
}
