//! Relocations that depend on more than their symbol: a table of contents, and another relocation;
//! and the order of bytes.

use crate::file::{File, TEXT};
use crate::host::{ABS64, Host, PC32, SECOND64, SHARED64, SLOT32, TOC64, WHOSE64, load};
use klp_core::addr::CodeAddr;
use klp_core::elf::Loaded;
use klp_core::elf::view::View;
use klp_core::relocs;

const FAR: u64 = 0x7fff_0000_1230;

#[test]
fn a_table_of_contents_of_the_images_own_begins_with_its_slots() {
    let (mut file, text) = File::replacing_victim();
    let (base, far) = (file.undefined("_TOC_"), file.undefined("far"));
    file.rela(text, 0, far, TOC64, 8);
    file.rela(text, 8, far, SLOT32, 0);
    file.rela(text, 12, base, PC32, 0);
    let host = Host::new().exporting("far", FAR);
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    let start = loaded.patch.objects()[0].funcs()[0].new_addr();
    let behind = |offset| {
        let place = start.wrapping_add(offset);
        let distance = i32::from_le_bytes(host.bytes(place));
        CodeAddr::new(place.get().wrapping_add_signed(distance.into()))
    };
    let (slot, toc) = (behind(8), behind(12));
    assert_eq!(slot, toc);
    assert_eq!(u64::from_le_bytes(host.bytes(slot)), FAR);
    let from_toc = u64::from_le_bytes(host.bytes(start));
    assert_eq!(from_toc, FAR + 8 - toc.get());
}

/// Replaces `sole` of `libfoo`; three references that depend on its table of contents.
fn sharing() -> File {
    let mut file = File::new();
    let text = file.section(".text.fixed", TEXT, 16, &[0; 24]);
    let fixed = file.function("fixed", text, 0, 24);
    file.replace(Some("libfoo"), &[("sole", fixed, 0)]);
    let base = file.undefined(".TOC.");
    let far = file.undefined("far");
    file.rela(text, 0, far, SHARED64, 8);
    file.rela(text, 8, base, ABS64, 4);
    file.rela(text, 16, fixed, SHARED64, 0);
    file
}

#[test]
fn a_table_of_contents_can_be_that_of_the_patched_object() {
    const TOC: u64 = 0x50_8000;
    let mut host = Host::new()
        .exporting("far", FAR)
        .with("libfoo", "sole", 0x50_0000);
    let loaded = load(&host, &sharing().bytes(), "p").expect("the object need not be there");
    let object = &loaded.patch.objects()[0];
    let start = object.funcs()[0].new_addr();
    let words = |host: &Host| {
        [0, 8, 16].map(|offset| u64::from_le_bytes(host.bytes(start.wrapping_add(offset))))
    };
    assert_eq!(words(&host), [0; 3]);
    // SAFETY: nothing executes in this test.
    let error = unsafe { relocs::apply(&host, "fix", object) }.expect_err("there is none");
    assert_eq!(
        error.to_string(),
        "patch 'fix', object 'libfoo': symbol '.TOC.': not found in symbol table"
    );
    // The object may come back elsewhere.
    for toc in [TOC, TOC + 0x1_0000] {
        host.symbols.retain(|known| known.name != ".TOC.");
        host = host.with("libfoo", ".TOC.", toc);
        // SAFETY: nothing executes in this test.
        unsafe { relocs::apply(&host, "fix", object) }.expect("applies");
        let expected = [FAR + 8 - toc, toc + 4, start.get().wrapping_sub(toc)];
        assert_eq!(words(&host), expected);
        // SAFETY: nothing executes in this test.
        unsafe { relocs::clear(&host, "fix", object) }.expect("clears");
        assert_eq!(words(&host), [0; 3]);
    }
}

#[test]
fn a_table_of_contents_that_is_not_one_is_refused() {
    let refused = |file: File| {
        let host = Host::new().exporting("far", FAR);
        let error = load(&host, &file.bytes(), "p").map(|Loaded { patch, .. }| patch);
        assert_eq!(host.images(), 0);
        error.expect_err("which one?").to_string()
    };
    // Two objects have two.
    let mut file = sharing();
    let text = file.section(".text.other", TEXT, 16, &[0; 8]);
    let other = file.function("other", text, 0, 8);
    file.replace(Some("libbar"), &[("sole", other, 0)]);
    assert_eq!(
        refused(file),
        "patch 'fix': table of contents of several objects (.text.fixed) is not supported"
    );
}

