//! The entry stub: from a thunk to the handler and on to the function that the handler chose.
//!
//! Answers to the kernel's `arch/arm64/kernel/entry-ftrace.S` (`ftrace_caller`), for one purpose
//! only.

use crate::unwind::Regs;

/// The registers that a function preserves for its caller (AAPCS64 6.1.1: `x19` to `x29`), and the
/// link register, as they are at a patched function's entry: what the stub hands to a slow handler.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preserved {
    /// `x19` to `x28`
    others: [u64; 10],
    fp: u64,
    lr: u64,
}

impl Preserved {
    /// The caller's registers, for a walk of its stack ([`walk_call`](crate::unwind::walk_call)):
    /// `sp` is the stack pointer at the entry. `read` gives the eight bytes at an address; it is
    /// for machines whose calls leave the return address in memory, and is not called here.
    #[must_use]
    pub fn caller(&self, sp: u64, _read: impl FnOnce(u64) -> u64) -> Regs {
        let mut regs = Regs {
            pc: self.lr,
            sp,
            fp: self.fp,
            // The call has overwritten what the caller had in `x30`. What it has in `d8` to `d15`
            // is not told.
            ..Regs::NONE
        };
        regs.saved[..self.others.len()].copy_from_slice(&self.others);
        regs
    }
}

/// Most bytes of stack, below `sp` at a patched function's entry, that an [entry
/// stub](crate::entry_stub) needs on the way of its fast handler, without what that handler takes.
pub const FAST_STACK_MAX: usize = FRAME + 26 * MAX_VECTOR;

/// The same on the way of its slow handler: the frame is the same.
pub const SLOW_STACK_MAX: usize = FAST_STACK_MAX;

/// What the stub saves beside vector registers.
const FRAME: usize = 112 + 80;

/// Bytes of the longest vector that there can be (Arm ARM, B1.2: 2048 bits).
const MAX_VECTOR: usize = 256;

/// Defines an entry stub, a function to whose address [`thunk`](klp_core::port::Arch::thunk)s lead.
///
/// ```
/// extern "C" fn handler(arg: u64) -> u64 {
///     arg // the address to go on at
/// }
/// # #[cfg(target_arch = "aarch64")]
/// klp_arch_aarch64::entry_stub!(pub(crate) fn example_stub, handler);
/// # fn main() { #[cfg(target_arch = "aarch64")] assert_ne!(example_stub as *const () as u64, 0) }
/// ```
///
/// `handler` is an `extern "C" fn(arg: u64, sp: u64) -> u64` (`unsafe` or not, and the second
/// argument may be left out): it takes the number of [`HandlerArg`](klp_core::port::HandlerArg) and
/// `sp` at the patched function's entry, and returns the address to go on at. The function chosen
/// finds all registers that carry arguments, and the stack, as the caller left them; `x9` to `x14`,
/// `x16`, `x17`, `v24` to `v31` and the flags are clobbered.
///
/// Stands beside functions, not inside one. The name becomes a symbol of the linked program or
/// library (hidden, but it must be unique there). It must not be called.
///
/// # Two handlers
///
/// ```
/// # extern "C" fn fast(arg: u64) -> u64 { arg }
/// # extern "C" fn slow(arg: u64) -> u64 { arg }
/// # #[cfg(target_arch = "aarch64")]
/// klp_arch_aarch64::entry_stub!(pub(crate) fn example_two, fast, slow);
/// # fn main() { #[cfg(target_arch = "aarch64")] assert_ne!(example_two as *const () as u64, 0) }
/// ```
///
/// If `fast` returns 0, `slow` is called and decides. It gets both arguments again, and as a third,
/// `*const` [`Preserved`](crate::stub::Preserved), the registers that a walk of the caller's stack
/// needs.
///
/// # What a handler may do
///
/// It must not unwind. Else it may do what any function may: all that it could spoil is saved. A
/// fast one, too, since any vector instruction clears those parts of a register that only SVE sees
/// (Arm ARM, B1.2).
///
/// # What is kept
///
/// | registers | what they carry at a function's entry | rule |
/// |---|---|---|
/// | `x0` to `x7` | arguments | AAPCS64 6.8.2 |
/// | `x8` | where an indirect result goes | AAPCS64 6.9 |
/// | `x15`, `x18` | static chain (clang's and GCC's) | none; Linux gives `x18` no other use (6.1.1) |
/// | `x19` to `x29`, `x30` | the caller's own; the return address | AAPCS64 6.1.1 |
/// | `v0` to `v7` | arguments | AAPCS64 6.8.2 |
/// | `v8` to `v23` | the caller's own | AAPCS64 6.1.2, AAVPCS64 3.1 |
/// | `z0` to `z7`, `p0` to `p3` | arguments | AAPCS64 6.8.2 |
/// | `z8` to `z23`, `p4` to `p15` | the caller's own, around functions with such arguments | 6.1.3 |
///
/// The last two are kept on machines with SVE. `ffr` and the flags carry nothing across a call.
///
/// # Limits
///
/// Functions that are called in streaming mode (SME, `__arm_streaming`) cannot be patched: code of
/// a handler does not run in that mode. Nor can functions of threads that have switched on the
/// guarded control stack: the way out is a `ret` to what the handler chose. (It must be: the body
/// of a function behind its pad has no landing pad, and no other branch goes to such a place if BTI
/// is on: Arm ARM, "PSTATE.BTYPE".)
///
/// # What it needs of the stack
///
/// Beside what the handler itself takes, in bytes below `sp` at the patched function's entry, which
/// is a multiple of 16 (AAPCS64 6.4.5.2):
///
/// | machine | bytes |
/// |---|---|
/// | without SVE | 192 + 384 |
/// | SVE, with vectors of V bytes | 192 + 26 V: 608 for V = 16, 1024 for 32, 1856 for 64 |
///
/// [`FAST_STACK_MAX`](crate::stub::FAST_STACK_MAX) and
/// [`SLOW_STACK_MAX`](crate::stub::SLOW_STACK_MAX) are the most that this can be: V = 256.
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
            [$(#[$doc])*] [$vis] $name, $crate::__entry_stub_slow!(),
            handler = sym $handler, slow = sym $slow
        );
    };
}

