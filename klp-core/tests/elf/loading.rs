//! What a good file becomes.

use crate::file::{ALLOC, DATA, File, TEXT};
use crate::host::{ABS64, BRANCH32, Host, PC32, SLOT32, load};
use klp_core::addr::CodeAddr;
use klp_core::mem::Name;
use klp_core::model::Replace;

#[test]
fn a_patch_is_described() {
    let (mut file, text) = File::replacing_victim();
    let other = file.function("other", text, 0, 8);
    file.replace(Some("libfoo"), &[("twin", other, 2), ("sole", other, 0)]);
    let host = Host::new();
    let loaded = load(&host, &file.bytes(), "unused").expect("loads");
    let patch = &loaded.patch;
    assert_eq!(patch.name(), &"fix");
    let described: Vec<_> = patch
        .objects()
        .iter()
        .flat_map(|object| {
            object
                .funcs()
                .iter()
                .map(move |func| (&**object.name(), &**func.old_name(), func.position()))
        })
        .collect();
    assert_eq!(
        described,
        [
            ("vmlinux", "victim", 0),
            ("libfoo", "twin", 2),
            ("libfoo", "sole", 0)
        ]
    );
    let victim = &patch.objects()[0].funcs()[0];
    assert_eq!(victim.new_len(), Some(16));
    assert!(loaded.image.image().text.contains(victim.new_addr()));
    let functions: Vec<_> = loaded
        .image
        .functions()
        .iter()
        .map(|(name, range)| (&**name, range.len()))
        .collect();
    assert_eq!(functions, [("other", 8), ("fixed", 16)]);

    // SAFETY: it was never enabled.
    unsafe { loaded.image.unload(&host) };
    assert_eq!(host.images(), 0);
}

#[test]
fn the_name_given_counts_if_the_file_has_none() {
    let (mut file, _) = File::replacing_victim();
    file.modinfo = b"livepatch=Y\0".to_vec();
    assert_eq!(
        load(&Host::new(), &file.bytes(), "by-hand")
            .expect("loads")
            .patch
            .name(),
        &"by-hand"
    );
}

#[test]
fn states_and_replaced_patches_are_those_that_the_file_says() {
    let load_with = |entries: &[u8]| {
        let (mut file, _) = File::replacing_victim();
        file.modinfo.extend_from_slice(entries);
        load(&Host::new(), &file.bytes(), "p").expect("loads").patch
    };
    let patch = load_with(b"");
    assert_eq!((patch.replace(), patch.states().len()), (Replace::None, 0));
    let patch =
        load_with(b"klp_replace=all\0klp_state=0:0\0klp_state=18446744073709551615:4294967295\0klp_state=0x1f:3\0");
    let states: Vec<_> = patch
        .states()
        .iter()
        .map(|state| (state.id(), state.version(), state.data()))
        .collect();
    assert_eq!(patch.replace(), Replace::All);
    assert_eq!(states, [(0, 0, 0), (u64::MAX, u32::MAX, 0), (31, 3, 0)]);
    assert_eq!(load_with(b"klp_replace=set:0\0").replace(), Replace::Set(0));
    assert_eq!(
        load_with(b"klp_replace=set:0xffffffff\0").replace(),
        Replace::Set(u32::MAX)
    );
}

#[test]
fn the_code_is_the_one_that_the_file_says() {
    let (mut file, _) = File::replacing_victim();
    file.modinfo
        .extend_from_slice(b"klp_func=vmlinux:victim,0:0x20:sum:0abc\0klp_text=other:sum:00\0");
    let patch = load(&Host::new(), &file.bytes(), "p").expect("loads").patch;
    let object = &patch.objects()[0];
    let old = object.funcs()[0].old_code().expect("it says so");
    assert_eq!(old.to_string(), "32 bytes, sum:0abc");
    assert_eq!(object.text(), None);
}

#[test]
fn it_depends_on_what_the_file_says() {
    let (mut file, _) = File::replacing_victim();
    file.modinfo
        .extend_from_slice(b"klp_depends=base\0klp_depends=other one\0");
    let patch = load(&Host::new(), &file.bytes(), "p").expect("loads").patch;
    let names = ["base", "other one"].map(|name| Name::new(name).expect("memory"));
    assert_eq!(patch.depends(), names);
}

