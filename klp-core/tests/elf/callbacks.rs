//! Callbacks in patch objects: called, or refused.

use crate::file::{DATA, File};
use crate::host::{ABS64, Call, Host, answer, calls, load};
use klp_core::Engine;
use klp_core::engine::PatchId;
use object::build::elf::SymbolId;

const OBJECT: &str = "patch 'fix', object 'libfoo': ";

/// A file with nothing but the four callbacks of `libfoo`, at offsets 0, 16, 32, 48 of the code,
/// and of `vmlinux`, the same.
fn file() -> File {
    let mut file = File::new();
    let text = file.section(".text.hooks", crate::file::TEXT, 16, &[0; 64]);
    let hooks = [0, 16, 32, 48].map(|at| file.function(&format!("hook{at}"), text, at, 16));
    for object in [None, Some("libfoo")] {
        file.replace(object, &[]);
        (0..)
            .zip(hooks)
            .for_each(|(which, hook)| file.add_callback(which, hook));
    }
    file
}

/// The engine of a host where only `vmlinux` is loaded, with that file; and where the file's code
/// is.
fn engine() -> (Engine<Host>, PatchId, u64) {
    let host = Host::new();
    let loaded = load(&host, &file().bytes(), "p").expect("loads");
    let text = loaded.image.image().text.start().get();
    let engine = Engine::new(host);
    let patch = engine.add(loaded.patch).expect("the name is new");
    (engine, patch, text)
}

#[test]
fn each_is_called_in_its_time_and_told_which_object() {
    let (engine, patch, text) = engine();
    let of_vmlinux = |at: u64| -> Call { (text + at, None) };
    assert_eq!(calls(), [], "loading calls nothing");
    engine.enable(patch).expect("no veto");
    assert_eq!(
        calls(),
        [of_vmlinux(0), of_vmlinux(16)],
        "pre_patch, post_patch"
    );
    engine.disable(patch).expect("it is enabled");
    assert_eq!(
        calls(),
        [of_vmlinux(32), of_vmlinux(48)],
        "pre_unpatch, post_unpatch"
    );
}

#[test]
fn the_name_of_an_object_ends_where_it_ends() {
    let host = Host::new().with("libfoo", "f", 0x50_0000);
    let loaded = load(&host, &file().bytes(), "p").expect("loads");
    let engine = Engine::new(host);
    let patch = engine.add(loaded.patch).expect("the name is new");
    engine.enable(patch).expect("no veto");
    let told: Vec<_> = calls().into_iter().map(|(_, object)| object).collect();
    assert_eq!(
        told,
        [None, Some("libfoo".into()), None, Some("libfoo".into())]
    );
}

#[test]
fn whatever_is_not_zero_vetoes() {
    let (engine, patch, text) = engine();
    for (answered, errno) in [(-19, -19), (1, -22), (i32::MIN, i32::MIN)] {
        answer(answered);
        let error = engine.enable(patch).expect_err("vetoed");
        assert_eq!(error.errno(), errno);
        assert!(
            error
                .to_string()
                .starts_with("patch 'fix', object 'vmlinux': "),
            "{error}"
        );
        assert_eq!(calls(), [(text, None)], "no other was called");
    }
    answer(0);
    engine.enable(patch).expect("no veto");
}

/// Loads a good file whose last object got one more callback by `spoil`; returns what is said.
#[track_caller]
fn refused(spoil: impl FnOnce(&mut File, SymbolId)) -> String {
    let (mut file, text) = File::replacing_victim();
    let fixed = file.function("also_fixed", text, 0, 16);
    file.replace(Some("libfoo"), &[("f", fixed, 0)]);
    spoil(&mut file, fixed);
    let host = Host::new();
    let error = load(&host, &file.bytes(), "p")
        .map(|loaded| loaded.patch)
        .expect_err("a bad file");
    assert_eq!(host.images(), 0);
    error.to_string()
}

#[test]
fn what_is_no_function_of_the_file_is_refused() {
    let said = refused(|file, _| {
        let data = file.section(".data", DATA, 8, &[0; 8]);
        let variable = file.symbol("variable", object::elf::STT_OBJECT, Some(data), 0, 8);
        file.add_callback(1, variable);
    });
    assert_eq!(
        said,
        format!("{OBJECT}callback is not a function of the patch (post_patch)")
    );
    let said = refused(|file, _| {
        let data = file.section(".data", DATA, 8, &[0; 8]);
        let disguised = file.function("disguised", data, 0, 8);
        file.add_callback(2, disguised);
    });
    assert_eq!(
        said,
        format!("{OBJECT}callback is not a function of the patch (pre_unpatch)")
    );
    let said = refused(|file, fixed| file.add_callback_at(0, fixed, 4));
    assert_eq!(
        said,
        format!("{OBJECT}callback is not a function of the patch (pre_patch)")
    );
    let said = refused(|file, _| {
        let outside = file.undefined("outside");
        file.add_callback(3, outside);
    });
    assert_eq!(
        said,
        format!("{OBJECT}description of the patch points out of the file (outside)")
    );
    let said = refused(|file, _| {
        let outside = file.livepatch(".klp.sym.vmlinux.victim,0");
        file.add_callback(3, outside);
    });
    assert_eq!(
        said,
        format!(
            "{OBJECT}description of the patch points out of the file (.klp.sym.vmlinux.victim,0)"
        )
    );
    let said = refused(|file, fixed| {
        let section = file.objects_section();
        file.rela_in(
            ".klp.rela.libfoo.init.klp_objects",
            section,
            64 + 16,
            fixed,
            ABS64,
            0,
        );
    });
    assert!(
        said.contains("livepatch relocations in a description of the patch"),
        "{said}"
    );
}

#[test]
fn a_host_that_calls_no_functions_refuses_all() {
    let (mut good, text) = File::replacing_victim();
    let hook = good.function("hook", text, 0, 16);
    good.add_callback(0, hook);
    let host = Host::<false>::default();
    let error = load(&host, &good.bytes(), "p")
        .map(|loaded| loaded.patch)
        .expect_err("it has a callback");
    let says = "patch callback (this host calls no functions of patch objects) is not supported";
    assert_eq!(
        error.to_string(),
        format!("patch 'fix', object 'vmlinux': {says}")
    );
    assert!(
        load(&host, &File::replacing_victim().0.bytes(), "p").is_ok(),
        "there is none"
    );
}
