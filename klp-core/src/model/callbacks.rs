//! What a patch author wants to happen around patching an object (kernel: `struct klp_callbacks`).

use crate::state::{self, State};

/// Functions that run when an object of the patch is patched or unpatched. Each is optional.
///
/// `pre_patch` has its counterpart in `post_unpatch`, `post_patch` in `pre_unpatch`: an unpatch
/// callback runs only if its counterpart ran (a `pre_patch` that is left out counts as run). So a
/// reversed transition calls `post_unpatch` alone.
///
/// They run with the engine's lock held: the engine refuses to be called by them
/// ([`ApiMisuse::InCallback`](crate::error::ApiMisuse::InCallback)).
pub trait Callbacks: Send + Sync {
    /// Before the object is patched. An error vetoes: the patch is not enabled, or the object that
    /// is coming is refused.
    ///
    /// # Errors
    ///
    /// A Linux error number, negative.
    fn pre_patch(&self, context: &CallbackContext<'_>) -> Result<(), i32> {
        let _ = context;
        Ok(())
    }

    /// When all tasks run the new functions.
    fn post_patch(&self, context: &CallbackContext<'_>) {
        let _ = context;
    }

    /// Before the object is unpatched: all tasks run the new functions still.
    fn pre_unpatch(&self, context: &CallbackContext<'_>) {
        let _ = context;
    }

    /// When no task runs the new functions any more.
    fn post_unpatch(&self, context: &CallbackContext<'_>) {
        let _ = context;
    }
}

/// What a callback is told.
pub struct CallbackContext<'a> {
    patch: &'a str,
    object: &'a str,
    states: &'a [State],
    previous: &'a dyn Fn(u64) -> Option<&'a State>,
}

impl<'a> CallbackContext<'a> {
    pub(crate) fn new(
        patch: &'a str,
        object: &'a str,
        states: &'a [State],
        previous: &'a dyn Fn(u64) -> Option<&'a State>,
    ) -> Self {
        Self {
            patch,
            object,
            states,
            previous,
        }
    }

    /// The name of the patch whose callback this is.
    #[must_use]
    pub fn patch(&self) -> &'a str {
        self.patch
    }

    /// The object; [`VMLINUX`](super::VMLINUX) for the base image.
    #[must_use]
    pub fn object(&self) -> &'a str {
        self.object
    }

    /// The state `id` of this patch (kernel: `klp_get_state`).
    #[must_use]
    pub fn state(&self, id: u64) -> Option<&'a State> {
        state::find(self.states, id)
    }

    /// The state `id` of the newest patch that was enabled before this one and has it (kernel:
    /// `klp_get_prev_state`).
    #[must_use]
    pub fn prev_state(&self, id: u64) -> Option<&'a State> {
        (self.previous)(id)
    }
}

impl core::fmt::Debug for CallbackContext<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CallbackContext")
            .field("patch", &self.patch)
            .field("object", &self.object)
            .finish()
    }
}
