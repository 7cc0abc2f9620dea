//! What is under way, for who waits: a line, and on a terminal a bar below it.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A step of the work. The bar goes when this does.
pub(crate) struct Step(ProgressBar);

impl Step {
    /// A step of which nobody knows how long it takes.
    pub(crate) fn new(what: &str) -> Self {
        eprintln!("{what}");
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// A step that is so many.
    pub(crate) fn of(what: &str, count: usize) -> Self {
        eprintln!("{what}: {count} files");
        let bar = ProgressBar::new(count as u64);
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos} of {len}") {
            bar.set_style(style);
        }
        bar.tick();
        Self(bar)
    }

    /// One of the many is done.
    pub(crate) fn advance(&self) {
        self.0.inc(1);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
