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
//! * One real-time signal is the engine's, the stop signal ([`Options::stop_signal`]). Nobody else
//!   sets what it does, takes it by `sigwait` or `signalfd`, or blocks it for long. It goes to
//!   threads that run, and to those that sleep where a look from outside is not enough. The system
//!   calls of these are restarted; those that `signal(7)` lists (`nanosleep`, `poll`, `epoll_wait`,
//!   …) fail with `EINTR`. All other signals are the program's own.
//! * No thread replaces the program (`exec`) while a transition is under way.
//! * A thread has stack left wherever it is: at a redirected call, for the entry stub
//!   (`stub::SLOW_STACK_MAX` of the processor's crate, `klp-arch-…`) and what the handler calls;
//!   anywhere, for the kernel's signal frame (`getauxval(AT_MINSIGSTKSZ)` tells how large it is)
//!   and the stop signal's handler, which does not go to an alternate stack.
//! * A library that is loaded by a plain `dlopen` is patched once [`Livepatch::enable`],
//!   [`Livepatch::adopt`] or the control socket's server takes notice of it, and stays in memory
//!   from then on. [`Livepatch::open_library`] patches it before anybody can call it.
//! * Callbacks of patches must not call the dynamic linker, and constructors of libraries must not
//!   wait for a thread that calls `adopt` or `enable`, unless `open_library` loads them.
//! * A library with the engine in it that comes by `dlopen` wants the room that glibc keeps for
//!   variables which every thread has from its beginning (`ld.so(8)`,
//!   `glibc.rtld.optional_static_tls`), for all of its thread-local variables; 16 bytes of them are
//!   the engine's. It stays in memory once the engine was made.
//! * Whoever switches between stacks (coroutines, fibers) registers them, as [`Context`]s: a
//!   suspended one may be in the midst of a function that changes. Where it is noticed that
//!   somebody makes stacks and says nothing of it, nothing is patched; see [`Contexts`] and
//!   `docs/coroutines.md`. What switches by hand and registers nothing cannot be noticed.
//! * The engine's event sink must not fork, nor must callbacks, nor constructors and destructors of
//!   shadow variables. A child that was made by the bare system call `clone` must not call patched
//!   functions.
//!
//! `docs/in-a-process.md` says what the engine does to the process, with all system calls, and what
//! happens where one is denied.

// Reading order, from bottom to top; each file uses only what stands before it.
//
// * System calls and words: `sys.rs`, `tls.rs`, `lock.rs`, `events.rs`, `ucontext.rs` (who makes
//   stacks), `error.rs`.
// * What is mapped, and from which file: `maps.rs`, `origin.rs`, `symbol_table.rs`, `elf_file.rs`,
//   `peek.rs` (memory that may not be there), `objects.rs`, `libraries.rs`, `linker.rs`, `sites.rs`
//   (entry pads).
// * What is known of each thread and context, and stopping threads: `scan.rs`, `slots.rs`,
//   `records.rs`, `context.rs`, `stop.rs`.
// * Stacks: `unwind.rs`, `asleep.rs` and `last_walk.rs` (of who sleeps), `contexts.rs` (those that
//   no thread runs on).
// * Patch objects in memory: `memory.rs`, `unwinders.rs`, `retired.rs`, `patches.rs`; with the
//   objects: `space.rs`.
// * Files of patch objects: `file.rs`.
// * Names: `shadow.rs`, `symbols.rs` (the port `SymbolResolver`), `notrace.rs`.
// * The way of a redirected call: `entry.rs` (threads that switch themselves), `handler.rs` (the
//   port `EntryHost`).
// * Threads as tasks: `tasks.rs` (the ports `TaskSet`, `Stopper` and `SelfSwitch`), `sweep.rs`
//   (when memory of removed patches goes).
// * Code: `pads.rs`, `text.rs` (the port `Text`).
// * All ports together, and the engine on them: `host.rs`, `livepatch.rs`.
// * Libraries that come and go: `adopt.rs`, `library.rs`. `fork.rs`. This file: all of it together.

mod adopt;
mod arch;
mod asleep;
mod context;
mod contexts;
mod elf_file;
mod entry;
mod error;
mod events;
mod file;
mod fork;
mod handler;
mod host;
mod last_walk;
mod libraries;
mod library;
mod linker;
mod livepatch;
mod loaded;
mod lock;
mod maps;
mod memory;
mod notrace;
mod objects;
mod origin;
mod pads;
mod patches;
mod peek;
mod records;
mod retired;
mod scan;
mod shadow;
mod sites;
mod slots;
mod space;
mod stop;
mod sweep;
mod symbol_table;
mod symbols;
mod sys;
mod tables;
mod tasks;
mod text;
mod thread_locals;
mod tls;
mod ucontext;
mod unwind;
mod unwinders;

