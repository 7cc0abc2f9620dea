//! Compiles the functions that the benches patch: a handful to call, and ten thousand to count.

use std::fmt::Write;
use std::path::PathBuf;

const MANY: usize = 10_000;

fn main() {
    println!("cargo::rerun-if-changed=calls.c");
    let mut calls = cc::Build::new();
    calls
        .file("calls.c")
        .opt_level(2)
        .flag("-falign-functions=64")
        .compile("calls");

    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let many = |file: &str, prefix: &str, table: bool| {
        let mut code = String::new();
        for index in 0..MANY {
            writeln!(
                code,
                "int {prefix}many_{index}(int x) {{ return x * 3 + {index}; }}"
            )
            .expect("to memory");
        }
        if table {
            writeln!(code, "int (*const {prefix}many[])(int) = {{").expect("to memory");
            for index in 0..MANY {
                writeln!(code, "{prefix}many_{index},").expect("to memory");
            }
            code.push_str("};\n");
        }
        let path = out.join(file);
        std::fs::write(&path, code).expect("OUT_DIR can be written");
        path
    };
    cc::Build::new()
        .file(many("many.c", "", true))
        .opt_level(1)
        .flag("-fpatchable-function-entry=16")
        .flag("-fno-function-sections")
        .compile("many");
    cc::Build::new()
        .file(many("new_many.c", "new_", true))
        .opt_level(1)
        .compile("new_many");
}
