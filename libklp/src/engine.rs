//! The engine of the process.

use crate::args::{engine, path};
use crate::error::{Failure, answer, text};
use core::ffi::{c_char, c_int, c_void};
use klp_ed25519::{Keys, KeysError};
use klp_os_linux::process::{Contexts, EventSink, Livepatch, Options};

/// `struct klp_options`.
#[repr(C)]
#[derive(Clone, Copy)]
struct COptions {
    size: usize,
    stop_signal: c_int,
    contexts: c_int,
    event: Option<extern "C" fn(*const c_char, *mut c_void)>,
    data: *mut c_void,
    keep_removed: c_int,
    keys: *const c_char,
}

/// The room for a socket's path (`sun_path`, unix(7)).
const PATH_MAX: usize = 108;

/// `klp_init` of `<klp.h>`.
///
/// # Safety
///
/// `options` is null or points to options as `<klp.h>` says.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_init(options: *const COptions) -> c_int {
    answer(|| {
        // SAFETY: the caller's promise.
        let options = unsafe { read_options(options) }?;
        match Livepatch::init(options) {
            Ok(_) => Ok(0),
            Err(error) => Err(Failure::new(error.errno(), error)),
        }
    })
}

/// # Safety
///
/// As for [`klp_init`].
unsafe fn read_options(given: *const COptions) -> Result<Options, Failure> {
    let mut options = Options::default();
    if given.is_null() {
        return Ok(options);
    }
    // SAFETY: the caller's promise; the size comes first, in every version of it.
    let size = unsafe { given.cast::<usize>().read() };
    if size != size_of::<COptions>() {
        return Err(Failure::new(
            -libc::E2BIG,
            format!(
                "klp_options.size is {size}, but {} here",
                size_of::<COptions>()
            ),
        ));
    }
    // SAFETY: the caller's promise, who has said the right size.
    let given = unsafe { given.read() };
    if given.stop_signal != 0 {
        if !(libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&given.stop_signal) {
            return Err(Failure::misuse(format!(
                "klp_options.stop_signal: {} is no real-time signal",
                given.stop_signal
            )));
        }
        options.stop_signal = given.stop_signal;
    }
    options.contexts = match given.contexts {
        0 => Contexts::Refuse,
        1 => Contexts::Registered,
        other => {
            return Err(Failure::misuse(format!(
                "klp_options.contexts: {other} means nothing"
            )));
        }
    };
    options.keep_removed = given.keep_removed != 0;
    if !given.keys.is_null() {
        // SAFETY: the caller's promise.
        let keys = Keys::read(unsafe { path(given.keys) }?).map_err(failure)?;
        options.verifier = Some(Box::new(keys));
    }
    options.events = given.event.map(|event| sink(event, given.data));
    Ok(options)
}

fn failure(error: KeysError) -> Failure {
    let errno = match &error {
        KeysError::Io { error, .. } => error.raw_os_error().unwrap_or(libc::EIO),
        KeysError::BadKey { .. } => libc::EBADMSG,
        KeysError::Writable { .. } => libc::EPERM,
        KeysError::NoKeys { .. } => libc::ENOKEY,
        KeysError::OutOfMemory => libc::ENOMEM,
    };
    Failure::new(-errno, format_args!("klp_options.keys: {error}"))
}

/// Passes the engine's log on.
fn sink(event: extern "C" fn(*const c_char, *mut c_void), data: *mut c_void) -> EventSink {
    /// What C wants to be given back.
    struct Data(*mut c_void);
    // SAFETY: it is a number here; that any thread may be given it is what `<klp.h>` says.
    unsafe impl Send for Data {}
    // SAFETY: as above.
    unsafe impl Sync for Data {}
    impl Data {
        fn get(&self) -> *mut c_void {
            self.0
        }
    }
    let data = Data(data);
    Box::new(move |line| event(text(&line.to_string()).as_ptr(), data.get()))
}

/// `klp_serve` of `<klp.h>`.
///
/// # Safety
///
/// `socket` is null or a string; `place` is null or has room for `size` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn klp_serve(socket: *const c_char, place: *mut c_char, size: usize) -> c_int {
    answer(|| {
        let engine = engine()?;
        let at = if socket.is_null() {
            None
        } else {
            // SAFETY: the caller's promise.
            Some(unsafe { path(socket) }?)
        };
        if !place.is_null() && size < PATH_MAX {
            return Err(Failure::new(
                -libc::ERANGE,
                format!("a path may need {PATH_MAX} bytes, not {size}"),
            ));
        }
        let path = engine.serve(at).map_err(|error| {
            let failure = Failure::from(error);
            match at {
                Some(path) => failure.at(path),
                None => failure,
            }
        })?;
        if !place.is_null() {
            let path = text(&path.to_string_lossy());
            let path = path.as_bytes_with_nul();
            // SAFETY: there is room for a socket's path, which is not longer.
            unsafe { place.copy_from_nonoverlapping(path.as_ptr().cast(), path.len().min(size)) };
        }
        Ok(0)
    })
}