// The stack while a handler runs:
//
//      x29 + 112   what the caller pushed                            <- sp at entry
//      x29 + 104   x17: the number for the handler
//      x29 +  96   x18
//      x29 +  88   x15
//      x29 +  80   x8
//      x29 +  16   x0 to x7
//      x29         x29 and x30 of the caller: a frame record (AAPCS64 6.4.6)
//      x29 -  80   x19 to x28, before a slow handler: with those above, what `Preserved` is
//      sp          without SVE, q0 to q23                            <- sp at the call
//                  with SVE, p0 to p15, and z0 to z23 above them
//
// Which of both is asked for once. The kernel lets programs read ID_AA64PFR0_EL1 (its document
// "ARM64 CPU Feature Registers"; it traps, hence once), whose bits 32 to 35 it shows to be 0 if there
// is no SVE, or none for programs (Arm ARM, "ID_AA64PFR0_EL1"). Threads that race for it write the
// same. How long vectors are may differ from thread to thread, so `addvl` is asked every time.
//
// `hint #34` is `bti c`, which lets a `br x16` in (Arm ARM, C6.2). `ret x17` at the end needs no
// landing pad where it goes.
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
            ".pushsection .text.klp_entry_stub,\"ax\",%progbits",
            ".arch_extension sve",
            ".balign 64",
            ::core::concat!(".globl ", ::core::stringify!($name)),
            ::core::concat!(".hidden ", ::core::stringify!($name)),
            ::core::concat!(".type ", ::core::stringify!($name), ", %function"),
            ::core::concat!(::core::stringify!($name), ":"),
            "hint #34",
            "stp x29, x30, [sp, #-112]!",
            "mov x29, sp",
            "stp x0, x1, [x29, #16]",
            "stp x2, x3, [x29, #32]",
            "stp x4, x5, [x29, #48]",
            "stp x6, x7, [x29, #64]",
            "stp x8, x15, [x29, #80]",
            "stp x18, x17, [x29, #96]",
            ::core::concat!("adrp x16, ", ::core::stringify!($name), "_sve"),
            ::core::concat!("ldr w9, [x16, :lo12:", ::core::stringify!($name), "_sve]"),
            "cbnz w9, 2f",
            "mrs x9, ID_AA64PFR0_EL1",
            "tst x9, #0xf00000000",
            "cset w9, ne",
            "add w9, w9, #1",
            ::core::concat!("str w9, [x16, :lo12:", ::core::stringify!($name), "_sve]"),
            "2:",
            "sub sp, sp, #80",
            "tbnz w9, #1, 3f",
            "sub sp, sp, #384",
            $crate::__entry_stub_neon!("stp"),
            "b 4f",
            "3:",
            "addvl sp, sp, #-26",
            $crate::__entry_stub_sve!("str"),
            "4:",
            "mov x0, x17",
            "add x1, x29, #112",
            "bl {handler}",
            $slow,
            "mov x17, x0",
            ::core::concat!("adrp x16, ", ::core::stringify!($name), "_sve"),
            ::core::concat!("ldr w9, [x16, :lo12:", ::core::stringify!($name), "_sve]"),
            "tbnz w9, #1, 3f",
            $crate::__entry_stub_neon!("ldp"),
            "b 4f",
            "3:",
            $crate::__entry_stub_sve!("ldr"),
            "4:",
            "mov sp, x29",
            "ldp x0, x1, [x29, #16]",
            "ldp x2, x3, [x29, #32]",
            "ldp x4, x5, [x29, #48]",
            "ldp x6, x7, [x29, #64]",
            "ldp x8, x15, [x29, #80]",
            "ldr x18, [x29, #96]",
            "ldp x29, x30, [sp], #112",
            "ret x17",
            ::core::concat!(".size ", ::core::stringify!($name), ", . - ", ::core::stringify!($name)),
            ".popsection",
            ".pushsection .bss",
            ".balign 4",
            "// 0: not known yet; 1: no SVE; 2: SVE",
            ::core::concat!(::core::stringify!($name), "_sve:"),
            ".zero 4",
            ".popsection",
            $($operands)*
        );
    };
}

