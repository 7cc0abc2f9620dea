//! The entry stub: from a thunk to the handler and on to the function that the handler chose.
//!
//! Answers to the kernel's `arch/x86/kernel/ftrace_64.S` (`ftrace_regs_caller`), for one purpose
//! only.

use crate::unwind::Regs;

/// The registers that a function preserves for its caller (psABI 3.2.3, figure 3.4), as they are at
/// a patched function's entry: what the stub hands to a slow handler.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Preserved {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbx: u64,
    rbp: u64,
}

impl Preserved {
    /// The caller's registers, for a walk of its stack ([`walk_call`](crate::unwind::walk_call)):
    /// `sp` is `rsp` at the entry. `read` gives the eight bytes at an address: the return address is
    /// where `sp` points to.
    #[must_use]
    pub fn caller(&self, sp: u64, read: impl FnOnce(u64) -> u64) -> Regs {
        let Self {
            r15,
            r14,
            r13,
            r12,
            rbx,
            rbp,
        } = *self;
        Regs {
            rip: read(sp),
            rsp: sp.wrapping_add(8),
            rbp,
            rbx,
            r12,
            r13,
            r14,
            r15,
        }
    }
}

/// Most bytes of stack, below `rsp` at a patched function's entry, that an [entry
/// stub](crate::entry_stub) needs on the way of its fast handler, without what that handler takes.
pub const FAST_STACK_MAX: usize = crate::__entry_stub_vectors!(bytes) + 72 + 15 + 16 + 8;

/// Most bytes of stack, below `rsp` at a patched function's entry, that an [entry
/// stub](crate::entry_stub) needs on the way of its slow handler, without what that handler takes.
pub const SLOW_STACK_MAX: usize =
    crate::__entry_stub_vectors!(bytes) + 72 + 48 + MAX_XSAVE + 63 + 8;

/// Where the component 6 of XSAVE ends on processors that have all the others up to it, too (Intel
/// SDM volume 1, section 13.4.3; those that lack MPX have it earlier).
const MAX_XSAVE: usize = 1152 + 512;

