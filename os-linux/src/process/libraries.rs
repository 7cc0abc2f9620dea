//! What is kept of shared libraries that the engine opens.

use super::objects::Object;
use alloc::sync::Arc;

/// What is known of libraries that are opened, or about to be.
#[derive(Default)]
pub(crate) struct Known {
    pub(super) opened: Vec<Opened>,
    /// For each [`Visit`](super::adopt::Visit), the number of the first object that may have come
    /// by it.
    pub(super) visits: Vec<u64>,
}

impl Known {
    /// Whether no thread is inside of the dynamic linker for the engine.
    pub(crate) fn at_rest(&self) -> bool {
        self.visits.is_empty()
    }

    /// After `fork`, in the child: other threads are gone.
    pub(crate) fn reset_in_child(&mut self) {
        self.visits.clear();
    }

    /// Objects with smaller numbers have not come by a visit under way.
    pub(super) fn settled(&self) -> u64 {
        self.visits.iter().copied().min().unwrap_or(u64::MAX)
    }
}

/// A library, and how many [`Library`](super::library::Library)s it is opened by.
pub(super) struct Opened {
    pub(super) handle: usize,
    pub(super) users: usize,
    /// The object that is alive for as long as they are; none if it was alive before.
    pub(super) object: Option<Arc<Object>>,
}
