//! The memory of one variable: its data, and in front of it what is needed to free it.

use crate::mem::OutOfMemory;
use alloc::alloc::{alloc_zeroed, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;

/// What stands in front of the data: the layout of the whole.
type Header = [usize; 2];

/// The least alignment of data, which leaves room for the header.
const MIN_ALIGN: usize = 16;

/// Owned, zeroed memory.
///
/// # Invariants
///
/// `data` lies `max(MIN_ALIGN, asked alignment)` bytes into an allocation whose layout is in the header just in front of it.
#[derive(Debug)]
pub(super) struct Block {
    data: NonNull<u8>,
}

impl Block {
    /// Memory for data of `layout`, zeroed, aligned to 16 bytes at least.
    pub(super) fn zeroed(layout: Layout) -> Result<Self, OutOfMemory> {
        let align = layout.align().max(MIN_ALIGN);
        let size = layout.size().checked_add(align).ok_or(OutOfMemory)?;
        let whole = Layout::from_size_align(size, align).map_err(|_| OutOfMemory)?;
        // SAFETY: the size is not 0.
        let base = NonNull::new(unsafe { alloc_zeroed(whole) }).ok_or(OutOfMemory)?;
        // SAFETY: `align` bytes into an allocation of at least as many.
        let data = unsafe { base.add(align) };
        // SAFETY: `align` is at least the size of a header, so it lies inside the allocation; both are aligned for it.
        unsafe { data.cast::<Header>().sub(1).write([size, align]) };
        Ok(Self { data })
    }

    pub(super) fn data(&self) -> NonNull<u8> {
        self.data
    }

    /// Gives the ownership away.
    pub(super) fn into_raw(self) -> NonNull<u8> {
        core::mem::ManuallyDrop::new(self).data
    }

    /// Takes the ownership back.
    ///
    /// # Safety
    ///
    /// `data` came from [`into_raw`](Block::into_raw), and its ownership has not been taken back before.
    pub(super) unsafe fn from_raw(data: NonNull<u8>) -> Self {
        Self { data }
    }
}

const _: () = assert!(size_of::<Header>() <= MIN_ALIGN && align_of::<Header>() <= MIN_ALIGN);

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: by the invariant the header is there; nobody else owns the memory.
        let [size, align] = unsafe { self.data.cast::<Header>().sub(1).read() };
        // SAFETY: these numbers made a layout in `zeroed`, of the allocation that begins `align` bytes before the data.
        unsafe { dealloc(self.data.sub(align).as_ptr(), Layout::from_size_align_unchecked(size, align)) };
    }
}
