// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! The engine's log in the kernel's. Debug lines appear where dynamic debug is on for `shims.c`.

use crate::host::{self, errno, shown_id};
use core::ffi::c_void;
use core::{fmt, ptr};
use klp_core::event::{Event, Level};

/// Writes one line.
pub(crate) fn write(level: Level, line: fmt::Arguments<'_>) {
    // SAFETY: `%pA` takes a pointer to `fmt::Arguments`, which is only read.
    unsafe { host::klp_host_log(level as i32, (&raw const line).cast::<c_void>()) }
}

/// Writes the line of `event`.
pub(crate) fn event(event: &Event<'_>) {
    match *event {
        // Idle tasks go by the number 0.
        Event::NotSwitched { name, task, obstacle } => {
            let event = Event::NotSwitched { name, task: shown_id(task), obstacle };
            // SAFETY: as in `write`.
            unsafe { host::klp_try_switch_task(ptr::from_ref(&format_args!("{event}")).cast::<c_void>()) }
        }
        _ => write(event.level(), format_args!("{event}")),
    }
}

/// Writes a line of level [`Level::Error`].
macro_rules! error {
    ($($arg:tt)*) => { $crate::log::write(klp_core::event::Level::Error, format_args!($($arg)*)) };
}
pub(crate) use error;

/// Writes a line of level [`Level::Warning`].
macro_rules! warning {
    ($($arg:tt)*) => { $crate::log::write(klp_core::event::Level::Warning, format_args!($($arg)*)) };
}
pub(crate) use warning;

/// An error number of the kernel, as the error of a port.
#[derive(Debug)]
pub(crate) struct Errno {
    /// What failed.
    pub(crate) what: &'static str,
    /// The number, negative.
    pub(crate) errno: i32,
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (error {})", self.what, self.errno)
    }
}

impl klp_core::port::PortError for Errno {
    fn kind(&self) -> klp_core::port::PortErrorKind {
        use klp_core::port::PortErrorKind;
        match -self.errno {
            errno::ENOMEM => PortErrorKind::OutOfMemory,
            errno::EBUSY => PortErrorKind::Held,
            errno::EINVAL => PortErrorKind::NoSite,
            errno::ENOENT => PortErrorKind::NotFound,
            _ => PortErrorKind::Failed,
        }
    }
}
