//! The stub between a caller that fills every argument register and a function that notes what it
//! finds in them.

use crate::X86_64;
use alloc::vec::Vec;
use core::mem::offset_of;
use klp_arch_tests::Page;
use klp_arch_tests::stub::{self, State as _};
use klp_core::addr::CodeAddr;
use std::arch::is_x86_feature_detected;

/// Registers, as a caller sets them or a function finds them.
#[repr(C, align(64))]
#[derive(PartialEq, Eq, Debug)]
struct State {
    vectors: [[u64; 8]; 8],
    /// rdi, rsi, rdx, rcx, r8, r9, r10, rax.
    arguments: [u64; 8],
    /// rbx, rbp, r14, r15; r12 and r13 serve the test itself.
    preserved: [u64; 4],
    /// What the caller pushed.
    stack: [u64; 2],
}

/// Which part of the vector registers the machine and this build can carry through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u64)]
enum Width {
    Xmm = 0,
    Ymm = 1,
    Zmm = 2,
}

// Throughout: r12 points to a `State`, r13 is a `Width`.
core::arch::global_asm!(
    ".pushsection .text.klp_stub_test,\"ax\",@progbits",
    ".globl klp_test_drive, klp_test_probe, klp_test_fast, klp_test_fast_zero",
    ".globl klp_test_slow, klp_test_bare, klp_test_bare_zero, klp_test_on_stack",
    // fn klp_test_drive(target, given, found, width) -> u64
    "klp_test_drive:",
    "push rbx; push rbp; push r12; push r13; push r14; push r15",
    "push rdx", // found
    "push qword ptr [rsi + {stack} + 8]",
    "push qword ptr [rsi + {stack}]",
    "mov r12, rdx",
    "mov r13, rcx",
    "mov r11, rdi",
    "cmp r13, 1; jb 2f; je 3f",
    "vmovups zmm0, [rsi]; vmovups zmm1, [rsi + 64]; vmovups zmm2, [rsi + 128]; vmovups zmm3, [rsi + 192]",
    "vmovups zmm4, [rsi + 256]; vmovups zmm5, [rsi + 320]; vmovups zmm6, [rsi + 384]; vmovups zmm7, [rsi + 448]",
    "jmp 4f",
    "2: movups xmm0, [rsi]; movups xmm1, [rsi + 64]; movups xmm2, [rsi + 128]; movups xmm3, [rsi + 192]",
    "movups xmm4, [rsi + 256]; movups xmm5, [rsi + 320]; movups xmm6, [rsi + 384]; movups xmm7, [rsi + 448]",
    "jmp 4f",
    "3: vmovups ymm0, [rsi]; vmovups ymm1, [rsi + 64]; vmovups ymm2, [rsi + 128]; vmovups ymm3, [rsi + 192]",
    "vmovups ymm4, [rsi + 256]; vmovups ymm5, [rsi + 320]; vmovups ymm6, [rsi + 384]; vmovups ymm7, [rsi + 448]",
    "4: mov rbx, [rsi + {preserved}]",
    "mov rbp, [rsi + {preserved} + 8]",
    "mov r14, [rsi + {preserved} + 16]",
    "mov r15, [rsi + {preserved} + 24]",
    "mov rdi, [rsi + {arguments}]",
    "mov rdx, [rsi + {arguments} + 16]",
    "mov rcx, [rsi + {arguments} + 24]",
    "mov r8, [rsi + {arguments} + 32]",
    "mov r9, [rsi + {arguments} + 40]",
    "mov r10, [rsi + {arguments} + 48]",
    "mov rax, [rsi + {arguments} + 56]",
    "mov rsi, [rsi + {arguments} + 8]",
    "call r11",
    "add rsp, 16",
    "pop rdx", // a wrong stack pointer shows up here
    "cmp rdx, r12; je 5f; ud2; 5:",
    "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
    "ret",
    // The patched function: notes what it finds, returns 77.
    "klp_test_probe:",
    "mov [r12 + {arguments}], rdi",
    "mov [r12 + {arguments} + 8], rsi",
    "mov [r12 + {arguments} + 16], rdx",
    "mov [r12 + {arguments} + 24], rcx",
    "mov [r12 + {arguments} + 32], r8",
    "mov [r12 + {arguments} + 40], r9",
    "mov [r12 + {arguments} + 48], r10",
    "mov [r12 + {arguments} + 56], rax",
    "mov [r12 + {preserved}], rbx",
    "mov [r12 + {preserved} + 8], rbp",
    "mov [r12 + {preserved} + 16], r14",
    "mov [r12 + {preserved} + 24], r15",
    "mov rax, [rsp + 8]; mov [r12 + {stack}], rax",
    "mov rax, [rsp + 16]; mov [r12 + {stack} + 8], rax",
    "cmp r13, 1; jb 2f; je 3f",
    "vmovups [r12], zmm0; vmovups [r12 + 64], zmm1; vmovups [r12 + 128], zmm2; vmovups [r12 + 192], zmm3",
    "vmovups [r12 + 256], zmm4; vmovups [r12 + 320], zmm5; vmovups [r12 + 384], zmm6; vmovups [r12 + 448], zmm7",
    "jmp 4f",
    "2: movups [r12], xmm0; movups [r12 + 64], xmm1; movups [r12 + 128], xmm2; movups [r12 + 192], xmm3",
    "movups [r12 + 256], xmm4; movups [r12 + 320], xmm5; movups [r12 + 384], xmm6; movups [r12 + 448], xmm7",
    "jmp 4f",
    "3: vmovups [r12], ymm0; vmovups [r12 + 64], ymm1; vmovups [r12 + 128], ymm2; vmovups [r12 + 192], ymm3",
    "vmovups [r12 + 256], ymm4; vmovups [r12 + 320], ymm5; vmovups [r12 + 384], ymm6; vmovups [r12 + 448], ymm7",
    "4: mov eax, 77",
    "ret",
    // Handlers. Each checks that its stack is aligned and spoils all registers that a function may
    // spoil.
    "klp_test_fast_zero:", // as fast code of this build does; wants the slow one
    "push 0; jmp 6f",
    "klp_test_fast:", // as fast code of this build does; returns its argument
    "push rdi",
    "6: test rsp, 15; jz 2f; ud2; 2:",
    "cmp r13, {spoils_ymm}; jb 3f",
    "vpcmpeqd ymm0, ymm0, ymm0; vpcmpeqd ymm1, ymm1, ymm1; vpcmpeqd ymm2, ymm2, ymm2; vpcmpeqd ymm3, ymm3, ymm3",
    "vpcmpeqd ymm4, ymm4, ymm4; vpcmpeqd ymm5, ymm5, ymm5; vpcmpeqd ymm6, ymm6, ymm6; vpcmpeqd ymm7, ymm7, ymm7",
    "3: pcmpeqd xmm0, xmm0; pcmpeqd xmm1, xmm1; pcmpeqd xmm2, xmm2; pcmpeqd xmm3, xmm3",
    "pcmpeqd xmm4, xmm4; pcmpeqd xmm5, xmm5; pcmpeqd xmm6, xmm6; pcmpeqd xmm7, xmm7",
    "4: mov rcx, -1; mov rdx, rcx; mov rsi, rcx; mov rdi, rcx",
    "mov r8, rcx; mov r9, rcx; mov r10, rcx; mov r11, rcx",
    "pop rax",
    "ret",
    // Handlers that need no stack. The slow one touches what lies just above its own frame.
    "klp_test_bare:", // returns its argument
    "mov rax, rdi",
    "ret",
    "klp_test_bare_zero:",
    "xor eax, eax",
    "ret",
    // fn klp_test_on_stack(target, rsp) -> u64: calls the target with `rsp` at its entry
    "klp_test_on_stack:",
    "push rbx; push r13",
    "mov rbx, rsp",
    "xor r13d, r13d", // handlers spoil no wide vectors
    "lea rsp, [rsi + 8]",
    "call rdi",
    "mov rsp, rbx",
    "pop r13; pop rbx",
    "ret",
    "klp_test_slow:", // as a C library's memcpy does; returns its argument
    "push rdi",
    "test rsp, 15; jz 2f; ud2; 2:",
    "cmp r13, 1; jb 3b",
    "vzeroall",
    "jmp 4b",
    ".popsection",
    arguments = const offset_of!(State, arguments),
    preserved = const offset_of!(State, preserved),
    stack = const offset_of!(State, stack),
    spoils_ymm = const if cfg!(target_feature = "avx") { 1 } else { 9 },
);

