//! Shared libraries come and go, as modules do in a kernel.

use klp_core::model::{CallbackContext, Callbacks, VMLINUX};
use klp_core::{Error, Func, Object, Patch, addr::CodeAddr};
use klp_os_linux::process::{Library, LoadError};
use klp_os_linux_fixtures::through::{LONG_NAMES, LONG_NAMES_FIX};
use klp_os_linux_fixtures::*;
use std::sync::{Arc, Mutex};

const NAME: &str = "libfixture_module";

fn open() -> Result<Library, LoadError> {
    // SAFETY: the library has no constructors.
    unsafe { livepatch().open_library(MODULE) }
}

fn close(library: Library) {
    // SAFETY: no thread is inside of it.
    unsafe { library.close() }.expect("it can be unloaded");
}

fn answer(library: &Library) -> i32 {
    let function = library
        .symbol(c"fxm_answer")
        .expect("the library exports it");
    // SAFETY: it has this type.
    let function: extern "C" fn() -> i32 = unsafe { core::mem::transmute(function) };
    function()
}

#[test]
fn a_patch_waits_for_its_library_and_follows_it() {
    let _alone = alone();
    let patch = livepatch()
        .load_file(MODULE_FIX)
        .expect("the file is a patch object");
    enable(patch);
    for round in 0..3 {
        let library = open().expect("the patch fits");
        assert_eq!(
            answer(&library),
            42,
            "round {round}: relocations were resolved on arrival"
        );
        close(library);
    }
    let library = open().expect("the patch fits");
    disable(patch);
    assert_eq!(answer(&library), 1);
    enable(patch);
    assert_eq!(answer(&library), 42);
    close(library);
    disable(patch);
    livepatch().unload(patch).expect("it is disabled");
}

#[test]
fn a_library_that_is_there_is_patched_like_the_executable() {
    let _alone = alone();
    let library = open().expect("no patch is enabled");
    assert_eq!(answer(&library), 1);
    let patch = livepatch()
        .load_file(MODULE_FIX)
        .expect("the file is a patch object");
    enable(patch);
    assert_eq!(answer(&library), 42);
    disable(patch);
    assert_eq!(answer(&library), 1);
    livepatch().unload(patch).expect("it is disabled");
    close(library);
}

/// Writes down which callback was called for which object.
#[derive(Clone, Default)]
struct Diary {
    lines: Arc<Mutex<Vec<String>>>,
    veto: Arc<Mutex<bool>>,
}

impl Diary {
    fn note(&self, callback: &str, context: &CallbackContext<'_>) {
        self.lines
            .lock()
            .expect("no panics")
            .push(format!("{callback}: {}", context.object()));
    }

    fn take(&self) -> Vec<String> {
        core::mem::take(&mut *self.lines.lock().expect("no panics"))
    }
}

impl Callbacks for Diary {
    fn pre_patch(&self, context: &CallbackContext<'_>) -> Result<(), i32> {
        self.note("pre_patch", context);
        if *self.veto.lock().expect("no panics") {
            Err(-libc::ENODEV)
        } else {
            Ok(())
        }
    }
    fn post_patch(&self, context: &CallbackContext<'_>) {
        self.note("post_patch", context);
    }
    fn pre_unpatch(&self, context: &CallbackContext<'_>) {
        self.note("pre_unpatch", context);
    }
    fn post_unpatch(&self, context: &CallbackContext<'_>) {
        self.note("post_unpatch", context);
    }
}

