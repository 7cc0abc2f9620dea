//! The main thread's stack ends reliably, in `_start`.

#[cfg(not(all(target_os = "linux", target_arch = "powerpc64")))]
fn main() {}

#[cfg(all(target_os = "linux", target_arch = "powerpc64"))]
mod common;

#[cfg(all(target_os = "linux", target_arch = "powerpc64"))]
fn main() {
    klp_arch_tests::process::the_main_thread_ends_reliably::<common::Here>();
}
