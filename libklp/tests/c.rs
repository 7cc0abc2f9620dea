//! Programs in C that embed the engine by `<klp.h>`.

mod common;

use common::{Workshop, said, source};
use std::path::Path;
use std::process::Command;

fn run(program: &Path, arg: &Path) -> (String, Option<i32>) {
    let output = Command::new(program)
        .arg(arg)
        .output()
        .expect("it can be run");
    (said(&output), output.status.code())
}

#[test]
fn a_program_that_patches_itself() {
    let workshop = Workshop::new();
    let greeter = workshop.patchable("examples/greeter.c");
    let fix = workshop.patch("examples/greeter_fix.c");
    for program in [
        workshop.shared("examples/embed.c", &greeter),
        workshop.fixed("examples/embed.c", &greeter),
    ] {
        assert_eq!(
            run(&program, &fix),
            ("helo\nhello\nhelo\n".into(), Some(0)),
            "{}",
            program.display()
        );
        let (said, code) = run(&program, Path::new("/nowhere.ko"));
        assert!(
            code == Some(1) && said.contains("/nowhere.ko: No such file"),
            "{said}"
        );
    }
}

/// As docs/authoring.md has it, and for no other build of the program.
#[test]
fn a_patch_that_is_made_of_two_builds() {
    let workshop = Workshop::new();
    let greeter = workshop.patchable("examples/greeter.c");
    let program = workshop.shared("examples/embed.c", &greeter);
    let rebuilt = workshop.fixed("examples/embed.c", &greeter);
    let original = std::fs::read_to_string(source("examples/greeter.c")).expect("it is there");
    let fixed = original.replace("\"helo\"", "\"hello\"");
    assert_ne!(original, fixed);
    let built = |build: &str, text: &str| {
        let folder = workshop.path(build);
        std::fs::create_dir(&folder).expect("there is room");
        let c = folder.join("greeter.c");
        std::fs::write(&c, text).expect("there is room");
        let flags = [
            "-c",
            "-fno-ipa-ra",
            "-ffunction-sections",
            "-fdata-sections",
        ];
        let c = c.to_str().expect("plain");
        workshop.compile("cc", c, &format!("{build}/greeter.o"), flags);
        folder
    };
    let (before, after) = (built("before", &original), built("after", &fixed));
    let fix = workshop.path("greeter_fix.ko");
    let target = std::fs::read(&program).expect("it was linked");
    let mut patch = klp_build::PatchBuilder::new("greeter_fix");
    patch.target(klp_build::Target::read(&target).expect("a program"));
    let object = |folder: &Path| std::fs::read(folder.join("greeter.o")).expect("compiled");
    patch
        .pair(
            Path::new("greeter.o"),
            Some(&object(&before)),
            &object(&after),
        )
        .expect("object files");
    let built = patch.build().expect("a patch");
    assert_eq!(built.functions, ["greeting"]);
    std::fs::write(&fix, built.bytes).expect("there is room");
    assert_eq!(run(&program, &fix), ("helo\nhello\nhelo\n".into(), Some(0)));
    // Another build has the same names, and other code.
    let (said, code) = run(&rebuilt, &fix);
    let refused = "object 'vmlinux': the patch is for build ";
    assert!(code == Some(1) && said.contains(refused), "{said}");
}

