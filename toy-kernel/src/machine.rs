//! Ports, console, memory, and the way out.

use alloc::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: no port of this machine changes memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// How many processors QEMU has made: its `fw_cfg` says it under number 5.
pub fn processors() -> usize {
    let count: u8;
    // SAFETY: as above.
    unsafe {
        asm!("out dx, ax", in("dx") 0x510_u16, in("ax") 5_u16);
        asm!("in al, dx", in("dx") 0x511_u16, out("al") count);
    }
    count.into()
}

/// Does `work` with interrupts off.
#[inline(always)]
pub fn uninterrupted<R>(work: impl FnOnce() -> R) -> R {
    let flags: u64;
    // SAFETY: they are put back as they were.
    unsafe { asm!("pushf", "pop {}", "cli", out(reg) flags) };
    let result = work();
    // SAFETY: as above.
    unsafe { asm!("push {}", "popf", in(reg) flags) };
    result
}

/// The first serial line.
pub struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out8(0x3f8, byte));
        Ok(())
    }
}

/// One at a time.
pub static CONSOLE: spin::Mutex<Console> = spin::Mutex::new(Console);

/// Prints a line.
#[macro_export]
macro_rules! println {
    ($($what:tt)*) => {
        $crate::machine::uninterrupted(|| {
            use core::fmt::Write as _;
            let _ = writeln!($crate::machine::CONSOLE.lock(), $($what)*);
        })
    };
}

/// Ends the machine: of `status`, QEMU's isa-debug-exit makes twice as much, and 1.
pub fn exit(status: u8) -> ! {
    out8(0xf4, status);
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // Whoever holds the console may be the one that panics.
    let _ = writeln!(Console, "{info}");
    exit(1)
}

const HEAP: usize = 32 << 20;

/// Memory that is handed out, and never taken back.
#[repr(C, align(0x10000))]
struct Heap(UnsafeCell<[u8; HEAP]>, AtomicUsize);

// SAFETY: each byte is handed out once.
unsafe impl Sync for Heap {}

#[global_allocator]
static MEMORY: Heap = Heap(UnsafeCell::new([0; HEAP]), AtomicUsize::new(0));

// SAFETY: as above; null if there is no more.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let place = |used: usize| used.next_multiple_of(layout.align());
        let fits = |used| place(used).checked_add(layout.size()).filter(|end| *end <= HEAP);
        match self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(used) => self.0.get().cast::<u8>().wrapping_add(place(used)),
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
