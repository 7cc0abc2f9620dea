//! Stacks of `makecontext` end reliably: where they go on is another stack's matter.
#![cfg(all(target_os = "linux", target_arch = "aarch64", target_env = "gnu"))]

mod common;

#[test]
fn the_stack_of_a_coroutine_ends() {
    klp_arch_tests::contexts::the_stack_of_a_coroutine_ends::<common::Here>();
}
