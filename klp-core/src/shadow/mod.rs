//! Shadow variables: fields that patched code adds to objects it cannot enlarge (kernel: `kernel/livepatch/shadow.c`).
//!
//! A variable belongs to an object, known by its address, and has a numeric id that says what it is; an object may have one of each
//! id. [`Shadow`] is the typed layer, for Rust code: begin there. [`ShadowTable`] is the raw one, with Linux's operations.
//!
//! # What it costs
//!
//! A lookup waits for nobody, writes nothing that others share, and never tries again: it is one hash and, as a rule, one cache line,
//! whether there are ten variables or a million. Making and freeing variables takes the table's lock.
//!
//! The table doubles when it holds more than one variable per 64-byte line, so it takes 64 to 128 bytes per variable. The tables
//! that it has grown out of stay, because lookups may be in them: together as much again as the newest, until
//! [`retire`](ShadowTable::retire) or the end. It never shrinks.
//!
//! # Locking rules
//!
//! * Constructors and destructors run with the table's lock held. They must not make or free variables of the same table, which would
//!   wait for ever; [`get`](ShadowTable::get) is allowed, and does not find the variable that is being made or freed. If the
//!   host's lock spins they must not sleep.
//! * A constructor runs at most once per call and exactly once per variable, before anybody can find it.
//! * The allocator is called with the lock held when the table needs room (not for the variable's own memory).
//!   [`reserve`](ShadowTable::reserve) makes the room beforehand.
//! * The table protects itself, not what is in the variables, and not their lifetime: who frees one promises that nobody uses it.
//!   A lookup that runs while the same variable is freed may find it, and must not use it, as in Linux.

mod block;
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
use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;
use index::Index;
use line::Variable;
use lock_api::{Mutex, RawMutex};
use table::Table;

/// Lines of the first table. A model checker wants few.
const FIRST_LINES: usize = if cfg!(loom) { 1 } else { 16 };

/// Variables that a table of `lines` lines takes before it doubles: three for four lines, so that one in 20 or fewer is in an overflow
/// line. The model must get to see overflow lines.
const fn limit(lines: usize) -> usize {
    if cfg!(loom) { 3 * lines } else { lines / 4 * 3 }
}

/// All shadow variables of a system (kernel: `klp_shadow_hash`). `L` is the lock of those who make and free variables.
///
/// A host has one, usually in a `static`. When a table is dropped, the memory of its variables is freed, without destructors.
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
    index: Index,
    /// Who holds it is the writer.
    count: Mutex<L, Count>,
}

/// What the writer counts.
#[derive(Debug)]
struct Count {
    variables: usize,
    /// As many variables call for a bigger table.
    limit: usize,
}

