//! References to thread-local variables of the patched system.

use crate::file::{File, TEXT};
use crate::host::{
    ABS64, Host, INDEX32, MODULE32, OFFSET64, PC32, SLOT32, THREAD_SLOT32, THREAD64, load,
};
use klp_core::addr::CodeAddr;
use klp_core::port::ThreadLocal;
use klp_core::relocs;

const FIELDS: [(u64, u32); 5] = [
    (0, THREAD64),
    (8, OFFSET64),
    (16, THREAD_SLOT32),
    (20, INDEX32),
    (24, MODULE32),
];

/// Replaces `sole` of `object`, with these references to `symbol`, which waits for `object`.
fn file(object: &'static str, symbol: &str, thread_local: bool, fields: &[(u64, u32)]) -> Vec<u8> {
    let mut file = File::new();
    let text = file.section(".text.fixed", TEXT, 16, &[0; 32]);
    let fixed = file.function("fixed", text, 0, 32);
    file.replace(
        Some(object).filter(|name| *name != "vmlinux"),
        &[("sole", fixed, 0)],
    );
    let symbol = match thread_local {
        true => file.thread_local(symbol),
        false => file.livepatch(symbol),
    };
    let section = match object {
        "vmlinux" => ".klp.rela.vmlinux.text.fixed",
        _ => ".klp.rela.libfoo.text.fixed",
    };
    for &(offset, kind) in fields {
        file.rela_in(section, text, offset, symbol, kind, 0);
    }
    file.bytes()
}

const HERE: ThreadLocal = ThreadLocal {
    module: 3,
    offset: 0x18,
    from_thread_pointer: Some(-0x40),
};

fn host(object: &'static str, variables: &[ThreadLocal]) -> Host {
    let mut host = Host::new()
        .with(object, "sole", 0x50_0000)
        .with(object, "counter", 0x50_0100);
    let named = |variable: &ThreadLocal| (object, "counter", *variable);
    host.thread_locals.extend(variables.iter().map(named));
    host
}

/// What the function in memory at `start` has of its variable.
fn check(host: &Host, start: CodeAddr, variable: ThreadLocal) {
    let word = |at| u64::from_le_bytes(host.bytes(at));
    let slot = |offset| {
        let place = start.wrapping_add(offset);
        let distance = i32::from_le_bytes(host.bytes(place));
        CodeAddr::new(place.get().wrapping_add_signed(distance.into()))
    };
    let distance = variable.from_thread_pointer.expect("it is fixed") as u64;
    assert_eq!(word(start), distance);
    assert_eq!(word(start.wrapping_add(8)), variable.offset);
    assert_eq!(word(slot(16)), distance);
    let index = |at: CodeAddr| [word(at), word(at.wrapping_add(8))];
    assert_eq!(index(slot(20)), [variable.module, variable.offset]);
    assert_eq!(index(slot(24)), [variable.module, 0]);
}

#[test]
fn each_way_to_a_variable_of_the_base_image_is_bound() {
    let host = host("vmlinux", &[HERE]);
    let file = file("vmlinux", ".klp.sym.vmlinux.counter,0", true, &FIELDS);
    let loaded = load(&host, &file, "p").expect("loads");
    check(&host, loaded.patch.objects()[0].funcs()[0].new_addr(), HERE);
}

#[test]
fn an_object_that_comes_again_has_another_number() {
    let mut host = host("libfoo", &[HERE]);
    let file = file("libfoo", ".klp.sym.libfoo.counter,0", true, &FIELDS);
    let loaded = load(&host, &file, "p").expect("loads");
    let object = &loaded.patch.objects()[0];
    let start = object.funcs()[0].new_addr();
    for module in [3, 7] {
        let variable = ThreadLocal { module, ..HERE };
        host.thread_locals[0].2 = variable;
        // SAFETY: nothing executes in this test.
        unsafe { relocs::apply(&host, "fix", object) }.expect("applies");
        check(&host, start, variable);
        // SAFETY: as above.
        unsafe { relocs::clear(&host, "fix", object) }.expect("clears");
        assert_eq!(host.bytes::<28>(start), [0; 28]);
    }
}

#[test]
fn they_are_counted_by_themselves() {
    let second = ThreadLocal {
        offset: 0x20,
        from_thread_pointer: Some(-0x38),
        ..HERE
    };
    let host = host("vmlinux", &[HERE, second]);
    let file = |position| {
        let name = format!(".klp.sym.vmlinux.counter,{position}");
        file("vmlinux", &name, true, &FIELDS)
    };
    let loaded = load(&host, &file(2), "p").expect("loads");
    check(
        &host,
        loaded.patch.objects()[0].funcs()[0].new_addr(),
        second,
    );
    let error = load(&host, &file(0), "p").expect_err("there are two");
    assert!(error.to_string().contains("'counter'"), "{error}");
    let error = load(&host, &file(3), "p").expect_err("there are two");
    assert!(error.to_string().contains("'counter'"), "{error}");
}

/// Tries both what is bound when the file is loaded and what waits; nothing is written.
fn refused(thread_local: bool, variable: ThreadLocal, kind: u32) -> String {
    let fields = [(0, kind)];
    let waits = host("libfoo", &[variable]);
    let of_libfoo = file("libfoo", ".klp.sym.libfoo.counter,0", thread_local, &fields);
    let loaded = load(&waits, &of_libfoo, "p").expect("loads");
    let before = waits.snapshot();
    // SAFETY: nothing executes in this test.
    let later = unsafe { relocs::apply(&waits, "fix", &loaded.patch.objects()[0]) };
    assert_eq!(waits.snapshot(), before);
    let host = host("vmlinux", &[variable]);
    let of_vmlinux = file(
        "vmlinux",
        ".klp.sym.vmlinux.counter,0",
        thread_local,
        &fields,
    );
    let now = load(&host, &of_vmlinux, "fix")
        .expect_err("it is refused")
        .to_string();
    assert_eq!(host.images(), 0);
    let later = later.expect_err("it is refused").to_string();
    let now = now.replace(".klp.sym.vmlinux.counter,0", "counter");
    assert_eq!(later.replace("libfoo", "vmlinux"), now);
    now
}

#[test]
fn a_distance_must_be_fixed() {
    let anywhere = ThreadLocal {
        from_thread_pointer: None,
        ..HERE
    };
    for kind in [THREAD64, THREAD_SLOT32] {
        let said = refused(true, anywhere, kind);
        assert!(
            said.contains("counter") && said.contains("-ftls-model=global-dynamic"),
            "{said}"
        );
    }
    let others = [(8, OFFSET64), (20, INDEX32), (24, MODULE32)];
    let host = host("vmlinux", &[anywhere]);
    let file = file("vmlinux", ".klp.sym.vmlinux.counter,0", true, &others);
    load(&host, &file, "p").expect("those need none");
}

#[test]
fn an_address_is_not_taken_for_a_variable() {
    let cases = [ABS64, PC32, SLOT32].map(|kind| (true, kind)).into_iter();
    for (thread_local, kind) in cases.chain(FIELDS.map(|(_, kind)| (false, kind))) {
        let said = refused(thread_local, HERE, kind);
        assert!(
            said.contains("counter") && said.contains("thread-local"),
            "{said}"
        );
    }
}
