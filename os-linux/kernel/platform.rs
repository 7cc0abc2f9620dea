// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! The kernel as a host of klp-core, and the one engine that runs on it.

use crate::lock::EngineLock;
use crate::symbols::KernelSymbols;
use crate::tasks::KernelTasks;
use crate::text::{NoArch, NoRelocator, NoText};
use crate::tracer::FtraceTracer;
use crate::unwinder::KernelUnwinder;
use crate::{host, log, relocs};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use klp_core::event::Event;
use klp_core::mem::{OutOfMemory, try_box};
use klp_core::port::Platform;
use klp_core::{Engine, Error};

/// The kernel.
pub(crate) struct Kernel {
    tracer: FtraceTracer,
    symbols: KernelSymbols,
    text: NoText,
}

// SAFETY: all parts are of the running kernel, and there is one of each.
unsafe impl Platform for Kernel {
    type Lock = EngineLock;
    type Tracer = FtraceTracer;
    type Unwinder = KernelUnwinder;
    type Tasks = KernelTasks;
    type Symbols = KernelSymbols;
    type Text = NoText;
    type Arch = NoArch;
    type Relocator = NoRelocator;

    fn tracer(&self) -> &FtraceTracer {
        &self.tracer
    }

    fn unwinder(&self) -> &KernelUnwinder {
        &KernelUnwinder
    }

    fn tasks(&self) -> &KernelTasks {
        &KernelTasks
    }

    fn symbols(&self) -> &KernelSymbols {
        &self.symbols
    }

    fn text(&self) -> &NoText {
        &self.text
    }

    fn self_switch(&self) -> Option<&dyn klp_core::port::SelfSwitch> {
        Some(&KernelTasks)
    }

    /// The current task, by its address.
    fn caller(&self) -> u64 {
        host::klp_host_current().addr() as u64
    }

    fn event(&self, event: &Event<'_>) {
        log::event(event);
    }

    unsafe fn apply_relocs(&self, patch: &str, object: &str) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { relocs::apply(patch, object) }
    }

    unsafe fn clear_relocs(&self, patch: &str, object: &str) {
        // SAFETY: the caller's promise.
        unsafe { relocs::clear(patch, object) };
    }
}

/// Set once, to what stays for ever.
static ENGINE: AtomicPtr<Engine<Kernel>> = AtomicPtr::new(ptr::null_mut());

/// The engine; `None` early in the boot.
pub(crate) fn engine() -> Option<&'static Engine<Kernel>> {
    // SAFETY: null, or what `make_engine` leaked.
    unsafe { ENGINE.load(Ordering::Acquire).as_ref() }
}

/// Makes the engine. Called once, at boot.
pub(crate) fn make_engine() -> Result<(), OutOfMemory> {
    let kernel = Kernel { tracer: FtraceTracer::new()?, symbols: KernelSymbols::new(), text: NoText };
    let [engine] = alloc::boxed::Box::leak(try_box(Engine::new(kernel))?);
    ENGINE.store(engine, Ordering::Release);
    Ok(())
}
