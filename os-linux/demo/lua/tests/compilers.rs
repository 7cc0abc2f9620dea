//! Whatever code the compiler makes of a patch, it is loaded and runs.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use core::ffi::c_void;
use core::time::Duration;
use klp_demo_lua::Interpreter;
use klp_os_linux::process::{Livepatch, Options};
use klp_os_linux_fixtures::{alone, text};
use std::path::Path;
use std::process::Command;

unsafe extern "C" {
    fn lua_version(lua: *mut c_void) -> f64;
}

fn livepatch() -> &'static Livepatch {
    let first = Livepatch::init(Options::default());
    first
        .or_else(|error| Livepatch::get().ok_or(error))
        .expect("this process can be patched")
}

fn version() -> f64 {
    // SAFETY: it does not look at its argument, neither here nor in the patch.
    unsafe { lua_version(core::ptr::null_mut()) }
}

fn compile(flags: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a folder for the object file");
    let object = dir.path().join("version.o");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .args(["-Wall", "-Werror", "-ffunction-sections", "-c", "-I"])
        .arg(klp_build::include_dir())
        .args(flags.split(' '))
        .args([
            Path::new("-o"),
            &object,
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/c/version.c")),
        ])
        .status()
        .expect("a C compiler");
    assert!(status.success(), "{flags}");
    klp_build::convert(&std::fs::read(object).expect("an object file")).expect("converts")
}

#[test]
fn code_of_every_kind() {
    let _alone = alone();
    let _linked = Interpreter::new();
    let klp = livepatch();
    let complete = |patch| {
        assert!(
            klp.wait(Duration::from_secs(10)),
            "{:?}",
            klp.engine().blockers(patch)
        )
    };
    for flags in [
        "-O2 -fPIC",
        "-O0 -fPIC",
        "-O3 -fPIC -g",
        "-Os -fPIC -fno-semantic-interposition",
        "-O2 -fPIC -fno-plt",
        "-O2 -fPIC -fvisibility=hidden",
        "-O2 -fPIC -fcf-protection",
        "-O2 -fPIC -fpatchable-function-entry=16",
        "-O2 -fPIE",
        "-O2 -fno-pic -mcmodel=large",
    ] {
        assert_eq!(version(), 504.0);
        let patch = klp
            .load(&compile(flags), "unnamed")
            .unwrap_or_else(|error| panic!("{flags}: {error}"));
        klp.enable(patch).expect("enables");
        complete(patch);
        assert_eq!(version(), 21.5, "{flags}");
        klp.disable(patch).expect("disables");
        complete(patch);
        klp.unload(patch).expect("unloads");
    }
    assert_eq!(version(), 504.0);
}

#[test]
fn code_for_a_fixed_place_is_refused() {
    let _alone = alone();
    let before = text();
    let error = livepatch()
        .load(&compile("-O2 -fno-pic"), "unnamed")
        .expect_err("a position-independent program");
    assert!(text() == before, "the process is not as it was");
    assert_eq!(version(), 504.0);
    let words = error.to_string();
    assert!(
        words.starts_with("patch 'version'") && words.contains("is out of range"),
        "{words}"
    );
}