#[test]
fn callbacks_are_called_in_pairs() {
    let _alone = alone();
    let diary = Diary::default();
    // SAFETY: both are `int (*)(void)`.
    let value =
        unsafe { Func::new("fx_value", CodeAddr::new(addr_of_fn!(fx_value_new))) }.expect("memory");
    // SAFETY: as above.
    let replaced = unsafe { Func::new("fxm_answer", CodeAddr::new(addr_of_fn!(fx_value_new))) }
        .expect("memory");
    let object = |name: &str, func| {
        Object::module(name)?
            .func(func)
            .map(|object| object.with_callbacks(Box::new(diary.clone())))
    };
    let patch = Patch::builder("callbacks")
        .object(object(VMLINUX, value))
        .object(object(NAME, replaced));
    let patch = livepatch()
        .engine()
        .add(patch.build().expect("well formed"))
        .expect("the name is new");

    enable(patch);
    assert_eq!(diary.take(), ["pre_patch: vmlinux", "post_patch: vmlinux"]);
    let library = open().expect("no veto");
    assert_eq!(
        diary.take(),
        [
            "pre_patch: libfixture_module",
            "post_patch: libfixture_module"
        ]
    );
    close(library);
    assert_eq!(
        diary.take(),
        [
            "pre_unpatch: libfixture_module",
            "post_unpatch: libfixture_module"
        ]
    );

    *diary.veto.lock().expect("no panics") = true;
    let refused = open().expect_err("the callback vetoes");
    assert!(
        matches!(&refused, LoadError::Engine(error) if error.errno() == -libc::ENODEV),
        "{refused}"
    );
    assert_eq!(diary.take(), ["pre_patch: libfixture_module"]);

    disable(patch);
    assert_eq!(
        diary.take(),
        ["pre_unpatch: vmlinux", "post_unpatch: vmlinux"]
    );
    let error = livepatch().enable(patch).expect_err("the callback vetoes");
    assert!(
        matches!(&error, Error::Patch(error) if error.object.as_deref() == Some(VMLINUX)),
        "{error}"
    );
    assert_eq!(diary.take(), ["pre_patch: vmlinux"]);
    assert_eq!(fx_value(), 1);
}

#[test]
fn what_a_library_needs_is_adopted_with_it() {
    let _alone = alone();
    // SAFETY: both are `int (*)(void)`.
    let gate = unsafe { Func::new("gate_open", CodeAddr::new(addr_of_fn!(fx_value_new))) }
        .expect("memory");
    let object = Object::module("libfixture_gate").and_then(|object| object.func(gate));
    let patch = Patch::builder("gate")
        .object(object)
        .build()
        .expect("well formed");
    let patch = livepatch().engine().add(patch).expect("the name is new");
    enable(patch);
    // SAFETY: its constructors do nothing, since the descriptors that they look for are not open.
    let library = unsafe { livepatch().open_library(GATED) }.expect("the patch fits");
    let function = library
        .symbol(c"fxg_open")
        .expect("the library that it needs exports it");
    // SAFETY: it has this type.
    let function: extern "C" fn() -> i32 = unsafe { core::mem::transmute(function) };
    assert_eq!(function(), 2);
    close(library);
    assert!(!libraries::is_mapped("libfixture_gated"));
    assert_eq!(function(), 2, "held under the patch");
    disable(patch);
    assert_eq!(function(), 1);
}

#[test]
fn functions_with_longer_names_than_linux_has_are_patched() {
    let (Some(path), Some(fix)) = (LONG_NAMES, LONG_NAMES_FIX) else {
        return eprintln!("there is no C++ compiler: not tested");
    };
    let _alone = alone();
    // SAFETY: the library has no constructors.
    let library = unsafe { livepatch().open_library(path) }.expect("no patch is for it");
    let call = |function| {
        let function = library.symbol(function).expect("the library exports it");
        // SAFETY: it has this type.
        let function: extern "C" fn(i32) -> i32 = unsafe { core::mem::transmute(function) };
        function(5)
    };
    let both = || [call(c"fx_more"), call(c"fx_much_more")];
    assert_eq!(both(), [16, 16]);
    let patch = livepatch().load_file(fix).expect("a patch object");
    let preflight = livepatch().engine().preflight(patch).expect("it is known");
    assert!(preflight.is_ready(), "{preflight}");
    enable(patch);
    assert_eq!(both(), [17, 17]);
    let status = livepatch().engine().status().expect("memory");
    let of_patch = status.iter().find(|status| status.id == patch);
    assert!(of_patch.is_some_and(|status| status.enabled));
    disable(patch);
    assert_eq!(both(), [16, 16]);
    livepatch().unload(patch).expect("it is disabled");
    close(library);
}
