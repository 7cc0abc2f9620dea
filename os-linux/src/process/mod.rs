//! Livepatching a running process.
//!
//! ```no_run
//! use klp_os_linux::process::{Livepatch, Options};
//! use std::time::Duration;
//!
//! let livepatch = Livepatch::init(Options::default())?;
//! let fix = livepatch.load_file("fix.ko")?;
//! livepatch.enable(fix)?;
//! livepatch.wait(Duration::from_secs(5));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What the process must keep to
//!
//! * A function can be patched if it was compiled with an entry pad that is recorded (see
//!   [`EntryPoints`]).
//! * Functions that must not be patched are marked with [`notrace!`](crate::notrace).
//! * SIGTRAP and one real-time signal are the engine's. SIGTRAPs that it did not cause go to the
//!   handler that was there before; who installs one later must do the same. A thread must not
//!   block either signal for long: one that blocks SIGTRAP keeps any code from being changed, one
//!   that blocks the other holds transitions back.
//! * The stop signal interrupts system calls; `signal(7)` lists the few that are not restarted, but
//!   fail with `EINTR` (`nanosleep`, `poll`, `epoll_wait`, …). Programs that handle signals at all
//!   are prepared for that.
//! * A thread has stack left wherever it is: at a redirected call, for the entry stub
//!   ([`SLOW_STACK_MAX`](klp_arch_x86_64::stub::SLOW_STACK_MAX)) and what the handler calls;
//!   anywhere, for the kernel's signal frame (`getauxval(AT_MINSIGSTKSZ)` tells how large it is)
//!   and the stop signal's handler. Some 4 KiB and a signal frame are enough.
//! * A library that is loaded by a plain `dlopen` is patched once [`Livepatch::enable`],
//!   [`Livepatch::adopt`] or the control socket's server takes notice of it, and stays in memory
//!   from then on. [`Livepatch::open_library`] patches it before anybody can call it.
//! * Callbacks of patches must not call the dynamic linker, and constructors of libraries must not
//!   wait for a thread that calls `adopt` or `enable`, unless `open_library` loads them.
//! * Whoever switches between stacks (coroutines, fibers) registers them, as [`Context`]s: a
//!   suspended one may be in the midst of a function that changes. Where it is noticed that
//!   somebody makes stacks and says nothing of it, nothing is patched; see [`Contexts`] and
//!   `docs/coroutines.md`. What switches by hand and registers nothing cannot be noticed.
//! * The engine's event sink must not fork, nor must callbacks, nor constructors and destructors of
//!   shadow variables.

mod adopt;
mod context;
mod contexts;
mod elf_file;
mod entry;
mod error;
mod events;
mod fork;
mod handler;
mod host;
mod libraries;
mod library;
mod linker;
mod livepatch;
mod lock;
mod memory;
mod notrace;
mod objects;
mod pads;
mod patches;
mod peek;
mod records;
mod scan;
mod shadow;
mod sites;
mod slots;
mod space;
mod stop;
mod symbols;
mod sys;
mod tasks;
mod text;
mod trap;
mod ucontext;
mod unwind;

#[cfg(feature = "control")]
pub(crate) use fork::{close_in_children, is_file};
#[cfg(feature = "control")]
pub(crate) use stop::signal as stop_signal;

pub use contexts::{Context, Contexts};
pub use error::{Error, LoadError, Silence};
pub use events::EventSink;
pub use handler::EntryPoints;
pub use host::Process;
pub use library::Library;
pub use livepatch::{Livepatch, OwnersEngine};
pub use lock::{EngineLock, FutexLock};
pub use shadow::shadows;
pub use symbols::Symbols;
pub use sys::Errno;
pub use tasks::{Tasks, Ways};
pub use text::ProcessText;
pub use ucontext::Unregistered;
pub use unwind::Stacks;

use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;
use klp_core::addr::CodeAddr;
use klp_core::elf;
use klp_core::engine::{PatchId, Poll, Preflight};
use klp_core::port::{EntryTracer, Platform};
use space::Space;
use std::path::Path;
use std::time::Instant;

