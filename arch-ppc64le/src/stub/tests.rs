//! The stub between a caller that fills every argument register and a function that notes what it
//! finds in them.

use crate::Ppc64Le;
use crate::unwind::{FrameRule, Place, Reg, Regs, Rule, Slot, walk_call};
use alloc::vec::Vec;
use core::cell::Cell;
use core::mem::offset_of;
use core::ops::ControlFlow;
use core::ptr;
use klp_core::addr::CodeAddr;
use klp_core::port::{Arch, Frame};

/// Registers, as a caller sets them or a function finds them.
#[repr(C, align(16))]
#[derive(Clone, PartialEq, Eq, Debug)]
struct State {
    /// v2 to v13.
    vectors: [[u64; 2]; 12],
    /// f1 to f13.
    floats: [u64; 13],
    /// r2 to r11.
    arguments: [u64; 10],
    /// r30, r31; r28 and r29 serve the test itself.
    preserved: [u64; 2],
    /// What the caller has in its parameter save area, for arguments behind the eighth.
    stack: [u64; 2],
    /// The fields 2 to 4 of cr.
    cr: u64,
    /// What the caller's table of contents is found by.
    toc_slot: u64,
}

impl State {
    const EMPTY: Self = Self {
        vectors: [[0; 2]; 12],
        floats: [0; 13],
        arguments: [0; 10],
        preserved: [0; 2],
        stack: [0; 2],
        cr: 0,
        toc_slot: 0,
    };
}

/// Loads or stores all vector, float and argument registers but the one that points to the state.
macro_rules! each_register {
    ($vector:literal, $float:literal, $word:literal, $at:literal, [$($argument:literal)*]) => {
        concat!(
            each_register!(@vectors $vector, $at, [2 3 4 5 6 7 8 9 10 11 12 13]),
            each_register!(@floats $float, $at, [1 2 3 4 5 6 7 8 9 10 11 12 13]),
            $("\n", $word, " %r", $argument, ", {arguments} + 8 * (", $argument, " - 2)(", $at, ")",)*
        )
    };
    (@vectors $vector:literal, $at:literal, [$($number:literal)*]) => {
        concat!($("\nli %r0, 16 * (", $number, " - 2)\n", $vector, " %v", $number, ", ", $at, ", %r0",)*)
    };
    (@floats $float:literal, $at:literal, [$($number:literal)*]) => {
        concat!($("\n", $float, " %f", $number, ", {floats} + 8 * (", $number, " - 1)(", $at, ")",)*)
    };
}

/// Fills registers with ones.
macro_rules! spoil {
    ([$($general:literal)*] [$($number:literal)*]) => {
        concat!(
            $("\nli %r", $general, ", -1",)*
            "\nstd %r0, -16(%r1)\nstd %r0, -8(%r1)",
            $("\nlfd %f", $number, ", -16(%r1)",)*
            $("\nvspltisw %v", $number, ", -1",)*
        )
    };
}

