//! Which code is patched: what is mapped decides, whatever paths lead to by now; and names mean
//! what programmers mean by them, or are refused.

use klp_core::addr::CodeAddr;
use klp_core::engine::PatchId;
use klp_core::model::VMLINUX;
use klp_core::port::{Platform, SymbolResolver};
use klp_core::{Object, Patch};
use klp_os_linux::process::{Livepatch, Options};
use klp_os_linux_fixtures::libraries::*;
use klp_os_linux_fixtures::*;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, OnceLock};

/// What the engine has logged.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The engine, with its log kept.
fn engine() -> &'static Livepatch {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let events: klp_os_linux::process::EventSink = Box::new(|event| {
            LOG.lock().expect("no panics").push(event.to_string());
        });
        let options = Options {
            events: Some(events),
            ..Options::default()
        };
        Livepatch::init(options).expect("this process can be patched");
    });
    Livepatch::get().expect("made above")
}

fn forget(patch: PatchId) {
    disable(patch);
    engine().unload(patch).expect("it is disabled");
}

/// Whether this process may open the files that are mapped, wherever they are by now.
fn sees_mapped_files() -> bool {
    std::fs::read_dir("/proc/self/map_files")
        .expect("there is a /proc")
        .filter_map(Result::ok)
        .any(|file| std::fs::File::open(file.path()).is_ok())
}

/// Runs `work` in a thread that may not do more than any user may.
fn unprivileged<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let without = || {
        const VERSION_3: u32 = 0x2008_0522;
        let (header, none) = ([VERSION_3, 0], [0_u32; 6]);
        // SAFETY: both are what the call reads (capset(2)); only this thread is concerned.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
        assert_eq!(result, 0);
        assert!(!sees_mapped_files());
        work()
    };
    std::thread::scope(|scope| scope.spawn(without).join()).expect("no panic")
}

/// Puts another file in the place of `path`, as package managers do.
fn replace(path: &Path, with: &str) {
    let new = path.with_extension("new");
    std::fs::copy(with, &new).expect("there is room");
    std::fs::rename(new, path).expect("it is the same folder");
}

/// Writes the bytes of `with` into the file at `path`.
fn overwrite_file(path: &Path, with: &str) {
    let bytes = std::fs::read(with).expect("it is there");
    let mut file = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("it is there");
    file.write_all(&bytes).expect("there is room");
    file.set_len(bytes.len() as u64).expect("it can be cut");
}

/// What is said when a patch of `library` cannot be enabled.
fn refused(name: &str, library: &str) -> String {
    let patch = patch_of(name, library);
    let checked = engine().preflight(patch);
    let is_ready = checked.is_ok_and(|report| report.is_ready());
    let error = engine().enable(patch).expect_err("it must be refused");
    assert!(!is_ready, "and a check says so before: {error}");
    engine().unload(patch).expect("it is not enabled");
    error.to_string()
}

/// Patches `library`, which answers 1, and sees that nothing else changes.
fn patched(name: &str, library: &str, plain: &Plain) {
    let patch = patch_of(name, library);
    assert_eq!(
        (plain.answer()(), plain.function(c"fxm_others")()),
        (1, 476)
    );
    enable(patch);
    assert_eq!(
        engine().engine().object_patched(patch, library),
        Ok(Some(true))
    );
    assert_eq!(
        (plain.answer()(), plain.function(c"fxm_others")()),
        (2, 476)
    );
    forget(patch);
    assert_eq!(plain.answer()(), 1);
}

#[test]
fn a_library_that_was_replaced_is_patched_by_its_own_symbols_or_refused() {
    let _alone = alone();
    engine();
    for (with_id, [first, second]) in [(false, BUILDS), (true, BUILDS_WITH_ID)] {
        let name = format!("libidentity_replaced_{with_id}");
        let path = copy_of(first, &name);
        let plain = Plain::open(&path);
        replace(&path, second);
        let said = unprivileged(|| refused("other build", &name));
        let why = if with_id {
            "build-id differs"
        } else {
            "is not proven to be"
        };
        assert!(said.contains(&name) && said.contains(why), "{said}");
        assert_eq!(
            (plain.answer()(), plain.function(c"fxm_others")()),
            (1, 476)
        );
        if sees_mapped_files() {
            patched("what is mapped", &name, &plain);
            // Once it is known, nobody needs the file any more.
            unprivileged(|| patched("known", &name, &plain));
        }
    }
}

