// SPDX-License-Identifier: MIT OR Apache-2.0 OR GPL-2.0
//! The allocator behind `alloc`: the kernel's. Where interrupts are off or the kernel knows that
//! sleeping is not allowed, it does not sleep, and has no big pieces.
//!
//! These are the symbols that a compiler makes of `#[global_allocator]` when it links a program;
//! the kernel's linker is another.

use crate::host;

/// The kernel aligns slab memory to the greatest power of two that divides its size.
const fn padded(size: usize, align: usize) -> Option<usize> {
    size.checked_next_multiple_of(align)
}

fn allocate(size: usize, align: usize, zero: bool) -> *mut u8 {
    padded(size, align).map_or(core::ptr::null_mut(), |size| host::klp_host_alloc(size, zero))
}

#[unsafe(no_mangle)]
unsafe extern "Rust" fn __rust_alloc(size: usize, align: usize) -> *mut u8 {
    allocate(size, align, false)
}

#[unsafe(no_mangle)]
unsafe extern "Rust" fn __rust_alloc_zeroed(size: usize, align: usize) -> *mut u8 {
    allocate(size, align, true)
}

#[unsafe(no_mangle)]
unsafe extern "Rust" fn __rust_dealloc(memory: *mut u8, _size: usize, _align: usize) {
    // SAFETY: the caller gives back what one of these functions handed out.
    unsafe { host::klp_host_free(memory) }
}

#[unsafe(no_mangle)]
unsafe extern "Rust" fn __rust_realloc(memory: *mut u8, old_size: usize, align: usize, new_size: usize) -> *mut u8 {
    let new = allocate(new_size, align, false);
    if !new.is_null() {
        // SAFETY: both are at least as big as the smaller of the two, and different; the old one is
        // the caller's to give back.
        unsafe {
            core::ptr::copy_nonoverlapping(memory, new, old_size.min(new_size));
            host::klp_host_free(memory);
        }
    }
    new
}

/// What infallible allocations call, of which there are none here.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __rust_alloc_error_handler(size: usize, _align: usize) -> ! {
    panic!("no memory for {size} bytes")
}

#[unsafe(no_mangle)]
static __rust_alloc_error_handler_should_panic: u8 = 0;

#[unsafe(no_mangle)]
static __rust_no_alloc_shim_is_unstable: u8 = 0;
