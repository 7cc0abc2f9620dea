//! Interrupts: a task that is interrupted, yields or stops the machine is always left the same way,
//! with all its registers in a [`Frame`] on its stack.

use crate::machine::{out8, processors};
use crate::sched;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A task that does not run: what `boot.s` has pushed, and the processor before it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[expect(missing_docs, reason = "registers")]
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

const TIMER: u64 = 32;
const YIELD: u64 = 33;
const STOP: u64 = 34;
const PARK: u64 = 35;

/// Lets others run.
pub fn yield_now() {
    // SAFETY: the task comes back as it was.
    unsafe { asm!("int {}", const YIELD) }
}

/// Does `work` while every task but the calling one is stopped, on every processor, and the calling
/// one is in here; each, the calling one too, with all its registers in its [`Frame`]. When they go
/// on, they see what was written to code (`iretq` serialises: Intel SDM volume 3, 9.3).
///
/// One at a time: the engine's lock sees to that.
pub fn stop_machine(mut work: &mut dyn FnMut()) {
    // SAFETY: `interrupt` calls `work`, and the task comes back as it was.
    unsafe { asm!("int {}", const STOP, in("rdi") &raw mut work) }
}

static PARKED: AtomicUsize = AtomicUsize::new(0);
static GO_ON: AtomicBool = AtomicBool::new(false);

/// Called by `boot.s` with interrupts off, on the stack of the task that was left. Returns with the
/// lock of the tasks held, which `boot.s` releases once it has left that stack.
#[unsafe(no_mangle)]
extern "C" fn interrupt(frame: &mut Frame) -> *const Frame {
    sched::current().stopped_at(frame);
    match frame.vector {
        TIMER => apic::end_of_interrupt(),
        YIELD => {}
        STOP => {
            GO_ON.store(false, Ordering::Relaxed);
            if processors() > 1 {
                apic::send_to_others(0x4000 | PARK as u32);
            }
            while PARKED.load(Ordering::Acquire) < processors() - 1 {
                core::hint::spin_loop();
            }
            // SAFETY: `stop_machine` passes it, and is waiting.
            let work = unsafe { &mut *(frame.rdi as *mut &mut dyn FnMut()) };
            work();
            GO_ON.store(true, Ordering::Release);
            while PARKED.load(Ordering::Acquire) > 0 {
                core::hint::spin_loop();
            }
        }
        PARK => {
            PARKED.fetch_add(1, Ordering::Release);
            while !GO_ON.load(Ordering::Acquire) {
                core::hint::spin_loop();
            }
            PARKED.fetch_sub(1, Ordering::Release);
            apic::end_of_interrupt();
        }
        // Some have pushed an error code: then each word is one further up.
        vector => panic!("exception {vector} at {:#x} or {:#x}", frame.rip, frame.cs),
    }
    sched::lock();
    match frame.vector {
        TIMER | YIELD => sched::next(),
        _ => frame,
    }
}

/// Which processor this is.
pub fn processor() -> usize {
    apic::read(0x20) as usize >> 24
}

/// Lets this processor take interrupts, and waits for them.
pub fn idle() -> ! {
    loop {
        // SAFETY: they come back.
        unsafe { asm!("sti", "hlt") }
    }
}

/// Sets this processor up, interrupts being off.
pub fn init() {
    unsafe extern "C" {
        static vectors: [u8; 16];
    }
    // The old interrupt controllers are silent.
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    // Gates of interrupts (Intel SDM volume 3, 6.14.1) that lead to as many pieces of `boot.s`.
    let table = alloc::vec::Vec::leak(
        (0..=PARK)
            .map(|vector| {
                let to = (&raw const vectors).addr() as u128 + 16 * u128::from(vector);
                (to >> 16) << 48 | 0x8e00_0018_0000 | to & 0xffff
            })
            .collect(),
    );
    let pointer = [
        (size_of_val(table) as u64 - 1) << 48,
        table.as_ptr().addr() as u64,
    ];
    // SAFETY: the table is right, and stays for ever.
    unsafe { asm!("lidt [{}]", in(reg) pointer.as_ptr().byte_add(6)) };
    apic::init();
}

/// The processor's own interrupt controller (Intel SDM volume 3, chapter 11).
pub mod apic {
    fn register(offset: usize) -> *mut u32 {
        (0xfee0_0000 + offset) as *mut u32
    }

    pub(super) fn read(offset: usize) -> u32 {
        // SAFETY: it is there.
        unsafe { register(offset).read_volatile() }
    }

    fn write(offset: usize, value: u32) {
        // SAFETY: it is there.
        unsafe { register(offset).write_volatile(value) }
    }

    /// On, with a timer that interrupts some hundred times a second.
    pub(super) fn init() {
        write(0xf0, 0x100 | super::TIMER as u32);
        write(0x320, 1 << 17 | super::TIMER as u32);
        write(0x380, 2_000_000);
    }

    pub(super) fn end_of_interrupt() {
        write(0xb0, 0);
    }

    /// Sends an interrupt command to all processors but this one.
    pub fn send_to_others(command: u32) {
        write(0x300, 0b11 << 18 | command);
    }
}
