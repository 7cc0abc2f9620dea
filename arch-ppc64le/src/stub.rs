//! The entry stub: from a thunk to the handler and on to the function that the handler chose.
//!
//! Answers to the kernel's `arch/powerpc/kernel/trace/ftrace_entry.S` (`ftrace_regs_caller`), for
//! one purpose only.

use crate::unwind::Regs;

/// The registers that a walk of the caller's stack needs (ELFv2 2.2.2.1: functions preserve them),
/// as they are at a patched function's entry: what the stub hands to a slow handler.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preserved {
    r30: u64,
    r31: u64,
}

impl Preserved {
    /// The caller's registers, for a walk of its stack ([`walk_call`](crate::unwind::walk_call)):
    /// `sp` is `r1` at the entry. `read` gives the eight bytes at an address: the return address
    /// stands at [`RETURN_ADDRESS`] bytes above `sp`.
    #[must_use]
    pub fn caller(&self, sp: u64, read: impl FnOnce(u64) -> u64) -> Regs {
        let Self { r30, r31 } = *self;
        Regs {
            pc: read(sp.wrapping_add(RETURN_ADDRESS)),
            r1: sp,
            r30,
            r31,
            ..Regs::NONE
        }
    }
}

/// How far above `r1` at a patched function's entry the stub puts the return address, for handlers
/// to see: where every function that calls another puts it (ELFv2 2.2.3.2).
pub const RETURN_ADDRESS: u64 = 16;

/// Most bytes of stack, below `r1` at a patched function's entry, that an [entry
/// stub](crate::entry_stub) needs, without what its handlers take: the same on both ways.
pub const STACK_MAX: usize = 464 + 15;

