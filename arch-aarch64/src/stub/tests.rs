//! The stub between a caller that fills every register that counts and a function that notes what
//! it finds in them.

use crate::AArch64;
use alloc::vec::Vec;
use core::mem::offset_of;
use klp_arch_tests::Page;
use klp_arch_tests::stub::{self, State as _};
use klp_core::addr::CodeAddr;
use std::arch::is_aarch64_feature_detected;

/// Bytes of the longest vector that the tests are made for.
const LONGEST: usize = 256;

/// Registers, as a caller sets them or a function finds them.
#[repr(C, align(16))]
#[derive(PartialEq, Eq, Debug)]
struct State {
    /// x0 to x8, x15, x18, x30 (which only the function notes), x21 to x29 and one that is not used.
    general: [u64; 22],
    /// What the caller pushed.
    stack: [u64; 2],
    /// p0 to p15.
    predicates: [u64; 16 * LONGEST / 64],
    /// z0 to z23, one behind the other, or q0 to q23.
    vectors: [u64; 24 * LONGEST / 8],
}

// Throughout: x19 points to a `State`, x20 is a `Width`.
core::arch::global_asm!(
    ".pushsection .text.klp_stub_test,\"ax\",%progbits",
    ".globl klp_test_drive, klp_test_back, klp_test_probe, klp_test_spoil, klp_test_fast_zero",
    ".globl klp_test_bare, klp_test_bare_zero, klp_test_on_stack, klp_test_vector_length",
    ".arch_extension sve",
    // fn klp_test_drive(target, given, found, width) -> u64
    ".type klp_test_drive, %function",
    "klp_test_drive:",
    "stp x29, x30, [sp, #-176]!",
    "stp x19, x20, [sp, #16]; stp x21, x22, [sp, #32]; stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]; stp x27, x28, [sp, #80]",
    "stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]",
    "str x2, [sp, #160]",
    "mov x16, x0",
    "mov x17, x1",
    "mov x19, x2",
    "mov x20, x3",
    "ldp x0, x1, [x17, {stack}]; stp x0, x1, [sp, #-16]!",
    "add x9, x17, {vectors}; add x10, x17, {predicates}",
    "cbnz x20, 2f",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23",
    "ldr q\\n, [x9], #16",
    ".endr",
    "b 3f",
    "2:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23",
    "ldr z\\n, [x9]; addvl x9, x9, #1",
    ".endr",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "ldr p\\n, [x10]; addpl x10, x10, #1",
    ".endr",
    "3:",
    "ldp x0, x1, [x17]; ldp x2, x3, [x17, #16]; ldp x4, x5, [x17, #32]; ldp x6, x7, [x17, #48]",
    "ldp x8, x15, [x17, #64]; ldr x18, [x17, #80]",
    "ldp x21, x22, [x17, #96]; ldp x23, x24, [x17, #112]; ldp x25, x26, [x17, #128]",
    "ldp x27, x28, [x17, #144]; ldr x29, [x17, #160]",
    "blr x16",
    "klp_test_back:",
    "add sp, sp, #16",
    "ldr x1, [sp, #160]", // a wrong stack pointer shows up here
    "cmp x1, x19; b.eq 4f; udf #0; 4:",
    "ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]",
    "ldp x25, x26, [sp, #64]; ldp x27, x28, [sp, #80]",
    "ldp x19, x20, [sp, #16]; ldp x21, x22, [sp, #32]; ldp x23, x24, [sp, #48]",
    "ldp x29, x30, [sp], #176",
    "ret",
    // The patched function: notes what it finds, returns 77.
    ".type klp_test_probe, %function",
    "klp_test_probe:",
    "stp x0, x1, [x19]; stp x2, x3, [x19, #16]; stp x4, x5, [x19, #32]; stp x6, x7, [x19, #48]",
    "stp x8, x15, [x19, #64]; stp x18, x30, [x19, #80]",
    "stp x21, x22, [x19, #96]; stp x23, x24, [x19, #112]; stp x25, x26, [x19, #128]",
    "stp x27, x28, [x19, #144]; str x29, [x19, #160]",
    "ldp x0, x1, [sp]; stp x0, x1, [x19, {stack}]",
    "add x9, x19, {vectors}; add x10, x19, {predicates}",
    "cbnz x20, 2f",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23",
    "str q\\n, [x9], #16",
    ".endr",
    "b 3f",
    "2:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23",
    "str z\\n, [x9]; addvl x9, x9, #1",
    ".endr",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "str p\\n, [x10]; addpl x10, x10, #1",
    ".endr",
    "3: mov x0, #77",
    "ret",
    // Handlers. Each checks that its stack is aligned and spoils all registers that a function may
    // spoil (AAPCS64 6.1.1, 6.1.2).
    ".type klp_test_fast_zero, %function",
    "klp_test_fast_zero:", // wants the slow one
    "mov x0, #0",
    ".type klp_test_spoil, %function",
    "klp_test_spoil:", // returns its argument
    "mov x16, sp; tst x16, #15; b.eq 2f; udf #0; 2:",
    "cbz x20, 3f",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "pfalse p\\n\\().b",
    ".endr",
    "3:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "movi v\\n\\().2d, #0", // clears the rest of z, too
    ".endr",
    ".irp n, 8, 9, 10, 11, 12, 13, 14, 15", // of these, d stays
    "mov v\\n\\().d[1], xzr",
    ".endr",
    ".irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18",
    "mov x\\n, #-1",
    ".endr",
    "cmn x1, #1",
    "ret",
    // Handlers that need no stack.
    ".type klp_test_bare, %function",
    "klp_test_bare:", // returns its argument
    "ret",
    ".type klp_test_bare_zero, %function",
    "klp_test_bare_zero:",
    "mov x0, #0",
    "ret",
    // fn klp_test_on_stack(target, sp) -> u64: calls the target with `sp` at its entry
    ".type klp_test_on_stack, %function",
    "klp_test_on_stack:",
    "stp x29, x30, [sp, #-16]!",
    "mov x29, sp",
    "mov sp, x1",
    "blr x0",
    "mov sp, x29",
    "ldp x29, x30, [sp], #16",
    "ret",
    // fn klp_test_vector_length() -> usize
    ".type klp_test_vector_length, %function",
    "klp_test_vector_length:",
    "rdvl x0, #1",
    "ret",
    ".popsection",
    stack = const offset_of!(State, stack),
    vectors = const offset_of!(State, vectors),
    predicates = const offset_of!(State, predicates),
);