// Saves (`stp`) or restores (`ldp`) the vector registers of a machine without SVE.
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_neon {
    ($op:literal) => {
        ::core::concat!(
            $op,
            " q0, q1, [sp, #0]\n",
            $op,
            " q2, q3, [sp, #32]\n",
            $op,
            " q4, q5, [sp, #64]\n",
            $op,
            " q6, q7, [sp, #96]\n",
            $op,
            " q8, q9, [sp, #128]\n",
            $op,
            " q10, q11, [sp, #160]\n",
            $op,
            " q12, q13, [sp, #192]\n",
            $op,
            " q14, q15, [sp, #224]\n",
            $op,
            " q16, q17, [sp, #256]\n",
            $op,
            " q18, q19, [sp, #288]\n",
            $op,
            " q20, q21, [sp, #320]\n",
            $op,
            " q22, q23, [sp, #352]\n",
        )
    };
}

// Saves (`str`) or restores (`ldr`) those of a machine with SVE. Predicates take an eighth of a
// vector each, and count in such eighths.
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_sve {
    ($op:literal) => {
        ::core::concat!(
            $op,
            " p0, [sp, #0, mul vl]\n",
            $op,
            " p1, [sp, #1, mul vl]\n",
            $op,
            " p2, [sp, #2, mul vl]\n",
            $op,
            " p3, [sp, #3, mul vl]\n",
            $op,
            " p4, [sp, #4, mul vl]\n",
            $op,
            " p5, [sp, #5, mul vl]\n",
            $op,
            " p6, [sp, #6, mul vl]\n",
            $op,
            " p7, [sp, #7, mul vl]\n",
            $op,
            " p8, [sp, #8, mul vl]\n",
            $op,
            " p9, [sp, #9, mul vl]\n",
            $op,
            " p10, [sp, #10, mul vl]\n",
            $op,
            " p11, [sp, #11, mul vl]\n",
            $op,
            " p12, [sp, #12, mul vl]\n",
            $op,
            " p13, [sp, #13, mul vl]\n",
            $op,
            " p14, [sp, #14, mul vl]\n",
            $op,
            " p15, [sp, #15, mul vl]\n",
            $op,
            " z0, [sp, #2, mul vl]\n",
            $op,
            " z1, [sp, #3, mul vl]\n",
            $op,
            " z2, [sp, #4, mul vl]\n",
            $op,
            " z3, [sp, #5, mul vl]\n",
            $op,
            " z4, [sp, #6, mul vl]\n",
            $op,
            " z5, [sp, #7, mul vl]\n",
            $op,
            " z6, [sp, #8, mul vl]\n",
            $op,
            " z7, [sp, #9, mul vl]\n",
            $op,
            " z8, [sp, #10, mul vl]\n",
            $op,
            " z9, [sp, #11, mul vl]\n",
            $op,
            " z10, [sp, #12, mul vl]\n",
            $op,
            " z11, [sp, #13, mul vl]\n",
            $op,
            " z12, [sp, #14, mul vl]\n",
            $op,
            " z13, [sp, #15, mul vl]\n",
            $op,
            " z14, [sp, #16, mul vl]\n",
            $op,
            " z15, [sp, #17, mul vl]\n",
            $op,
            " z16, [sp, #18, mul vl]\n",
            $op,
            " z17, [sp, #19, mul vl]\n",
            $op,
            " z18, [sp, #20, mul vl]\n",
            $op,
            " z19, [sp, #21, mul vl]\n",
            $op,
            " z20, [sp, #22, mul vl]\n",
            $op,
            " z21, [sp, #23, mul vl]\n",
            $op,
            " z22, [sp, #24, mul vl]\n",
            $op,
            " z23, [sp, #25, mul vl]\n",
        )
    };
}

// The way of the slow handler: within the frame of the fast one.
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_slow {
    () => {
        "
        cbnz x0, 4f
        stp x19, x20, [x29, #-80]
        stp x21, x22, [x29, #-64]
        stp x23, x24, [x29, #-48]
        stp x25, x26, [x29, #-32]
        stp x27, x28, [x29, #-16]
        ldr x0, [x29, #104]
        add x1, x29, #112
        sub x2, x29, #80
        bl {slow}
    4:
        "
    };
}

#[cfg(all(test, target_os = "linux", target_arch = "aarch64"))]
mod tests;