// SAFETY: defined above, with this signature.
unsafe extern "C" {
    fn klp_test_drive(target: u64, given: *const State, found: *mut State, width: Width) -> u64;
    fn klp_test_probe();
    fn klp_test_fast(arg: u64) -> u64;
    fn klp_test_fast_zero(arg: u64) -> u64;
    fn klp_test_slow(arg: u64) -> u64;
    fn klp_test_bare(arg: u64) -> u64;
    fn klp_test_bare_zero(arg: u64) -> u64;
    fn klp_test_on_stack(target: u64, rsp: u64) -> u64;
}

crate::entry_stub!(fn klp_test_stub_one, klp_test_fast);
crate::entry_stub!(fn klp_test_stub_two, klp_test_fast, klp_test_slow);
crate::entry_stub!(fn klp_test_stub_slow, klp_test_fast_zero, klp_test_slow);

impl State {
    const EMPTY: Self = Self {
        vectors: [[0; 8]; 8],
        arguments: [0; 8],
        preserved: [0; 4],
        stack: [0; 2],
    };
}

impl stub::State for State {
    type Arch = X86_64;
    type Width = Width;

    fn widths() -> Vec<Width> {
        let widest = if is_x86_feature_detected!("avx512f")
            && (cfg!(target_feature = "avx512f") || !cfg!(target_feature = "avx"))
        {
            Width::Zmm
        } else if is_x86_feature_detected!("avx") {
            Width::Ymm
        } else {
            Width::Xmm
        };
        [Width::Xmm, Width::Ymm, Width::Zmm]
            .into_iter()
            .filter(|&width| width <= widest)
            .collect()
    }