/// Defines an entry stub, a function to whose address [`thunk`](klp_core::port::Arch::thunk)s lead.
///
/// ```
/// extern "C" fn handler(arg: u64) -> u64 {
///     arg // the address to go on at
/// }
/// # #[cfg(target_arch = "powerpc64")]
/// klp_arch_ppc64le::entry_stub!(pub(crate) fn example_stub, handler);
/// # fn main() { #[cfg(target_arch = "powerpc64")] assert_ne!(example_stub as *const () as u64, 0) }
/// ```
///
/// `handler` is an `extern "C" fn(arg: u64, sp: u64) -> u64` (`unsafe` or not, and the second
/// argument may be left out): it takes the number of [`HandlerArg`](klp_core::port::HandlerArg) and
/// `r1` at the patched function's entry, and returns the address to go on at. The function chosen
/// finds all registers that carry arguments, and the stack, as the caller left them; register 2,
/// too; its own address in `r12`, as at a global entry (ELFv2 2.3.2.1); the return address in the
/// link register, and also in `r0`, as the rest of an entry of `-mprofile-kernel` wants it. `ctr`,
/// `xer` and the fields 0, 1, 5, 6 and 7 of `cr` are clobbered, which carry nothing (2.2.2.1).
///
/// Needs Rust 1.95, which was the first to have stable assembly for this processor; the rest of the
/// crate does not.
///
/// Stands beside functions, not inside one. The name becomes a symbol of the linked program or
/// library (hidden, but it must be unique there). It must not be called.
///
/// # Two handlers
///
/// ```
/// # extern "C" fn fast(arg: u64) -> u64 { arg }
/// # extern "C" fn slow(arg: u64) -> u64 { arg }
/// # #[cfg(target_arch = "powerpc64")]
/// klp_arch_ppc64le::entry_stub!(pub(crate) fn example_two, fast, slow);
/// # fn main() { #[cfg(target_arch = "powerpc64")] assert_ne!(example_two as *const () as u64, 0) }
/// ```
///
/// If `fast` returns 0, `slow` is called and decides. It gets both arguments again, and as a third,
/// `*const` [`Preserved`](crate::stub::Preserved), the registers that a walk of the caller's stack
/// needs.
///
/// # What a handler may do
///
/// It must not unwind. Else it may do what functions may: all of `f1` to `f13` and `v2` to `v13` is
/// saved around it.
///
/// # Alignment and stack
///
/// A handler is called with the stack aligned to 16 bytes as ELFv2 2.2.3.1 asks for, whatever the
/// patched function's caller did. The stub itself takes 464 bytes, and up to 15 that align it;
/// above `r1` at the entry it writes [one word](crate::stub::RETURN_ADDRESS), which belongs to
/// whoever is called.
///
/// # No unwind information
///
/// The stub has none, on purpose. A task that stands in it, or in the handler, may have decided
/// already which version it goes to but not be there: its stack must not be trusted
/// ([`Doubt::NoTable`](klp_core::port::Doubt::NoTable)).
#[macro_export]
macro_rules! entry_stub {
    ($(#[$doc:meta])* $vis:vis fn $name:ident, $handler:path) => {
        $crate::__entry_stub!([$(#[$doc])*] [$vis] $name, "", handler = sym $handler);
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident, $handler:path, $slow:path) => {
        $crate::__entry_stub!(
            [$(#[$doc])*] [$vis] $name,
            "
            cmpdi %r3, 0
            bne 4f
            std %r30, 432(%r1)
            std %r31, 440(%r1)
            ld %r3, 112(%r1)
            ld %r4, 0(%r1)
            addi %r5, %r1, 432
            bl {slow}
            nop
        4:
            ",
            handler = sym $handler, slow = sym $slow
        );
    };
}

// The stack while a handler runs:
//
//      back chain + 16     return address of the patched function's caller
//      back chain          the caller's frame                             <- r1 at entry
//      back chain - 8      r11: the environment of a nested function
//                          up to 15 bytes that align the rest
//      r1 + 432            r30, r31 for a slow handler; then room for r11
//      r1 + 240            v2 to v13
//      r1 + 128            f1 to f13
//      r1 + 112            r0: the number for the handler
//      r1 + 104            r2: what the patched function was entered with
//      r1 +  32            r3 to r10
//      r1 +   8            cr, lr and r2 of whom the stub calls (ELFv2 2.2.3.2)
//      r1                  back chain                                     <- r1 at the call
//
// These registers are all that ELFv2 2.2.4 and 3.8.2 pass to a function, apart from what lies above
// the return address. r11 is put below r1 before there is a frame, and is loaded from there when
// there is none any more: signals leave 288 bytes below r1 alone (2.2.3.4).
//
// A handler is a function of this object, so it wants register 2 to point to its table of contents.
// The thunk has left the stub's own address in r12, from which that is worked out.
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub {
    ([$(#[$doc:meta])*] [$vis:vis] $name:ident, $slow:expr, $($operands:tt)*) => {
        // SAFETY: the symbol is defined just below. It is an address to be jumped to; calling it is
        // the caller's unsafe act.
        unsafe extern "C" {
            $(#[$doc])*
            #[doc = "Entry stub: jumped to by thunks, not to be called."]
            $vis fn $name();
        }
        ::core::arch::global_asm!(
            ".pushsection .text.klp_entry_stub,\"ax\",@progbits",
            ".balign 64",
            ::core::concat!(".globl ", ::core::stringify!($name)),
            ::core::concat!(".hidden ", ::core::stringify!($name)),
            ::core::concat!(".type ", ::core::stringify!($name), ", @function"),
            ::core::concat!(::core::stringify!($name), ":"),
            "
            std %r11, -8(%r1)
            mflr %r11
            std %r11, 16(%r1)
            clrldi %r11, %r1, 60
            subfic %r11, %r11, -464
            stdux %r1, %r1, %r11
            std %r2, 104(%r1)
            std %r0, 112(%r1)
            ",
            ::core::concat!("addis %r2, %r12, .TOC.-", ::core::stringify!($name), "@ha"),
            ::core::concat!("addi %r2, %r2, .TOC.-", ::core::stringify!($name), "@l"),
            "
            std %r3, 32(%r1)
            std %r4, 40(%r1)
            std %r5, 48(%r1)
            std %r6, 56(%r1)
            std %r7, 64(%r1)
            std %r8, 72(%r1)
            std %r9, 80(%r1)
            std %r10, 88(%r1)
            stfd %f1, 128(%r1)
            stfd %f2, 136(%r1)
            stfd %f3, 144(%r1)
            stfd %f4, 152(%r1)
            stfd %f5, 160(%r1)
            stfd %f6, 168(%r1)
            stfd %f7, 176(%r1)
            stfd %f8, 184(%r1)
            stfd %f9, 192(%r1)
            stfd %f10, 200(%r1)
            stfd %f11, 208(%r1)
            stfd %f12, 216(%r1)
            stfd %f13, 224(%r1)
            li %r12, 240
            stvx %v2, %r1, %r12
            li %r12, 256
            stvx %v3, %r1, %r12
            li %r12, 272
            stvx %v4, %r1, %r12
            li %r12, 288
            stvx %v5, %r1, %r12
            li %r12, 304
            stvx %v6, %r1, %r12
            li %r12, 320
            stvx %v7, %r1, %r12
            li %r12, 336
            stvx %v8, %r1, %r12
            li %r12, 352
            stvx %v9, %r1, %r12
            li %r12, 368
            stvx %v10, %r1, %r12
            li %r12, 384
            stvx %v11, %r1, %r12
            li %r12, 400
            stvx %v12, %r1, %r12
            li %r12, 416
            stvx %v13, %r1, %r12
            mr %r3, %r0
            ld %r4, 0(%r1)
            bl {handler}
            nop
            ",
            $slow,
            "
            mr %r12, %r3
            mtctr %r12
            li %r11, 240
            lvx %v2, %r1, %r11
            li %r11, 256
            lvx %v3, %r1, %r11
            li %r11, 272
            lvx %v4, %r1, %r11
            li %r11, 288
            lvx %v5, %r1, %r11
            li %r11, 304
            lvx %v6, %r1, %r11
            li %r11, 320
            lvx %v7, %r1, %r11
            li %r11, 336
            lvx %v8, %r1, %r11
            li %r11, 352
            lvx %v9, %r1, %r11
            li %r11, 368
            lvx %v10, %r1, %r11
            li %r11, 384
            lvx %v11, %r1, %r11
            li %r11, 400
            lvx %v12, %r1, %r11
            li %r11, 416
            lvx %v13, %r1, %r11
            lfd %f1, 128(%r1)
            lfd %f2, 136(%r1)
            lfd %f3, 144(%r1)
            lfd %f4, 152(%r1)
            lfd %f5, 160(%r1)
            lfd %f6, 168(%r1)
            lfd %f7, 176(%r1)
            lfd %f8, 184(%r1)
            lfd %f9, 192(%r1)
            lfd %f10, 200(%r1)
            lfd %f11, 208(%r1)
            lfd %f12, 216(%r1)
            lfd %f13, 224(%r1)
            ld %r3, 32(%r1)
            ld %r4, 40(%r1)
            ld %r5, 48(%r1)
            ld %r6, 56(%r1)
            ld %r7, 64(%r1)
            ld %r8, 72(%r1)
            ld %r9, 80(%r1)
            ld %r10, 88(%r1)
            ld %r2, 104(%r1)
            ld %r1, 0(%r1)
            ld %r0, 16(%r1)
            mtlr %r0
            ld %r11, -8(%r1)
            bctr
            ",
            ::core::concat!(".size ", ::core::stringify!($name), ", . - ", ::core::stringify!($name)),
            ".popsection",
            $($operands)*
        );
    };
}

#[cfg(all(test, target_os = "linux", target_arch = "powerpc64"))]
mod tests;
