//! Relocations that depend on more than their symbol: a table of contents, and another relocation;
//! and the order of bytes.

use crate::file::{ALLOC, File, TEXT};
use crate::host::{ABS64, Host, SECOND64, TOC64, load};
use klp_core::elf::view::View;

const FAR: u64 = 0x7fff_0000_1230;

#[test]
fn a_table_of_contents_is_what_the_architecture_says_it_is() {
    let (mut file, text) = File::replacing_victim();
    let toc = file.section(".toc", ALLOC, 8, &[0; 8]);
    let own = file.symbol("", object::elf::STT_SECTION, Some(toc), 0, 0);
    let far = file.undefined("far");
    file.rela(text, 0, far, TOC64, 8);
    file.rela(text, 8, own, ABS64, 0);
    let host = Host::new().exporting("far", FAR);
    let loaded = load(&host, &file.bytes(), "p").expect("loads");
    let start = loaded.patch.objects()[0].funcs()[0].new_addr();
    let word = |offset| u64::from_le_bytes(host.bytes(start.wrapping_add(offset)));
    assert_eq!(word(0), FAR + 8 - word(8));
}

#[test]
fn without_a_table_of_contents_nothing_can_refer_to_it() {
    let (mut file, text) = File::replacing_victim();
    let far = file.undefined("far");
    file.rela(text, 0, far, TOC64, 0);
    let host = Host::new().exporting("far", FAR);
    let error = load(&host, &file.bytes(), "p")
        .map(|loaded| loaded.patch)
        .expect_err("there is none");
    assert!(
        error
            .to_string()
            .contains("relocation type 10 does not fit"),
        "{error}"
    );
    assert_eq!(host.images(), 0);
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
