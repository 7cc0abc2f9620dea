// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Modules that come and go (kernel: `klp_module_coming`, `klp_module_going`). The module loader
//! calls before any code of the module runs, and when none runs any more.

use crate::host::{self, errno, module};
use crate::{log, patches};
use core::ffi::c_int;
use klp_core::model::VMLINUX;

/// A module is coming. If that is an error number, the loader refuses it.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_module_coming(module: *mut module) -> c_int {
    // SAFETY: the module loader's module.
    let Some(name) = (unsafe { host::module_name(module) }) else { return -errno::EINVAL };
    if name == VMLINUX {
        log::error!("vmlinux.ko: invalid module name");
        return -errno::EINVAL;
    }
    // SAFETY: as above; the loader leaves the field to us.
    let set_live = |live| unsafe { (*module).klp_alive = live };
    let done = patches::locked(|engine| {
        set_live(true);
        // SAFETY: the module loader calls before any code of the module runs.
        let done = unsafe { engine.object_coming(name) };
        if done.is_err() {
            set_live(false);
        }
        done
    });
    match done {
        Some(Ok(())) => 0,
        Some(Err(error)) => error.errno(),
        None => {
            // Early in the boot: no patch is there yet.
            set_live(true);
            0
        }
    }
}

/// A module is going, or one that was coming has failed.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_module_going(module: *mut module) {
    patches::locked(|engine| {
        // SAFETY: the module loader's module. None of its code runs any more, nor will before it is
        // loaded again.
        unsafe {
            (*module).klp_alive = false;
            if let Some(name) = host::module_name(module) {
                engine.object_going(name);
            }
        }
    });
}