// SAFETY: defined above, with this signature.
unsafe extern "C" {
    fn klp_test_drive(target: u64, given: *const State, found: *mut State, width: Width) -> u64;
    fn klp_test_back();
    fn klp_test_probe();
    fn klp_test_spoil(arg: u64) -> u64;
    fn klp_test_fast_zero(arg: u64) -> u64;
    fn klp_test_bare(arg: u64) -> u64;
    fn klp_test_bare_zero(arg: u64) -> u64;
    fn klp_test_on_stack(target: u64, sp: u64) -> u64;
    fn klp_test_vector_length() -> usize;
}

crate::entry_stub!(fn klp_test_stub_one, klp_test_spoil);
crate::entry_stub!(fn klp_test_stub_two, klp_test_spoil, klp_test_spoil);
crate::entry_stub!(fn klp_test_stub_slow, klp_test_fast_zero, klp_test_spoil);

/// Bytes of a vector register: 16 on machines without SVE.
fn vector_length() -> usize {
    if is_aarch64_feature_detected!("sve") {
        // SAFETY: there is SVE.
        unsafe { klp_test_vector_length() }
    } else {
        16
    }
}

impl State {
    const EMPTY: Self = Self {
        general: [0; 22],
        stack: [0; 2],
        vectors: [0; 24 * LONGEST / 8],
        predicates: [0; 16 * LONGEST / 64],
    };
}

/// Which vector registers there are.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
enum Width {
    Neon = 0,
    Sve = 1,
}

