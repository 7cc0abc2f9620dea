//! Real stacks: what the unwinder sees is what the compiler's own unwinder and the back chain tell,
//! and what it calls unreliable is.
#![cfg(all(target_os = "linux", target_arch = "powerpc64"))]

mod common;

use common::Here;
use klp_arch_tests::process;

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
    // "lr in r0", as prologues have it, is not; libgcc_s has long ones.
    process::most_rules_are_understood::<Here>(5);
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
    process::interrupted_anywhere::<Here>(10);
}

klp_arch_ppc64le::entry_stub!(fn klp_test_doubtful_stub, process::doubtful_handler::<Here>);

#[test]
fn inside_the_entry_stub_nothing_is_reliable() {
    process::inside_the_entry_stub_nothing_is_reliable::<Here>(klp_test_doubtful_stub, 400);
}
