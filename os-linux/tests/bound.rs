//! What a patch says of itself: what it is for, and to what it fits. The command `klp` on the
//! example `server`, and patches that klp-build makes for it.

mod server;

use klp_build::{PatchBuilder, Target};
use object::{Object, ObjectSection, ObjectSymbol};
use server::{Folder, Server, example};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
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

/// A copy of the example without its build-id: that is a note of no known type.
fn nameless(folder: &Path) -> PathBuf {
    let mut bytes = std::fs::read(example()).expect("it is there");
    let file = object::File::parse(&*bytes).expect("a program");
    if let Some(note) = file.section_by_name(".note.gnu.build-id") {
        let (offset, _) = note.file_range().expect("it is in the file");
        // Behind the lengths of the note's name and of its contents.
        bytes[usize::try_from(offset).expect("it is in memory") + 8] ^= 0x80;
    }
    let (written, copy) = (folder.join("written"), folder.join("nameless"));
    std::fs::write(&written, bytes).expect("there is room");
    std::fs::set_permissions(&written, Permissions::from_mode(0o755)).expect("it is ours");
    // By another process: what this one has written may be held open by one that is forked
    // meanwhile, and then nobody can execute it.
    let copied = Command::new("cp").args([&written, &copy]).status();
    assert!(copied.expect("`cp` runs").success(), "there is room");
    copy
}

/// A copy of `program` whose function `greeting` has other code, and all else is the same.
fn changed(program: &Path) -> PathBuf {
    let mut bytes = std::fs::read(program).expect("it is there");
    let file = object::File::parse(&*bytes).expect("a program");
    let mut symbols = file.symbols();
    let greeting = symbols.find(|symbol| symbol.name() == Ok("greeting"));
    let greeting = greeting.expect("it is there");
    let holds = |section: &object::Section<'_, '_>| {
        (section.address()..section.address() + section.size()).contains(&greeting.address())
    };
    let section = file.sections().find(holds).expect("it is code");
    let (offset, _) = section.file_range().expect("it is in the file");
    let last = offset + (greeting.address() - section.address()) + greeting.size() - 1;
    bytes[usize::try_from(last).expect("it is in memory")] ^= 1;
    let copy = program.with_extension("changed");
    std::fs::write(&copy, bytes).expect("there is room");
    copy
}

#[test]
fn a_build_without_a_build_id_is_known_by_its_code() {
    let folder = Folder::new();
    let program = nameless(&folder.0);
    let server = Server::start_program(&program, 10);
    let (same, other) = (program.clone(), changed(&program));
    let same = patch(&server, "same", Some(&same), |_| ());
    let other = patch(&server, "other", Some(&other), |_| ());
    for verb in ["check", "enable"] {
        let (said, code) = server.plain(&[verb, &other]);
        let why = "patch 'other', object 'vmlinux': the patch is for other code: sha256:";
        assert!(
            code == 1 && said.contains(why) && said.contains(", not sha256:"),
            "{said}"
        );
    }
    assert_eq!(server.plain(&["list"]), ("no patch is loaded\n".into(), 0));
    // What runs has redirected entries, of another patch.
    let (said, code) = server.plain(&["enable", &server.patch]);
    assert_eq!(code, 0, "{said}");
    let (said, code) = server.plain(&["check", &same]);
    assert_eq!(code, 0, "{said}");
    // All threads sleep inside of that one's code: it does not stay below the next.
    assert_eq!(server.plain(&["disable", "greeter_fix"]).1, 0);
    let (said, code) = server.plain(&["enable", &same]);
    assert_eq!(code, 0, "{said}");

    // Another program under the same path: only what is mapped counts, if it can be read still.
    let next = folder.0.join("next");
    std::fs::copy(changed(&program), &next).expect("there is room");
    std::fs::rename(&next, &program).expect("same folder");
    assert_eq!(server.plain(&["disable", "same"]).1, 0);
    let (said, code) = server.plain(&["check", &same]);
    let readable = std::fs::read_dir(format!("/proc/{}/map_files", server.process.id()))
        .and_then(|mut maps| std::fs::File::open(maps.next().expect("it has memory")?.path()))
        .is_ok();
    if readable {
        assert_eq!(code, 0, "{said}");
    } else {
        let why = "the file of object 'vmlinux' ";
        assert!(code == 1 && said.contains(why), "{said}");
    }
}

#[test]
fn a_function_with_other_code_is_not_patched() {
    let server = Server::start(10);
    let copy = server.folder.0.join("copy");
    std::fs::copy(example(), &copy).expect("there is room");
    let other = patch(&server, "other", Some(&changed(&copy)), |_| ());
    let same = patch(&server, "same", Some(&example()), |_| ());
    for verb in ["check", "enable"] {
        let (said, code) = server.plain(&[verb, &other]);
        let why = "patch 'other', object 'vmlinux', function 'greeting': the patch is for other \
                   code: ";
        assert!(
            code == 1 && said.contains(why) && said.contains(" bytes, sha256:"),
            "{said}"
        );
    }
    assert_eq!(server.plain(&["list"]), ("no patch is loaded\n".into(), 0));
    for name in [&*same, "same"] {
        let (said, code) = server.plain(&["enable", name]);
        assert_eq!(code, 0, "{said}");
        assert_eq!(server.plain(&["disable", "same"]).1, 0);
    }
}

#[test]
fn a_patch_that_needs_another() {
    let server = Server::start(10);
    let base = patch(&server, "base", None, |_| ());
    let top = patch(&server, "top", None, |patch| {
        patch.depends_on("base").expect("a name");
    });
    let refused = |args: &[&str], why: &str| {
        let before = server.plain(&["list"]);
        let (said, code) = server.plain(args);
        assert!(code == 1 && said.contains(why), "{said}");
        assert_eq!(server.plain(&["list"]), before);
    };
    let done = |args: &[&str]| {
        let (said, code) = server.plain(args);
        assert_eq!(code, 0, "{said}");
        said
    };
    let missing = "patch 'top': it depends on the patch 'base', which is not enabled";
    refused(&["check", &top], missing);
    refused(&["enable", &top], missing);
    done(&["enable", &base]);
    done(&["enable", &top]);
    assert!(done(&["status", "top"]).contains("    depends on the patch 'base'\n"));
    let needed = "patch 'base': the enabled patch 'top' depends on it";
    refused(&["disable", "base"], needed);
    refused(&["set", "livepatch/base/enabled", "0"], needed);
    done(&["disable", "base", "top"]);
    // As one, whichever comes first.
    refused(&["enable", "top"], missing);
    done(&["enable", "top", "base"]);
    done(&["disable", "top"]);
    done(&["disable", "base"]);
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