impl stub::State for State {
    type Arch = AArch64;
    type Width = Width;

    fn widths() -> Vec<Width> {
        let mut widths = Vec::from([Width::Neon]);
        if is_aarch64_feature_detected!("sve") {
            widths.push(Width::Sve);
        }
        widths
    }

    fn probe() -> u64 {
        klp_test_probe as *const () as u64
    }

    fn given(width: Width, next: &mut dyn FnMut() -> u64) -> Self {
        let mut state = Self {
            general: core::array::from_fn(|_| next()),
            stack: core::array::from_fn(|_| next()),
            ..Self::EMPTY
        };
        state.general[11] = klp_test_back as *const () as u64;
        state.general[21] = 0;
        match width {
            Width::Neon => state.vectors[..24 * 16 / 8].fill_with(&mut *next),
            Width::Sve => {
                let vector = vector_length();
                state.vectors[..24 * vector / 8].fill_with(&mut *next);
                state.predicates[..16 * vector / 64].fill_with(&mut *next);
            }
        }
        state
    }

    unsafe fn drive(given: &Self, width: Width, thunk: CodeAddr) -> (u64, Self) {
        let mut found = Self::EMPTY;
        // SAFETY: the caller's duty. The probe keeps to the ABI.
        let answer = unsafe { klp_test_drive(thunk.get(), given, &raw mut found, width) };
        (answer, found)
    }

    unsafe fn drive_on_stack(stack_pointer: u64, thunk: CodeAddr) -> u64 {
        // SAFETY: the caller's duty.
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
    use crate::stub::{FAST_STACK_MAX, SLOW_STACK_MAX};
    let expected = match is_aarch64_feature_detected!("sve") {
        true => 192 + 26 * vector_length(),
        false => 192 + 384,
    };
    for stub in [klp_test_stub_bare, klp_test_stub_bare_slow] {
        assert_eq!(stub::depth::<State>(stub, 0), expected);
    }
    assert!(expected <= FAST_STACK_MAX && FAST_STACK_MAX == SLOW_STACK_MAX);
}

std::thread_local! {
    /// What the handler below was given.
    static NOTED: core::cell::Cell<Option<(u64, crate::stub::Preserved)>> = const { core::cell::Cell::new(None) };
}

unsafe extern "C" fn note(arg: u64, sp: u64, preserved: *const crate::stub::Preserved) -> u64 {
    // SAFETY: the stub's promise.
    NOTED.set(Some(unsafe { (sp, *preserved) }));
    arg
}

crate::entry_stub!(fn klp_test_stub_note, klp_test_fast_zero, note);

#[test]
fn a_slow_handler_is_told_of_the_caller() {
    let page = Page::with_thunk::<AArch64>(State::probe(), klp_test_stub_note);
    let given = State::given(Width::Neon, &mut stub::numbers(1));
    let mut found = State::EMPTY;
    // SAFETY: the thunk leads to the probe, which keeps to the ABI.
    unsafe { klp_test_drive(page.addr().get(), &given, &raw mut found, Width::Neon) };
    let (sp, preserved) = NOTED.get().expect("the handler ran");
    let regs = preserved.caller(sp, |_| panic!("nothing of it is in memory"));
    assert_eq!(regs.saved[..2], [&raw const found as u64, 0]);
    assert_eq!(regs.saved[2..10], given.general[12..20]);
    assert_eq!((regs.fp, regs.pc), (given.general[20], given.general[11]));
    assert!(regs.sp == sp && sp % 16 == 0);
}

crate::entry_stub!(fn klp_test_stub_choose, stub::choose);

#[test]
fn a_handler_in_rust_chooses() {
    stub::a_handler_in_rust_chooses::<State>(klp_test_stub_choose);
}

crate::entry_stub!(fn klp_test_stub_variadic, klp_test_bare_zero, note);

#[test]
fn variadic_calls_pass() {
    stub::variadic_calls_pass::<State>(klp_test_stub_variadic);
}
