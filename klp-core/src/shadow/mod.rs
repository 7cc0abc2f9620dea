//! Shadow variables: fields that patched code adds to objects it cannot enlarge (kernel:
//! `kernel/livepatch/shadow.c`).
//!
//! A variable belongs to an object, known by its address, and has a numeric id that says what it
//! is; an object may have one of each id. [`Shadow`] is the typed layer, for Rust code: begin
//! there. [`ShadowTable`] is the raw one, with Linux's operations.
//!
//! # What it costs
//!
//! A lookup waits for nobody, writes nothing that others share, and never tries again. Each id has
//! a hash table of its own, so it is one hash and, as a rule, one cache line beside those that
//! every lookup of this id uses, whether there are ten variables or a million. Making and freeing
//! variables takes the one lock of all.
//!
//! A table grows, to twice its size, when it holds three variables per two 64-byte lines, so a
//! variable takes 43 to 85 bytes beside its data. Growth is spread over the variables that are made
//! from then on: with each, 16 lines and their overflow lines are copied, so no operation holds the
//! lock for long, but for [`free_all`](ShadowTable::free_all). The tables that were grown out of
//! stay, because lookups may be in them: together as much again as those in use, until
//! [`retire`](ShadowTable::retire) or the end. Tables never shrink, and ids are never forgotten:
//! they are meant to be few (hundreds).
//!
//! # Locking rules
//!
//! * Constructors and destructors run with the table's lock held. They must not make or free
//!   variables of the same table, which would wait for ever; [`get`](ShadowTable::get) is allowed,
//!   and does not find the variable that is being made or freed. If the host's lock spins they must
//!   not sleep.
//! * A constructor runs at most once per call and exactly once per variable, before anybody can
//!   find it.
//! * The allocator is called with the lock held for an overflow line (64 bytes) and for an id's
//!   first table (1 KiB and a little). What a variable needs itself, and the table to grow into,
//!   are allocated before; freeing allocates nothing. Variables are freed with the lock held,
//!   tables without. That a table cannot grow for want of memory is no error: it gets slower, and a
//!   later variable tries again.
//! * The table protects itself, not what is in the variables, and not their lifetime: who frees one
//!   promises that nobody uses it. A lookup that runs while the same variable is freed may find it,
//!   and must not use it, as in Linux.

mod block;
pub mod c;
mod class;
mod error;
mod index;
mod line;
mod sync;
mod table;
mod typed;

pub use error::ShadowError;
pub use index::Retired;
pub use typed::Shadow;

use crate::mem::OutOfMemory;
use block::Block;
use class::{Class, Classes, Tables};
use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;
use line::{NOWHERE, Variable};
use lock_api::{Mutex, RawMutex};
use sync::{AtomicBool, Ordering, Writer};
use table::Table;

/// All shadow variables of a system (kernel: `klp_shadow_hash`). `L` is the lock of those who make
/// and free variables.
///
/// A host has one, usually in a `static`. When a table is dropped, the memory of its variables is
/// freed, without destructors.
///
/// # Example
///
/// ```
/// use core::alloc::Layout;
/// use klp_core::shadow::{ShadowError, ShadowTable, nothing, zeroed};
///
/// const PS_LOCK: u64 = 1;
/// static SHADOWS: ShadowTable<spin::Mutex<()>> = ShadowTable::new();
///
/// let station = &0_u8 as *const u8 as usize;
/// let lock = SHADOWS.alloc(station, PS_LOCK, Layout::new::<u32>(), zeroed)?;
/// assert_eq!(SHADOWS.get(station, PS_LOCK), Some(lock));
/// assert_eq!(
///     SHADOWS.alloc(station, PS_LOCK, Layout::new::<u32>(), zeroed),
///     Err(ShadowError::Duplicate { obj: station, id: PS_LOCK }),
/// );
/// // SAFETY: nobody uses the variable.
/// assert!(unsafe { SHADOWS.free(station, PS_LOCK, nothing) });
/// assert_eq!(SHADOWS.get(station, PS_LOCK), None);
/// # Ok::<(), ShadowError>(())
/// ```
pub struct ShadowTable<L: RawMutex> {
    classes: Classes,
    /// Whether tables were grown out of that nobody knows of.
    outgrown: AtomicBool,
    /// Who holds it is the writer.
    writer: Mutex<L, Writer>,
}