#[test]
fn the_same_build_in_another_file_is_known_by_its_build_id_only() {
    let _alone = alone();
    engine();
    let path = copy_of(BUILDS_WITH_ID[0], "libidentity_again");
    let plain = Plain::open(&path);
    replace(&path, BUILDS_WITH_ID[0]);
    unprivileged(|| patched("again", "libidentity_again", &plain));

    let path = copy_of(BUILDS[0], "libidentity_again_no_id");
    let plain = Plain::open(&path);
    replace(&path, BUILDS[0]);
    let said = unprivileged(|| refused("again, no id", "libidentity_again_no_id"));
    assert!(said.contains("is not proven to be"), "{said}");
    assert_eq!(plain.answer()(), 1);
}

#[test]
fn a_library_that_was_deleted_is_still_what_is_mapped() {
    let _alone = alone();
    engine();
    for (with_id, [library, _]) in [(false, BUILDS), (true, BUILDS_WITH_ID)] {
        let name = format!("libidentity_deleted_{with_id}");
        let path = copy_of(library, &name);
        let plain = Plain::open(&path);
        std::fs::remove_file(&path).expect("it is there");
        let said = unprivileged(|| refused("deleted", &name));
        assert!(said.contains("cannot be opened"), "{said}");
        assert_eq!(plain.answer()(), 1);
        if sees_mapped_files() {
            patched("still mapped", &name, &plain);
        }
    }
}

#[test]
fn a_relative_path_does_not_lead_elsewhere_after_chdir() {
    let _alone = alone();
    engine();
    let before = std::env::current_dir().expect("it is there");
    for (with_id, [library, other]) in [(false, BUILDS), (true, BUILDS_WITH_ID)] {
        let name = format!("libidentity_relative_{with_id}");
        let path = copy_of(library, &name);
        let folder = path.parent().expect("it has one");
        let file = Path::new(".").join(path.file_name().expect("it has one"));
        std::env::set_current_dir(folder).expect("it is there");
        let plain = Plain::open(&file);
        // Where the path leads to now, there is another build.
        let elsewhere = folder.join("elsewhere");
        std::fs::create_dir_all(&elsewhere).expect("there is room");
        std::fs::copy(other, elsewhere.join(&file)).expect("there is room");
        std::env::set_current_dir(&elsewhere).expect("it is there");
        unprivileged(|| patched("relative", &name, &plain));
    }
    std::env::set_current_dir(before).expect("it was there");
}

#[test]
fn links_are_the_file_that_they_lead_to() {
    let _alone = alone();
    engine();
    let path = copy_of(BUILDS[0], "libidentity_target");
    for (name, hard) in [("libidentity_soft", false), ("libidentity_hard", true)] {
        let link = path.with_file_name(format!("{name}.so.1"));
        if hard {
            // Of another copy: the dynamic linker knows a file again.
            let target = copy_of(BUILDS[0], "libidentity_other_target");
            std::fs::hard_link(target, &link).expect("same folder");
        } else {
            std::os::unix::fs::symlink(&path, &link).expect("same folder");
        }
        let plain = Plain::open(&link);
        unprivileged(|| patched(name, name, &plain));
        std::fs::remove_file(link).expect("just made");
    }
}

#[test]
fn a_library_in_memory_is_not_what_its_descriptor_is_now() {
    let _alone = alone();
    engine();
    // SAFETY: the name ends with a zero byte.
    let memory = unsafe { libc::memfd_create(c"libidentity".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(memory >= 0);
    let path = format!("/proc/self/fd/{memory}");
    std::fs::copy(BUILDS[0], &path).expect("there is room");
    let plain = Plain::open(Path::new(&path));
    let name = memory.to_string();
    unprivileged(|| patched("in memory", &name, &plain));

    // SAFETY: as above.
    let memory = unsafe { libc::memfd_create(c"libidentity".as_ptr(), libc::MFD_CLOEXEC) };
    let path = format!("/proc/self/fd/{memory}");
    std::fs::copy(BUILDS[0], &path).expect("there is room");
    let plain = Plain::open(Path::new(&path));
    let other = std::fs::File::open(BUILDS[1]).expect("it is there");
    // SAFETY: the number is the test's own.
    assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), memory) }, memory);
    let name = memory.to_string();
    let said = unprivileged(|| refused("other descriptor", &name));
    assert!(said.contains("is not proven to be"), "{said}");
    assert_eq!(plain.answer()(), 1);
}