/// Defines an entry stub, a function to whose address [`thunk`](klp_core::port::Arch::thunk)s lead.
///
/// ```
/// extern "C" fn handler(arg: u64) -> u64 {
///     arg // the address to go on at
/// }
/// # #[cfg(target_arch = "x86_64")]
/// klp_arch_x86_64::entry_stub!(pub(crate) fn example_stub, handler);
/// # fn main() { #[cfg(target_arch = "x86_64")] assert_ne!(example_stub as *const () as u64, 0) }
/// ```
///
/// `handler` is an `extern "C" fn(arg: u64, sp: u64) -> u64` (`unsafe` or not, and the second
/// argument may be left out): it takes the number of [`HandlerArg`](klp_core::port::HandlerArg) and
/// `rsp` at the patched function's entry, which points to the return address, and returns the
/// address to go on at. The function chosen finds all registers that carry arguments, and the
/// stack, as the caller left them; `r11`, `xmm8` to `xmm15` and the flags are clobbered.
///
/// Stands beside functions, not inside one. The name becomes a symbol of the linked program or
/// library (hidden, but it must be unique there). It must not be called.
///
/// # Two handlers
///
/// ```
/// # extern "C" fn fast(arg: u64) -> u64 { arg }
/// # extern "C" fn slow(arg: u64) -> u64 { arg }
/// # #[cfg(target_arch = "x86_64")]
/// klp_arch_x86_64::entry_stub!(pub(crate) fn example_two, fast, slow);
/// # fn main() { #[cfg(target_arch = "x86_64")] assert_ne!(example_two as *const () as u64, 0) }
/// ```
///
/// If `fast` returns 0, `slow` is called and decides. It gets both arguments again, and as a third,
/// `*const` [`Preserved`](crate::stub::Preserved), the registers that a walk of the caller's stack
/// needs (at a multiple of 8, if `sp` is one).
///
/// # What a handler may do
///
/// It must not unwind. A handler (the fast one, if there are two) must execute no vector
/// instructions but those that *this crate* is compiled for. The stub saves `xmm0` to `xmm7` if
/// that is plain SSE, whose instructions leave the upper halves of the registers alone; `ymm` or
/// `zmm` if it is AVX or AVX-512; nothing on targets without SSE. (Compiled for AVX without
/// AVX-512, any instruction may clear the upper halves of `zmm`: 512-bit arguments are lost then.)
/// In particular, such a handler calls nothing of a C library: its `memcpy` may be an AVX one, and
/// clears what it does not know to be an argument. A slow handler may do all that: around it, the
/// stub saves all of `zmm0` to `zmm15` that the machine has, on its stack. On targets without SSE,
/// there is no vector state in the hands of compiled code, and none is saved.
///
/// # Alignment
///
/// A handler is called with the stack aligned to 16 bytes as the psABI asks for, whatever the
/// patched function's caller did (hand-written code, code for other ABIs).
///
/// # What it needs of the stack
///
/// Beside what the handler itself takes, in bytes below `rsp` at the patched function's entry:
///
/// | way | bytes |
/// |---|---|
/// | fast handler, caller as the psABI asks for | V + 72 + 8 |
/// | fast handler, another caller | V + 72 + 16 + 8, and up to 15 that align it |
/// | slow handler | V + 72 + 48 + X + 8, and up to 63 that align it to 64 |
///
/// [`FAST_STACK_MAX`](crate::stub::FAST_STACK_MAX) and
/// [`SLOW_STACK_MAX`](crate::stub::SLOW_STACK_MAX) are the most that this can be.
///
/// V is what the stub saves of the vector registers around a fast handler: 0, 128 (SSE), 256 (AVX)
/// or 512 (AVX-512), as this crate is compiled. X is the size of the machine's XSAVE area up to the
/// end of the components that may hold arguments (Intel SDM volume 1, section 13.4.3): 0 without
/// XSAVE, 576 without AVX, 832 with AVX, up to 1664 with AVX-512. What else the machine has, AMX's
/// 8 KiB of tiles for one, costs nothing. With SSE and AVX-512, the slow way takes 1920 bytes and
/// up to 56 that align it; with SSE and AVX, 1088 and up to 56.
///
/// # No unwind information
///
/// The stub has none, on purpose. A task that stands in it, or in the handler, may have decided
/// already which version it goes to but not be there: its stack must not be trusted
/// ([`Doubt::NoTable`](klp_core::port::Doubt::NoTable)).
#[macro_export]
macro_rules! entry_stub {
    ($(#[$doc:meta])* $vis:vis fn $name:ident, $handler:path) => {
        $crate::__entry_stub!([$(#[$doc])*] [$vis] $name, "", ["{handler}"], handler = sym $handler);
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident, $handler:path, $slow:path) => {
        $crate::__entry_stub!(
            [$(#[$doc])*] [$vis] $name,
            $crate::__entry_stub_slow!($name), ["{handler}"],
            handler = sym $handler, slow = sym $slow
        );
    };
}

// The stack while the handler runs, for V bytes of vector registers (0, 128, 256 or 512). A
// function is entered with rsp + 8 a multiple of 16 (psABI 3.2.2, "The Stack Frame"), and the frame
// is an odd multiple of 8, so rsp is a multiple of 16 at the call, as psABI 3.2.2 asks for. If the
// caller did not keep to that, the handler is called from label 5: rsp is brought down to the next
// multiple of 16 and, below it, saved twice, once to be popped and once to keep that multiple.
//
//      rsp + V + 72    return address of the patched function's caller      <- rsp at entry
//      rsp + V + 64    r11: the number for the handler
//      rsp + V + 56    rax: al is the number of vector registers of a variadic call
//      rsp + V + 48    r10: static chain
//      rsp + V +  8    rsi, rdx, rcx, r8, r9
//      rsp + V         rdi
//      rsp             vector registers 0 to 7                              <- rsp at the call
//
// These are all that psABI 3.2.3 ("Parameter Passing", figure 3.4) passes to a function, apart from
// what lies above the return address. The opmask registers, x87, MMX and flags carry nothing;
// mxcsr's control bits belong to the callee's duties.
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub {
    ([$(#[$doc:meta])*] [$vis:vis] $name:ident, $slow:expr, [$handler:literal], $($operands:tt)*) => {
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
            "endbr64",
            "sub rsp, {V} + 72",
            "mov [rsp + {V}], rdi",
            "mov [rsp + {V} + 8], rsi",
            "mov [rsp + {V} + 16], rdx",
            "mov [rsp + {V} + 24], rcx",
            "mov [rsp + {V} + 32], r8",
            "mov [rsp + {V} + 40], r9",
            "mov [rsp + {V} + 48], r10",
            "mov [rsp + {V} + 56], rax",
            "mov [rsp + {V} + 64], r11",
            $crate::__entry_stub_vectors!(save),
            "mov rdi, r11",
            "lea rsi, [rsp + {V} + 72]",
            "test spl, 15",
            "jnz 5f",
            ::core::concat!("call ", $handler),
            "6:",
            $slow,
            "mov r11, rax",
            $crate::__entry_stub_vectors!(restore),
            "mov rdi, [rsp + {V}]",
            "mov rsi, [rsp + {V} + 8]",
            "mov rdx, [rsp + {V} + 16]",
            "mov rcx, [rsp + {V} + 24]",
            "mov r8, [rsp + {V} + 32]",
            "mov r9, [rsp + {V} + 40]",
            "mov r10, [rsp + {V} + 48]",
            "mov rax, [rsp + {V} + 56]",
            "add rsp, {V} + 72",
            "notrack jmp r11",
            "5:",
            "mov rax, rsp",
            "and rsp, -16",
            "push rax",
            "push rax",
            ::core::concat!("call ", $handler),
            "pop rsp",
            "jmp 6b",
            ::core::concat!(".size ", ::core::stringify!($name), ", . - ", ::core::stringify!($name)),
            ".popsection",
            V = const $crate::__entry_stub_vectors!(bytes),
            $($operands)*
        );
    };
}

// Saves and restores vector registers 0 to 7, or says how many bytes they take: as many bits as the
// compiler of this crate may touch.
#[cfg(not(target_feature = "sse"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_vectors {
    (bytes) => {
        0
    };
    ($how:ident) => {
        ""
    };
}

#[cfg(all(target_feature = "sse", not(target_feature = "avx")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_vectors {
    (bytes) => {
        8 * 16
    };
    (save) => {
        "
        movups [rsp], xmm0
        movups [rsp + 16], xmm1
        movups [rsp + 32], xmm2
        movups [rsp + 48], xmm3
        movups [rsp + 64], xmm4
        movups [rsp + 80], xmm5
        movups [rsp + 96], xmm6
        movups [rsp + 112], xmm7
        "
    };
    (restore) => {
        "
        movups xmm0, [rsp]
        movups xmm1, [rsp + 16]
        movups xmm2, [rsp + 32]
        movups xmm3, [rsp + 48]
        movups xmm4, [rsp + 64]
        movups xmm5, [rsp + 80]
        movups xmm6, [rsp + 96]
        movups xmm7, [rsp + 112]
        "
    };
}

#[cfg(all(target_feature = "avx", not(target_feature = "avx512f")))]
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_vectors {
    (bytes) => {
        8 * 32
    };
    (save) => {
        "
        vmovups [rsp], ymm0
        vmovups [rsp + 32], ymm1
        vmovups [rsp + 64], ymm2
        vmovups [rsp + 96], ymm3
        vmovups [rsp + 128], ymm4
        vmovups [rsp + 160], ymm5
        vmovups [rsp + 192], ymm6
        vmovups [rsp + 224], ymm7
        "
    };
    (restore) => {
        "
        vmovups ymm0, [rsp]
        vmovups ymm1, [rsp + 32]
        vmovups ymm2, [rsp + 64]
        vmovups ymm3, [rsp + 96]
        vmovups ymm4, [rsp + 128]
        vmovups ymm5, [rsp + 160]
        vmovups ymm6, [rsp + 192]
        vmovups ymm7, [rsp + 224]
        "
    };
}

#[cfg(target_feature = "avx512f")]
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_vectors {
    (bytes) => {
        8 * 64
    };
    (save) => {
        "
        vmovups [rsp], zmm0
        vmovups [rsp + 64], zmm1
        vmovups [rsp + 128], zmm2
        vmovups [rsp + 192], zmm3
        vmovups [rsp + 256], zmm4
        vmovups [rsp + 320], zmm5
        vmovups [rsp + 384], zmm6
        vmovups [rsp + 448], zmm7
        "
    };
    (restore) => {
        "
        vmovups zmm0, [rsp]
        vmovups zmm1, [rsp + 64]
        vmovups zmm2, [rsp + 128]
        vmovups zmm3, [rsp + 192]
        vmovups zmm4, [rsp + 256]
        vmovups zmm5, [rsp + 320]
        vmovups zmm6, [rsp + 384]
        vmovups zmm7, [rsp + 448]
        "
    };
}

// The way of the slow handler. It lies apart from the fast one's, with rbp as the anchor of the
// stub's frame:
//
//      rbp + V + 80    return address of the patched function's caller    <- rsp at entry
//      rbp + V + 72    r11
//      rbp +  8        the rest of the frame above                        <- rsp at the call above
//      rbp             rbp of the caller
//      rbp -  8        rbx
//      rbp - 40        r15, r14, r13, r12: with those above, what `Preserved` is
//      rsp             area of XSAVE, aligned to 64                       <- rsp at the call
//
// The components of XSAVE that vector arguments lie in (Intel SDM volume 1, chapter 13): 1 SSE, 2
// AVX, 6 upper halves of zmm0 to zmm15. The area is in standard form: component 1 lies in the first
// 576 bytes, 2 and 6 where leaf 0xd of CPUID says (eax: size, ebx: offset) if the system enabled
// them (XCR0). XSAVE writes those that are asked for, and nothing behind them. The size is asked
// for once: CPUID is slow, and very slow in virtual machines. Threads that race for it write the
// same. XRSTOR wants the header's bytes behind the first eight to be zero, and XSAVE does not write
// them.
#[cfg(target_feature = "sse")]
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_slow {
    ($name:ident) => {
        ::core::concat!(
            "
        test rax, rax
        jnz 4f
        push rbp
        mov rbp, rsp
        push rbx
        push r12
        push r13
        push r14
        push r15
        mov eax, [rip + ",
            ::core::stringify!($name),
            "_xsave]
        test eax, eax
        jz 7f
    20: cmp eax, 1
        je 2f
        sub rsp, rax
        and rsp, -64
        xor eax, eax
        mov [rsp + 512], rax
        mov [rsp + 520], rax
        mov [rsp + 528], rax
        mov [rsp + 536], rax
        mov [rsp + 544], rax
        mov [rsp + 552], rax
        mov [rsp + 560], rax
        mov [rsp + 568], rax
        mov eax, 0x46
        xor edx, edx
        xsave64 [rsp]
        mov rdi, [rbp + {V} + 72]
        lea rsi, [rbp + {V} + 80]
        lea rdx, [rbp - 40]
        call {slow}
        mov rcx, rax
        mov eax, 0x46
        xor edx, edx
        xrstor64 [rsp]
        mov rax, rcx
        jmp 3f
    2:  // No registers wider than those that are saved already.
        and rsp, -16
        mov rdi, [rbp + {V} + 72]
        lea rsi, [rbp + {V} + 80]
        lea rdx, [rbp - 40]
        call {slow}
        jmp 3f
    7:  // The size is not known yet: r9d counts it, r8d is XCR0. 1 says that there is no XSAVE.
        mov eax, 1
        xor ecx, ecx
        cpuid
        mov r9d, 1
        bt ecx, 27 // OSXSAVE
        jnc 9f
        xor ecx, ecx
        xgetbv
        mov r8d, eax
        mov r9d, 576
        mov r10d, 2
    7:  bt r8d, r10d
        jnc 8f
        mov eax, 0xd
        mov ecx, r10d
        cpuid
        add eax, ebx
        cmp eax, r9d
        cmova r9d, eax
    8:  add r10d, 4
        cmp r10d, 6
        jbe 7b
    9:  mov rbx, [rbp - 8]
        mov eax, r9d
        mov [rip + ",
            ::core::stringify!($name),
            "_xsave], eax
        jmp 20b
        .pushsection .bss
        .balign 4
    ",
            ::core::stringify!($name),
            "_xsave:
        .zero 4
        .popsection
    3:  mov rsp, rbp
        pop rbp
    4:
        "
        )
    };
}

#[cfg(not(target_feature = "sse"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __entry_stub_slow {
    ($name:ident) => {
        "
        test rax, rax
        jnz 4f
        push rbp
        mov rbp, rsp
        push rbx
        push r12
        push r13
        push r14
        push r15
        and rsp, -16
        mov rdi, [rbp + {V} + 72]
        lea rsi, [rbp + {V} + 80]
        lea rdx, [rbp - 40]
        call {slow}
        mov rsp, rbp
        pop rbp
    4:
        "
    };
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests;
