//! Files broken at random and on purpose: refused or loaded, but never a panic, and nothing left
//! behind.

use crate::file::{ALLOC, DATA, File};
use crate::host::{ABS64, BRANCH32, Host, PC32, SLOT32, load};
use proptest::prelude::*;

/// A file with everything in it.
fn file() -> Vec<u8> {
    let (mut file, text) = File::replacing_victim();
    let rodata = file.section(".rodata", ALLOC, 32, b"constant");
    file.zeros(".bss", DATA, 0x100);
    file.section(".eh_frame", ALLOC, 8, &[0; 24]);
    let fields = file.section(".data.rel.ro", DATA, 8, &[0; 8]);
    let start = file.symbol("", object::elf::STT_SECTION, Some(rodata), 0, 0);
    let far = file.undefined("far");
    let local = file.livepatch(".klp.sym.vmlinux.victim,0");
    let waiting = file.livepatch(".klp.sym.libfoo.f,1");
    let other = file.function("other", text, 8, 8);
    file.replace(Some("libfoo"), &[("f", other, 1)]);
    file.rela(fields, 0, start, ABS64, 4);
    file.rela(text, 0, far, SLOT32, -4);
    file.rela_in(".klp.rela.vmlinux.text.fixed", text, 4, local, PC32, -4);
    file.rela_in(
        ".klp.rela.libfoo.text.fixed",
        text,
        8,
        waiting,
        BRANCH32,
        -4,
    );
    file.bytes()
}

fn host() -> Host {
    Host::new()
        .with("libfoo", "f", 0x50_0000)
        .exporting("far", 0x7fff_0000_0000)
}

/// Loads whatever it is; what does load is unloaded.
fn survives(bytes: &[u8]) {
    let host = host();
    if let Ok(loaded) = load(&host, bytes, "p") {
        // SAFETY: it was never enabled.
        unsafe { loaded.image.unload(&host) };
    }
    assert_eq!(host.images(), 0, "memory left behind");
}

#[test]
fn the_whole_file_loads() {
    load(&host(), &file(), "p").expect("loads");
}

#[test]
fn truncated_at_every_length() {
    let bytes = file();
    for len in 0..bytes.len() {
        load(&host(), &bytes[..len], "p")
            .map(|loaded| loaded.patch)
            .expect_err("the section table is at the end");
        survives(&bytes[..len]);
    }
}

#[test]
fn every_byte_wrong() {
    let bytes = file();
    for at in 0..bytes.len() {
        for wrong in [
            0,
            0x7f,
            0x80,
            0xff,
            bytes[at] ^ 1,
            bytes[at].wrapping_add(1),
        ] {
            let mut bytes = bytes.clone();
            bytes[at] = wrong;
            survives(&bytes);
        }
    }
}

#[test]
fn at_any_alignment_in_memory() {
    let bytes = file();
    for shift in 0..8 {
        let moved = [&[0; 8][..shift], &bytes].concat();
        load(&host(), &moved[shift..], "p").expect("loads from an odd address");
    }
}

/// The places of the file's section headers.
fn section_headers(bytes: &[u8]) -> impl Iterator<Item = usize> + use<> {
    let start = u64::from_le_bytes(bytes[40..48].try_into().expect("eight bytes"));
    let count = u16::from_le_bytes(bytes[60..62].try_into().expect("two bytes"));
    (0..usize::from(count)).map(move |index| start as usize + 64 * index)
}

/// A file of a few pages could ask for gigabytes otherwise.
#[test]
fn sections_do_not_share_bytes() {
    let mut bytes = file();
    let len = bytes.len() as u64;
    for header in section_headers(&file()) {
        let kind = u32::from_le_bytes(bytes[header + 4..header + 8].try_into().expect("four"));
        if kind == object::elf::SHT_PROGBITS.0 {
            bytes[header + 24..header + 32].fill(0);
            bytes[header + 32..header + 40].copy_from_slice(&len.to_le_bytes());
        }
    }
    let refused = load(&host(), &bytes, "p").expect_err("they are the whole file each");
    let refused = refused.to_string();
    assert!(
        refused.contains("sections that share bytes of the file"),
        "{refused}"
    );
}

/// Reading them would take time by the square of the file's size.
#[test]
fn names_do_not_share_most_of_their_bytes() {
    let (mut file, text) = File::replacing_victim();
    let long = "n".repeat(1 << 16);
    for _ in 0..1 << 12 {
        file.function(&long, text, 0, 8);
    }
    let refused = load(&host(), &file.bytes(), "p").expect_err("one name, thousands of times");
    let refused = refused.to_string();
    assert!(
        refused.contains("names that share most of their bytes"),
        "{refused}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn several_numbers_wrong(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u64>(), 0..64u64, Just(u64::MAX)], 1..=8usize), 1..6)
    ) {
        let mut bytes = file();
        for (at, value, len) in changes {
            let at = at.index(bytes.len());
            let len = len.min(bytes.len() - at);
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        survives(&bytes);
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let mut with_magic = b"\x7fELF\x02\x01\x01".to_vec();
        with_magic.extend(&bytes);
        survives(&bytes);
        survives(&with_magic);
    }
}