#[test]
fn a_library_whose_file_was_written_to_is_refused() {
    let _alone = alone();
    engine();
    for (with_id, [first, second]) in [(false, BUILDS), (true, BUILDS_WITH_ID)] {
        for known in [false, true] {
            let name = format!("libidentity_written_{with_id}_{known}");
            let path = copy_of(first, &name);
            let plain = Plain::open(&path);
            if known {
                patched("before", &name, &plain);
            } else {
                // The engine has seen the library.
                engine().adopt().expect("nothing to adopt");
            }
            overwrite_file(&path, second);
            let said = refused("written to", &name);
            assert!(
                said.contains(&name) && said.contains("was written to since"),
                "{said}"
            );
            overwrite_file(&path, first);
            assert_eq!(plain.answer()(), 1);
        }
    }
}

#[test]
fn another_build_that_is_loaded_at_the_same_place_is_another_library() {
    let _alone = alone();
    engine();
    let name = "libidentity_reloaded";
    let path = copy_of(BUILDS[0], name);
    // Patched from `open_library`, so that nobody holds it.
    let patch = patch_of("reloaded", name);
    for library in [BUILDS[0], BUILDS[1], BUILDS[0]] {
        replace(&path, library);
        // SAFETY: it has no constructors.
        let opened = unsafe { engine().open_library(&path) }.expect("no patch is enabled");
        let plain = Plain::open(&path);
        enable(patch);
        assert_eq!(
            (plain.answer()(), plain.function(c"fxm_others")()),
            (2, 476)
        );
        disable(patch);
        plain.close();
        // SAFETY: no thread is inside of it.
        unsafe { opened.close() }.expect("it can be unloaded");
        assert!(!is_mapped(name));
    }
    engine().unload(patch).expect("it is disabled");
}

#[test]
fn copies_in_other_namespaces_are_never_left_out_silently() {
    let _alone = alone();
    engine();
    let name = "libidentity_apart";
    let path = copy(name);
    let patch = patch_of("before the copies", name);
    // Only there.
    let apart = Plain::open_apart(&path);
    let said = refused("apart", name);
    assert!(
        said.contains(name) && said.contains("loaded by dlmopen"),
        "{said}"
    );
    // There and here.
    let plain = Plain::open(&path);
    refused("both", name);
    // SAFETY: it has no constructors.
    unsafe { engine().open_library(&path) }.expect("no patch names it");
    refused("both, one is open", name);
    assert_eq!((plain.answer()(), apart.answer()()), (1, 1));
    apart.close();
    enable(patch);
    assert_eq!(plain.answer()(), 2);
    // It comes later: whoever asks is told.
    let apart = Plain::open_apart(&path);
    let error = engine().adopt().expect_err("one of them is not patched");
    assert!(error.to_string().contains("dlmopen"), "{error}");
    let logged = LOG.lock().expect("no panics").join("\n");
    assert!(logged.contains("libraries are left as they are: there is a copy of"));
    apart.close();
    engine().adopt().expect("there is one only");
    forget(patch);
}

#[test]
fn a_copy_under_another_name_is_a_copy() {
    let _alone = alone();
    engine();
    let name = "libidentity_linked";
    let path = copy(name);
    let plain = Plain::open(&path);
    let link = path.with_file_name("libidentity_other_name.so");
    std::fs::hard_link(&path, &link).expect("same folder");
    let apart = Plain::open_apart(&link);
    let said = refused("linked", name);
    assert!(said.contains("loaded by dlmopen"), "{said}");
    apart.close();
    let patch = patch_of("alone", name);
    enable(patch);
    assert_eq!(plain.answer()(), 2);
    forget(patch);
}

#[test]
fn what_a_patch_waits_for_is_said_when_it_is_enabled() {
    let _alone = alone();
    engine();
    let name = "libidentity_absent";
    let patch = patch_of("waiting", name);
    enable(patch);
    let waiting = engine().engine().waiting(patch).expect("it is known");
    assert_eq!(
        waiting.iter().map(|name| &**name).collect::<Vec<_>>(),
        [name]
    );
    let line = format!("'waiting': waiting for object '{name}', which is not loaded");
    assert!(LOG.lock().expect("no panics").contains(&line));
    let plain = Plain::open(&copy(name));
    engine().adopt().expect("the patch fits");
    assert_eq!(plain.answer()(), 2);
    assert_eq!(engine().engine().waiting(patch), Ok(vec![]));
    forget(patch);
}

#[test]
fn the_kernels_own_object_has_nothing_to_patch() {
    let _alone = alone();
    engine();
    let said = refused("vdso", machine::VDSO);
    assert!(said.contains(machine::VDSO), "{said}");
}