#[cfg(feature = "control")]
pub(crate) use fork::{close_in_children, is_file};
#[cfg(feature = "control")]
pub(crate) use records::call_ours;
#[cfg(feature = "control")]
pub(crate) use stop::signal as stop_signal;

pub use contexts::{Context, Contexts};
pub use error::{Error, LoadError, Silence};
pub use events::EventSink;
pub use handler::EntryPoints;
pub use host::Process;
pub use library::Library;
pub use livepatch::{Livepatch, OwnersEngine};
pub use lock::{EngineLock, FutexLock, ShadowLock};
pub use shadow::shadows;
pub use symbols::Symbols;
pub use sys::Errno;
pub use tasks::{Tasks, Ways};
pub use text::ProcessText;
pub use ucontext::Unregistered;
pub use unwind::{Stacks, Stopped};

use adopt::Visit;
use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;
use klp_core::addr::CodeAddr;
use klp_core::elf;
use klp_core::engine::{PatchId, Poll, Preflight};
use klp_core::event::Event;
use klp_core::mem::Name;
use klp_core::model::VMLINUX;
use klp_core::port::{EntryTracer, Platform, Verifier};
use linker::Handle;
use patches::Digest;
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
    /// Whether the memory of patches that are [unloaded](Livepatch::unload) stays for ever: for
    /// programs that switch stacks by hand and register nothing, or keep addresses of functions
    /// where nobody looks for them, on the heap.
    pub keep_removed: bool,
    /// Who may sign patch objects: no others are loaded, if this is set. `klp_ed25519::Keys` are
    /// such.
    pub verifier: Option<Box<dyn Verifier>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stop_signal: libc::SIGRTMAX() - 2,
            events: None,
            contexts: Contexts::default(),
            keep_removed: false,
            verifier: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("stop_signal", &self.stop_signal)
            .field("contexts", &self.contexts)
            .field("keep_removed", &self.keep_removed)
            .field("verifies", &self.verifier.is_some())
            .finish_non_exhaustive()
    }
}

/// Whether stacks can be followed: each begins in the executable or in the C library, and where a
/// thread sleeps, it is inside of the C library.
fn check_unwind_tables(space: &Space) -> Result<(), Error> {
    let missing = |object: &str| match klp_core::mem::Name::new(object) {
        Ok(object) => Err(Error::NoUnwindTables { object }),
        Err(_) => Err(Error::OutOfMemory),
    };
    let executable = space.objects.named(VMLINUX);
    let table = executable.as_deref().map(tables::table_of).transpose()?;
    if table.flatten().is_none() {
        return missing(VMLINUX);
    }
    let call = CodeAddr::new(libc::syscall as *const () as u64);
    match space.objects.at(call) {
        Some(library) if !space.stacks.knows(call) => missing(&library.name),
        _ => Ok(()),
    }
}

/// Holds the library that the engine is in, if it is in one: its handlers stay installed.
fn hold_library(space: &Space) {
    let here = CodeAddr::new(hold_library as *const () as u64);
    if let Some(library) = space
        .objects
        .at(here)
        .filter(|object| object.name != VMLINUX)
    {
        let _for_good = Handle::hold(&library);
    }
}

