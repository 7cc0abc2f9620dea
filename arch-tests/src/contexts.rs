//! Stacks of `makecontext` end reliably: where they go on is another stack's matter.

use crate::frames::Frames;
use crate::running::{Running, objects};
use core::cell::UnsafeCell;
use core::{hint, mem, ptr};
use klp_core::port::Unreliable;

/// A coroutine, whoever called it, and what it saw of its stack.
struct Coroutine {
    own: libc::ucontext_t,
    caller: libc::ucontext_t,
    frames: Frames,
    result: Option<Result<(), Unreliable>>,
    /// Whether it goes back by itself, or leaves that to its link.
    goes_back: bool,
}

/// All-zero is a valid value of this plain struct.
const NO_CONTEXT: libc::ucontext_t = {
    // SAFETY: see above.
    unsafe { mem::zeroed() }
};

std::thread_local! {
    static IT: UnsafeCell<Coroutine> = const {
        UnsafeCell::new(Coroutine {
            own: NO_CONTEXT,
            caller: NO_CONTEXT,
            frames: Frames::new(),
            result: None,
            goes_back: false,
        })
    };
}

extern "C" fn coroutine<P: Running>() {
    let it = IT.with(UnsafeCell::get);
    let regs = P::registers();
    // SAFETY: the thread's own, and nobody else looks at it now.
    unsafe {
        (*it).result = Some((*it).frames.walk::<P>(regs));
        if (*it).goes_back {
            libc::setcontext(&raw const (*it).caller);
        }
    }
}

/// Runs the coroutine; its link is the caller if it does not go back by itself. Returns the frames
/// that it saw.
#[inline(never)]
fn run<P: Running>(goes_back: bool) -> usize {
    let mut stack = vec![0_u64; 1 << 14];
    let it = IT.with(UnsafeCell::get);
    // SAFETY: the thread's own. The stack outlives the coroutine, which is left for ever before
    // this returns.
    unsafe {
        (*it).goes_back = goes_back;
        assert_eq!(libc::getcontext(&raw mut (*it).own), 0);
        (*it).own.uc_stack.ss_sp = stack.as_mut_ptr().cast();
        (*it).own.uc_stack.ss_size = size_of_val(&*stack);
        (*it).own.uc_link = if goes_back {
            ptr::null_mut()
        } else {
            &raw mut (*it).caller
        };
        libc::makecontext(&raw mut (*it).own, coroutine::<P>, 0);
        assert_eq!(
            libc::swapcontext(&raw mut (*it).caller, &raw const (*it).own),
            0
        );
        hint::black_box(&stack);
        assert_eq!((*it).result, Some(Ok(())), "{:?}", (*it).frames.as_slice());
        (*it).frames.as_slice().len()
    }
}

/// A walk from a coroutine ends where its function returns to.
pub fn the_stack_of_a_coroutine_ends<P: Running>() {
    objects::<P>();
    for goes_back in [true, false] {
        // The coroutine and its foot; a debug build may have a frame or two more.
        assert!((2..5).contains(&run::<P>(goes_back)));
    }
}
