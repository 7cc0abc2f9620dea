//! System states: what patches change beyond functions, and which of them fit together (kernel:
//! `state.c`, `struct klp_state`).

use core::sync::atomic::{AtomicUsize, Ordering};

/// A change of the system that a patch makes with its callbacks, under a number that its successors
/// know too.
///
/// In memory it is `struct klp_state` of `<klp/patch.h>`: callbacks in C get it as it is.
#[derive(Debug)]
#[repr(C)]
pub struct State {
    id: u64,
    version: u32,
    data: AtomicUsize,
}

impl State {
    /// State `id` in version `version`; a patch with a higher version knows how to take over from
    /// one with a lower.
    #[must_use]
    pub const fn new(id: u64, version: u32) -> Self {
        Self {
            id,
            version,
            data: AtomicUsize::new(0),
        }
    }

    /// Which state.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// In which version.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// What callbacks left with [`set_data`](State::set_data); 0 at first (kernel: `state->data`).
    #[must_use]
    pub fn data(&self) -> usize {
        self.data.load(Ordering::Acquire)
    }

    /// Leaves something for later callbacks, of this patch or of its successor.
    pub fn set_data(&self, data: usize) {
        self.data.store(data, Ordering::Release);
    }
}

/// The state `id` among those of a patch.
pub(crate) fn find(states: &[State], id: u64) -> Option<&State> {
    states.iter().find(|state| state.id == id)
}

/// Whether a patch with the states `new` may be enabled beside one with `old`, or on top of it
/// (kernel: `klp_is_state_compatible`): it may not know a state of `old` in a lower version only;
/// and if it takes the place of `old`, it must know all of them.
pub(crate) fn compatible(new: &[State], old: &[State], replaces: bool) -> bool {
    old.iter().all(|state| match find(new, state.id) {
        Some(known) => known.version >= state.version,
        None => !replaces,
    })
}
