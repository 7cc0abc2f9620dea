//! Compiles the functions that the benches patch: a handful to call, ten thousand to count, and a
//! thousand with pads that are no longer than a jump.

use std::fmt::Write;
use std::path::PathBuf;

const MANY: usize = 10_000;
const TIGHT: usize = 1_000;

fn main() {
    println!("cargo::rerun-if-changed=calls.c");
    let mut calls = cc::Build::new();
    calls
        .file("calls.c")
        .opt_level(2)
        .flag("-falign-functions=64")
        .compile("calls");

    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let functions = |file: &str, name: &str, count: usize| {
        let mut code = String::new();
        for index in 0..count {
            writeln!(
                code,
                "int {name}_{index}(int x) {{ return x * 3 + {index}; }}"
            )
            .expect("to memory");
        }
        writeln!(code, "int (*const {name}[])(int) = {{").expect("to memory");
        for index in 0..count {
            writeln!(code, "{name}_{index},").expect("to memory");
        }
        code.push_str("};\n");
        let path = out.join(file);
        std::fs::write(&path, code).expect("OUT_DIR can be written");
        path
    };
    cc::Build::new()
        .file(functions("many.c", "many", MANY))
        .opt_level(1)
        .flag("-fpatchable-function-entry=16")
        .flag("-fno-function-sections")
        .compile("many");
    cc::Build::new()
        .file(functions("new_many.c", "new_many", MANY))
        .opt_level(1)
        .compile("new_many");
    // Nothing aligns them, so pads lie anywhere: in one word, across two, across two lines.
    cc::Build::new()
        .file(functions("tight.c", "tight", TIGHT))
        .opt_level(1)
        .flag("-fpatchable-function-entry=5")
        .flag("-fno-function-sections")
        .compile("tight");
}
