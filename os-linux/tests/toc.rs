//! ppc64le: a function that does not give its callers register 2 back must not replace one whose
//! callers count on that.

#![cfg(target_arch = "powerpc64")]

use core::ffi::c_long;
use core::hint::black_box;
use core::sync::atomic::{AtomicI64, Ordering};
use klp_core::addr::CodeAddr;
use klp_core::{Error, Func, Object, Patch};
use klp_demo_across::LIBRARIES;
use klp_os_linux_fixtures::*;
use std::ffi::CString;

#[test]
fn code_that_is_relative_to_itself_replaces_its_like_only() {
    // The first was compiled with -mno-pcrel.
    let patch = add("pcrel", &[("fx_mcount", 0, addr_of_fn!(fx_value_new))]);
    let error = livepatch()
        .enable(patch)
        .expect_err("it keeps no register 2");
    let said = error.to_string();
    assert!(
        said.contains("'fx_mcount'") && said.contains("-mno-pcrel"),
        "{said}"
    );
    assert_eq!(fx_mcount(0), 41);
    let patch = add("like", &[("fx_value", 0, addr_of_fn!(fx_value_new))]);
    enable(patch);
    assert_eq!(fx_value(), 2);
    disable(patch);
}

static OWN: AtomicI64 = AtomicI64::new(5);

/// Finds its data by the executable's table of contents.
extern "C" fn of_the_executable(x: c_long) -> c_long {
    x + black_box(&OWN).load(Ordering::Relaxed)
}

#[test]
fn a_function_with_another_table_of_contents_is_refused() {
    livepatch();
    for path in LIBRARIES {
        let name = CString::new(path).expect("no zero");
        // SAFETY: a string; the libraries have no constructors.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        assert!(!library.is_null());
    }
    let new = CodeAddr::new(of_the_executable as *const () as u64);
    // SAFETY: it must be refused, as is seen below.
    let func = unsafe { Func::new("leaf", new) }.expect("there is memory");
    let object = Object::module("libacross").and_then(|object| object.func(func));
    let patch = Patch::builder("other").object(object).build();
    let engine = livepatch().engine();
    let patch = engine.add(patch.expect("the patch is well formed"));
    let patch = patch.expect("the name is new");
    let error = livepatch().enable(patch).expect_err("it has another table");
    assert!(matches!(error, Error::Patch(_)), "{error}");
    let said = error.to_string();
    assert!(
        said.contains("'leaf'") && said.contains("another object"),
        "{said}"
    );
}
