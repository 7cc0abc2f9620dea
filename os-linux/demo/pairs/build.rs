//! Compiles `pairs.c` twice: the functions to be patched, with entry pads, and what replaces them.

fn main() {
    println!("cargo::rerun-if-changed=pairs.c");
    for version in ["0", "1"] {
        let mut build = cc::Build::new();
        build.file("pairs.c").opt_level(2).define("VERSION", version).flag("-fno-omit-frame-pointer");
        if version == "0" {
            build.flags(["-fpatchable-function-entry=16", "-fno-ipa-ra", "-fno-function-sections"]);
        }
        build.compile(&format!("pairs{version}"));
    }
}
