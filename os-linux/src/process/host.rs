//! This process as the engine sees it: all ports together.

use super::arch::Processor;
use super::handler::EntryPoints;
use super::lock::EngineLock;
use super::space::Space;
use super::symbols::Symbols;
use super::tasks::Tasks;
use super::text::ProcessText;
use super::unwind::Stacks;
use super::{events, sys};
use alloc::sync::Arc;
use klp_core::event::Event;
use klp_core::port::{EntryTracer, Platform, SelfSwitch, Verifier};

/// This process as a host of the engine.
pub struct Process {
    pub(super) tracer: EntryTracer<Processor, ProcessText, EntryPoints>,
    pub(super) tasks: Tasks,
    pub(super) symbols: Symbols,
    pub(super) verifier: Option<Box<dyn Verifier>>,
    pub(super) space: Arc<Space>,
}

// SAFETY: all parts are of this process, and stay as `init` made them.
unsafe impl Platform for Process {
    type Lock = EngineLock;
    type Tracer = EntryTracer<Processor, ProcessText, EntryPoints>;
    type Unwinder = Stacks;
    type Tasks = Tasks;
    type Symbols = Symbols;
    type Text = ProcessText;
    type Arch = Processor;
    type Relocator = Processor;

    fn tracer(&self) -> &Self::Tracer {
        &self.tracer
    }

    fn unwinder(&self) -> &Stacks {
        &self.space.stacks
    }

    fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    fn text(&self) -> &ProcessText {
        self.tracer.text()
    }

    fn self_switch(&self) -> Option<&dyn SelfSwitch> {
        Some(&self.tasks)
    }

    fn verifier(&self) -> Option<&dyn Verifier> {
        self.verifier.as_deref()
    }

    /// The calling thread's id.
    fn caller(&self) -> u64 {
        sys::gettid().into()
    }

    fn event(&self, event: &Event<'_>) {
        if let Event::RefusingObject { object, .. } = event {
            // The engine is at rest: no patch gets into it from here on.
            if let Some(object) = self.space.objects.named(object) {
                object.set_leaving();
            }
        }
        events::write(event);
    }

    fn is_heard(&self) -> bool {
        events::are_heard()
    }
}
