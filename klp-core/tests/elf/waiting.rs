//! Relocations that wait for an object.

use crate::file::{ALLOC, File, TEXT};
use crate::host::{BRANCH32, Host, PC32, SLOT32, load};
use klp_core::addr::CodeAddr;
use klp_core::elf::Loaded;
use klp_core::relocs;

const FAR: u64 = 0x7fff_0000_1230;

/// Replaces `sole` of `libfoo`; four references to local functions of it.
fn file() -> Vec<u8> {
    let mut file = File::new();
    let text = file.section(".text.fixed", TEXT, 16, &[0; 24]);
    let fixed = file.function("fixed", text, 0, 24);
    file.replace(Some("libfoo"), &[("sole", fixed, 0)]);
    let near = file.livepatch(".klp.sym.libfoo.near,0");
    let far = file.livepatch(".klp.sym.libfoo.far,1");
    for (offset, symbol, kind) in [
        (16, far, SLOT32),
        (4, far, BRANCH32),
        (12, near, BRANCH32),
        (0, near, PC32),
    ] {
        file.rela_in(
            ".klp.rela.libfoo.text.fixed",
            text,
            offset,
            symbol,
            kind,
            -4,
        );
    }
    file.bytes()
}

fn host() -> Host {
    Host::new()
        .with("libfoo", "sole", 0x50_0000)
        .with("libfoo", "near", 0x50_0100)
        .with("libfoo", "far", FAR)
}

fn start(loaded: &Loaded) -> CodeAddr {
    loaded.patch.objects()[0].funcs()[0].new_addr()
}

#[test]
fn they_are_applied_in_one_go_and_cleared() {
    let host = host();
    let loaded = load(&host, &file(), "p").expect("loads");
    let [object] = loaded.patch.objects() else {
        panic!("one object")
    };
    assert_eq!(host.bytes::<24>(start(&loaded)), [0; 24]);

    // SAFETY: nothing executes in this test.
    unsafe { relocs::apply(&host, "fix", object) }.expect("applies");
    assert_eq!(
        host.fills(),
        2,
        "one for the image, one for all relocations"
    );
    let target = |offset| {
        let distance = i32::from_le_bytes(host.bytes(start(&loaded).wrapping_add(offset)));
        CodeAddr::new(
            start(&loaded)
                .get()
                .wrapping_add(offset)
                .wrapping_add_signed(i64::from(distance) + 4),
        )
    };
    assert_eq!(target(0), CodeAddr::new(0x50_0100));
    assert_eq!(target(12), CodeAddr::new(0x50_0100));
    assert_eq!(
        host.bytes::<8>(target(4).wrapping_add(2)),
        FAR.to_le_bytes(),
        "through a veneer"
    );
    assert_eq!(
        host.bytes::<8>(target(16)),
        FAR.to_le_bytes(),
        "through a slot"
    );

    // SAFETY: nothing executes in this test.
    unsafe { relocs::clear(&host, "fix", object) }.expect("clears");
    assert_eq!(host.bytes::<24>(start(&loaded)), [0; 24]);

    // SAFETY: nothing executes in this test.
    unsafe { relocs::apply(&host, "fix", object) }
        .expect("applies again, perhaps to other addresses");
}

#[test]
fn any_failure_leaves_all_fields_alone() {
    // A symbol that is not there.
    let mut host = host();
    let loaded = load(&host, &file(), "p").expect("loads");
    host.symbols.retain(|known| known.name != "far");
    let before = host.snapshot();
    // SAFETY: nothing executes in this test.
    let error = unsafe { relocs::apply(&host, "fix", &loaded.patch.objects()[0]) }
        .expect_err("far is missing");
    assert_eq!(
        error.to_string(),
        "patch 'fix', object 'libfoo': symbol 'far': not found in symbol table"
    );
    assert_eq!(host.snapshot(), before);
}

#[test]
fn any_failure_of_the_host_leaves_all_fields_alone() {
    for call in 0.. {
        let host = host();
        let loaded = load(&host, &file(), "p").expect("loads");
        let before = host.snapshot();
        host.fail_text_call(call);
        // SAFETY: nothing executes in this test.
        if unsafe { relocs::apply(&host, "fix", &loaded.patch.objects()[0]) }.is_ok() {
            assert_eq!(call, 4, "four fields read in three pieces, one fill");
            return;
        }
        assert_eq!(host.snapshot(), before);
    }
}

#[test]
fn what_lies_between_two_parts_of_an_image_is_not_read() {
    const END: usize = 4084;
    let mut file = File::new();
    let text = file.section(".text.fixed", TEXT, 16, &[0; END]);
    let fixed = file.function("fixed", text, 0, END as u64);
    file.replace(Some("libfoo"), &[("sole", fixed, 0)]);
    let rodata = file.section(".rodata.fixed", ALLOC, 16, &[0; 8]);
    let near = file.livepatch(".klp.sym.libfoo.near,0");
    let (of_text, of_rodata) = (
        ".klp.rela.libfoo.text.fixed",
        ".klp.rela.libfoo.rodata.fixed",
    );
    file.rela_in(of_text, text, END as u64 - 4, near, PC32, 0);
    file.rela_in(of_rodata, rodata, 0, near, PC32, 0);
    let host = host();
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    // SAFETY: nothing executes in this test.
    unsafe { relocs::apply(&host, "fix", &loaded.patch.objects()[0]) }.expect("applies");
    let image = loaded.image.image();
    let fields = [image.text.end().wrapping_sub(4), image.rodata.start()];
    for at in fields {
        let distance = i32::from_le_bytes(host.bytes(at));
        assert_eq!(at.get().wrapping_add_signed(distance.into()), 0x50_0100);
    }
    assert_eq!(fields[0].distance_to(fields[1]), 16);
}

#[test]
fn out_of_reach_is_refused_with_names() {
    let mut host = host();
    let loaded = load(&host, &file(), "p").expect("loads");
    host.symbols
        .iter_mut()
        .find(|known| known.name == "near")
        .expect("known")
        .addr = FAR;
    let before = host.snapshot();
    // SAFETY: nothing executes in this test.
    let error = unsafe { relocs::apply(&host, "fix", &loaded.patch.objects()[0]) }
        .expect_err("PC32 has no detour");
    let text = error.to_string();
    assert!(
        text.contains("'libfoo'") && text.contains("'.text.fixed'") && text.contains("'near'"),
        "{text}"
    );
    assert!(text.contains("out of range"), "{text}");
    assert_eq!(host.snapshot(), before);
}

#[test]
fn an_object_that_is_not_there_yet_does_not_hinder_loading() {
    let host = Host::new();
    let loaded = load(&host, &file(), "p").expect("loads");
    assert_eq!(
        loaded.patch.objects()[0].relocs().symbols().len(),
        2,
        "each symbol once"
    );
}