    fn probe() -> u64 {
        klp_test_probe as *const () as u64
    }

    fn given(width: Width, next: &mut dyn FnMut() -> u64) -> Self {
        let words = [2, 4, 8][width as usize];
        let mut vectors = [[0; 8]; 8];
        vectors
            .iter_mut()
            .for_each(|vector| vector[..words].fill_with(&mut *next));
        Self {
            vectors,
            arguments: core::array::from_fn(|_| next()),
            preserved: core::array::from_fn(|_| next()),
            stack: core::array::from_fn(|_| next()),
        }
    }

    unsafe fn drive(given: &Self, width: Width, thunk: CodeAddr) -> (u64, Self) {
        let mut found = Self::EMPTY;
        // SAFETY: the caller's duty. The probe keeps to the ABI.
        let answer = unsafe { klp_test_drive(thunk.get(), given, &raw mut found, width) };
        (answer, found)
    }

    unsafe fn drive_on_stack(stack_pointer: u64, thunk: CodeAddr) -> u64 {
        // SAFETY: the caller's duty. Above `rsp`, a return address is all that is used.
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

/// The size of the XSAVE area up to the end of the components 2 and 6, if the system enabled them.
#[cfg(target_feature = "sse")]
fn xsave_len() -> usize {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    if __cpuid(1).ecx & 1 << 27 == 0 {
        return 0;
    }
    let xcr0: u32;
    // SAFETY: the system enabled XSAVE, so there is `xgetbv`; it changes nothing else.
    unsafe {
        core::arch::asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _, options(nomem, nostack))
    };
    let ends = [2, 6]
        .into_iter()
        .filter(|component| xcr0 & 1 << component != 0)
        .map(|component| {
            let leaf = __cpuid_count(0xd, component);
            leaf.ebx + leaf.eax
        });
    ends.max().unwrap_or(0).max(576) as usize
}

#[test]
fn the_stack_that_it_needs_is_as_documented() {
    use crate::stub::{FAST_STACK_MAX, SLOW_STACK_MAX};
    let frame = crate::__entry_stub_vectors!(bytes) + 72;
    // Where rsp points to the return address of a caller that keeps to the ABI, and of others.
    for modulo in [56, 8, 24, 40, 0, 16, 48, 9, 63, 52] {
        // The handler's return address, and on an unaligned stack two words and what aligns them.
        let (at_call, extra) = (
            modulo as usize + 4096 - frame,
            if modulo % 16 == 8 { 0 } else { 16 },
        );
        let fast = modulo as usize + 4096 - ((at_call & !15) - extra - 8);
        assert_eq!(
            stub::depth::<State>(klp_test_stub_bare, modulo),
            fast,
            "{modulo}"
        );
        assert!(fast <= FAST_STACK_MAX);
        #[cfg(target_feature = "sse")]
        {
            let slow = modulo as usize + 4096 - (((at_call - 48 - xsave_len()) & !63) - 8);
            assert_eq!(
                stub::depth::<State>(klp_test_stub_bare_slow, modulo),
                slow,
                "{modulo}"
            );
            assert!(slow <= SLOW_STACK_MAX, "{slow}");
            std::println!(
                "rsp = {modulo} modulo 64: fast {fast}, slow {slow}, at most {SLOW_STACK_MAX}"
            );
        }
    }
}

#[test]
fn a_caller_may_align_its_stack_in_any_way() {
    // `klp_test_fast` and `klp_test_slow` check the alignment of theirs.
    for stub in [klp_test_stub_one, klp_test_stub_two, klp_test_stub_slow] {
        stub::a_caller_may_align_its_stack_in_any_way::<State>(stub, 1, |_| {});
    }
    stub::a_caller_may_align_its_stack_in_any_way::<State>(klp_test_stub_note, 8, |entry| {
        assert_eq!(
            NOTED.get().expect("the handler ran").0,
            entry,
            "it is told of the caller's own"
        );
    });
}

std::thread_local! {
    /// What the handler below was given: `rsp`, the return address there, the registers.
    static NOTED: core::cell::Cell<Option<(u64, u64, crate::stub::Preserved)>> = const { core::cell::Cell::new(None) };
}

unsafe extern "C" fn note(arg: u64, sp: u64, preserved: *const crate::stub::Preserved) -> u64 {
    // SAFETY: the stub's promise.
    NOTED.set(Some(unsafe { (sp, *(sp as *const u64), *preserved) }));
    arg
}

crate::entry_stub!(fn klp_test_stub_note, klp_test_fast_zero, note);

#[test]
fn a_slow_handler_is_told_of_the_caller() {
    let page = Page::with_thunk::<X86_64>(State::probe(), klp_test_stub_note);
    let given = State::given(Width::Xmm, &mut stub::numbers(1));
    let mut found = State::EMPTY;
    // SAFETY: the thunk leads to the probe, which keeps to the ABI.
    unsafe { klp_test_drive(page.addr().get(), &given, &raw mut found, Width::Xmm) };
    let (sp, return_address, preserved) = NOTED.get().expect("the handler ran");
    let regs = preserved.caller(sp, |at| {
        assert_eq!(at, sp);
        return_address
    });
    assert_eq!([regs.rbx, regs.rbp, regs.r14, regs.r15], given.preserved);
    assert_eq!(
        (regs.r12, regs.r13),
        ((&raw const found) as u64, Width::Xmm as u64)
    );
    let (low, high) = (
        klp_test_drive as *const () as u64,
        klp_test_probe as *const () as u64,
    );
    assert!(
        low < regs.rip && regs.rip < high,
        "the return address is in the caller"
    );
    // SAFETY: what the caller pushed lies above the return address, and nothing has written there
    // since.
    assert_eq!(regs.rsp, sp + 8);
}

crate::entry_stub!(fn klp_test_stub_choose, stub::choose);

#[test]
fn a_handler_in_rust_chooses() {
    stub::a_handler_in_rust_chooses::<State>(klp_test_stub_choose);
}

extern "C" fn spoil(arg: u64) -> u64 {
    // SAFETY: changes only what it says.
    unsafe { core::arch::asm!("pcmpeqd xmm0, xmm0", out("xmm0") _, options(nomem, nostack)) };
    arg
}

crate::entry_stub!(fn klp_test_stub_spoil, spoil);

/// A float argument of `snprintf` is found only if `al` and `xmm0` arrive.
#[test]
fn variadic_calls_pass() {
    stub::variadic_calls_pass::<State>(klp_test_stub_spoil);
}
