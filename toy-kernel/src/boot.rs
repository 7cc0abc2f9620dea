//! From `boot.s` to tasks, on every processor.

use crate::{interrupt, machine, println, sched};
use core::sync::atomic::{AtomicUsize, Ordering};

core::arch::global_asm!(include_str!("boot.s"), options(att_syntax));

unsafe extern "C" {
    /// The first task.
    safe fn main();
    static trampoline: [u8; 64];
}

/// Where QEMU says what there is (`hvm_start_info` of x86/HVM direct boot, and behind its word 2 a
/// `hvm_modlist_entry`).
static INFO: AtomicUsize = AtomicUsize::new(0);

/// What `-append` says: what to do.
pub fn command_line() -> &'static str {
    let info = INFO.load(Ordering::Relaxed) as *const *const core::ffi::c_char;
    // SAFETY: it is there, and ends with 0.
    unsafe { core::ffi::CStr::from_ptr(*info.add(3)) }.to_str().unwrap_or("?")
}

/// What `-initrd` gives: the kernel's own file, for its symbols.
pub fn image() -> &'static [u8] {
    let info = INFO.load(Ordering::Relaxed) as *const *const usize;
    // SAFETY: it is there; the module's address and length.
    unsafe {
        let module = *info.add(2);
        core::slice::from_raw_parts(*module as *const u8, *module.add(1))
    }
}

static READY: AtomicUsize = AtomicUsize::new(0);

/// How many processors have come up.
pub fn processors() -> usize {
    READY.load(Ordering::Acquire)
}

/// Called on each processor, on the stack of its idle task. For the first one, `info` is what QEMU
/// says.
#[unsafe(no_mangle)]
extern "C" fn start(info: u32) -> ! {
    interrupt::init();
    if READY.fetch_add(1, Ordering::AcqRel) == 0 {
        INFO.store(info as usize, Ordering::Relaxed);
        assert!(machine::processors() <= sched::PROCESSORS, "too many processors");
        // INIT, SIPI, SIPI to all the others (Intel SDM volume 3, 9.4.4). SAFETY: nothing else of
        // ours is below 1 MiB.
        unsafe { (0x8000 as *mut [u8; 64]).write(trampoline) };
        for command in [0x4500, 0x4608, 0x4608] {
            interrupt::send_to_others(command);
            (0..10_000).for_each(|_| machine::out8(0x80, 0));
        }
        while processors() < machine::processors() {
            core::hint::spin_loop();
        }
        println!("toy: processors: {}", processors());
        sched::init();
        sched::spawn("main", main);
    }
    interrupt::idle()
}
