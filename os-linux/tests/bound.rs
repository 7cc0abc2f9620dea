//! What a patch says of itself: what it is for, and to what it fits. The command `klp` on the
//! example `server`, and patches that klp-build makes for it.

mod server;

use klp_build::{PatchBuilder, Target};
use server::{Server, example};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The C source of the example's functions.
const GREETER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/greeter/c/greeter.c");

/// Makes a patch object that corrects the greeting, for the program `target`.
fn patch(
    server: &Server,
    name: &str,
    target: Option<&Path>,
    say: impl FnOnce(&mut PatchBuilder),
) -> String {
    let folder = server.folder.0.as_path();
    let original = std::fs::read_to_string(GREETER).expect("it is there");
    let fixed = original.replace("Helo", "Hello");
    assert_ne!(original, fixed);
    let mut patch = PatchBuilder::new(name);
    if let Some(target) = target {
        let target = std::fs::read(target).expect("it is there");
        patch.target(Target::read(&target).expect("a program"));
    }
    say(&mut patch);
    let object = |build: &str, text: &str| compile(&folder.join(build), text);
    let (before, after) = (object("before", &original), object("after", &fixed));
    let file = Path::new("greeter.o");
    patch.pair(file, Some(&before), &after).expect("they fit");
    let built = patch.build().expect("a patch");
    assert_eq!(built.functions, ["greeting"]);
    let path = folder.join(name).with_extension("ko");
    std::fs::write(&path, built.bytes).expect("there is room");
    path.to_str().expect("plain").to_owned()
}

fn compile(folder: &Path, text: &str) -> Vec<u8> {
    std::fs::create_dir_all(folder).expect("there is room");
    let c: PathBuf = folder.join("greeter.c");
    std::fs::write(&c, text).expect("there is room");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .args([
            "-O2",
            "-fno-ipa-ra",
            "-ffunction-sections",
            "-fdata-sections",
            "-c",
        ])
        .arg(&c)
        .arg("-o")
        .arg(c.with_extension("o"))
        .status();
    assert!(status.expect("a C compiler").success());
    std::fs::read(c.with_extension("o")).expect("compiled")
}

#[test]
fn what_a_patch_is_for_is_shown() {
    let server = Server::start(10);
    let fix = patch(&server, "cve_fix", Some(&example()), |patch| {
        patch.label("CVE-2024-1234").expect("good");
        patch.label("CVE-2024-1235").expect("good");
        patch.description("Spells the greeting").expect("good");
        patch.author("A. Author").expect("good");
    });
    let (said, code) = server.plain(&["enable", &fix]);
    assert_eq!(code, 0, "{said}");
    let (said, _) = server.plain(&["status", "cve_fix"]);
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "'cve_fix': enabled",
            "number 1 in force",
            "label: CVE-2024-1234",
            "label: CVE-2024-1235",
            "description: Spells the greeting",
            "author: A. Author",
            "vmlinux: patched",
            "greeting,1"
        ]
    );
    let (said, _) = server.plain(&["status", "--json"]);
    assert!(
        said.contains(r#""labels":["CVE-2024-1234","CVE-2024-1235"]"#),
        "{said}"
    );
}
