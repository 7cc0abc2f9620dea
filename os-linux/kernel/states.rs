// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! System states, for callbacks (kernel: `state.c`). Whether the states of patches fit together is
//! the engine's to say.

use crate::host::{klp_patch, klp_state};
use crate::{patches, read};
use core::ptr;

/// The state `id` of `patch`; null if it has none.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_get_state(patch: *mut klp_patch, id: usize) -> *mut klp_state {
    // SAFETY: the caller's patch is there.
    let state = unsafe { read::states(patch) }.find(|state| state.id == id);
    state.map_or(ptr::null_mut(), |state| ptr::from_ref(state).cast_mut())
}

/// The state `id` of the newest patch below the one in transition that has it; null if there is
/// none. For callbacks.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_get_prev_state(id: usize) -> *mut klp_state {
    let mut newest = ptr::null_mut();
    // SAFETY: a callback calls, so the lock of the patches is held; they are there.
    unsafe {
        patches::each_below_transition(|patch| {
            let state = klp_get_state(patch, id);
            if !state.is_null() {
                newest = state;
            }
        });
    }
    newest
}
