//! Which objects patches have to do with: those that are *alive*, completely loaded and held in
//! memory (kernel: `mod->klp_alive`).
//!
//! ```text
//!           open_library: loaded, let in          the last Library::close: let go
//!   (nothing) ──────────────────────────► alive ──────────────────────────────────► (nothing)
//!       │                                   ▲
//!       │ plain dlopen                      │ adopt: held for good, let in
//!       └─────────────► stranger ───────────┘
//! ```
//!
//! The executable is alive from the beginning. The dynamic linker shows a library as soon as it is
//! mapped, before it is relocated: whoever let it in then would find its table of entry pads empty,
//! and write into memory that the dynamic linker still writes to.
//!
//! # Lock order
//!
//! The dynamic linker's lock (held throughout a `dlopen`, constructors included) → [`Known`] → the
//! engine's lock → the locks of [`Space`](super::space::Space). Constructors may call the engine
//! therefore; callbacks of patches must not call the dynamic linker.

use super::error::{Error, LoadError};
use super::events;
use super::libraries::Known;
use super::linker::Handle;
use super::livepatch::Livepatch;
use super::lock::give_way;
use super::objects::Object;
use super::sys::{self, gettid};
use alloc::sync::Arc;
use core::time::Duration;
use klp_core::addr::CodeAddr;
use klp_core::engine::PatchId;
use klp_core::event::Event;
use klp_core::mem::Name;

/// A thread is inside of the dynamic linker for the engine. `fork` waits for its end.
pub(super) struct Visit {
    livepatch: &'static Livepatch,
    since: u64,
}

impl Visit {
    /// Nothing is loaded by it.
    pub(super) fn begin(livepatch: &'static Livepatch) -> Self {
        Self::since(livepatch, u64::MAX)
    }

    /// Something is loaded by it: others leave objects alone that came since it began. It takes
    /// care of them itself, and who tried to hold them would wait for their constructors.
    pub(super) fn begin_loading(livepatch: &'static Livepatch) -> Result<Self, LoadError> {
        livepatch.space().refresh().map_err(LoadError::Process)?;
        Ok(Self::since(
            livepatch,
            livepatch.space().objects.next_arrival(),
        ))
    }

    fn since(livepatch: &'static Livepatch, since: u64) -> Self {
        give_way();
        livepatch.libraries.lock().visits.push((since, gettid()));
        Self { livepatch, since }
    }

    /// Ends it; the number of the first object that may have come by it.
    pub(super) fn end(self) -> u64 {
        self.since
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let visits = &mut self.livepatch.libraries.lock().visits;
        // In the child of a `fork` by a constructor, it was forgotten.
        if let Some(index) = visits.iter().position(|(since, _)| *since == self.since) {
            visits.swap_remove(index);
        }
    }
}

impl Livepatch {
    /// Takes in the libraries that patches in force name and that came without
    /// [`open_library`](Self::open_library): those that were loaded with the program, or by a plain
    /// `dlopen`. The enabled patches are applied to them. Such a library stays in memory until the
    /// process ends, also after a plain `dlclose`: nothing must be unmapped under a patch.
    ///
    /// [`enable`](Self::enable) does this for the libraries that its patch names, before the patch
    /// is enabled, so that they change together with everything else. `adopt` is for libraries that
    /// came later. The patches are applied to such a library at once, as to one that is just being
    /// loaded: a thread that is inside of it at that moment may see both versions in one call.
    /// `open_library` leaves no such moment.
    ///
    /// Waits for a `dlopen` of such a library that is under way in another thread, its constructors
    /// included, except for `open_library`, which applies the patches itself.
    ///
    /// # Errors
    ///
    /// [`LoadError::Engine`] if a patch does not fit a library or a callback vetoed;
    /// [`Error::NameTaken`] and [`Error::Outside`] if there is another library of its name, which
    /// is not patched; [`Error::NotHeld`]. That library is left alone then, until the next call;
    /// the others are taken in. The first such error is returned.
    pub fn adopt(&'static self) -> Result<(), LoadError> {
        let in_force = |name: &str| self.engine().patches_object(name);
        self.adopt_if(|object| in_force(&object.name))
            .and_then(|()| self.check_alone(in_force).map_err(LoadError::Process))
            .inspect_err(tell)
    }