impl<L: RawMutex> ShadowTable<L> {
    /// A table without variables; it allocates when the first one comes.
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        Self { index: Index::new(), count: Mutex::const_new(L::INIT, Count { variables: 0, limit: 0 }) }
    }

    /// A table without variables; it allocates when the first one comes.
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        Self { index: Index::new(), count: Mutex::const_new(L::INIT, Count { variables: 0, limit: 0 }) }
    }

    /// The data of the variable `<obj, id>` (kernel: `klp_shadow_get`). Never waits; may be called anywhere.
    #[inline]
    pub fn get(&self, obj: usize, id: u64) -> Option<NonNull<u8>> {
        self.index.find(obj, id)
    }

    /// Makes the variable `<obj, id>`, which must not exist (kernel: `klp_shadow_alloc`).
    ///
    /// Its data is of the size and alignment that `layout` says, aligned to 16 bytes at least, and zeroed. Then `ctor(obj, data)`
    /// runs, under the rules in the [module's page](self#locking-rules); an error number from it is an error of this call.
    ///
    /// # Errors
    ///
    /// [`ShadowError`]; nothing has changed then. If the constructor refused, its variable was never to be found.
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

    /// The data of the variable `<obj, id>`, which is made as [`alloc`](ShadowTable::alloc) does it if there is none (kernel:
    /// `klp_shadow_get_or_alloc`).
    ///
    /// # Errors
    ///
    /// [`ShadowError::OutOfMemory`], [`ShadowError::Constructor`].
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
    /// It is taken out, then `dtor(obj, data)` runs, under the rules in the [module's page](self#locking-rules), then its memory goes.
    ///
    /// # Safety
    ///
    /// Nobody uses the variable's data any more.
    pub unsafe fn free(&self, obj: usize, id: u64, dtor: impl FnOnce(usize, NonNull<u8>)) -> bool {
        let mut count = self.count.lock();
        let Some(data) = self.index.current().and_then(|table| table.remove(obj, id)) else { return false };
        count.variables -= 1;
        // SAFETY: `make` gave the block to the table, which has just let go of it; by the caller's promise nobody uses it.
        let block = unsafe { Block::from_raw(data) };
        dtor(obj, block.data());
        true
    }

    /// Frees all variables of this id, of whatever object; how many there were (kernel: `klp_shadow_free_all`).
    ///
    /// Each is freed as [`free`](ShadowTable::free) does it. Goes through the whole table.
    ///
    /// # Safety
    ///
    /// Nobody uses the data of these variables any more.
    pub unsafe fn free_all(&self, id: u64, mut dtor: impl FnMut(usize, NonNull<u8>)) -> usize {
        let mut count = self.count.lock();
        let before = count.variables;
        if let Some(table) = self.index.current() {
            table.remove_all(id, |variable| {
                count.variables -= 1;
                // SAFETY: as in `free`.
                let block = unsafe { Block::from_raw(variable.data) };
                dtor(variable.obj, block.data());
            });
        }
        before - count.variables
    }

    /// Makes room for `additional` more variables, so that making them grows nothing.
    ///
    /// Growing moves every variable under the lock: a patch that will make many calls this first, where it may take its time.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]; nothing has changed then.
    pub fn reserve(&self, additional: usize) -> Result<(), OutOfMemory> {
        let mut count = self.count.lock();
        let variables = count.variables.checked_add(additional).ok_or(OutOfMemory)?;
        let now = self.index.current().map_or(0, Table::lines);
        let mut lines = now.max(FIRST_LINES);
        while limit(lines) < variables {
            lines = lines.checked_mul(2).ok_or(OutOfMemory)?;
        }
        if lines == now { Ok(()) } else { self.grow(&mut count, lines) }
    }

    /// Hands out the tables that this one has grown out of, to be freed when no lookup is in them any more.
    pub fn retire(&self) -> Retired {
        let _writer = self.count.lock();
        self.index.retire()
    }

    /// Variables.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count.lock().variables
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
        // Allocated before the lock is taken, and on errors freed after it is given back.
        let block = Block::zeroed(layout)?;
        let mut count = self.count.lock();
        if let Some(data) = self.get(obj, id) {
            return Ok(Made::Found(data));
        }
        let vacancy = self.roomy(&mut count)?.vacancy(obj, id)?;
        ctor(obj, block.data()).map_err(|errno| ShadowError::Constructor { obj, id, errno })?;
        let data = block.into_raw();
        vacancy.fill(Variable { obj, id, data });
        count.variables += 1;
        Ok(Made::New(data))
    }

    /// The table, grown if it is time to.
    fn roomy(&self, count: &mut Count) -> Result<&Table, OutOfMemory> {
        if count.variables >= count.limit {
            let lines = self.index.current().map_or(FIRST_LINES, |table| table.lines() * 2);
            if self.grow(count, lines).is_err() {
                // A full table works, only slower. Not at once again: a failed attempt is not cheap.
                count.limit = count.variables + lines / 16 + 1;
            }
        }
        self.index.current().ok_or(OutOfMemory)
    }

    fn grow(&self, count: &mut Count, lines: usize) -> Result<(), OutOfMemory> {
        self.index.grow(lines)?;
        count.limit = limit(lines);
        Ok(())
    }
}

impl<L: RawMutex> Default for ShadowTable<L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<L: RawMutex> Drop for ShadowTable<L> {
    fn drop(&mut self) {
        for variable in self.index.variables() {
            // SAFETY: `make` gave the block to the table, which ends here; the lines that still point to it are not read again.
            drop(unsafe { Block::from_raw(variable.data) });
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
