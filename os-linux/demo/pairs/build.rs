//! Compiles `pairs.c` three times: the functions to be patched, with entry pads, and two versions
//! that replace them; and a shared library with functions to be patched; and patch objects.

use std::path::PathBuf;

const PATCHABLE: [&str; 3] = [
    "-fpatchable-function-entry=16",
    "-fno-ipa-ra",
    "-fno-function-sections",
];

fn main() {
    println!("cargo::rerun-if-changed=pairs.c");
    println!("cargo::rerun-if-changed=module.c");
    println!("cargo::rerun-if-changed=loaded.c");
    println!(
        "cargo::rerun-if-changed={}",
        klp_build::include_dir().display()
    );
    for version in ["0", "1", "2"] {
        let mut build = cc::Build::new();
        build
            .file("pairs.c")
            .opt_level(2)
            .define("VERSION", version)
            .flag("-fno-omit-frame-pointer");
        if version == "0" {
            build.flags(PATCHABLE);
        }
        build.compile(&format!("pairs{version}"));
    }

    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for version in ["1", "2"] {
        let mut build = cc::Build::new();
        build
            .file("loaded.c")
            .include(klp_build::include_dir())
            .opt_level(2)
            .pic(true)
            .define("VERSION", version);
        let objects = build
            .flag("-ffunction-sections")
            .out_dir(out.join(version))
            .compile_intermediates();
        let patch = klp_build::convert(&std::fs::read(&objects[0]).expect("just written"))
            .expect("it converts");
        let path = out.join(format!("loaded-{version}.ko"));
        std::fs::write(&path, patch).expect("OUT_DIR can be written");
        println!(
            "cargo::rustc-env=KLP_PAIRS_LOADED_{version}={}",
            path.display()
        );
    }

    let library = out.join("libpairs_module.so");
    let mut compiler = cc::Build::new().get_compiler().to_command();
    let status = compiler
        .args(["-O2", "-shared", "-fPIC"])
        .args(PATCHABLE)
        .args(["module.c", "-o"])
        .arg(&library)
        .status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "the shared library cannot be compiled"
    );
    println!("cargo::rustc-env=KLP_PAIRS_MODULE={}", library.display());
}