    /// As [`adopt`](Self::adopt), if objects came or went since it was called with `seen` before,
    /// and without those that were refused before: to be called again and again.
    #[cfg(feature = "control")]
    pub(crate) fn adopt_new(&'static self, seen: &mut Option<(u64, u64)>) -> Result<(), LoadError> {
        self.space().refresh().map_err(LoadError::Process)?;
        let now = Some(self.space().objects.counts());
        if core::mem::replace(seen, now) == now {
            return Ok(());
        }
        let in_force = |name: &str| self.engine().patches_object(name);
        self.adopt_if(|object| !object.is_refused() && in_force(&object.name))
            .and_then(|()| self.check_alone(in_force).map_err(LoadError::Process))
            .inspect_err(tell)
    }

    /// As [`adopt`](Self::adopt), for the libraries that `patch` names; all or none of them.
    ///
    /// # Errors
    ///
    /// As there, as the engine says it; and [`Error::BadFile`] if nobody knows what is in memory of
    /// one.
    pub(crate) fn adopt_for(&'static self, patch: PatchId) -> Result<(), klp_core::Error> {
        let engine = self.engine();
        let names = |name: &str| {
            let names = engine.with_patch(patch, |patch| {
                patch.objects().iter().any(|object| object.name() == name)
            });
            names.unwrap_or(false)
        };
        self.space()
            .refresh()
            .and_then(|()| self.check_alone(names))
            .and_then(|()| self.check_intact(names))
            .map_err(LoadError::Process)
            .and_then(|()| self.adopt_if(|object| names(&object.name)))
            .or_else(|error| match error {
                LoadError::Engine(error) => Err(error),
                LoadError::Process(error) => engine.with_patch(patch, |patch| {
                    Err(klp_core::Error::port(
                        "adopting libraries",
                        patch.name(),
                        &error,
                    ))
                })?,
                LoadError::File { .. } | LoadError::Library { .. } => {
                    Err(klp_core::Error::Bug("adopting loads no file"))
                }
            })
    }

    /// Takes in the strangers that `which` says.
    pub(super) fn adopt_if(
        &'static self,
        which: impl Fn(&Object) -> bool,
    ) -> Result<(), LoadError> {
        self.meet_unwinders(false).map_err(LoadError::Process)?;
        let objects = self.space().objects.all();
        // Not before the list was made: one that is being opened is in the list only if its opening
        // had begun.
        let settled = self.libraries.lock().settled();
        let mut result = Ok(());
        for object in objects
            .iter()
            .filter(|object| object.arrival < settled && object.is_stranger() && which(object))
        {
            let _visit = Visit::begin(self);
            let Some(handle) = Handle::hold(object) else {
                result = result.and(self.check_gone(object).map_err(LoadError::Process));
                continue;
            };
            let current = handle
                .place()
                .and_then(|place| self.space().objects.at(place));
            let let_in = match current.filter(|current| Arc::ptr_eq(current, object)) {
                Some(object) => self.let_in(&mut self.libraries.lock(), &object),
                // It was unloaded, and has come again since the list was made.
                None => Ok(false),
            };
            if !matches!(let_in, Ok(true)) {
                // SAFETY: nobody was let in by this handle, and whoever loaded the library holds it
                // by another.
                result = result.and(unsafe { handle.close() }.map_err(LoadError::Process));
            }
            result = result.and(let_in.map(drop));
        }
        result
    }

    /// Refuses if one of the objects that `which` names is there twice: patches could not tell which
    /// is meant, and one would stay as it is.
    fn check_alone(&self, which: impl Fn(&str) -> bool) -> Result<(), Error> {
        let settled = self.libraries.lock().settled();
        let objects = self.space().objects.all();
        let mut known: Vec<&Object> = Vec::new();
        // One that is being opened is refused by its own opening.
        for object in objects
            .iter()
            .filter(|object| object.arrival < settled && which(&object.name))
        {
            match known.iter().find(|other| other.name == object.name) {
                Some(other) => return Err(name_taken(other, object)),
                None => known.push(object),
            }
        }
        self.check_outside(&which)
    }