/// How a process wants its engine.
pub struct Options {
    /// The real-time signal that stops threads.
    pub stop_signal: i32,
    /// Takes one line of the engine's log at a time; must not call the engine.
    pub events: Option<EventSink>,
    /// What is known of the process's coroutines.
    pub contexts: Contexts,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stop_signal: libc::SIGRTMAX() - 2,
            events: None,
            contexts: Contexts::default(),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("stop_signal", &self.stop_signal)
            .field("contexts", &self.contexts)
            .finish_non_exhaustive()
    }
}

impl Livepatch {
    /// Makes this process one that can be patched. Nothing is patched yet, and no thread notices.
    ///
    /// # Errors
    ///
    /// [`Error::Twice`], [`Error::SignalTaken`], or what the kernel does not offer (`membarrier`
    /// with `SYNC_CORE` came with Linux 4.16).
    pub fn init(options: Options) -> Result<&'static Self, Error> {
        static ONCE: lock::Mutex<()> = lock::Mutex::new(());
        let _once = ONCE.lock();
        if Self::get().is_some() {
            return Err(Error::Twice);
        }
        sys::register_barriers().map_err(Error::os("membarrier"))?;
        let space = Arc::new(Space::default());
        space.refresh()?;
        ucontext::begin();
        if options.contexts == Contexts::Registered {
            ucontext::waive();
        }
        stop::install(options.stop_signal)?;
        trap::install()?;
        fork::install()?;
        let process = Process {
            tracer: EntryTracer::new(
                ProcessText::new(Arc::clone(&space)),
                EntryPoints::new(Arc::clone(&space)),
            ),
            tasks: Tasks::new(Arc::clone(&space)),
            symbols: Symbols::new(Arc::clone(&space)),
            space,
        };
        if let Some(sink) = options.events {
            events::send_to(sink);
        }
        Ok(Self::new(process))
    }

    /// Loads the patch object in the file at `path`, and makes it known to the engine; nothing is
    /// patched yet. The file's name without its extension is the patch's name if the file does not
    /// give one. The file is code that is going to run; who may write to it is not checked
    /// ([`load`](Self::load)).
    ///
    /// # Errors
    ///
    /// [`LoadError`]; nothing has changed then.
    pub fn load_file(&self, path: impl AsRef<Path>) -> Result<PatchId, LoadError> {
        let path = path.as_ref();
        let file = std::fs::read(path).map_err(|error| LoadError::File {
            path: path.to_owned(),
            error,
        })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        self.load(&file, &name)
    }

    /// Loads the patch object in the bytes `file`. `name` is the patch's name if it does not give
    /// one.
    ///
    /// A patch object is code that this process is going to run: whoever chooses it decides what
    /// the process does. Its form is checked, what it does is not, nor who wrote it. That is not
    /// for this function to promise, and so it is no `unsafe` one: it does what the owner of a
    /// process can do to it from outside, too, with `ptrace` or `/proc/PID/mem`. `docs/safety.md`
    /// says where that line is drawn. A program must not pass on here what it was given by somebody
    /// whom it would not let run code.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; nothing has changed then.
    pub fn load(&self, file: &[u8], name: &str) -> Result<PatchId, LoadError> {
        let process = self.engine.host();
        self.space().refresh().map_err(LoadError::Process)?;
        // SAFETY: the owner of the process decided on this code, as said above.
        let loaded = unsafe { elf::load(process, file, name) }?;
        let code = loaded.image.image().text.start();
        if let Err((image, error)) = self.space().add(loaded.image) {
            // SAFETY: nobody knows it.
            unsafe { image.unload(process.text()) };
            return Err(LoadError::Process(error));
        }
        let added = self.engine.add(loaded.patch).map_err(|refused| {
            // SAFETY: the engine does not know the patch.
            unsafe { self.unload_image(code) };
            LoadError::Engine(refused.error)
        })?;
        self.space().patches.own(code, added);
        Ok(added)
    }

    /// Forgets a disabled patch and frees its memory.
    ///
    /// # Errors
    ///
    /// Those of [`Engine::remove`](klp_core::Engine::remove); the patch stays then.
    pub fn unload(&self, patch: PatchId) -> Result<(), klp_core::Error> {
        self.engine.remove(patch)?;
        if let Some(code) = self.space().patches.code_of(patch) {
            // SAFETY: it is the image of this patch, which the engine does not know any more; it
            // promises that no task is inside of it.
            unsafe { self.unload_image(code) };
        }
        Ok(())
    }

    /// Frees the patch object whose code begins at `code`.
    ///
    /// # Safety
    ///
    /// The engine does not know its patch, and no task is inside of it.
    unsafe fn unload_image(&self, code: CodeAddr) {
        if let Some(image) = self.space().remove(code) {
            // SAFETY: the caller's promise.
            unsafe { image.unload(self.engine.host().text()) };
        }
    }

    /// Checks whether a patch could be enabled; see
    /// [`Engine::preflight`](klp_core::Engine::preflight). Libraries that it names are
    /// [adopted](Self::adopt) first.
    ///
    /// # Errors
    ///
    /// As there, and if an enabled patch does not let one of the libraries in.
    pub fn preflight(&'static self, patch: PatchId) -> Result<Preflight, klp_core::Error> {
        self.adopt_for(patch)?;
        let mut report = self.engine.preflight(patch)?;
        if let Err(error) = tasks::check_contexts() {
            let name = self
                .engine
                .with_patch(patch, |patch| patch.name().try_clone())??;
            report
                .findings
                .try_reserve(1)
                .map_err(|_| klp_core::Error::OutOfMemory)?;
            report
                .findings
                .push(klp_core::Error::port("initializing tasks", &name, &error));
        }
        Ok(report)
    }

    /// Starts to enable a patch; see [`Engine::enable`](klp_core::Engine::enable), which knows
    /// nothing of libraries that were loaded behind the engine's back: this [adopts](Self::adopt)
    /// those that the patch names first.
    ///
    /// # Errors
    ///
    /// As there, and if an enabled patch does not let one of the libraries in.
    pub fn enable(&'static self, patch: PatchId) -> Result<Poll, klp_core::Error> {
        self.enable_all(&[patch])
    }

    /// Starts to disable a patch; see [`Engine::disable`](klp_core::Engine::disable).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn disable(&self, patch: PatchId) -> Result<Poll, klp_core::Error> {
        self.engine.disable(patch)
    }

    /// Starts to enable several patches as one; see
    /// [`Engine::enable_all`](klp_core::Engine::enable_all) and [`enable`](Self::enable).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn enable_all(&'static self, patches: &[PatchId]) -> Result<Poll, klp_core::Error> {
        patches
            .iter()
            .try_for_each(|patch| self.adopt_for(*patch))?;
        self.engine.enable_all(patches)
    }

    /// Starts to disable several patches as one; see
    /// [`Engine::disable_all`](klp_core::Engine::disable_all).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn disable_all(&self, patches: &[PatchId]) -> Result<Poll, klp_core::Error> {
        self.engine.disable_all(patches)
    }

    /// Polls until no transition is under way, or until `timeout` is over. Says whether none is.
    pub fn wait(&self, timeout: Duration) -> bool {
        const MAX_PAUSE: Duration = Duration::from_millis(2);
        let end = Instant::now() + timeout;
        let mut pause = Duration::from_micros(100);
        loop {
            let begin = Instant::now();
            match self.engine.poll() {
                Poll::Idle | Poll::Complete { .. } => return true,
                Poll::Waiting { .. } if begin >= end => return false,
                Poll::Waiting { .. } => {}
            }
            // With many stragglers, polls are expensive: leave the threads most of the time.
            let max = MAX_PAUSE.max(4 * begin.elapsed());
            std::thread::sleep(pause);
            pause = (2 * pause).min(max);
        }
    }

    /// How many threads were switched, and by which way.
    pub fn ways(&self) -> Ways {
        self.engine.host().tasks.ways()
    }
}
