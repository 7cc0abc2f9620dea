//! Code for Power10, which is relative to itself and leaves register 2 alone.
#![cfg(all(target_os = "linux", target_arch = "powerpc64"))]

mod patched;

#[test]
fn a_patch_and_its_target_are_relative_to_themselves() {
    // `PPC_FEATURE2_ARCH_3_1` (the kernel's <asm/cputable.h>).
    // SAFETY: always works.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & 0x0004_0000 == 0 {
        println!("no Power10: not tested");
        return;
    }
    patched::patched_and_back("power10");
}
