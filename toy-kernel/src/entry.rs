//! [`EntryHost`]: which functions have entry pads, and the way of a call to the handler. Pads are
//! rewritten by [`EntryTracer`](klp_core::port::EntryTracer).

use crate::interrupt::stop_machine;
use crate::machine::uninterrupted;
use crate::{sched, tasks};
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::ops;
use klp_core::port::EntryHost;

// In front of a patched function, all registers are the caller's: this keeps them.
klp_arch_x86_64::entry_stub!(fn toy_entry_stub, handler);

/// The hot path. It is uninterrupted, so nobody is inside of a run when the machine is stopped.
extern "C" fn handler(arg: u64) -> u64 {
    // SAFETY: thunks bring what the engine made; `synchronize` waits for this.
    uninterrupted(|| unsafe { ops::handler(arg, || tasks::state_of(sched::current())) }.get())
}

unsafe extern "C" {
    // `kernel.ld`
    static sites_start: u64;
    static sites_end: u64;
    static notrace_start: u8;
    static notrace_end: u8;
}

/// Entry pads as the compiler has recorded them.
pub struct Entries;

// SAFETY: sites are the compiler's. The stub, this file, klp-core and what they call are linked
// between the two marks, but for what is always inlined. No run goes on while the machine is
// stopped.
unsafe impl EntryHost for Entries {
    type Lock = crate::host::Lock;

    fn recorded_site(&self, func: TextRange) -> Option<CodeAddr> {
        let (start, end) = (&raw const sites_start, &raw const sites_end);
        // SAFETY: the linker has put a table of addresses there.
        let sites = unsafe { core::slice::from_raw_parts(start, end.offset_from(start) as usize) };
        let mut sites = sites.iter().map(|site| CodeAddr::new(*site));
        sites.find(|site| func.contains(*site))
    }

    fn is_notrace(&self, func: TextRange) -> bool {
        let (start, end) = (&raw const notrace_start, &raw const notrace_end);
        (start.addr() as u64..end.addr() as u64).contains(&func.start().get())
    }

    fn stub(&self) -> CodeAddr {
        CodeAddr::new(toy_entry_stub as usize as u64)
    }

    fn synchronize(&self) {
        stop_machine(&mut || {});
    }
}
