//! The stub between a caller that fills every register that counts and a function that notes what
//! it finds in them. A test here is called by the test of its name, or by several of them.

use crate::page::{Page, Stub};
use core::fmt::Debug;
use core::mem;
use klp_core::addr::CodeAddr;
use klp_core::port::Arch;

/// Registers, as a caller sets them or a function finds them, and the assembly that does it.
pub trait State: PartialEq + Debug + Sized {
    /// The processor.
    type Arch: Arch;

    /// Which registers, or parts of them, are filled, where not all machines have all.
    type Width: Copy + Debug;

    /// What this machine has.
    fn widths() -> Vec<Self::Width>;

    /// The function that [`drive`](State::drive) comes to through the stub: it notes what it finds,
    /// and returns 77.
    fn probe() -> u64;

    /// What a caller sets: numbers from `next`.
    fn given(width: Self::Width, next: &mut dyn FnMut() -> u64) -> Self;

    /// Calls a thunk with registers as they are `given`: what came back, and what
    /// [`probe`](State::probe) has noted.
    ///
    /// # Safety
    ///
    /// The thunk leads through a stub to `probe`; `width` is one of [`widths`](State::widths).
    unsafe fn drive(given: &Self, width: Self::Width, thunk: CodeAddr) -> (u64, Self);

    /// Calls a thunk with `stack_pointer` at its entry.
    ///
    /// # Safety
    ///
    /// The thunk leads through a stub to a function without arguments; the stack is long enough for
    /// both, and nobody else's.
    unsafe fn drive_on_stack(stack_pointer: u64, thunk: CodeAddr) -> u64;
}

/// Numbers that look random.
pub fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut number = seed;
    move || {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        number
    }
}

/// All that a caller has in registers arrives through the stub.
pub fn everything_arrives_through<S: State>(stub: Stub) {
    let page = Page::with_thunk::<S::Arch>(S::probe(), stub);
    for width in S::widths() {
        for seed in 0..100 {
            let given = S::given(width, &mut numbers(seed));
            // SAFETY: so the page was made, and so is the width.
            let (answer, found) = unsafe { S::drive(&given, width, page.addr()) };
            assert_eq!(answer, 77, "{width:?}");
            assert!(found == given, "{width:?}\n{found:x?}\n{given:x?}");
        }
    }
}

extern "C" fn seventy_seven() -> u64 {
    77
}

/// How deep below the stack pointer at its entry the stub writes, with handlers that have no stack
/// of their own; the stack pointer is `modulo` more than a multiple of 64.
pub fn depth<S: State>(stub: Stub, modulo: u64) -> usize {
    // Not all the same: registers that the stub saves may hold some of it.
    let paint = |index: usize| (index / 16 + index) as u8;
    let page = Page::with_thunk::<S::Arch>(seventy_seven as *const () as u64, stub);
    let mut stack: Vec<_> = (0..1 << 16).map(paint).collect();
    let bottom = stack.as_mut_ptr() as u64;
    let entry = ((bottom + (1 << 15)) & !63) + modulo;
    // SAFETY: the stub and its handlers need less than half of the stack.
    assert_eq!(unsafe { S::drive_on_stack(entry, page.addr()) }, 77);
    let low = (0..stack.len())
        .find(|&index| stack[index] != paint(index))
        .expect("the stub writes");
    (entry - bottom) as usize - low
}

/// The stub bears a stack that is aligned in any way. After each call, `check` is told of the stack
/// pointer.
pub fn a_caller_may_align_its_stack_in_any_way<S: State>(
    stub: Stub,
    step: usize,
    check: impl Fn(u64),
) {
    let page = Page::with_thunk::<S::Arch>(seventy_seven as *const () as u64, stub);
    let mut stack = vec![0_u64; 1 << 13];
    let top = (stack.as_mut_ptr_range().end as u64 - 4096) & !63;
    for entry in (top..top + 64).step_by(step) {
        // SAFETY: as in `depth`.
        let answer = unsafe { S::drive_on_stack(entry, page.addr()) };
        assert_eq!(answer, 77, "{entry:#x}");
        check(entry);
    }
}

extern "C" fn double(x: u64) -> u64 {
    2 * x
}

extern "C" fn triple(x: u64) -> u64 {
    3 * x
}

/// The handler of the stub in the next test.
pub extern "C" fn choose(arg: u64) -> u64 {
    match arg {
        2 => double as *const () as u64,
        _ => triple as *const () as u64,
    }
}

/// The stub's handler is [`choose`].
pub fn a_handler_in_rust_chooses<S: State>(stub: Stub) {
    for factor in [2, 3] {
        let page = Page::with_thunk::<S::Arch>(factor, stub);
        // SAFETY: the thunk leads to `double` or `triple`, which have this signature.
        let through: extern "C" fn(u64) -> u64 = unsafe { mem::transmute(page.function()) };
        assert_eq!(through(21), factor * 21);
    }
}

/// Arguments of all kinds arrive, more of them than there are registers. The stub has handlers that
/// spoil registers.
pub fn variadic_calls_pass<S: State>(stub: Stub) {
    type Snprintf = unsafe extern "C" fn(*mut libc::c_char, usize, *const libc::c_char, ...) -> i32;
    let page = Page::with_thunk::<S::Arch>(libc::snprintf as *const () as u64, stub);
    // SAFETY: the thunk leads to `snprintf`.
    let snprintf: Snprintf = unsafe { mem::transmute(page.function()) };
    let mut text = [0_u8; 64];
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