impl Livepatch {
    /// Makes this process one that can be patched. Nothing is patched yet, and no thread notices.
    ///
    /// # Errors
    ///
    /// [`Error::Twice`], [`Error::SignalTaken`], [`Error::NoUnwindTables`], or what the kernel does
    /// not offer (`membarrier` with `SYNC_CORE` came with Linux 4.16).
    pub fn init(options: Options) -> Result<&'static Self, Error> {
        static ONCE: lock::Mutex<()> = lock::Mutex::new(());
        let _once = ONCE.lock();
        if Self::get().is_some() {
            return Err(Error::Twice);
        }
        sys::register_barriers().map_err(Error::os("membarrier"))?;
        let space = Arc::new(Space::default());
        space.refresh()?;
        check_unwind_tables(&space)?;
        hold_library(&space);
        ucontext::begin();
        if options.contexts == Contexts::Registered {
            ucontext::waive();
        }
        stop::install(options.stop_signal)?;
        fork::install()?;
        let process = Process {
            tracer: EntryTracer::new(
                ProcessText::new(Arc::clone(&space)),
                EntryPoints::new(Arc::clone(&space)),
            ),
            tasks: Tasks::new(Arc::clone(&space)),
            symbols: Symbols::new(Arc::clone(&space)),
            verifier: options.verifier,
            space,
        };
        if let Some(sink) = options.events {
            events::send_to(sink);
        }
        if process.verifier.is_none() {
            events::write(&Event::NotVerified);
        }
        Ok(Self::new(process, options.keep_removed))
    }

    /// Loads the patch object in the file at `path`, and makes it known to the engine; nothing is
    /// patched yet. The file's name without its extension is the patch's name if the file does not
    /// give one. The file is code that is going to run; who may write to it is not checked
    /// ([`load`](Self::load)). If signatures are ([`Options::verifier`]) and the file has none in it,
    /// the one in the file beside it counts, which is called the same with `.sig` behind it.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; nothing has changed then.
    pub fn load_file(&'static self, path: impl AsRef<Path>) -> Result<PatchId, LoadError> {
        let path = path.as_ref();
        let file = self.read(path)?;
        self.load(&file, &file::name(path))
    }

    /// The patch that was loaded from a file with the same contents as the one at `path` has now.
    ///
    /// # Errors
    ///
    /// [`LoadError::File`], and [`LoadError::Engine`] if the file is not trusted: that another one
    /// was is nothing to its credit.
    pub fn loaded_from(&self, path: impl AsRef<Path>) -> Result<Option<PatchId>, LoadError> {
        let path = path.as_ref();
        let file = self.read(path)?;
        elf::admit(self.engine.host(), &file, &file::name(path))?;
        Ok(self.space().patches.made_of(Digest::of(&file)))
    }

    /// The file of a patch object, with its signature if those are verified.
    fn read(&self, path: &Path) -> Result<Vec<u8>, LoadError> {
        file::read(path, self.engine.host().verifier().is_some())
    }

    /// Loads the patch object in the bytes `file`. `name` is the patch's name if it does not give
    /// one.
    ///
    /// A patch object is code that this process is going to run: whoever chooses it decides what
    /// the process does. Its form is checked, and its signature if [`Options::verifier`] says who may
    /// sign; what it does is not, nor, without that, who wrote it. That is not
    /// for this function to promise, and so it is no `unsafe` one: it does what the owner of a
    /// process can do to it from outside, too, with `ptrace` or `/proc/PID/mem`. `docs/safety.md`
    /// says where that line is drawn. A program must not pass on here what it was given by somebody
    /// whom it would not let run code.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; nothing has changed then.
    pub fn load(&'static self, file: &[u8], name: &str) -> Result<PatchId, LoadError> {
        let process = self.engine.host();
        let admitted = elf::admit(process, file, name)?;
        self.meet_unwinders(true).map_err(LoadError::Process)?;
        // SAFETY: the owner of the process decided on this code, as said above.
        let loaded = unsafe { elf::load(process, admitted, name) }?;
        let page = retired::first_page(loaded.image.image());
        if let Err((image, error)) = self.space().add(loaded.image) {
            // SAFETY: nobody knows it.
            unsafe { image.unload(process.text()) };
            return Err(LoadError::Process(error));
        }
        let added = self.engine.add(loaded.patch).map_err(|refused| {
            // SAFETY: the engine does not know the patch.
            unsafe { self.unload_image(page) };
            LoadError::Engine(refused.error)
        })?;
        self.space().patches.own(page, added, Digest::of(file));
        self.free_removed();
        Ok(added)
    }

    /// Looks for objects that came, and tells the unwinders in them of patches in memory, if any;
    /// loads the C library's one before, if asked to.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    fn meet_unwinders(&'static self, load: bool) -> Result<(), Error> {
        let space = self.space();
        space.refresh()?;
        if !load && space.patches.is_empty() {
            return Ok(());
        }
        let _visit = Visit::begin(self);
        if load && space.objects.are_linked_dynamically() {
            unwinders::load();
            space.refresh()?;
        }
        // Nobody waits for constructors of what another thread is opening: it comes here itself.
        let settled = self.libraries.lock().settled();
        let next = settled.min(space.objects.next_arrival());
        let since = space.patches.next_object();
        let objects = space.objects.all();
        let mut found = Vec::new();
        for object in objects
            .iter()
            .filter(|object| (since..next).contains(&object.arrival))
        {
            found.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
            found.extend(unwinders::of(object));
        }
        space.patches.meet(&found, next)
    }

    /// Forgets a disabled patch. Its memory is freed as soon as no stack points into it: now, if
    /// possible, or else by [`free_removed`](Self::free_removed), which later calls of this, of
    /// [`load`](Self::load) and of [`wait`](Self::wait) try again. The log says so
    /// ([`Event::MemoryKept`](klp_core::event::Event::MemoryKept)).
    ///
    /// # Errors
    ///
    /// Those of [`Engine::remove`](klp_core::Engine::remove); the patch stays then.
    pub fn unload(&self, patch: PatchId) -> Result<(), klp_core::Error> {
        let (name, page) = self.forget(patch)?;
        self.free_removed();
        let waits = page.is_some_and(|page| self.space().patches.is_retired(page));
        if let (Some(name), true) = (name, waits) {
            events::write(&Event::MemoryKept { patch: &name });
        }
        Ok(())
    }

    /// Frees the memory of patches that were unloaded, as far as no stack points into it; says how
    /// many patches keep theirs.
    ///
    /// A stack holds what any word on it points into, from its stack pointer on, or any register of
    /// its thread. To know these, each thread is stopped for a moment, as for a transition; but
    /// nobody is if a thread sleeps in a system call that a signal would end, or if the stack of a
    /// sleeping one holds all there is: then it stays as it is. What cannot be looked at (a thread
    /// that blocks the stop signal, a context that nobody has entered yet) holds everything, and so
    /// does [`Options::keep_removed`].
    pub fn free_removed(&self) -> usize {
        if !self.keep_removed && self.space().patches.count_retired() != 0 {
            sweep::scrub();
            self.sweep();
        }
        self.space().patches.count_retired()
    }

    /// Frees what no stack points into.
    #[inline(never)]
    fn sweep(&self) {
        // Threads are stopped by one at a time.
        let _at_rest = self.engine.freeze();
        // Without memory, or where `/proc` cannot be read, all of it stays for now.
        let mut free = self.space().patches.retired().unwrap_or_default();
        sweep::scrub();
        if sweep::keep_free(self.space(), &mut free).is_ok() {
            for image in free {
                // SAFETY: it is the image of a patch that the engine does not know any more; it
                // promises that no task is inside of it, and no stack points into it.
                unsafe { self.unload_image(image.page) };
            }
        }
    }

    /// Has the engine forget `patch`; its name, and the first page of its image, if it was loaded
    /// from a file. A function of its own, so that nothing of the patch is on the stack afterwards.
    #[inline(never)]
    fn forget(&self, patch: PatchId) -> Result<(Option<Name>, Option<u64>), klp_core::Error> {
        let used = self.engine.was_used(patch)?;
        let removed = self.engine.remove(patch)?;
        let page = self.space().patches.retire(patch);
        if let (Some(page), false) = (page, used) {
            // SAFETY: the engine has forgotten it, and nobody has ever been in it.
            unsafe { self.unload_image(page) };
        }
        Ok((removed.name().try_clone().ok(), page))
    }

    /// Frees the patch object that begins with page number `page`.
    ///
    /// # Safety
    ///
    /// The engine does not know its patch, no task is inside of it, and none has an address in it.
    unsafe fn unload_image(&self, page: u64) {
        if let Some(image) = self.space().remove(page) {
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
    /// those that the patch names first. The log says which are not there; so does
    /// [`Engine::waiting`](klp_core::Engine::waiting).
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
        let poll = self.engine.enable_all(patches)?;
        self.tell_waiting(patches);
        Ok(poll)
    }

    /// Logs what enabled patches wait for.
    pub(crate) fn tell_waiting(&self, patches: &[PatchId]) {
        let tell = |patch: &PatchId| -> Result<(), klp_core::Error> {
            let name = self
                .engine
                .with_patch(*patch, |patch| patch.name().try_clone())??;
            for object in self.engine.waiting(*patch)? {
                events::write(&Event::Waiting {
                    patch: &name,
                    object: &object,
                });
            }
            Ok(())
        };
        // It has been enabled; without memory for names nothing is said.
        let _ = patches.iter().try_for_each(tell);
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
    /// Memory that waits to be freed is [tried](Self::free_removed) then.
    pub fn wait(&self, timeout: Duration) -> bool {
        const MAX_PAUSE: Duration = Duration::from_millis(2);
        let end = Instant::now() + timeout;
        let mut pause = Duration::from_micros(100);
        loop {
            let begin = Instant::now();
            match self.engine.poll() {
                Poll::Idle | Poll::Complete { .. } => {
                    self.free_removed();
                    return true;
                }
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
