//! What is kept of shared libraries that the engine opens.

use super::objects::Object;
use alloc::sync::Arc;

/// What is known of libraries that are opened, or about to be.
#[derive(Default)]
pub(crate) struct Known {
    pub(super) opened: Vec<Opened>,
    /// For each [`Visit`](super::adopt::Visit), the number of the first object that may have come
    /// by it, and the thread.
    pub(super) visits: Vec<(u64, u32)>,
}

impl Known {
    /// Whether no thread but `own` is inside of the dynamic linker for the engine.
    pub(crate) fn at_rest_but_for(&self, own: u32) -> bool {
        self.visits.iter().all(|(_, thread)| *thread == own)
    }

    /// After `fork`, in the child: other threads are gone.
    pub(crate) fn reset_in_child(&mut self) {
        self.visits.clear();
    }

    /// Objects with smaller numbers have not come by a visit under way.
    pub(super) fn settled(&self) -> u64 {
        let firsts = self.visits.iter().map(|(first, _)| *first);
        firsts.min().unwrap_or(u64::MAX)
    }
}

/// A library, and how many [`Library`](super::library::Library)s it is opened by.
pub(super) struct Opened {
    pub(super) handle: usize,
    pub(super) users: usize,
    /// The object that is alive for as long as they are; none if it was alive before.
    pub(super) object: Option<Arc<Object>>,
}