// Throughout: r29 points to a `State`, r28 to what was given.
core::arch::global_asm!(
    ".pushsection .text.klp_stub_test,\"ax\",@progbits",
    // fn klp_test_drive(target, given, found) -> u64
    ".type klp_test_drive, @function",
    "klp_test_drive:",
    "mflr %r0; std %r0, 16(%r1); mfcr %r0; std %r0, 8(%r1)",
    "std %r28, -32(%r1); std %r29, -24(%r1); std %r30, -16(%r1); std %r31, -8(%r1)",
    "stdu %r1, -160(%r1)", // 32 and a parameter save area of 80, and what is above it
    "std %r2, 112(%r1)",
    "mr %r12, %r3; mtctr %r12; mr %r28, %r4; mr %r29, %r5",
    "ld %r0, {stack}(%r28); std %r0, 96(%r1)",
    "ld %r0, {stack} + 8(%r28); std %r0, 104(%r1)",
    "ld %r0, {toc_slot}(%r28); std %r0, 24(%r1)",
    "ld %r0, {cr}(%r28); mtcrf 0x38, %r0",
    "ld %r30, {preserved}(%r28); ld %r31, {preserved} + 8(%r28)",
    each_register!("lvx", "lfd", "ld", "%r28", [2 3 4 5 6 7 8 9 10 11]),
    "bctrl",
    "ld %r2, 112(%r1)",
    "ld %r4, 24(%r1); std %r4, {toc_slot}(%r29)",
    "addi %r1, %r1, 160", // a wrong stack pointer shows up here
    "ld %r28, -32(%r1); ld %r29, -24(%r1); ld %r30, -16(%r1); ld %r31, -8(%r1)",
    "ld %r0, 8(%r1); mtcrf 0x38, %r0; ld %r0, 16(%r1); mtlr %r0",
    "blr",
    ".size klp_test_drive, . - klp_test_drive",
    // The patched function: notes what it finds, returns 77. It looks as it does behind a
    // `mflr r0`.
    ".type klp_test_probe, @function",
    "klp_test_probe:",
    "std %r0, 16(%r1)", // its return address
    "mfctr %r0; cmpd %r0, %r12; beq 2f; trap; 2:",
    "addis %r0, %r12, 0", // its own address
    "ld %r12, 96(%r1); std %r12, {stack}(%r29)",
    "ld %r12, 104(%r1); std %r12, {stack} + 8(%r29)",
    "std %r30, {preserved}(%r29); std %r31, {preserved} + 8(%r29)",
    "mfcr %r12; rlwinm %r12, %r12, 0, 8, 19; std %r12, {cr}(%r29)",
    each_register!("stvx", "stfd", "std", "%r29", [2 3 4 5 6 7 8 9 10 11]),
    "ld %r0, 16(%r1); mtlr %r0",
    "li %r3, 77",
    "blr",
    ".size klp_test_probe, . - klp_test_probe",
    // Handlers. Each checks that its stack is aligned and spoils all registers that a function may
    // spoil.
    ".type klp_test_zero, @function",
    "klp_test_zero:", // wants the slow one
    "li %r3, 0; b 6f",
    ".type klp_test_handler, @function",
    "klp_test_handler:", // returns its argument
    "6: andi. %r0, %r1, 15; beq 3f; trap; 3:",
    "li %r0, -1; mtctr %r0; mtxer %r0; mtcrf 0xc7, %r0",
    // What belongs to whom it was called by, for its own use.
    "std %r0, 8(%r1); std %r0, 16(%r1); std %r0, 24(%r1)",
    spoil!([0 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6 7 8 9 10 11 12 13]),
    "lfd %f0, -8(%r1); vspltisw %v0, -1; vspltisw %v1, -1",
    "blr",
    // fn klp_test_on_stack(target, r1) -> u64: calls the target with `r1` at its entry
    ".type klp_test_on_stack, @function",
    "klp_test_on_stack:",
    "mflr %r0; std %r0, 16(%r1); std %r31, -8(%r1)",
    "stdu %r1, -48(%r1)",
    "mr %r31, %r1; mr %r1, %r4",
    "mr %r12, %r3; mtctr %r12; bctrl",
    "mr %r1, %r31; addi %r1, %r1, 48",
    "ld %r31, -8(%r1); ld %r0, 16(%r1); mtlr %r0",
    "blr",
    // Handlers that need no stack.
    ".type klp_test_bare_zero, @function",
    "klp_test_bare_zero: li %r3, 0; blr",
    ".type klp_test_bare, @function",
    "klp_test_bare: blr", // returns its argument
    ".type klp_test_seventy_seven, @function",
    "klp_test_seventy_seven: li %r3, 77; blr",
    // Makes what was written at an address fit to be executed (Power ISA, book II, 1.8).
    ".type klp_test_flush, @function",
    "klp_test_flush: dcbst 0, %r3; sync; icbi 0, %r3; sync; isync; blr",
    ".popsection",
    floats = const offset_of!(State, floats),
    arguments = const offset_of!(State, arguments),
    preserved = const offset_of!(State, preserved),
    stack = const offset_of!(State, stack),
    cr = const offset_of!(State, cr),
    toc_slot = const offset_of!(State, toc_slot),
);

// SAFETY: defined above, with this signature.
unsafe extern "C" {
    fn klp_test_drive(target: u64, given: *const State, found: *mut State) -> u64;
    fn klp_test_probe();
    fn klp_test_handler(arg: u64) -> u64;
    fn klp_test_zero(arg: u64) -> u64;
    fn klp_test_bare(arg: u64) -> u64;
    fn klp_test_bare_zero(arg: u64) -> u64;
    fn klp_test_seventy_seven();
    fn klp_test_on_stack(target: u64, r1: u64) -> u64;
    fn klp_test_flush(at: *mut libc::c_void);
}

crate::entry_stub!(fn klp_test_stub_one, klp_test_handler);
crate::entry_stub!(fn klp_test_stub_two, klp_test_handler, klp_test_handler);
crate::entry_stub!(fn klp_test_stub_slow, klp_test_zero, klp_test_handler);