impl<L: RawMutex> ShadowTable<L> {
    /// A table without variables; it allocates when the first one comes.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        // SAFETY: this table's, which has no other.
        let writer = unsafe { Writer::new() };
        Self {
            classes: Classes::new(),
            outgrown: AtomicBool::new(false),
            writer: Mutex::const_new(L::INIT, writer),
        }
    }

    /// A table without variables; it allocates when the first one comes.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        // SAFETY: this table's, which has no other.
        let writer = unsafe { Writer::new() };
        Self {
            classes: Classes::new(),
            outgrown: AtomicBool::new(false),
            writer: Mutex::const_new(L::INIT, writer),
        }
    }

    /// The data of the variable `<obj, id>` (kernel: `klp_shadow_get`). Never waits; may be called
    /// anywhere.
    #[inline]
    pub fn get(&self, obj: usize, id: u64) -> Option<NonNull<u8>> {
        if obj == NOWHERE {
            None
        } else {
            Some(self.classes.find(id)?.find(obj)?.data())
        }
    }

    /// Makes the variable `<obj, id>`, which must not exist (kernel: `klp_shadow_alloc`).
    ///
    /// Its data is of the size and alignment that `layout` says, and zeroed. It is never aligned to
    /// less than its size rounded up to a power of two, or to 16 bytes if that is less, or to less
    /// than a word. Then `ctor(obj, data)` runs, under the rules in the [module's
    /// page](self#locking-rules); an error number from it is an error of this call.
    ///
    /// # Errors
    ///
    /// [`ShadowError`]; nothing has changed then. If the constructor refused, its variable was
    /// never to be found.
    #[inline]
    pub fn alloc(
        &self,
        obj: usize,
        id: u64,
        layout: Layout,
        ctor: impl FnOnce(usize, NonNull<u8>) -> Result<(), i32>,
    ) -> Result<NonNull<u8>, ShadowError> {
        if self.get(obj, id).is_some() {
            return Err(ShadowError::Duplicate { obj, id });
        }
        match self.make(obj, id, layout, ctor)? {
            Made::New(data) => Ok(data),
            Made::Found(_) => Err(ShadowError::Duplicate { obj, id }),
        }
    }

    /// The data of the variable `<obj, id>`, which is made as [`alloc`](ShadowTable::alloc) does it
    /// if there is none (kernel: `klp_shadow_get_or_alloc`).
    ///
    /// # Errors
    ///
    /// [`ShadowError`], but never [`Duplicate`](ShadowError::Duplicate).
    #[inline]
    pub fn get_or_alloc(
        &self,
        obj: usize,
        id: u64,
        layout: Layout,
        ctor: impl FnOnce(usize, NonNull<u8>) -> Result<(), i32>,
    ) -> Result<NonNull<u8>, ShadowError> {
        if let Some(data) = self.get(obj, id) {
            return Ok(data);
        }
        match self.make(obj, id, layout, ctor)? {
            Made::New(data) | Made::Found(data) => Ok(data),
        }
    }

    /// Frees the variable `<obj, id>`; whether there was one (kernel: `klp_shadow_free`).
    ///
    /// It is taken out, then `dtor(obj, data)` runs, under the rules in the [module's
    /// page](self#locking-rules), then its memory goes.
    ///
    /// # Safety
    ///
    /// Nobody uses the variable's data any more.
    pub unsafe fn free(&self, obj: usize, id: u64, dtor: impl FnOnce(usize, NonNull<u8>)) -> bool {
        let writer = self.writer.lock();
        let Some(block) = self
            .classes
            .find(id)
            .and_then(|class| class.remove(&writer, obj))
        else {
            return false;
        };
        // SAFETY: `make` gave the block to the table, which has just let go of it; by the caller's
        // promise nobody uses it.
        let block = unsafe { Block::from_handle(block) };
        dtor(obj, block.data());
        true
    }

    /// Frees all variables of this id, of whatever object; how many there were (kernel:
    /// `klp_shadow_free_all`).
    ///
    /// Each is freed as [`free`](ShadowTable::free) does it.
    ///
    /// # Safety
    ///
    /// Nobody uses the data of these variables any more.
    pub unsafe fn free_all(&self, id: u64, mut dtor: impl FnMut(usize, NonNull<u8>)) -> usize {
        let mut tables = Tables::default();
        let writer = self.writer.lock();
        let Some(class) = self.classes.find(id) else {
            return 0;
        };
        let variables = class.len(&writer);
        class.remove_all(&writer, &mut tables, |variable| {
            // SAFETY: as in `free`.
            let block = unsafe { Block::from_handle(variable.block) };
            dtor(variable.obj, block.data());
        });
        variables
    }

    /// Makes room for `additional` more variables of this id, so that making them grows nothing.
    ///
    /// All that growth costs is paid here. The lock is given back after every few lines, and no big
    /// table is allocated with it held.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; all variables are as before then.
    pub fn reserve(&self, id: u64, additional: usize) -> Result<(), OutOfMemory> {
        let (class, variables) = {
            let writer = self.writer.lock();
            let class = self.classes.find_or_make(&writer, id)?;
            (
                class,
                class
                    .len(&writer)
                    .checked_add(additional)
                    .ok_or(OutOfMemory)?,
            )
        };
        let mut tables = Tables::default();
        loop {
            let lines = {
                let writer = self.writer.lock();
                if class.grow(&writer, &mut tables)? {
                    self.outgrown.store(true, Ordering::Relaxed);
                }
                if class.index().grows() {
                    continue;
                }
                let Some(lines) = class.lines_wanted(&writer, variables)? else {
                    return Ok(());
                };
                lines
            };
            tables.bigger = Some(Table::new(lines)?);
        }
    }

    /// Whether the table of this id holds more than it should, because it could not grow: there was
    /// no memory for a bigger one, or whoever made variables could not wait for it. Lookups are
    /// slower then. Never waits; may be called anywhere.
    #[must_use]
    pub fn is_crowded(&self, id: u64) -> bool {
        self.classes.find(id).is_some_and(Class::is_crowded)
    }

    /// Grows every [crowded](ShadowTable::is_crowded) table, where it may take its time, as
    /// [`reserve`](ShadowTable::reserve) does it. A table for which there is no memory stays as it
    /// is.
    pub fn make_room(&self) {
        for class in self.classes.iter().filter(|class| class.is_crowded()) {
            // It works as before, only slower.
            let _ = self.reserve(class.id(), 0);
        }
    }

    /// Whether tables have been grown out of since this was last asked, so that
    /// [`retire`](ShadowTable::retire) hands them out. For hosts that give memory back as soon as
    /// they can. Never waits; may be called anywhere.
    pub fn take_outgrown(&self) -> bool {
        // Read first: a word that nobody writes costs readers nothing.
        self.outgrown.load(Ordering::Relaxed) && self.outgrown.swap(false, Ordering::Relaxed)
    }

    /// Hands out the tables that were grown out of, to be freed when no lookup is in them any more.
    ///
    /// ```
    /// # use klp_core::shadow::ShadowTable;
    /// fn tidy(shadows: &ShadowTable<spin::Mutex<()>>, wait_for_lookups: impl FnOnce()) {
    ///     let retired = shadows.retire();
    ///     wait_for_lookups();
    ///     // SAFETY: every lookup that began before `retire` has ended.
    ///     unsafe { retired.free() };
    /// }
    /// ```
    pub fn retire(&self) -> Retired {
        let writer = self.writer.lock();
        let mut retired = Retired::none();
        self.classes
            .iter()
            .for_each(|class| class.index().retire(&writer, &mut retired));
        retired
    }

    /// Keeps variables from being made and freed until the guard is dropped, for a host that must
    /// not be changed under its feet (a process about to `fork`). Lookups go on.
    pub fn freeze(&self) -> impl Drop + '_ {
        self.writer.lock()
    }

    /// Variables, of all ids.
    #[must_use]
    pub fn len(&self) -> usize {
        let writer = self.writer.lock();
        self.classes.iter().map(|class| class.len(&writer)).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes a variable unless another task has made it first.
    fn make(
        &self,
        obj: usize,
        id: u64,
        layout: Layout,
        ctor: impl FnOnce(usize, NonNull<u8>) -> Result<(), i32>,
    ) -> Result<Made, ShadowError> {
        if obj == NOWHERE {
            return Err(ShadowError::NoObject);
        }
        // Allocated before the lock is taken, and freed, if not used, after it is given back.
        let block = Block::zeroed(layout)?;
        let mut tables = self
            .classes
            .find(id)
            .map_or_else(Tables::default, Class::tables);
        let writer = self.writer.lock();
        let class = self.classes.find_or_make(&writer, id)?;
        if let Some(block) = class.find(obj) {
            return Ok(Made::Found(block.data()));
        }
        let vacancy = class.vacancy(&writer, obj)?;
        ctor(obj, block.data()).map_err(|errno| ShadowError::Constructor { obj, id, errno })?;
        let block = block.into_handle();
        if class.add(&writer, vacancy, Variable { obj, block }, &mut tables) {
            self.outgrown.store(true, Ordering::Relaxed);
        }
        Ok(Made::New(block.data()))
    }
}

impl<L: RawMutex> Default for ShadowTable<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: RawMutex> Drop for ShadowTable<L> {
    fn drop(&mut self) {
        let writer = self.writer.get_mut();
        for variable in self
            .classes
            .iter()
            .flat_map(|class| class.index().variables(writer))
        {
            // SAFETY: `make` gave the block to the table, which ends here; the lines that still
            // point to it are not read again.
            drop(unsafe { Block::from_handle(variable.block) });
        }
    }
}

impl<L: RawMutex> fmt::Debug for ShadowTable<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShadowTable").finish_non_exhaustive()
    }
}

/// The constructor that leaves the data zeroed.
///
/// # Errors
///
/// None.
pub fn zeroed(_obj: usize, _data: NonNull<u8>) -> Result<(), i32> {
    Ok(())
}

/// The destructor that does nothing.
pub fn nothing(_obj: usize, _data: NonNull<u8>) {}

/// What [`ShadowTable::make`] came to.
enum Made {
    New(NonNull<u8>),
    Found(NonNull<u8>),
}