#[test]
fn what_it_is_for_is_kept_for_people() {
    let (mut file, _) = File::replacing_victim();
    file.modinfo
        .extend_from_slice(b"klp_label=CVE-1\0author=A\0klp_label=CVE-2\0description=B \xc3\xa9\0");
    let patch = load(&Host::new(), &file.bytes(), "p").expect("loads").patch;
    let about = patch.about();
    assert_eq!(
        (
            &about.labels[..],
            &about.authors[..],
            &about.descriptions[..]
        ),
        (
            &["CVE-1", "CVE-2"].map(|text| Name::new(text).expect("memory"))[..],
            &[Name::new("A").expect("memory")][..],
            &[Name::new("B \u{e9}").expect("memory")][..]
        )
    );
}

#[test]
fn the_build_is_the_one_that_the_file_says() {
    let (mut file, _) = File::replacing_victim();
    file.modinfo
        .extend_from_slice(b"klp_build=other:00\0klp_build=vmlinux:0abc\0");
    let file = file.bytes();
    let mut host = Host::new();
    let refused = load(&host, &file, "p").expect_err("nothing tells the build");
    assert_eq!(
        refused.to_string(),
        "patch 'fix', object 'vmlinux': the patch is for build 0abc, and nothing tells which build runs"
    );
    host.build_id = Some(&[0x0a, 0xbc]);
    let patch = load(&host, &file, "p").expect("loads").patch;
    let build = patch.objects()[0].build().expect("it says so");
    assert_eq!(build.to_string(), "0abc");
}

#[test]
fn sections_go_to_their_parts() {
    let (mut file, text) = File::replacing_victim();
    let rodata = file.section(".rodata", ALLOC, 32, b"constant");
    let bss = file.zeros(".bss", DATA, 0x100);
    let data = file.section(".data", DATA, 8, b"variable");
    let cold = file.section(".text.unlikely.fixed", TEXT, 1, &[0xcc; 3]);
    file.function("fixed.cold", cold, 0, 3);
    file.section(".comment", object::elf::SectionFlags(0), 1, b"not loaded");
    let fields = file.section(".data.rel.ro", DATA, 8, &[0; 40]);
    for (index, section) in (0..).zip([text, rodata, bss, data, cold]) {
        let symbol = file.symbol("", object::elf::STT_SECTION, Some(section), 0, 0);
        file.rela(fields, 8 * index, symbol, ABS64, 0);
    }
    file.function("fields", text, 0, 0);

    let host = Host::new();
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    let image = loaded.image.image();
    let new = &loaded.patch.objects()[0].funcs()[0];
    // Sections of one part are sorted by name, with what is only zeros behind: .data is first.
    let at_fields = image.data.start().wrapping_add(8);
    let addr = |index: u64| {
        CodeAddr::new(u64::from_le_bytes(
            host.bytes(at_fields.wrapping_add(8 * index)),
        ))
    };
    let [text, rodata, bss, data, cold] = [0, 1, 2, 3, 4].map(addr);
    assert_eq!(text, new.new_addr());
    assert!(image.text.contains(text) && image.text.contains(cold));
    assert!(image.rodata.contains(rodata) && rodata.get() % 32 == 0);
    assert!(image.data.contains(data) && image.data.contains(bss) && bss > data);
    assert_eq!(&host.bytes::<8>(rodata), b"constant");
    assert_eq!(&host.bytes::<8>(data), b"variable");
    assert_eq!(host.bytes::<0x100>(bss), [0; 0x100]);
    assert_eq!(host.bytes::<3>(cold), [0xcc; 3]);
    // All code belongs to the patch, also what is no new function.
    assert_eq!(loaded.patch.code(), Some(image.text));
}

