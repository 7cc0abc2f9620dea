//! A patch that shares its target's table of contents.
#![cfg(all(target_os = "linux", target_arch = "powerpc64"))]

mod patched;

#[test]
fn a_patch_shares_its_targets_table_of_contents() {
    patched::patched_and_back("power8");
}
