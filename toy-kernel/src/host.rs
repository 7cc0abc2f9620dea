//! [`Platform`]: all ports together.

use crate::entry::Entries;
use crate::symbols::Symbols;
use crate::tasks::{self, Tasks};
use crate::text::Memory;
use crate::unwind::Tables;
use crate::{interrupt, println, sched};
use klp_arch_x86_64::X86_64;
use klp_core::event::Event;
use klp_core::port::{EntryTracer, Platform};

/// A lock whose holder may be preempted: who wants it lets others run.
pub type Lock = spin::mutex::SpinMutex<(), Yield>;

/// See [`Lock`].
pub struct Yield;

impl spin::RelaxStrategy for Yield {
    fn relax() {
        interrupt::yield_now();
    }
}

/// This kernel.
pub struct Toy {
    tracer: EntryTracer<X86_64, Memory, Entries>,
    unwinder: Tables,
    tasks: Tasks,
    symbols: Symbols,
}

impl Toy {
    /// The kernel whose file is `image`.
    ///
    /// # Panics
    ///
    /// If it is none.
    pub fn new(image: &'static [u8]) -> Self {
        Self {
            tracer: EntryTracer::new(Memory, Entries),
            unwinder: Tables::new().expect("there is memory for unwind tables"),
            tasks: Tasks { list: tasks::all },
            symbols: Symbols::new(image).expect("it is the kernel's own file"),
        }
    }
}

// SAFETY: there is one kernel, and these are its parts.
unsafe impl Platform for Toy {
    type Lock = Lock;
    type Tracer = EntryTracer<X86_64, Memory, Entries>;
    type Unwinder = Tables;
    type Tasks = Tasks;
    type Symbols = Symbols;
    type Text = Memory;
    type Arch = X86_64;
    type Relocator = X86_64;

    fn tracer(&self) -> &Self::Tracer {
        &self.tracer
    }

    fn unwinder(&self) -> &Tables {
        &self.unwinder
    }

    fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    fn text(&self) -> &Memory {
        self.tracer.text()
    }

    fn caller(&self) -> u64 {
        sched::current().id
    }

    fn event(&self, event: &Event<'_>) {
        // Who is waited for is asked when it matters.
        if !matches!(event, Event::NotSwitched { .. }) {
            println!("klp: {event}");
        }
    }
}
