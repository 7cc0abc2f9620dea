//! Shadow variables of one type.

use super::{ShadowError, ShadowTable};
use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use lock_api::RawMutex;

/// The shadow variables of one id, all of type `T`: a field that patched code adds to objects it
/// cannot enlarge.
///
/// # Example
///
/// A counter for each connection, of which the running program knows nothing:
///
/// ```
/// use core::sync::atomic::{AtomicU32, Ordering};
/// use klp_core::shadow::{Shadow, ShadowTable};
///
/// type Table = ShadowTable<spin::Mutex<()>>;
/// static SHADOWS: Table = ShadowTable::new();
/// // SAFETY: the id 1 is used for nothing else in this table.
/// static RETRIES: Shadow<AtomicU32, spin::Mutex<()>> = unsafe { Shadow::new(&SHADOWS, 1) };
///
/// struct Connection { fd: i32 }
///
/// /// The replacement of a function that may meet connections from before the patch.
/// fn retry(connection: &Connection) -> Result<bool, klp_core::shadow::ShadowError> {
///     let retries = RETRIES.get_or_alloc(connection, || AtomicU32::new(0))?;
///     Ok(retries.fetch_add(1, Ordering::Relaxed) < 2)
/// }
///
/// /// The replacement of the function that ends a connection.
/// fn close(connection: Box<Connection>) {
///     // SAFETY: the connection is owned here, so nobody else asks for its counter or uses it.
///     unsafe { RETRIES.free(&*connection) };
/// }
///
/// let connection = Box::new(Connection { fd: 3 });
/// assert!(RETRIES.get(&*connection).is_none());
/// assert!(retry(&connection)? && retry(&connection)?);
/// assert!(!retry(&connection)?);
/// close(connection);
/// assert_eq!(SHADOWS.len(), 0);
/// # Ok::<(), klp_core::shadow::ShadowError>(())
/// ```
pub struct Shadow<T: 'static, L: RawMutex + 'static> {
    table: &'static ShadowTable<L>,
    id: u64,
    /// Gives and takes `T` from any thread; has none itself.
    of: PhantomData<fn(T) -> T>,
}

impl<T: Send + Sync + 'static, L: RawMutex> Shadow<T, L> {
    /// Binds `id` in `table` to the type `T`.
    ///
    /// # Safety
    ///
    /// Every variable of this id in this table is made, and freed, through a `Shadow` of the same
    /// type; if several patches use it, of a type with the same meaning of every byte. (The raw
    /// layer cannot know what is in a variable.)
    pub const unsafe fn new(table: &'static ShadowTable<L>, id: u64) -> Self {
        Self {
            table,
            id,
            of: PhantomData,
        }
    }

    /// The id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The variable of `obj`. Never waits.
    #[inline]
    pub fn get<O: ?Sized>(&self, obj: *const O) -> Option<&'static T> {
        let data = self.table.get(obj.cast::<()>().addr(), self.id)?;
        // SAFETY: by `new`, the variable is a `T`, constructed before it could be found. It is
        // shared from then on, and stays until somebody calls `free`, who promises that this call
        // has ended by then, and that its reference is no longer used.
        Some(unsafe { data.cast::<T>().as_ref() })
    }

    /// Makes the variable of `obj`, which has none.
    ///
    /// `value` runs as [`ShadowTable::alloc`] says of constructors.
    ///
    /// # Errors
    ///
    /// [`ShadowError`].
    pub fn alloc<O: ?Sized>(
        &self,
        obj: *const O,
        value: impl FnOnce() -> T,
    ) -> Result<&'static T, ShadowError> {
        let data = self.table.alloc(
            obj.cast::<()>().addr(),
            self.id,
            Layout::new::<T>(),
            write(|| Ok(value())),
        )?;
        // SAFETY: as in `get`.
        Ok(unsafe { data.cast::<T>().as_ref() })
    }

    /// The variable of `obj`, made first if there is none.
    ///
    /// `value` runs as [`ShadowTable::alloc`] says of constructors: once, however many tasks come
    /// here together.
    ///
    /// # Errors
    ///
    /// [`ShadowError::OutOfMemory`], [`ShadowError::NoObject`].
    pub fn get_or_alloc<O: ?Sized>(
        &self,
        obj: *const O,
        value: impl FnOnce() -> T,
    ) -> Result<&'static T, ShadowError> {
        self.get_or_try_alloc(obj, || Ok(value()))
    }

    /// As [`get_or_alloc`](Shadow::get_or_alloc), with a `value` that may fail with an error
    /// number.
    ///
    /// # Errors
    ///
    /// [`ShadowError`], but never [`Duplicate`](ShadowError::Duplicate).
    pub fn get_or_try_alloc<O: ?Sized>(
        &self,
        obj: *const O,
        value: impl FnOnce() -> Result<T, i32>,
    ) -> Result<&'static T, ShadowError> {
        let data = self.table.get_or_alloc(
            obj.cast::<()>().addr(),
            self.id,
            Layout::new::<T>(),
            write(value),
        )?;
        // SAFETY: as in `get`.
        Ok(unsafe { data.cast::<T>().as_ref() })
    }

    /// Drops the variable of `obj`; whether there was one. `T`'s destructor runs as
    /// [`ShadowTable::free`] says.
    ///
    /// ```compile_fail,E0133
    /// # use klp_core::shadow::{Shadow, ShadowTable};
    /// # static SHADOWS: ShadowTable<spin::Mutex<()>> = ShadowTable::new();
    /// # // SAFETY: the id 1 is used for nothing else in this table.
    /// # static RETRIES: Shadow<u32, spin::Mutex<()>> = unsafe { Shadow::new(&SHADOWS, 1) };
    /// let retries = RETRIES.get(&SHADOWS);
    /// RETRIES.free(&SHADOWS); // who says that `retries` is not used any more?
    /// println!("{retries:?}");
    /// ```
    ///
    /// # Safety
    ///
    /// No reference to this variable is used any more, in any task: those that were handed out
    /// before are good until now. And nobody asks for it while this runs, who would get a reference
    /// to what is gone.
    pub unsafe fn free<O: ?Sized>(&self, obj: *const O) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            self.table
                .free(obj.cast::<()>().addr(), self.id, drop_in_place::<T>)
        }
    }

    /// Drops all variables of this id; how many there were. `T`'s destructor runs as
    /// [`ShadowTable::free`] says.
    ///
    /// # Safety
    ///
    /// As for [`free`](Shadow::free), of all variables of this id.
    pub unsafe fn free_all(&self) -> usize {
        // SAFETY: the caller's promise.
        unsafe { self.table.free_all(self.id, drop_in_place::<T>) }
    }
}

impl<T, L: RawMutex> fmt::Debug for Shadow<T, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The constructor that writes what `value` makes.
fn write<T>(
    value: impl FnOnce() -> Result<T, i32>,
) -> impl FnOnce(usize, NonNull<u8>) -> Result<(), i32> {
    move |_, data| {
        let value = value()?;
        // SAFETY: the memory was allocated for a `T`, and nobody else has it yet.
        unsafe { data.cast::<T>().write(value) };
        Ok(())
    }
}

/// The destructor of a variable that is a `T`.
fn drop_in_place<T>(_: usize, data: NonNull<u8>) {
    // SAFETY: by `Shadow::new` the variable is a `T`; it was just taken out of the table, so it is
    // dropped once.
    unsafe { data.cast::<T>().drop_in_place() };
}
