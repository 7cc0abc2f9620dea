//! Links the kernel as `kernel.ld` says, and again when that changes.

fn main() {
    println!("cargo:rerun-if-changed=kernel.ld");
    println!("cargo:rustc-link-arg-bins=-Tkernel.ld");
}