#[test]
fn references_are_bound() {
    let mut file = File::new();
    let text = file.section(".text.fixed", TEXT, 16, &[0; 32]);
    let fixed = file.function("fixed", text, 0, 32);
    file.replace(None, &[("victim", fixed, 0)]);
    let near = file.undefined("near");
    let far = file.undefined("far");
    let local = file.livepatch(".klp.sym.vmlinux.twin,2");
    let weak = file.undefined("nowhere");
    file.elf
        .symbols
        .get_mut(weak)
        .set_st_info(object::elf::STB_WEAK, object::elf::STT_NOTYPE);
    file.rela(text, 0, near, BRANCH32, -4);
    file.rela(text, 4, far, BRANCH32, -4);
    file.rela(text, 8, far, SLOT32, -4);
    file.rela(text, 12, fixed, PC32, 3);
    file.rela_in(
        ".klp.rela.vmlinux.text.fixed",
        text,
        16,
        local,
        BRANCH32,
        -4,
    );
    file.rela(text, 20, weak, SLOT32, 0);

    const FAR: u64 = 0x7fff_0000_1230;
    let host = Host::new()
        .with("vmlinux", "twin", 0x40_1000)
        .with("vmlinux", "twin", 0x40_2000)
        .exporting("near", 0x41_0000)
        .exporting("far", FAR);
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    let start = loaded.patch.objects()[0].funcs()[0].new_addr();
    let target = |offset, addend: i64| {
        let distance = i32::from_le_bytes(host.bytes(start.wrapping_add(offset)));
        CodeAddr::new(
            start
                .get()
                .wrapping_add(offset)
                .wrapping_add_signed(i64::from(distance) - addend),
        )
    };
    assert_eq!(target(0, -4), CodeAddr::new(0x41_0000));
    let veneer = target(4, -4);
    assert!(loaded.image.image().text.contains(veneer));
    assert_eq!(host.bytes::<10>(veneer)[..2], *b"go");
    assert_eq!(host.bytes::<8>(veneer.wrapping_add(2)), FAR.to_le_bytes());
    let slot = target(8, -4);
    assert!(loaded.image.image().rodata.contains(slot));
    assert_eq!(host.bytes::<8>(slot), FAR.to_le_bytes());
    assert_eq!(target(12, 3), start);
    assert_eq!(target(16, -4), CodeAddr::new(0x40_2000));
    assert_eq!(host.bytes::<8>(target(20, 0)), [0; 8]);
    assert!(loaded.patch.objects()[0].relocs().fields().is_empty());
    assert_eq!(host.fills(), 1, "the image is written in one go");
}

#[test]
fn eh_frame_is_handed_out_relocated_and_ends_with_a_zero_word() {
    let (mut file, text) = File::replacing_victim();
    let frame = file.section(".eh_frame", ALLOC, 8, &[0; 16]);
    file.section(".gcc_except_table", ALLOC, 1, &[0xff; 16]);
    let start = file.symbol("", object::elf::STT_SECTION, Some(text), 0, 0);
    file.rela(frame, 8, start, PC32, 0);
    let host = Host::new();
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    let (at, bytes) = loaded.image.eh_frame().expect("has one");
    assert_eq!(bytes, host.bytes::<16>(at));
    assert_eq!(host.bytes::<5>(at.wrapping_add(16)), [0, 0, 0, 0, 0xff]);
    let distance = i32::from_le_bytes(bytes[8..12].try_into().expect("four"));
    let begin = at.get().wrapping_add_signed(8 + i64::from(distance));
    assert_eq!(begin, loaded.patch.objects()[0].funcs()[0].new_addr().get());
}

#[test]
fn every_failure_of_the_host_leaves_nothing_behind() {
    for call in 0.. {
        let (mut file, text) = File::replacing_victim();
        let local = file.livepatch(".klp.sym.vmlinux.victim,0");
        file.rela_in(".klp.rela.vmlinux.text.fixed", text, 0, local, PC32, 0);
        let host = Host::new();
        host.fail_text_call(call);
        let Err(error) = load(&host, &file.bytes(), "p") else {
            assert_eq!(call, 2, "alloc and fill");
            return;
        };
        assert!(error.to_string().contains("toy failure"), "{error}");
        assert_eq!(host.images(), 0);
    }
}
