//! Real stacks: what the unwinder sees is what the compiler's own unwinder sees, and what it calls
//! unreliable is.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::Here;
use klp_arch_tests::{find, process};
use klp_arch_x86_64::unwind::Rule;
use klp_core::addr::CodeAddr;

#[test]
fn a_thread_ends_reliably() {
    process::a_thread_ends_reliably::<Here>();
}

#[test]
fn more_frames_than_the_limit() {
    process::more_frames_than_the_limit::<Here>();
}

#[test]
fn without_a_limit_a_deep_stack_is_walked_to_its_end() {
    process::without_a_limit_a_deep_stack_is_walked_to_its_end::<Here>();
}

#[test]
fn most_rules_are_understood() {
    process::most_rules_are_understood::<Here>(20);
}

#[test]
fn through_a_signal_frame() {
    process::through_a_signal_frame::<Here>();
}

#[test]
fn through_a_signal_frame_on_another_stack() {
    process::through_a_signal_frame_on_another_stack::<Here>();
}

#[test]
fn interrupted_anywhere() {
    process::interrupted_anywhere::<Here>(50);
}

klp_arch_x86_64::entry_stub!(fn klp_test_doubtful_stub, process::doubtful_handler::<Here>);

#[test]
fn inside_the_entry_stub_nothing_is_reliable() {
    process::inside_the_entry_stub_nothing_is_reliable::<Here>(klp_test_doubtful_stub, 256);
}

core::arch::global_asm!(
    ".pushsection .text",
    ".type klp_test_return_column,@function",
    "klp_test_return_column:",
    ".cfi_startproc",
    ".cfi_return_column 3", // rbx
    "nop",
    "ret",
    ".cfi_endproc",
    ".size klp_test_return_column, . - klp_test_return_column",
    ".popsection",
);

// SAFETY: defined above; never called.
unsafe extern "C" {
    fn klp_test_return_column();
}

#[test]
fn a_return_address_in_another_column_is_not_understood() {
    assert_eq!(
        find::<Here>(CodeAddr::new(klp_test_return_column as *const () as u64)),
        Rule::Unknown
    );
}

// What GCC 12 -O2 -mavx2 makes of a function with `alloca` and a `__m256`, around a call of its
// first argument: the frame is aligned to 32 bytes, and the caller's is found by what r10 was.
core::arch::global_asm!(
    ".pushsection .text",
    ".type klp_test_realigned,@function",
    "klp_test_realigned:",
    ".cfi_startproc",
    "lea r10, [rsp + 8]",
    ".cfi_def_cfa 10, 0",
    "and rsp, -32",
    "push qword ptr [r10 - 8]",
    "push rbp",
    "mov rbp, rsp",
    ".cfi_escape 0x10, 0x6, 0x2, 0x76, 0", // rbp at rbp + 0
    "push r12",
    "push r10",
    ".cfi_escape 0xf, 0x3, 0x76, 0x70, 0x6", // CFA in memory at rbp - 16
    ".cfi_escape 0x10, 0xc, 0x2, 0x76, 0x78", // r12 at rbp - 8
    "push rbx",
    ".cfi_escape 0x10, 0x3, 0x2, 0x76, 0x68", // rbx at rbp - 24
    "sub rsp, 136",
    "xor ebx, ebx",
    "xor r12d, r12d",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "lea rsp, [rbp - 24]",
    "pop rbx",
    "pop r10",
    ".cfi_def_cfa 10, 0",
    "pop r12",
    "pop rbp",
    "lea rsp, [r10 - 8]",
    ".cfi_def_cfa 7, 8",
    "ret",
    ".cfi_endproc",
    ".size klp_test_realigned, . - klp_test_realigned",
    ".popsection",
);

// SAFETY: defined above, with this signature.
unsafe extern "C" {
    fn klp_test_realigned(call: extern "C" fn(u64), arg: u64);
}

extern "C" fn realigned(depth: u64) {
    if depth > 0 {
        // SAFETY: it calls what it is given.
        return unsafe { klp_test_realigned(realigned, depth - 1) };
    }
    let through = process::seen::<Here>().of(klp_test_realigned as *const ());
    assert_eq!(through, 5);
}

#[test]
fn through_realigned_frames() {
    process::deep(10, &|| realigned(5));
}
