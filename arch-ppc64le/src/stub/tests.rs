//! The stub between a caller that fills every argument register and a function that notes what it
//! finds in them.

use crate::Ppc64Le;
use crate::unwind::{FrameRule, Place, Reg, Regs, Rule, Slot, walk_call};
use alloc::vec::Vec;
use core::cell::Cell;
use core::mem::offset_of;
use core::ops::ControlFlow;
use klp_arch_tests::Page;
use klp_arch_tests::stub::{self, State as _};
use klp_core::addr::CodeAddr;
use klp_core::port::Frame;

/// Registers, as a caller sets them or a function finds them.
#[repr(C, align(16))]
#[derive(PartialEq, Eq, Debug)]
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
    ".globl klp_test_drive, klp_test_probe, klp_test_handler, klp_test_zero",
    ".globl klp_test_bare, klp_test_bare_zero, klp_test_on_stack",
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
    fn klp_test_on_stack(target: u64, r1: u64) -> u64;
}

crate::entry_stub!(fn klp_test_stub_one, klp_test_handler);
crate::entry_stub!(fn klp_test_stub_two, klp_test_handler, klp_test_handler);
crate::entry_stub!(fn klp_test_stub_slow, klp_test_zero, klp_test_handler);

impl stub::State for State {
    type Arch = Ppc64Le;
    type Width = ();

    fn widths() -> Vec<()> {
        Vec::from([()])
    }

    fn probe() -> u64 {
        klp_test_probe as *const () as u64
    }

    fn given((): (), next: &mut dyn FnMut() -> u64) -> Self {
        Self {
            vectors: core::array::from_fn(|_| [next(), next()]),
            floats: core::array::from_fn(|_| next()),
            arguments: core::array::from_fn(|_| next()),
            preserved: core::array::from_fn(|_| next()),
            stack: core::array::from_fn(|_| next()),
            cr: next() & 0x00ff_f000,
            toc_slot: next(),
        }
    }

    unsafe fn drive(given: &Self, (): (), thunk: CodeAddr) -> (u64, Self) {
        let mut found = Self::EMPTY;
        // SAFETY: the caller's duty. The probe keeps to the ABI.
        let answer = unsafe { klp_test_drive(thunk.get(), given, &raw mut found) };
        (answer, found)
    }

    unsafe fn drive_on_stack(stack_pointer: u64, thunk: CodeAddr) -> u64 {
        // SAFETY: the caller's duty. Above `r1`, what belongs to a callee is all that is used.
        unsafe { klp_test_on_stack(thunk.get(), stack_pointer) }
    }
}

#[test]
fn one_handler() {
    stub::everything_arrives_through::<State>(klp_test_stub_one);
}

#[test]
fn a_fast_handler_decides() {
    stub::everything_arrives_through::<State>(klp_test_stub_two);
}

#[test]
fn a_slow_handler_decides() {
    stub::everything_arrives_through::<State>(klp_test_stub_slow);
}

crate::entry_stub!(fn klp_test_stub_bare, klp_test_bare);
crate::entry_stub!(fn klp_test_stub_bare_slow, klp_test_bare_zero, klp_test_bare);

#[test]
fn the_stack_that_it_needs_is_as_documented() {
    for modulo in [0, 16, 32, 48, 1, 8, 15, 63] {
        let expected = 464 + modulo as usize % 16;
        assert!(expected <= crate::stub::STACK_MAX);
        assert_eq!(
            stub::depth::<State>(klp_test_stub_bare, modulo),
            expected,
            "{modulo}"
        );
        assert_eq!(
            stub::depth::<State>(klp_test_stub_bare_slow, modulo),
            expected,
            "{modulo}"
        );
    }
}

#[test]
fn a_caller_may_align_its_stack_in_any_way() {
    // `klp_test_handler` checks the alignment.
    for stub in [klp_test_stub_one, klp_test_stub_two, klp_test_stub_slow] {
        stub::a_caller_may_align_its_stack_in_any_way::<State>(stub, 1, |_| {});
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
    let page = Page::with_thunk::<Ppc64Le>(State::probe(), klp_test_stub_note);
    let given = State::given((), &mut stub::numbers(7));
    let mut found = State::EMPTY;
    // SAFETY: the thunk leads to the probe, which keeps to the ABI.
    let answer = unsafe { klp_test_drive(page.addr().get(), &given, &raw mut found) };
    assert_eq!((answer, &found), (77, &given));
    let (regs, [inner, outer]) = NOTED.get().expect("the handler ran");
    assert_eq!([regs.r30, regs.r31], given.preserved);
    let drive = klp_test_drive as *const () as u64;
    assert!((drive..drive + 1024).contains(&inner), "{inner:#x}");
    let this = a_slow_handler_can_walk_from_the_caller as fn() as u64;
    assert!((this..this + 4096).contains(&outer), "{outer:#x}");
}

crate::entry_stub!(fn klp_test_stub_choose, stub::choose);

#[test]
fn a_handler_in_rust_chooses() {
    stub::a_handler_in_rust_chooses::<State>(klp_test_stub_choose);
}

#[test]
fn variadic_calls_pass() {
    stub::variadic_calls_pass::<State>(klp_test_stub_slow);
}