    /// Refuses if there is a copy of one of the objects that `which` names which cannot be patched.
    fn check_outside(&self, which: &impl Fn(&str) -> bool) -> Result<(), Error> {
        let find = || -> Result<_, Error> {
            let mut outsiders = self.space().objects.outsiders()?.into_iter();
            Ok(outsiders.find(|outsider| which(&outsider.name)))
        };
        let mut found = None;
        // What another thread is just loading or unloading by the dynamic linker is outside of its
        // list for a moment.
        for _ in 0..OUTSIDE_LOOKS {
            found = find()?;
            if found.is_none() {
                return Ok(());
            }
            sys::nap(Duration::from_millis(1));
            self.space().refresh()?;
        }
        found.map_or(Ok(()), |outsider| {
            Err(Error::Outside {
                object: Name::new(&outsider.name)?,
                file: Name::display(&outsider.mapping.path().display())?,
                at: CodeAddr::new(outsider.mapping.range.start),
            })
        })
    }

    /// Refuses if nobody knows what is in memory of one of the objects that `which` names.
    fn check_intact(&self, which: impl Fn(&str) -> bool) -> Result<(), Error> {
        let objects = self.space().objects.all();
        for object in objects.iter().filter(|object| which(&object.name)) {
            // Nothing is known of one that another thread is just unloading.
            if let Err(error) = object.check_intact() {
                if self.is_there(object)? {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether `object` is still there.
    fn is_there(&self, object: &Object) -> Result<bool, Error> {
        self.space().refresh()?;
        let objects = self.space().objects.all();
        Ok(objects.iter().any(|other| core::ptr::eq(&**other, object)))
    }

    /// Refuses if `object`, which cannot be held, is still there.
    fn check_gone(&self, object: &Object) -> Result<(), Error> {
        if self.is_there(object)? {
            object.set_refused(true);
            return Err(Error::NotHeld {
                object: Name::new(&object.name)?,
            });
        }
        Ok(())
    }

    /// Makes `object` alive, and applies the enabled patches to it. The caller holds it in memory.
    /// `false` if it was alive already.
    pub(super) fn let_in(&self, _: &mut Known, object: &Object) -> Result<bool, LoadError> {
        if object.is_alive() {
            return Ok(false);
        }
        object.set_refused(true);
        if let Some(other) = self.space().objects.named(&object.name) {
            return Err(LoadError::Process(name_taken(&other, object)));
        }
        if self.engine().patches_object(&object.name) {
            object
                .check_intact()
                .and_then(|()| self.check_outside(&|name: &str| name == object.name))
                .map_err(LoadError::Process)?;
        }
        object.set_alive();
        // SAFETY: no thread is inside of what `open_library` has just loaded. Others may be inside
        // of a library that is adopted; that its patches then bear both versions in one call is
        // what `adopt` tells those who choose them.
        if let Err(error) = unsafe { self.engine().object_coming(&object.name) } {
            // The engine has taken all back, and no patch has got into it since (`Process::event`).
            object.set_leaving();
            object.left();
            return Err(LoadError::Engine(error));
        }
        object.set_refused(false);
        Ok(true)
    }

    /// Takes all patches back from `object`. The caller lets go of it, and it has
    /// [left](Object::left) then.
    ///
    /// # Safety
    ///
    /// As for [`Engine::object_going`](klp_core::Engine::object_going).
    pub(super) unsafe fn let_go(&self, _: &mut Known, object: &Object) {
        // A patch that is enabled from here on must not get into it any more, and none that is
        // being enabled now half.
        let frozen = self.engine().freeze();
        object.set_leaving();
        drop(frozen);
        // SAFETY: the caller's promise.
        unsafe { self.engine().object_going(&object.name) };
    }

    /// Whether it does no harm that `object` cannot be let in because another one has its name: no
    /// patch in force names it. Plugins are often called alike.
    pub(super) fn may_stay_stranger(&self, object: &Object) -> bool {
        self.space().objects.named(&object.name).is_some()
            && !self.engine().patches_object(&object.name)
    }
}

/// How often a copy that the dynamic linker does not show is looked at before it is one.
const OUTSIDE_LOOKS: u32 = 20;

/// The error for two objects of one name.
fn name_taken(one: &Object, other: &Object) -> Error {
    let build = || -> Result<Error, Error> {
        Ok(Error::NameTaken {
            object: Name::new(&one.name)?,
            one: Name::display(&one.path().display())?,
            other: Name::display(&other.path().display())?,
        })
    };
    build().unwrap_or_else(|error| error)
}

/// Logs what the engine has not logged itself.
fn tell(error: &LoadError) {
    if let LoadError::Process(error) = error {
        let why = error.to_string();
        events::write(&Event::NotAdopted { why: &why });
    }
}
