// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! Linux livepatch on klp-core: what stands in the place of the kernel's `kernel/livepatch/*.c`.
//!
//! * `patches.rs`: `klp_enable_patch` and the other ways in; the patches that are known (`core.c`)
//! * `read.rs`: `struct klp_patch` → [`klp_core::Patch`] (`core.c`)
//! * `modules.rs`: modules that come and go (`core.c`)
//! * `relocs.rs`: `.klp.rela` sections of patch modules (`core.c`)
//! * `states.rs`: `klp_get_state` and its like (`state.c`)
//! * `shadow.rs`: `klp_shadow_*` (`shadow.c`)
//! * `platform.rs`: the ports of klp-core, tied together
//! * `tracer.rs`, `sites.rs`, `entry.S`: entry sites: ftrace calls our stub, a table says where
//!   calls go (`patch.c`)
//! * `tasks.rs`, `unwinder.rs`: tasks and their stacks (`transition.c`)
//! * `symbols.rs`: kallsyms (`core.c`)
//! * `lock.rs`, `memory.rs`, `log.rs`: the kernel's locks, allocator and log
//! * `host.rs`: declarations of `shims.c`: macros and inline functions
//! * `sysfs.c`: attributes (`core.c`)
//!
//! Lock order: the patches, the engine, the sites; see `lock.rs`.

#![no_std]

extern crate alloc;

mod host;
mod lock;
mod log;
mod memory;
mod modules;
mod patches;
mod platform;
mod read;
mod relocs;
mod shadow;
mod sites;
mod states;
mod symbols;
mod tasks;
mod text;
mod tracer;
mod unwinder;
