// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! What C and Rust know of each other: kernel types, and the functions of `shims.c` and `sysfs.c`
//! (declared in `shims.h`).

pub(crate) use kernel::bindings::{
    Elf64_Rela, Elf64_Shdr, Elf64_Sym, klp_callbacks, klp_func, klp_object, klp_patch, klp_state,
    mod_mem_type_MOD_TEXT, module, task_struct,
};
pub(crate) use kernel::bindings::{
    apply_relocate_add, clear_relocate_add, ftrace_location, kallsyms_lookup_size_offset,
    kallsyms_on_each_match_symbol, lookup_symbol_name, module_kallsyms_on_each_symbol, module_put, sprint_symbol,
    try_module_get,
};

use core::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use klp_core::port::TaskId;

/// Linux error numbers that are given back here.
pub(crate) mod errno {
    use core::ffi::c_int;

    pub(crate) const ENOENT: c_int = 2;
    pub(crate) const ENOMEM: c_int = 12;
    pub(crate) const EBUSY: c_int = 16;
    pub(crate) const ENODEV: c_int = 19;
    pub(crate) const EINVAL: c_int = 22;
}

/// Room for a symbol as `sprint_symbol` describes it.
pub(crate) const KSYM_SYMBOL_LEN: usize = 768;

pub(crate) type Call = unsafe extern "C" fn(*mut task_struct, *mut c_void) -> c_int;

#[allow(
    improper_ctypes,
    reason = "only pointers to kernel types are passed, some of which have no fields in this configuration"
)]
unsafe extern "C" {
    pub(crate) fn klp_host_log(level: c_int, args: *const c_void);
    pub(crate) fn klp_try_switch_task(args: *const c_void);
    pub(crate) fn klp_host_shadow_refused(obj: *mut c_void, id: c_ulong, err: c_int);

    pub(crate) safe fn klp_host_mutex_lock(which: c_uint);
    pub(crate) safe fn klp_host_mutex_trylock(which: c_uint) -> bool;
    pub(crate) fn klp_host_mutex_unlock(which: c_uint);
    pub(crate) safe fn klp_host_mutex_is_mine(which: c_uint) -> bool;
    pub(crate) safe fn klp_host_shadow_lock();
    pub(crate) safe fn klp_host_shadow_trylock() -> bool;
    pub(crate) fn klp_host_shadow_unlock();
    pub(crate) safe fn klp_host_tidy_shadows_later();

    pub(crate) safe fn klp_host_alloc(size: usize, zero: bool) -> *mut u8;
    pub(crate) fn klp_host_free(memory: *mut u8);
    pub(crate) safe fn klp_host_irq_save() -> c_ulong;
    pub(crate) fn klp_host_irq_restore(flags: c_ulong);
    pub(crate) safe fn klp_host_may_sleep(gfp: c_uint) -> bool;

    pub(crate) fn klp_host_each_task(visit: unsafe extern "C" fn(*mut task_struct, *mut c_void), arg: *mut c_void);
    pub(crate) fn klp_host_each_idle(
        visit: unsafe extern "C" fn(*mut task_struct, bool, *mut c_void),
        arg: *mut c_void,
    );
    pub(crate) safe fn klp_host_find_task(id: u64) -> *mut task_struct;
    pub(crate) fn klp_host_put_task(task: *mut task_struct);
    pub(crate) safe fn klp_host_current() -> *mut task_struct;
    pub(crate) fn klp_host_task_id(task: *mut task_struct) -> u64;
    pub(crate) fn klp_host_task_pending(task: *mut task_struct) -> bool;
    pub(crate) fn klp_host_set_pending(task: *mut task_struct, pending: bool);
    pub(crate) fn klp_host_take_pending(task: *mut task_struct) -> bool;
    pub(crate) fn klp_host_call_stopped(task: *mut task_struct, call: Call, arg: *mut c_void) -> c_int;
    pub(crate) fn klp_host_task_runs(task: *mut task_struct) -> bool;
    pub(crate) fn klp_host_kick(task: *mut task_struct);
    pub(crate) fn klp_host_kick_idle(task: *mut task_struct);
    pub(crate) safe fn klp_host_preempt_disable();
    pub(crate) fn klp_host_preempt_enable();
    pub(crate) safe fn klp_host_watch_resched(on: bool);

    pub(crate) safe fn klp_host_reliable_stacks() -> bool;
    pub(crate) fn klp_host_walk(task: *mut task_struct, frames: *mut *const c_ulong) -> c_int;

    pub(crate) fn klp_host_retire(table: *mut c_void);
    pub(crate) fn klp_host_route(sites: *mut c_ulong, count: c_uint, remove: bool) -> c_int;
    pub(crate) safe fn klp_host_synchronize();
    pub(crate) safe fn klp_host_synchronize_tasks();

    pub(crate) fn klp_host_sysfs_add(patch: *mut klp_patch) -> c_int;
    pub(crate) fn klp_host_sysfs_remove(patch: *mut klp_patch);
    pub(crate) fn klp_host_free_later(patch: *mut klp_patch);
    pub(crate) safe fn klp_host_poll_later(ms: c_uint);

    pub(crate) fn klp_host_live_module(name: *const c_char) -> *mut module;
    pub(crate) fn klp_host_module(name: *const c_char) -> *mut module;
}

/// Bit of the [`TaskId`]s of idle tasks, as in `shims.c`.
const IDLE: u64 = 1 << 32;

/// What people see of a task's id: 0 for all idle tasks.
pub(crate) fn shown_id(task: TaskId) -> TaskId {
    if task.0 & IDLE == 0 { task } else { TaskId(0) }
}

/// `text` as C wants it; `None` if it is longer than any name of an object or symbol, or has a zero
/// in it.
pub(crate) fn with_c_str<R>(text: &str, call: impl FnOnce(*const c_char) -> R) -> Option<R> {
    let mut copy = [0_u8; 528];
    copy.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    let text = CStr::from_bytes_with_nul(copy.get(..=text.len())?).ok()?;
    Some(call(text.as_ptr()))
}

/// The text at `text`.
///
/// # Safety
///
/// Null, or a C string that stays for `'a`.
pub(crate) unsafe fn str_at<'a>(text: *const c_char) -> Option<&'a str> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().ok()
}

/// The name of a module.
///
/// # Safety
///
/// `module` is a module, and stays for `'a`.
pub(crate) unsafe fn module_name<'a>(module: *const module) -> Option<&'a str> {
    // SAFETY: the caller's promise; the name is a C string inside of the module.
    unsafe { str_at((&raw const (*module).name).cast()) }
}
