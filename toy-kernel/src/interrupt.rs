//! Interrupts: a task that is preempted, yields or stops the machine is always left in the same
//! way, with all its registers in a [`Frame`] on its stack.

use crate::boot::processors;
use crate::machine::out8;
use crate::sched;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A task that does not run: what `boot.s` has pushed, and the processor before it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[expect(missing_docs, reason = "registers")]
#[rustfmt::skip]
pub struct Frame {
    pub r15: u64, pub r14: u64, pub r13: u64, pub r12: u64, pub r11: u64, pub r10: u64, pub r9: u64,
    pub r8: u64, pub rdi: u64, pub rsi: u64, pub rbp: u64, pub rbx: u64, pub rdx: u64, pub rcx: u64,
    pub rax: u64, pub vector: u64,
    pub rip: u64, pub cs: u64, pub rflags: u64, pub rsp: u64, pub ss: u64,
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

/// Does `work` while every other task is stopped, on every processor, and the calling one is in
/// here: each, the calling one too, with all its registers in its [`Frame`]. When they go on, they
/// see what was written to code (`iretq` serialises: Intel SDM volume 3, 9.3).
///
/// One at a time: the engine's lock sees to that.
pub fn stop_machine(mut work: &mut dyn FnMut()) {
    // SAFETY: `interrupt` calls `work`, and the task comes back as it was.
    unsafe { asm!("int {}", const STOP, in("rdi") &raw mut work) }
}

static PARKED: AtomicUsize = AtomicUsize::new(0);
static STOPPED: AtomicBool = AtomicBool::new(false);

fn spin_until(condition: impl Fn() -> bool) {
    while !condition() {
        core::hint::spin_loop();
    }
}

/// Called by `boot.s` with interrupts off, on the stack of the task that was left. Returns with the
/// lock of the tasks held, which `boot.s` releases once it has left that stack.
#[unsafe(no_mangle)]
extern "C" fn interrupt(frame: *mut Frame) -> *const Frame {
    // SAFETY: the task was left there, and others look only while it does not run.
    let Frame { vector, rdi, rip, cs, .. } = unsafe { *frame };
    sched::current().frame.store(frame, Ordering::Release);
    match vector {
        TIMER => end_of_interrupt(),
        YIELD => {}
        STOP => {
            STOPPED.store(true, Ordering::Relaxed);
            send_to_others(0x4000 | PARK as u32);
            spin_until(|| PARKED.load(Ordering::Acquire) == processors() - 1);
            // SAFETY: `stop_machine` passes it, and is waiting.
            unsafe { (*(rdi as *mut &mut dyn FnMut()))() };
            STOPPED.store(false, Ordering::Release);
            spin_until(|| PARKED.load(Ordering::Acquire) == 0);
        }
        PARK => {
            PARKED.fetch_add(1, Ordering::Release);
            spin_until(|| !STOPPED.load(Ordering::Acquire));
            PARKED.fetch_sub(1, Ordering::Release);
            end_of_interrupt();
        }
        // Some have pushed an error code: then each word is one further up.
        _ => panic!("exception {vector} at {rip:#x} or {cs:#x}"),
    }
    sched::lock();
    if matches!(vector, TIMER | YIELD) { sched::next() } else { frame }
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
        static vectors: u8;
    }
    // Gates (Intel SDM volume 3, 6.14.1) that lead to as many pieces of `boot.s`.
    let gate = |vector| {
        let to = (&raw const vectors).addr() as u128 + 16 * u128::from(vector);
        (to >> 16) << 48 | 0x8e00_0018_0000 | to & 0xffff
    };
    let gates = alloc::vec::Vec::leak((0..=PARK).map(gate).collect());
    let table = [(size_of_val(gates) as u64 - 1) << 48, gates.as_ptr().addr() as u64];
    // SAFETY: the table is right, and stays for ever.
    unsafe { asm!("lidt [{} + 6]", in(reg) &table) };
    // The old interrupt controllers are silent; the processor's own one (chapter 11) is on, and its
    // timer interrupts some hundred times a second.
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    write(0xf0, 0x100 | TIMER as u32);
    write(0x320, 1 << 17 | TIMER as u32);
    write(0x380, 2_000_000);
}

/// Which processor this is.
pub fn processor() -> usize {
    // SAFETY: the interrupt controller says it there.
    unsafe { (0xfee0_0020 as *const u32).read_volatile() as usize >> 24 }
}

fn write(register: usize, value: u32) {
    // SAFETY: a register of the interrupt controller.
    unsafe { ((0xfee0_0000 + register) as *mut u32).write_volatile(value) }
}

fn end_of_interrupt() {
    write(0xb0, 0);
}

/// Sends an interrupt command to all processors but this one.
pub fn send_to_others(command: u32) {
    write(0x300, 0b11 << 18 | command);
}
