//! The same for rustc, as far as its language has it.
#![no_std]
#![crate_type = "lib"]

use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU16, AtomicU64, Ordering::Relaxed};

#[cfg(patched)]
const STEP: i32 = 3;
#[cfg(not(patched))]
const STEP: i32 = 2;

unsafe extern "C" {
    static outside_number: i32;
    fn outside(n: i32) -> i32;
}

#[unsafe(no_mangle)]
static SHARED: AtomicI32 = AtomicI32::new(7);
static HIDDEN: AtomicI32 = AtomicI32::new(9);
#[unsafe(no_mangle)]
static SMALL: AtomicU8 = AtomicU8::new(1);
#[unsafe(no_mangle)]
static MIDDLE: AtomicU16 = AtomicU16::new(1);
#[unsafe(no_mangle)]
static LARGE: AtomicU64 = AtomicU64::new(1);

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn stays(n: i32) -> i32 {
    n ^ HIDDEN.load(Relaxed)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn own(n: i32) -> i32 {
    n.wrapping_mul(STEP) ^ stays(n)
}

#[unsafe(no_mangle)]
pub extern "C" fn numbers(n: i32) -> i32 {
    SHARED.store(n ^ STEP, Relaxed);
    HIDDEN.store(n, Relaxed);
    SMALL.store(n as u8, Relaxed);
    MIDDLE.store(n as u16, Relaxed);
    LARGE.store(n as u64, Relaxed);
    unsafe { outside_number ^ outside(n) }
}

#[unsafe(no_mangle)]
pub extern "C" fn text(n: usize) -> *const u8 {
    ["zero", "one", "two", "more than two"][n & STEP as usize].as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn function(n: i32) -> extern "C" fn(i32) -> i32 {
    if n > STEP { own } else { stays }
}

#[unsafe(no_mangle)]
pub extern "C" fn constant(x: f64) -> f64 {
    x * 1.25 + STEP as f64 * 0.1
}

#[unsafe(no_mangle)]
pub extern "C" fn chooses(n: i32, m: i32) -> i32 {
    match n {
        0 => m ^ STEP,
        1 => own(m),
        2 => SHARED.load(Relaxed) ^ m,
        3 => m / 7,
        4 => unsafe { outside(m) },
        5 => stays(m),
        _ => 0,
    }
}
