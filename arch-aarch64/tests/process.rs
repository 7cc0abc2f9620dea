//! Real stacks: what the unwinder sees is what the compiler's own unwinder sees, and what it calls
//! unreliable is.
#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

mod common;

use common::Here;
use klp_arch_aarch64::unwind::Rule;
use klp_arch_tests::{find, process};
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
    process::interrupted_anywhere::<Here>(5);
}

klp_arch_aarch64::entry_stub!(fn klp_test_doubtful_stub, process::doubtful_handler::<Here>);

#[test]
fn inside_the_entry_stub_nothing_is_reliable() {
    process::inside_the_entry_stub_nothing_is_reliable::<Here>(klp_test_doubtful_stub, 512);
}

core::arch::global_asm!(
    ".pushsection .text",
    ".type klp_test_return_column,%function",
    "klp_test_return_column:",
    ".cfi_startproc",
    ".cfi_return_column 3", // x3
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

// What GCC 12 -O2 -mbranch-protection=pac-ret makes of a function that calls its first argument.
core::arch::global_asm!(
    ".pushsection .text",
    ".type klp_test_signing,%function",
    "klp_test_signing:",
    ".cfi_startproc",
    "hint #25", // paciasp
    ".cfi_negate_ra_state",
    "stp x29, x30, [sp, #-16]!",
    ".cfi_def_cfa_offset 16",
    ".cfi_offset 29, -16",
    ".cfi_offset 30, -8",
    "mov x29, sp",
    "mov x2, x0",
    "mov x0, x1",
    "blr x2",
    "ldp x29, x30, [sp], #16",
    ".cfi_restore 30",
    ".cfi_restore 29",
    ".cfi_def_cfa_offset 0",
    "hint #29", // autiasp
    ".cfi_negate_ra_state",
    "ret",
    ".cfi_endproc",
    ".size klp_test_signing, . - klp_test_signing",
    ".popsection",
);

// SAFETY: defined above, with this signature.
unsafe extern "C" {
    fn klp_test_signing(call: extern "C" fn(u64), arg: u64);
}

extern "C" fn signing(depth: u64) {
    if depth > 0 {
        // SAFETY: it calls what it is given.
        return unsafe { klp_test_signing(signing, depth - 1) };
    }
    let through = process::seen::<Here>().of(klp_test_signing as *const ());
    assert_eq!(through, 5);
}

/// Return addresses are signed if the machine does that.
#[test]
fn through_frames_that_sign_their_return_addresses() {
    process::deep(10, &|| signing(5));
}