fn given(seed: u64) -> State {
    let mut number = seed;
    let mut next = || {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        number
    };
    State {
        vectors: core::array::from_fn(|_| [next(), next()]),
        floats: core::array::from_fn(|_| next()),
        arguments: core::array::from_fn(|_| next()),
        preserved: core::array::from_fn(|_| next()),
        stack: core::array::from_fn(|_| next()),
        cr: next() & 0x00ff_f000,
        toc_slot: next(),
    }
}

/// Executable memory with one thunk in it.
struct Page(*mut libc::c_void);

impl Page {
    const LEN: usize = 1 << 16;

    fn with_thunk(arg: u64, stub: u64) -> Self {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::LEN,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED, "mmap");
        let thunk = Ppc64Le::thunk(CodeAddr::new(page as u64), arg, CodeAddr::new(stub));
        // SAFETY: the page is ours and longer than any thunk, which lies in one line of the cache.
        unsafe {
            ptr::copy_nonoverlapping(thunk.as_ptr(), page.cast(), thunk.len());
            klp_test_flush(page);
        };
        Self(page)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by `with_thunk`, and nobody executes in it any more.
        assert_eq!(unsafe { libc::munmap(self.0, Self::LEN) }, 0, "munmap");
    }
}

fn everything_arrives_through(stub: unsafe extern "C" fn()) {
    let probe = klp_test_probe as *const () as u64;
    let page = Page::with_thunk(probe, stub as *const () as u64);
    for seed in 0..100 {
        let given = given(seed);
        let mut found = State::EMPTY;
        // SAFETY: the thunk leads through the stub to the probe, which keeps to the ABI.
        let answer = unsafe { klp_test_drive(page.0 as u64, &raw const given, &raw mut found) };
        assert_eq!(answer, 77);
        assert_eq!(found, given);
    }
}

#[test]
fn one_handler() {
    everything_arrives_through(klp_test_stub_one);
}

#[test]
fn a_fast_handler_decides() {
    everything_arrives_through(klp_test_stub_two);
}

#[test]
fn a_slow_handler_decides() {
    everything_arrives_through(klp_test_stub_slow);
}

crate::entry_stub!(fn klp_test_stub_bare, klp_test_bare);
crate::entry_stub!(fn klp_test_stub_bare_slow, klp_test_bare_zero, klp_test_bare);

/// How deep below `r1` at the entry the stub and a handler without a stack of its own write, if
/// the entry's `r1` is the one given modulo 64.
fn depth(stub: unsafe extern "C" fn(), entry_modulo_64: u64) -> usize {
    const PAINT: u8 = 0xa5;
    let function = klp_test_seventy_seven as *const () as u64;
    let page = Page::with_thunk(function, stub as *const () as u64);
    let mut stack = std::vec![PAINT; 1 << 16];
    let top = (stack.as_ptr() as u64 + (1 << 15)) & !63;
    let entry = top + entry_modulo_64;
    // SAFETY: the stub and its handlers need less than half of the stack; above `r1`, what belongs
    // to a callee is all that is used.
    assert_eq!(unsafe { klp_test_on_stack(page.0 as u64, entry) }, 77);
    let low = stack
        .iter()
        .position(|&byte| byte != PAINT)
        .expect("a back chain was written");
    let _ = &mut stack;
    (entry - stack.as_ptr() as u64) as usize - low
}

#[test]
fn the_stack_that_it_needs_is_as_documented() {
    for modulo in [0, 16, 32, 48, 1, 8, 15, 63] {
        let expected = 464 + modulo as usize % 16;
        assert!(expected <= crate::stub::STACK_MAX);
        assert_eq!(depth(klp_test_stub_bare, modulo), expected, "{modulo}");
        assert_eq!(depth(klp_test_stub_bare_slow, modulo), expected, "{modulo}");
    }
}

#[test]
fn a_caller_may_align_its_stack_in_any_way() {
    let stack = std::vec![0_u64; 1 << 13];
    let top = (stack.as_ptr_range().end as u64 - 4096) & !63;
    let function = klp_test_seventy_seven as *const () as u64;
    for stub in [klp_test_stub_one, klp_test_stub_two, klp_test_stub_slow] {
        let page = Page::with_thunk(function, stub as *const () as u64);
        for entry in top..top + 64 {
            // SAFETY: as in `depth`. `klp_test_handler` checks the alignment.
            let answer = unsafe { klp_test_on_stack(page.0 as u64, entry) };
            assert_eq!(answer, 77, "{entry:#x}");
        }
    }
}

