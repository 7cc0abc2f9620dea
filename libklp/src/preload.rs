//! A program that knows nothing of us, with the library as `LD_PRELOAD` (ld.so(8)): before `main`
//! begins, the engine is made, and serves the command `klp`.
//!
//! Every program that such a one executes gets the library, too. One that can never have anything
//! to patch is left alone: it has no entry pads, and nothing in it asks for `dlopen`, by which some
//! could come. Whatever goes wrong, the program does not notice.
//!
//! Variables of the environment:
//!
//! * `KLP_SERVE`: `1`: serve, whether preloaded or linked, and whatever the program is; `0`: do
//!   not.
//! * `KLP_STOP_SIGNAL`: the number of the real-time signal that stops threads.
//! * `KLP_KEYS`: a folder with the keys of those who may sign patches, `NAME.pub`.
//! * `KLP_PRELOAD_VERBOSE`: say on standard error what was done, or why not.

mod program;

use core::ffi::{c_int, c_void};
use core::fmt::Display;
use core::mem::MaybeUninit;
use core::ptr;
use core::time::Duration;
use klp_core::event::Event;
use klp_core::port::Platform;
use klp_ed25519::Keys;
use klp_os_linux::process::{Livepatch, Options};
use std::env::var_os;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::Mutex;

/// Called by the dynamic linker when the library is loaded (gABI, "Initialization and Termination
/// Functions").
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// Called when the process ends, or the library goes.
#[used]
#[unsafe(link_section = ".fini_array")]
static END: extern "C" fn() = end;

/// The socket, and the process that serves there.
static SOCKET: Mutex<Option<(u32, PathBuf)>> = Mutex::new(None);

/// A child of `fork` that lives this long is meant to stay: most call `execve` at once.
const CHILDHOOD: Duration = Duration::from_millis(20);

extern "C" fn begin() {
    let _ = catch_unwind(|| {
        if is_wanted() && serve() {
            // SAFETY: the function stays for ever. It is called after the engine's own.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        }
    });
}

/// Whether this process is to be served.
fn is_wanted() -> bool {
    // SAFETY: only reads what the kernel has told of the process.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return false;
    }
    match var_os("KLP_SERVE") {
        Some(asked) if asked == "1" => true,
        Some(asked) if asked == "0" => false,
        _ if !program::is_preloaded(begin as *const c_void) => false,
        _ => {
            let may = program::may_be_patched();
            if !may {
                say("not served: nothing in the program can be patched, nor can come to it");
            }
            may
        }
    }
}

/// Makes the engine, if there is none yet, and serves it.
fn serve() -> bool {
    let options = || {
        let mut options = Options::default();
        if let Some(number) = var_os("KLP_STOP_SIGNAL") {
            let number = number.to_str().and_then(|number| number.parse().ok());
            let is_right = |number: &c_int| (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(number);
            options.stop_signal = number
                .filter(is_right)
                .ok_or("KLP_STOP_SIGNAL is no real-time signal")?;
        }
        if let Some(folder) = var_os("KLP_KEYS") {
            let keys = Keys::read(folder).map_err(|error| format!("KLP_KEYS: {error}"))?;
            options.verifier = Some(Box::new(keys));
        }
        Ok::<_, String>(options)
    };
    let engine = match Livepatch::get() {
        Some(engine) => Ok(engine),
        None => options()
            .and_then(|options| Livepatch::init(options).map_err(|error| error.to_string())),
    };
    let served = engine.and_then(|engine| engine.serve(None).map_err(|error| error.to_string()));
    match served {
        Ok(socket) => {
            say(format_args!("served at {}", socket.display()));
            let engine = Livepatch::get().map(|engine| engine.engine().host());
            if engine.is_some_and(|host| host.verifier().is_none()) {
                say(Event::NotVerified);
            }
            if let Ok(mut ours) = SOCKET.try_lock() {
                *ours = Some((std::process::id(), socket));
            }
            true
        }
        Err(error) => {
            say(format_args!("not served: {error}"));
            false
        }
    }
}

/// Leaves no socket behind, if the process comes by here.
extern "C" fn end() {
    let _ = catch_unwind(|| {
        let ours = SOCKET.try_lock().ok().and_then(|mut socket| socket.take());
        if let Some((_, path)) = ours.filter(|(process, _)| *process == std::process::id()) {
            let _ = std::fs::remove_file(path);
        }
    });
}

fn say(what: impl Display) {
    if var_os("KLP_PRELOAD_VERBOSE").is_some_and(|asked| !asked.is_empty() && asked != "0") {
        eprintln!("klp: process {}: {what}", std::process::id());
    }
}

/// In the child of a `fork`, which has none of the server's threads: daemons are such children. A
/// thread looks whether the child stays, and serves it then. Made by hand: this is no place for
/// what the standard library does for a thread.
extern "C" fn in_child() {
    let mut before = MaybeUninit::uninit();
    let mut all = MaybeUninit::uninit();
    let mut attributes = MaybeUninit::uninit();
    let mut thread = MaybeUninit::uninit();
    // SAFETY: everything is made before it is used, and outlives the calls. The thread takes no
    // signals, as all threads of the library (it begins with the mask of this one).
    unsafe {
        if libc::pthread_attr_init(attributes.as_mut_ptr()) != 0 {
            return;
        }
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        libc::pthread_create(
            thread.as_mut_ptr(),
            attributes.as_ptr(),
            serve_child,
            ptr::null_mut(),
        );
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
    }
}

extern "C" fn serve_child(_: *mut c_void) -> *mut c_void {
    std::thread::sleep(CHILDHOOD);
    let _ = catch_unwind(serve);
    ptr::null_mut()
}