#[test]
fn what_waits_for_a_symbol_and_a_table_of_contents_gets_both() {
    const TOC: u64 = 0x50_8000;
    let mut file = sharing();
    let text = file.section(".text.other", TEXT, 16, &[0; 8]);
    let near = file.livepatch(".klp.sym.libfoo.near,0");
    let section = ".klp.rela.libfoo.text.other";
    file.rela_in(section, text, 0, near, SHARED64, 8);
    let host = Host::new()
        .exporting("far", FAR)
        .with("libfoo", "sole", 0x50_0000)
        .with("libfoo", "near", 0x50_1230)
        .with("libfoo", ".TOC.", TOC);
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    let object = &loaded.patch.objects()[0];
    // SAFETY: nothing executes in this test.
    unsafe { relocs::apply(&host, "fix", object) }.expect("both are there");
    let field = object
        .relocs()
        .fields()
        .iter()
        .find(|field| field.known.is_none());
    let words = object
        .relocs()
        .fields()
        .iter()
        .map(|field| u64::from_le_bytes(host.bytes(field.at)));
    let expected = 0x50_1238_u64.wrapping_sub(TOC);
    assert!(field.is_some() && { words }.any(|word| word == expected));
    // SAFETY: nothing executes in this test.
    unsafe { relocs::clear(&host, "fix", object) }.expect("clears");
    let mut words = object
        .relocs()
        .fields()
        .iter()
        .map(|field| host.bytes::<8>(field.at));
    assert!(words.all(|word| word == [0; 8]));
}

#[test]
fn a_relocation_is_told_whose_symbol_it_is() {
    let (mut file, text) = File::replacing_victim();
    let own = file.function("own", text, 8, 8);
    file.elf.symbols.get_mut(own).st_other = object::elf::SymbolOther(0x60);
    let far = file.undefined("far");
    file.rela(text, 0, own, WHOSE64, 0);
    file.rela(text, 8, far, WHOSE64, 0);
    let host = Host::new().exporting("far", FAR);
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    let start = loaded.patch.objects()[0].funcs()[0].new_addr();
    let word = |offset| u64::from_le_bytes(host.bytes(start.wrapping_add(offset)));
    assert_eq!([word(0), word(8)], [0x60, 256]);
}

#[test]
fn a_relocation_can_complete_another() {
    let (mut file, text) = File::replacing_victim();
    let far = file.undefined("far");
    let first = file.symbol("first", object::elf::STT_NOTYPE, Some(text), 8, 0);
    // The second field stands in front of the first one: order does not matter.
    file.rela(text, 0, first, SECOND64, 0);
    file.rela(text, 8, far, ABS64, 0x18);
    let host = Host::new().exporting("far", FAR);
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    let start = loaded.patch.objects()[0].funcs()[0].new_addr();
    let word = |offset| u64::from_le_bytes(host.bytes(start.wrapping_add(offset)));
    assert_eq!(word(8), FAR + 0x18);
    assert_eq!(word(0), FAR + 0x18 - start.wrapping_add(8).get());
}

#[test]
fn what_is_completed_must_be_there() {
    type Spoil = fn(&mut File, object::build::elf::SectionId);
    let cases: [Spoil; 3] = [
        // No relocation is where the symbol points to,
        |file, text| {
            let nothing = file.symbol("here", object::elf::STT_NOTYPE, Some(text), 8, 0);
            file.rela(text, 0, nothing, SECOND64, 0);
        },
        // it is in another section,
        |file, text| {
            let other = file.section(".text.other", TEXT, 8, &[0; 8]);
            let far = file.undefined("far");
            let first = file.symbol("here", object::elf::STT_NOTYPE, Some(other), 0, 0);
            file.rela(other, 0, far, ABS64, 0);
            file.rela(text, 0, first, SECOND64, 0);
        },
        // or it is itself.
        |file, text| {
            let itself = file.symbol("here", object::elf::STT_NOTYPE, Some(text), 0, 0);
            file.rela(text, 0, itself, SECOND64, 0);
        },
    ];
    for spoil in cases {
        let (mut file, text) = File::replacing_victim();
        spoil(&mut file, text);
        let host = Host::new().exporting("far", FAR);
        let error = load(&host, &file.bytes(), "p")
            .map(|loaded| loaded.patch)
            .expect_err("it is not there");
        assert_eq!(
            error.to_string(),
            "patch 'fix': relocation completes none of its section (here)"
        );
        assert_eq!(host.images(), 0);
    }
}

#[test]
fn numbers_are_read_in_the_machines_order() {
    let little = File::replacing_victim().0.bytes();
    let mut file = File::replacing_victim().0;
    file.elf.endian = object::Endianness::Big;
    let big = file.bytes();
    for (bytes, big_endian) in [(&little, false), (&big, true)] {
        let view = View::parse(bytes, crate::host::MACHINE, big_endian).expect("a patch object");
        let relas = view.sections().iter().flat_map(|section| section.relas());
        assert!(relas.clone().count() > 0);
        assert!(
            relas
                .clone()
                .all(|rela| rela.kind == ABS64 && rela.offset < 0x100),
            "{big_endian}"
        );
        let error = View::parse(bytes, crate::host::MACHINE, !big_endian);
        assert!(error.is_err(), "{big_endian}");
    }
}
