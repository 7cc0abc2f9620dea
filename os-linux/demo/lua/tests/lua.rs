//! The hole is there, and the program is built so that it can be patched.

use klp_core::elf::names::SymbolName;
use klp_core::elf::view::{Home, View};
use klp_demo_lua::{CHECK, EXPLOIT, Interpreter, PATCH, PATCHED_FUNCTION};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use std::ffi::CString;

fn run(source: &str) -> Result<String, String> {
    let source = CString::new(source).expect("no NUL");
    Interpreter::new().expect("memory").run(&source)
}

#[test]
fn lua_runs() {
    assert_eq!(run("return 6 * 7"), Ok("42".into()));
    assert_eq!(run(CHECK), Ok("ok".into()));
    assert!(run("error('no')").is_err_and(|error| error.ends_with("no")));
    assert!(run("not Lua").is_err());
}

#[test]
fn the_exploit_kills() {
    // SAFETY: the child runs an interpreter of its own, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let _ = run(EXPLOIT);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the child is ours.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status), "it survived: {status:#x}");
}

#[test]
fn the_program_has_what_a_patch_needs() {
    let program = std::fs::read(std::env::current_exe().expect("this test")).expect("readable");
    let program = object::File::parse(&*program).expect("ELF");
    for name in [
        PATCHED_FUNCTION,
        "findvararg",
        "currentpc",
        "luaF_getlocalname",
    ] {
        let functions: Vec<_> = program
            .symbols()
            .filter(|symbol| symbol.name() == Ok(name))
            .collect();
        assert_eq!(functions.len(), 1, "{name}");
        assert!(functions[0].is_local() && functions[0].size() > 0, "{name}");
        assert!(
            program
                .dynamic_symbols()
                .all(|symbol| symbol.name() != Ok(name)),
            "{name} is exported"
        );
    }
    let pads = program
        .section_by_name("__patchable_function_entries")
        .expect("entry pads");
    assert!(pads.size() > 8 * 100, "{} bytes of pads", pads.size());
}

#[test]
fn the_patch_refers_to_local_functions() {
    let patch = std::fs::read(PATCH).expect("built");
    let view = View::parse(&patch, object::elf::EM_X86_64.0, false).expect("a patch object");
    let mut names: Vec<_> = view
        .symbols()
        .iter()
        .filter(|symbol| symbol.home == Home::Livepatch)
        .map(|symbol| SymbolName::parse(symbol.name).expect("valid").name)
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["currentpc", "findvararg", "luaF_getlocalname"]);
}