std::thread_local! {
    /// What the handler below found: the caller's registers, and who is on the stack.
    static NOTED: Cell<Option<(Regs, [u64; 2])>> = const { Cell::new(None) };
}

unsafe extern "C" fn note(arg: u64, sp: u64, preserved: *const crate::stub::Preserved) -> u64 {
    // SAFETY: the stub's promise: the return address is there.
    let read = |at: u64| unsafe { *(at as *const u64) };
    // SAFETY: the stub's promise.
    let regs = unsafe { (*preserved).caller(sp, read) };
    // The frame of `klp_test_drive`.
    let slot = |below| Slot::new(Place::BelowTop(below)).expect("it fits");
    let frame = Rule::Frame(FrameRule {
        cfa_base: Reg::R1,
        cfa_in_memory: false,
        cfa_offset: 160,
        saved: [slot(40), slot(32), slot(8)],
    });
    let mut frames = Vec::new();
    let find = |found: Frame| {
        if found.pc.get() == regs.pc {
            frame
        } else {
            Rule::End
        }
    };
    // SAFETY: addresses come from the rule above, which holds.
    let read = |addr: u64| Some(unsafe { *(addr as *const u64) });
    let result = walk_call(regs, 2, find, read, &mut |frame| {
        frames.push(frame.pc.get());
        ControlFlow::Continue(())
    });
    if let (Ok(()), Ok(frames)) = (result, frames.try_into()) {
        NOTED.set(Some((regs, frames)));
    }
    arg
}

crate::entry_stub!(fn klp_test_stub_note, klp_test_zero, note);

#[test]
fn a_slow_handler_can_walk_from_the_caller() {
    let probe = klp_test_probe as *const () as u64;
    let page = Page::with_thunk(probe, klp_test_stub_note as *const () as u64);
    let given = given(7);
    let mut found = State::EMPTY;
    // SAFETY: as above.
    let answer = unsafe { klp_test_drive(page.0 as u64, &raw const given, &raw mut found) };
    assert_eq!((answer, &found), (77, &given));
    let (regs, [inner, outer]) = NOTED.get().expect("the handler ran");
    assert_eq!([regs.r30, regs.r31], given.preserved);
    let drive = klp_test_drive as *const () as u64;
    assert!((drive..drive + 1024).contains(&inner), "{inner:#x}");
    let this = a_slow_handler_can_walk_from_the_caller as fn() as u64;
    assert!((this..this + 4096).contains(&outer), "{outer:#x}");
}

extern "C" fn double(x: u64) -> u64 {
    2 * x
}

extern "C" fn triple(x: u64) -> u64 {
    3 * x
}

extern "C" fn choose(arg: u64) -> u64 {
    match arg {
        2 => double as *const () as u64,
        _ => triple as *const () as u64,
    }
}

crate::entry_stub!(fn klp_test_stub_choose, choose);

#[test]
fn a_handler_in_rust_chooses() {
    for factor in [2, 3] {
        let page = Page::with_thunk(factor, klp_test_stub_choose as *const () as u64);
        // SAFETY: the thunk leads to `double` or `triple`, which have this signature.
        let through: extern "C" fn(u64) -> u64 = unsafe { core::mem::transmute(page.0) };
        assert_eq!(through(21), factor * 21);
    }
}

#[test]
fn variadic_calls_pass() {
    type Snprintf = unsafe extern "C" fn(*mut libc::c_char, usize, *const libc::c_char, ...) -> i32;
    // More arguments than registers, and one in a float register and a general one.
    let mut text = [0_u8; 64];
    let snprintf = libc::snprintf as *const () as u64;
    let page = Page::with_thunk(snprintf, klp_test_stub_slow as *const () as u64);
    // SAFETY: the thunk leads to `snprintf`.
    let snprintf: Snprintf = unsafe { core::mem::transmute(page.0) };
    // SAFETY: the buffer is as long as it says, the format fits the arguments.
    let len = unsafe {
        snprintf(
            text.as_mut_ptr().cast(),
            text.len(),
            c"%d %.2f %s %d %d %d %d %d %.1f".as_ptr(),
            7,
            1.25_f64,
            c"x".as_ptr(),
            1,
            2,
            3,
            4,
            5,
            2.5_f64,
        )
    };
    assert_eq!(&text[..len as usize], b"7 1.25 x 1 2 3 4 5 2.5");
}