/// Builds without build-ids: the same names, other code.
#[test]
fn a_patch_for_another_build_without_a_build_id() {
    let workshop = Workshop::new();
    let price = "int rate = 3;\nint price(int n) { return n * rate; }\n";
    let changed = "int rate = 3;\nint price(int n) { return n * rate + (n > 100 ? 1 : 0); }\n";
    let object = |name: &str, text: &str, flags: &[&str]| {
        let c = workshop.path(&format!("{name}.c"));
        std::fs::write(&c, text).expect("there is room");
        let flags = [&["-c", "-fno-ipa-ra"], flags].concat();
        workshop.compile(
            "cc",
            c.to_str().expect("plain"),
            &format!("{name}.o"),
            flags,
        )
    };
    let program = |name: &str, price: &str| {
        let price = object(name, price, &common::PADS);
        let folder = workshop.path("");
        let args = [
            price.display().to_string(),
            format!("-L{}", folder.display()),
            format!("-Wl,-rpath,{}", folder.display()),
            "-lklp".into(),
            "-lpthread".into(),
            "-Wl,--build-id=none".into(),
        ];
        workshop.compile("cc", "tests/c/shop.c", &format!("{name}_program"), args)
    };
    let (original, rebuilt) = (program("price", price), program("rebuilt", changed));
    let sections = ["-ffunction-sections", "-fdata-sections"];
    let before = object("before", price, &sections);
    let after = object(
        "after",
        &price.replace("n * rate", "n * rate + 7"),
        &sections,
    );
    let made_for = |target: &Path| {
        let mut patch = klp_build::PatchBuilder::new("price_fix");
        let target = std::fs::read(target).expect("it was linked");
        let target = klp_build::Target::read(&target).expect("a program");
        assert!(target.build_id().is_none() && target.is_told());
        patch.target(target);
        let read = |path: &Path| std::fs::read(path).expect("compiled");
        let (before, after) = (read(&before), read(&after));
        let pair = patch.pair(Path::new("price.o"), Some(&before), &after);
        pair.expect("object files");
        let fix = workshop.path("price_fix.ko");
        std::fs::write(&fix, patch.build().expect("a patch").bytes).expect("there is room");
        fix
    };
    let fix = made_for(&original);
    assert_eq!(run(&original, &fix), ("30\n37\n".into(), Some(0)));
    let (said, code) = run(&rebuilt, &fix);
    let refused = "object 'vmlinux': the patch is for other code: sha256:";
    assert!(code == Some(1) && said.contains(refused), "{said}");
}

#[test]
fn every_mistake_has_an_answer() {
    let workshop = Workshop::new();
    let greeter = workshop.patchable("examples/greeter.c");
    let fix = workshop.patch("examples/greeter_fix.c");
    let program = workshop.shared("tests/c/misuse.c", &greeter);
    assert_eq!(
        run(&program, &fix),
        ("all is as it should be\n".into(), Some(0))
    );
}

#[test]
fn patches_that_are_signed() {
    let workshop = Workshop::new();
    let greeter = workshop.patchable("examples/greeter.c");
    let fix = workshop.patch("examples/greeter_fix.c");
    let (keys, sign) = workshop.keys();
    let program = workshop.shared("tests/c/signed.c", &greeter);
    let output = Command::new(program)
        .arg(keys)
        .args([&fix, &sign(&fix)])
        .output()
        .expect("it can be run");
    let refused = "patch 'greeter_fix': it is not signed, and only signed patches are taken\n";
    assert_eq!(
        (said(&output), output.status.code()),
        (refused.into(), Some(0))
    );
}

#[test]
fn a_transition_that_is_held_back() {
    let workshop = Workshop::new();
    let hold = workshop.patchable("tests/c/hold.c");
    let fix = workshop.patch("tests/c/hold_fix.c");
    let program = workshop.shared("tests/c/held.c", &hold);
    let (said, code) = run(&program, &fix);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("holder") && said.contains("depth 1"),
        "{said}"
    );
}

/// What the header says is what the library has, and its layouts are right (`every_mistake…` looks
/// at them); it is a header for old C, and for C++.
#[test]
fn the_header() {
    let workshop = Workshop::new();
    workshop.compile(
        "c++",
        "tests/c/header.cc",
        "header.o",
        ["-c", "-pedantic", "-std=c++11"],
    );
    let args = ["-c", "-pedantic", "-std=c99"];
    workshop.compile("cc", "tests/c/misuse.c", "misuse.o", args);

    let nm = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(workshop.libklp())
        .output()
        .expect("binutils are there");
    let symbols = said(&nm);
    let exported: Vec<&str> = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .filter(|name| name.starts_with("klp_"))
        .collect();
    let headers = [
        source("include/klp.h"),
        source("../os-linux/include/klp/context.h"),
        klp_build::include_dir().join("klp/shadow.h"),
    ];
    let text: String = headers
        .iter()
        .map(|path| std::fs::read_to_string(path).expect("it is there"))
        .collect();
    for name in &exported {
        assert!(text.contains(&format!("{name}(")), "{name} is in no header");
    }
    for declared in text
        .lines()
        .filter(|line| !line.starts_with(['\t', ' ', '/']) && line.contains('('))
        .filter_map(|line| line.split('(').next()?.split([' ', '*']).next_back())
        .filter(|name| name.starts_with("klp_") && *name != "klp_context_leave")
    {
        assert!(
            exported.contains(&declared),
            "{declared} is not in the library"
        );
    }
    assert!(exported.len() > 30, "{exported:?}");
}
