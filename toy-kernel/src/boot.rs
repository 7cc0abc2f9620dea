//! From `boot.s` to tasks, on every processor.

use crate::interrupt::{self, apic};
use crate::{machine, println, sched};
use core::sync::atomic::{AtomicUsize, Ordering};

core::arch::global_asm!(include_str!("boot.s"), options(att_syntax));

/// What QEMU says (`hvm_start_info` and `hvm_modlist_entry` of x86/HVM direct boot).
#[repr(C)]
struct Info {
    head: [u32; 3],
    modules: u32,
    module: *const Module,
    command_line: *const core::ffi::c_char,
}

#[repr(C)]
struct Module {
    address: *const u8,
    len: usize,
}

/// What the kernel is started with.
#[derive(Clone, Copy)]
pub struct Boot {
    /// `-append`: what to do.
    pub command_line: &'static str,
    /// `-initrd`: the kernel's own file, for its symbols.
    pub image: &'static [u8],
}

static READY: AtomicUsize = AtomicUsize::new(0);

unsafe extern "Rust" {
    /// The first task.
    safe fn main(boot: Boot);
}

static BOOT: spin::Mutex<Option<Boot>> = spin::Mutex::new(None);

extern "C" fn first_task() {
    if let Some(boot) = *BOOT.lock() {
        main(boot);
    }
    machine::exit(true)
}

/// Called on each processor, on the stack of its idle task.
#[unsafe(no_mangle)]
unsafe extern "C" fn start(info: u32) -> ! {
    interrupt::init();
    if interrupt::processor() == 0 {
        // SAFETY: for the first processor it is what QEMU says, and stays there.
        let boot = unsafe {
            let Info {
                modules,
                module,
                command_line,
                ..
            } = *(info as usize as *const Info);
            assert_eq!(modules, 1, "the kernel's file is missing: -initrd");
            let Module { address, len } = *module;
            Boot {
                command_line: core::ffi::CStr::from_ptr(command_line)
                    .to_str()
                    .unwrap_or("?"),
                image: core::slice::from_raw_parts(address, len),
            }
        };
        sched::init();
        wake_the_others();
        println!("toy: {} processors", machine::processors());
        *BOOT.lock() = Some(boot);
        sched::spawn("main", first_task);
    } else {
        READY.fetch_add(1, Ordering::Release);
    }
    interrupt::idle()
}

/// INIT, SIPI, SIPI to all the others (Intel SDM volume 3, 9.4.4).
fn wake_the_others() {
    unsafe extern "C" {
        static trampoline: u8;
        static trampoline_end: u8;
    }
    let others = machine::processors() - 1;
    assert!(
        others < sched::PROCESSORS,
        "{others} other processors are too many"
    );
    if others == 0 {
        return;
    }
    let (from, end) = (&raw const trampoline, &raw const trampoline_end);
    // SAFETY: nothing else of ours is below 1 MiB.
    unsafe { from.copy_to(0x8000 as *mut u8, end.addr() - from.addr()) };
    for command in [0x4500, 0x4608, 0x4608] {
        apic::send_to_others(command);
        (0..10_000).for_each(|_| machine::out8(0x80, 0));
    }
    while READY.load(Ordering::Acquire) < others {
        core::hint::spin_loop();
    }
}
