//! The shared library's own name: by it, the dynamic linker knows that what is preloaded is what a
//! program was linked with.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libklp.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
