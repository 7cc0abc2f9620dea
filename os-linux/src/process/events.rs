//! Where the engine's log goes.

use klp_core::event::Event;
use std::sync::OnceLock;

/// Takes the engine's log.
pub type EventSink = Box<dyn Fn(&Event<'_>) + Send + Sync>;

static SINK: OnceLock<EventSink> = OnceLock::new();

/// From here on, `sink` takes it. There is one in a process, as there is one engine.
pub(crate) fn send_to(sink: EventSink) {
    let _ = SINK.set(sink);
}

/// Whether somebody takes it.
pub(crate) fn are_heard() -> bool {
    SINK.get().is_some()
}

/// Writes one line, if somebody takes it.
pub(crate) fn write(event: &Event<'_>) {
    if let Some(sink) = SINK.get() {
        sink(event);
    }
}