#[test]
fn of_several_versions_a_plain_name_means_the_one_for_new_programs() {
    let _alone = alone();
    engine();
    for (stripped, library) in VERSIONS.iter().enumerate() {
        let name = format!("libidentity_versions_{stripped}");
        let plain = Plain::open(&copy_of(library, &name));
        let (old, new) = (
            plain.version(c"fxm_answer", c"FXM_1"),
            plain.version(c"fxm_answer", c"FXM_2"),
        );
        assert_eq!((old(), new()), (1, 11));
        for (func, answers) in [
            ("fxm_answer", (1, 2)),
            ("fxm_answer@@FXM_2", (1, 2)),
            ("fxm_answer@FXM_1", (2, 11)),
        ] {
            let patch = patch_func(func, &name, func);
            enable(patch);
            assert_eq!((old(), new()), answers, "{func}, {library}");
            forget(patch);
        }
        let patch = patch_func("none", &name, "fxm_answer@FXM_3");
        let refused = engine().enable(patch).expect_err("there are two versions");
        assert!(refused.to_string().contains("no symbol has that name"));
        engine().unload(patch).expect("it is not enabled");
    }
}

#[test]
fn an_indirect_function_is_refused_in_words() {
    let _alone = alone();
    engine();
    assert_eq!(fx_call_indirect(), 1);
    let patch = add("indirect", &[("fx_indirect", 0, addr_of_fn!(fx_value_new))]);
    let refused = engine()
        .enable(patch)
        .expect_err("its code chooses another");
    let said = refused.to_string();
    assert!(
        said.contains("'fx_indirect'") && said.contains("IFUNC"),
        "{said}"
    );
    assert_eq!(fx_call_indirect(), 1);
    engine().unload(patch).expect("it is not enabled");
}

#[test]
fn references_to_an_indirect_function_lead_where_the_programs_own_do() {
    let symbols = engine().engine().host().symbols();
    let exported = symbols.exported("fx_indirect").expect("it was chosen");
    let chosen = exported.expect("it is global");
    // SAFETY: the indirect function is of that type.
    let chosen: extern "C" fn() -> i32 = unsafe { core::mem::transmute(chosen.get() as usize) };
    assert_eq!((chosen(), fx_call_indirect()), (1, 1));
    let mut found = Vec::new();
    let look = symbols.references(VMLINUX, "fx_indirect", &mut |symbol| {
        found.push(symbol.addr)
    });
    look.expect("as before");
    assert_eq!(found, [CodeAddr::new(chosen as usize as u64)]);
}

#[test]
fn clones_that_callers_use_are_named() {
    let _alone = alone();
    engine();
    let patch = add("cloned", &[("fx_cloned", 0, addr_of_fn!(fx_callee_new))]);
    let report = engine().preflight(patch).expect("it is disabled");
    assert!(report.is_ready());
    let said = report.to_string();
    assert!(
        said.contains("callers of 'fx_cloned.constprop.0' in object 'vmlinux'"),
        "{said}"
    );
    enable(patch);
    assert_eq!(fx_call_clone(), 4, "they have their own");
    let logged = LOG.lock().expect("no panics").join("\n");
    assert!(logged.contains("'cloned': callers of 'fx_cloned.constprop.0'"));
    forget(patch);
    // Not if the patch replaces both.
    let both = [
        ("fx_cloned", 0, addr_of_fn!(fx_callee_new)),
        ("fx_cloned.constprop.0", 0, addr_of_fn!(fx_value_new)),
    ];
    let patch = add("both", &both);
    assert_eq!(
        engine().preflight(patch).expect("it is disabled").clones,
        []
    );
    enable(patch);
    assert_eq!(fx_call_clone(), 2);
    forget(patch);
}

#[test]
fn a_variable_that_the_program_holds_is_the_programs() {
    let _alone = alone();
    engine();
    // The patch changes nothing of it: that it names libc makes that one an object for patches.
    let object =
        Object::module("libc").map(|object| object.with_callbacks(Box::new(Veto::default())));
    let patch = Patch::builder("libc")
        .object(object)
        .build()
        .expect("it has callbacks");
    let patch = engine().engine().add(patch).expect("the name is new");
    enable(patch);
    let mut found = Vec::new();
    let symbols = engine().engine().host().symbols();
    symbols
        .symbols("libc", "stdout", &mut |symbol| {
            found.push(symbol.addr.get())
        })
        .expect("its file can be read");
    assert_eq!(found, [fx_stdout_at() as u64]);
    let executable = std::fs::read_link("/proc/self/exe").expect("there is a /proc");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("there is a /proc");
    assert!(maps.contains(&*executable.to_string_lossy()));
    assert!(symbols.is_loaded(VMLINUX));
    forget(patch);
}
