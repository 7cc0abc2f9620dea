//! The memory of one variable: its data, and what is needed to free it.
//!
//! Most variables are small, and lookups jump about among them: the fewer bytes they take, the more
//! of them a cache keeps. So what is small has one of a few layouts, which the slot tells together
//! with its address, and nothing stands beside it.

use super::sync::{AtomicPtr, Ordering};
use crate::mem::OutOfMemory;
use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::{self, NonNull};

/// What stands in front of data that is not small: size and alignment of the whole.
type Header = [usize; 2];

/// The least alignment of data that is not small, which leaves room for the header.
const MIN_ALIGN: usize = 16;

/// The layouts of small data, the smallest first.
const SMALL: [Layout; 3] = [small(1), small(2), small(4)];

/// Bits that are 0 in the address of any data. A handle tells by them which of the [`SMALL`]
/// layouts it has, counted from 1; or that it has a header.
const KIND: usize = 0b11;

const _: () = assert!(SMALL.len() <= KIND && KIND < SMALL[0].align());
const _: () = assert!(size_of::<Header>() <= MIN_ALIGN && align_of::<Header>() <= MIN_ALIGN);

/// That many words, a power of two; aligned as anything may need it that takes no more.
const fn small(words: usize) -> Layout {
    let size = words * size_of::<usize>();
    match Layout::from_size_align(size, if size < MIN_ALIGN { size } else { MIN_ALIGN }) {
        Ok(layout) => layout,
        Err(_) => panic!("not a power of two"),
    }
}

/// A block as a slot holds it: the address of its data, and in the bits of [`KIND`] which layout it
/// has.
///
/// It may outlast the block.
///
/// # Invariants
///
/// While the block is there, it is an allocation of that layout; if [`KIND`] is 0, the layout is in
/// the header just in front of the data, which begins as many bytes into the allocation as its
/// alignment says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handle(NonNull<u8>);

impl Handle {
    /// The data of the block.
    #[inline]
    pub(super) fn data(self) -> NonNull<u8> {
        let data = self.0.as_ptr().map_addr(|address| address & !KIND);
        // SAFETY: what is left is the address of data, which is or was not null.
        unsafe { NonNull::new_unchecked(data) }
    }
}

/// A handle, or none, that tasks share.
#[derive(Debug)]
pub(super) struct AtomicHandle(AtomicPtr<u8>);

impl AtomicHandle {
    pub(super) fn none() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    #[inline]
    pub(super) fn load(&self, order: Ordering) -> Option<Handle> {
        NonNull::new(self.0.load(order)).map(Handle)
    }

    pub(super) fn store(&self, handle: Option<Handle>, order: Ordering) {
        self.0.store(
            handle.map_or(ptr::null_mut(), |handle| handle.0.as_ptr()),
            order,
        );
    }
}

/// Owned, zeroed memory.
#[derive(Debug)]
pub(super) struct Block(Handle);

impl Block {
    /// Memory for data of `layout`, zeroed. It is aligned as that says, and as all data of its size
    /// may need it: to its size, rounded up to a power of two, but for no less than a word and for
    /// no more than 16 bytes.
    pub(super) fn zeroed(layout: Layout) -> Result<Self, OutOfMemory> {
        let fits =
            |small: &Layout| layout.size() <= small.size() && layout.align() <= small.align();
        if let Some((index, small)) = SMALL.iter().enumerate().find(|(_, small)| fits(small)) {
            let data = allocate(*small)?;
            return Ok(Self(Handle(data.map_addr(|address| address | (index + 1)))));
        }
        let align = layout.align().max(MIN_ALIGN);
        let size = layout.size().checked_add(align).ok_or(OutOfMemory)?;
        let base = allocate(Layout::from_size_align(size, align).map_err(|_| OutOfMemory)?)?;
        // SAFETY: `align` bytes into an allocation of at least as many.
        let data = unsafe { base.add(align) };
        // SAFETY: `align` is at least the size of a header, so it lies inside the allocation; both
        // are aligned for it.
        unsafe { data.cast::<Header>().sub(1).write([size, align]) };
        Ok(Self(Handle(data)))
    }

    #[inline]
    pub(super) fn data(&self) -> NonNull<u8> {
        self.0.data()
    }

    /// Gives the ownership away.
    #[inline]
    pub(super) fn into_handle(self) -> Handle {
        core::mem::ManuallyDrop::new(self).0
    }

    /// Takes the ownership back.
    ///
    /// # Safety
    ///
    /// `handle` came from [`into_handle`](Block::into_handle), and its ownership has not been taken
    /// back before.
    pub(super) unsafe fn from_handle(handle: Handle) -> Self {
        Self(handle)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let data = self.data();
        let kind = self.0.0.addr().get() & KIND;
        let (base, layout) = match SMALL.get(kind.wrapping_sub(1)) {
            Some(small) => (data, *small),
            None => {
                // SAFETY: by the invariant of `Handle` the header is there; nobody else owns the
                // memory.
                let [size, align] = unsafe { data.cast::<Header>().sub(1).read() };
                // SAFETY: these numbers made a layout in `zeroed`, of the allocation that begins
                // `align` bytes before the data.
                unsafe {
                    (
                        data.sub(align),
                        Layout::from_size_align_unchecked(size, align),
                    )
                }
            }
        };
        // SAFETY: the allocation and its layout, by the invariant of `Handle`; nobody else owns it.
        unsafe { dealloc(base.as_ptr(), layout) };
    }
}

/// Zeroed memory of `layout`, whose size is not 0: it is a word at least, or has room for a header.
fn allocate(layout: Layout) -> Result<NonNull<u8>, OutOfMemory> {
    debug_assert!(
        layout.size() > 0,
        "small data is made bigger, and with a header it is never 0"
    );
    // SAFETY: the size is not 0.
    NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(OutOfMemory)
}
