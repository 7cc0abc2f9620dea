use super::*;
use crate::opcodes::STD_R2_24_R1;
use alloc::vec::Vec;
use klp_arch_tests::code::bytes;
use klp_core::conformance::relocator::{Known, check};
use klp_core::port::{Arch, Around, Owner, Via};

const PLACE: u64 = 0x1000_1000;
const TOC: u64 = 0x1002_8000;

fn reloc(kind: elf::RelocationType, symbol: u64) -> Relocation {
    let mut reloc = Relocation::new(kind.0, CodeAddr::new(PLACE), symbol, 0);
    reloc.around.toc = Some(CodeAddr::new(TOC));
    reloc
}

/// What comes of words whose field is empty; cleared, they are as before.
fn apply(reloc: &Relocation, words: &[u32]) -> Result<Vec<u32>, RelocError> {
    let before = bytes(words);
    let mut bytes = before.clone();
    Ppc64Le::apply(reloc, &mut bytes).inspect_err(|_| assert_eq!(bytes, before))?;
    let after = bytes.chunks_exact(4).filter_map(word).collect();
    Ppc64Le::clear(reloc.kind, &mut bytes).expect("it was applied");
    assert_eq!(bytes, before, "type {}", reloc.kind);
    Ok(after)
}

/// Words before and after as GNU as and ld 2.40 have them, for symbols at the addresses beside
/// them, a place at 0x10001000 and a table of contents based at 0x10028000.
#[test]
fn instructions_are_the_linkers() {
    let cases: [(_, u64, &[u32], &[u32]); 31] = [
        // bl sym; nop
        (
            elf::R_PPC64_REL24,
            0x1000_2000,
            &[0x4800_0001, NOP],
            &[0x4800_1001, NOP],
        ),
        (
            elf::R_PPC64_REL24,
            0x1000_0ffc,
            &[0x4800_0001, NOP],
            &[0x4bff_fffd, NOP],
        ),
        // b sym
        (
            elf::R_PPC64_REL24,
            0x1000_1010,
            &[0x4800_0000],
            &[0x4800_0010],
        ),
        // beq sym; bdnz sym
        (
            elf::R_PPC64_REL14,
            0x1000_1008,
            &[0x4182_0000],
            &[0x4182_0008],
        ),
        (
            elf::R_PPC64_REL14,
            0x1000_0ffc,
            &[0x4200_0000],
            &[0x4200_fffc],
        ),
        // .long sym; .long sym - .; .quad sym; .quad sym - .
        (elf::R_PPC64_ADDR32, 0x1234_5678, &[0], &[0x1234_5678]),
        (elf::R_PPC64_REL32, 0x1000_0fff, &[0], &[0xffff_ffff]),
        (elf::R_PPC64_ADDR64, 0x1234_5678, &[0, 0], &[0x1234_5678, 0]),
        (elf::R_PPC64_REL64, 0x1000_0fff, &[0, 0], &[!0, !0]),
        // addi r3,r3,sym@l; lis r3,sym@h; lis r3,sym@ha
        (
            elf::R_PPC64_ADDR16_LO,
            0x1234_a678,
            &[0x3863_0000],
            &[0x3863_a678],
        ),
        (
            elf::R_PPC64_ADDR16_HI,
            0x1234_a678,
            &[0x3c60_0000],
            &[0x3c60_1234],
        ),
        (
            elf::R_PPC64_ADDR16_HA,
            0x1234_a678,
            &[0x3c60_0000],
            &[0x3c60_1235],
        ),
        // ld r3,sym@l(r3); lxv vs34,sym@l(r3)
        (
            elf::R_PPC64_ADDR16_LO_DS,
            0x1234_a678,
            &[0xe863_0000],
            &[0xe863_a678],
        ),
        (
            elf::R_PPC64_ADDR16_LO_DS,
            0x1234_a670,
            &[0xf443_0009],
            &[0xf443_a679],
        ),
        // lis r3,sym@high; lis r3,sym@higha
        (
            elf::R_PPC64_ADDR16_HIGH,
            0x1122_3344_5566_7788,
            &[0x3c60_0000],
            &[0x3c60_5566],
        ),
        (
            elf::R_PPC64_ADDR16_HIGHA,
            0x1122_3344_5566_a788,
            &[0x3c60_0000],
            &[0x3c60_5567],
        ),
        // ori r3,r3,sym@higher; sym@highera
        (
            elf::R_PPC64_ADDR16_HIGHER,
            0x1122_3344_a566_7788,
            &[0x6063_0000],
            &[0x6063_3344],
        ),
        (
            elf::R_PPC64_ADDR16_HIGHERA,
            0x1122_3344_a566_7788,
            &[0x6063_0000],
            &[0x6063_3344],
        ),
        // lis r3,sym@highest; sym@highesta
        (
            elf::R_PPC64_ADDR16_HIGHEST,
            0x1122_b344_5566_7788,
            &[0x3c60_0000],
            &[0x3c60_1122],
        ),
        (
            elf::R_PPC64_ADDR16_HIGHESTA,
            0x1122_b344_5566_7788,
            &[0x3c60_0000],
            &[0x3c60_1122],
        ),
        // addi r3,r2,sym@toc; ld r3,sym@toc(r2)
        (
            elf::R_PPC64_TOC16,
            TOC - 0x1234,
            &[0x3862_0000],
            &[0x3862_edcc],
        ),
        (
            elf::R_PPC64_TOC16_DS,
            TOC - 0x1234,
            &[0xe862_0000],
            &[0xe862_edcc],
        ),
        // addis r3,r2,sym@toc@ha; sym@toc@h; addi r3,r3,sym@toc@l
        (
            elf::R_PPC64_TOC16_HA,
            TOC + 0x1_a678,
            &[0x3c62_0000],
            &[0x3c62_0002],
        ),
        (
            elf::R_PPC64_TOC16_HI,
            TOC + 0x1_a678,
            &[0x3c62_0000],
            &[0x3c62_0001],
        ),
        (
            elf::R_PPC64_TOC16_LO,
            TOC + 0x1_a678,
            &[0x3863_0000],
            &[0x3863_a678],
        ),
        // ld r3,sym@toc@l(r3); lxv vs34,sym@toc@l(r3)
        (
            elf::R_PPC64_TOC16_LO_DS,
            TOC + 0x1_a678,
            &[0xe863_0000],
            &[0xe863_a678],
        ),
        (
            elf::R_PPC64_TOC16_LO_DS,
            TOC + 0x1_a670,
            &[0xf443_0009],
            &[0xf443_a679],
        ),
        // addis r2,r12,(sym - .)@ha; addi r2,r2,(sym - .)@l
        (
            elf::R_PPC64_REL16_HA,
            0x1002_a100,
            &[0x3c4c_0000],
            &[0x3c4c_0003],
        ),
        (
            elf::R_PPC64_REL16_LO,
            0x1002_a100,
            &[0x3842_0000],
            &[0x3842_9100],
        ),
        // pla r3,sym; plwz r9,sym
        (
            R_PPC64_PCREL34,
            0x1002_a100,
            &[0x0610_0000, 0x3860_0000],
            &[0x0610_0002, 0x3860_9100],
        ),
        (
            R_PPC64_PCREL34,
            0x1000_0ff0,
            &[0x0610_0000, 0x8120_0000],
            &[0x0613_ffff, 0x8120_fff0],
        ),
    ];
    for (kind, symbol, before, after) in cases {
        assert_eq!(
            apply(&reloc(kind, symbol), before).as_deref(),
            Ok(after),
            "{kind:?}, {symbol:#x}"
        );
    }
}

fn call_of(kind: elf::RelocationType, via: Via, owner: Owner) -> Relocation {
    let mut reloc = reloc(kind, PLACE + 0x100);
    reloc.via = via;
    reloc.around.owner = owner;
    reloc
}

#[test]
fn calls_within_the_image_go_to_the_local_entry() {
    let (bl, b) = (0x4800_0001, 0x4800_0000);
    let own = |kind, other, word| {
        let reloc = call_of(kind, Via::Direct, Owner::Image { other });
        apply(&reloc, &[word, NOP]).map(|words| (words[0] - word, words[1]))
    };
    // `.localentry` as GNU as puts it into `st_other`: 0, 4, 8, 16, 32, 64.
    for (other, entry) in [
        (0, 0),
        (0x40, 4),
        (0x60, 8),
        (0x80, 16),
        (0xa0, 32),
        (0xc0, 64),
    ] {
        // Its lowest two bits are the visibility.
        for word in [bl, b] {
            let expected = Ok((0x100 + entry, NOP));
            assert_eq!(own(elf::R_PPC64_REL24, other | 2, word), expected);
        }
    }
    assert_eq!(own(R_PPC64_REL24_NOTOC, 0x20, bl), Ok((0x100, NOP)));
    assert_eq!(own(R_PPC64_REL24_NOTOC, 0, b), Ok((0x100, NOP)));
    // Between code with a table of contents and code without.
    for (kind, other) in [
        (elf::R_PPC64_REL24, 0x20),
        (elf::R_PPC64_REL24, 0xe0),
        (R_PPC64_REL24_NOTOC, 0x60),
    ] {
        let refused = Err(RelocError::BadPlace { kind: kind.0 });
        assert_eq!(own(kind, other, bl), refused, "{kind:?}, {other:#x}");
    }
}

#[test]
fn calls_out_of_the_image_go_through_a_veneer() {
    let (bl, b) = (0x4800_0001, 0x4800_0000);
    for kind in [elf::R_PPC64_REL24, R_PPC64_REL24_NOTOC] {
        // However near it is.
        let direct = apply(&call_of(kind, Via::Direct, Owner::System), &[bl, NOP]);
        let value = 0x100;
        let kind = kind.0;
        assert_eq!(direct, Err(RelocError::OutOfRange { kind, value }));
        assert_eq!(Ppc64Le::support(kind), Some(Support::Veneer));
    }
    let veneer = |kind, words: &[u32]| apply(&call_of(kind, Via::Veneer, Owner::System), words);
    assert_eq!(
        veneer(elf::R_PPC64_REL24, &[bl, NOP]).as_deref(),
        Ok(&[0x4800_0101, LD_R2_24_R1][..])
    );
    assert_eq!(
        veneer(R_PPC64_REL24_NOTOC, &[bl, 0x3863_0001]).as_deref(),
        Ok(&[0x4800_0105, 0x3863_0001][..])
    );
    assert_eq!(
        veneer(R_PPC64_REL24_NOTOC, &[b, NOP]).as_deref(),
        Ok(&[0x4800_0104, NOP][..])
    );
    // Nothing would restore register 2.
    let refused = |kind: elf::RelocationType| Err(RelocError::BadPlace { kind: kind.0 });
    for words in [&[bl, 0x3863_0001][..], &[bl], &[b, NOP], &[b]] {
        let found = veneer(elf::R_PPC64_REL24, words);
        assert_eq!(found, refused(elf::R_PPC64_REL24), "{words:x?}");
    }
}

#[test]
fn what_a_veneer_saves_is_what_the_call_restores() {
    let at = CodeAddr::new(PLACE);
    let veneer = Ppc64Le::call_veneer(at, CodeAddr::new(0x1122));
    assert_eq!(word(&veneer), Some(STD_R2_24_R1));
    assert_eq!(veneer[4..], Ppc64Le::veneer(at, CodeAddr::new(0x1122))[..]);
}

#[test]
fn the_base_of_the_table() {
    let used = (0..256).filter(|&kind| Ppc64Le::uses_toc(kind));
    let (toc, slots) = (
        [47, 48, 49, 50, 51, 63, 64],
        [14, 15, 16, 17, 29, 30, 31, 58, 59, 60],
    );
    let mut expected = [toc.as_slice(), &slots].concat();
    expected.sort_unstable();
    assert!(
        used.eq(expected),
        "R_PPC64_TOC…, R_PPC64_GOT16…, R_PPC64_PLT16…"
    );
    for kind in slots {
        assert_eq!(Ppc64Le::support(kind), Some(Support::AddressSlot));
    }
    let base = apply(&reloc(elf::R_PPC64_TOC, 0), &[0, 0]);
    assert_eq!(base.as_deref(), Ok(&[TOC as u32, 0][..]));
    for kind in [
        elf::R_PPC64_TOC,
        elf::R_PPC64_TOC16_HA,
        elf::R_PPC64_TOC16_LO_DS,
    ] {
        let mut reloc = reloc(kind, TOC);
        reloc.around = Around::default();
        let none = Err(RelocError::BadPlace { kind: kind.0 });
        assert_eq!(apply(&reloc, &[0, 0]), none, "without one");
    }
}

#[test]
fn the_edges_of_ranges() {
    let fits = |kind, symbol, word| match apply(&reloc(kind, symbol), &[word, 0]) {
        Ok(_) => true,
        Err(RelocError::OutOfRange { .. }) => false,
        Err(other) => panic!("{other}"),
    };
    let edges = [
        (elf::R_PPC64_REL24, PLACE, (1 << 25) - 4, 4, 0x4800_0001),
        (elf::R_PPC64_REL14, PLACE, (1 << 15) - 4, 4, 0x4182_0000),
        (elf::R_PPC64_REL32, PLACE, (1 << 31) - 1, 1, 0),
        (elf::R_PPC64_REL16, PLACE, (1 << 15) - 1, 1, 0),
        (elf::R_PPC64_REL16_HI, PLACE, (1 << 31) - 1, 1, 0),
        (elf::R_PPC64_REL16_HA, PLACE, (1 << 31) - 0x8001, 1, 0),
        (elf::R_PPC64_TOC16, TOC, (1 << 15) - 1, 1, 0),
        (elf::R_PPC64_TOC16_DS, TOC, (1 << 15) - 4, 4, 0xe862_0000),
        (elf::R_PPC64_TOC16_HA, TOC, (1 << 31) - 0x8001, 1, 0),
        (R_PPC64_PCREL34, PLACE, (1 << 33) - 1, 1, 0x0610_0000),
        (R_PPC64_GOT_PCREL34, PLACE, (1 << 33) - 1, 1, 0x0410_0000),
        (R_PPC64_PLT_PCREL34, PLACE, (1 << 33) - 1, 1, 0x0410_0000),
        (
            R_PPC64_PLT_PCREL34_NOTOC,
            PLACE,
            (1 << 33) - 1,
            1,
            0x0410_0000,
        ),
        (R_PPC64_REL24_NOTOC, PLACE, (1 << 25) - 4, 4, 0x4800_0001),
        (elf::R_PPC64_ADDR16_HI, 0, (1 << 31) - 1, 1, 0),
        (elf::R_PPC64_ADDR16_HA, 0, (1 << 31) - 0x8001, 1, 0),
        (elf::R_PPC64_ADDR16_DS, 0, (1 << 15) - 4, 4, 0xe862_0000),
        (elf::R_PPC64_TOC16_HI, TOC, (1 << 31) - 1, 1, 0),
        (elf::R_PPC64_GOT16, TOC, (1 << 15) - 1, 1, 0),
        (elf::R_PPC64_GOT16_DS, TOC, (1 << 15) - 4, 4, 0xe862_0000),
        (elf::R_PPC64_GOT16_HI, TOC, (1 << 31) - 1, 1, 0),
        (elf::R_PPC64_GOT16_HA, TOC, (1 << 31) - 0x8001, 1, 0),
        (elf::R_PPC64_PLT16_HI, TOC, (1 << 31) - 1, 1, 0),
        (elf::R_PPC64_PLT16_HA, TOC, (1 << 31) - 0x8001, 1, 0),
    ];
    for (kind, base, last, unit, word) in edges {
        assert!(fits(kind, base + last, word), "{kind:?}");
        assert!(!fits(kind, base + last + unit, word), "{kind:?}");
        // As far down as up, and one more; those with rounding, as much more as it adds.
        let rounding = if last % 0x1_0000 == 0x7fff && last > 1 << 16 {
            0x1_0000
        } else {
            0
        };
        let lowest = base.wrapping_sub(last + unit + rounding);
        assert!(fits(kind, lowest, word), "{kind:?}, down");
        assert!(
            !fits(kind, lowest.wrapping_sub(unit), word),
            "{kind:?}, down"
        );
    }
    assert!(!fits(elf::R_PPC64_REL24, PLACE + 2, 0x4800_0001));
    assert!(!fits(elf::R_PPC64_TOC16_LO_DS, TOC + 2, 0xe863_0000), "ld");
    assert!(fits(elf::R_PPC64_TOC16_LO_DS, TOC + 4, 0xe863_0000), "ld");
    for (word, what) in [
        (0xf443_0009, "lxv"),
        (0xe063_0000, "lq"),
        (0x1843_0000, "lxvp"),
    ] {
        assert!(!fits(elf::R_PPC64_TOC16_LO_DS, TOC + 4, word), "{what}");
        assert!(fits(elf::R_PPC64_TOC16_LO_DS, TOC + 16, word), "{what}");
    }
    assert!(fits(elf::R_PPC64_ADDR16, 0xffff, 0) && fits(elf::R_PPC64_ADDR16, !0, 0));
    assert!(!fits(elf::R_PPC64_ADDR16, 0x1_0000, 0));
    assert!(fits(elf::R_PPC64_ADDR32, 0xffff_ffff, 0) && fits(elf::R_PPC64_ADDR32, !0, 0));
    assert!(!fits(elf::R_PPC64_ADDR32, 1 << 32, 0));
    assert!(!fits(elf::R_PPC64_ADDR16_HI, 1 << 31, 0));
    assert!(fits(elf::R_PPC64_ADDR16_HIGH, 1 << 31, 0));
}

/// GNU as does that.
#[test]
fn a_prefixed_instruction_may_hold_the_addend() {
    let addend = Relocation {
        addend: 16,
        ..reloc(R_PPC64_PCREL34, PLACE + 0x100)
    };
    let pla = |field: u32| {
        [0x0610_0000, 0x3860_0000 | field]
            .map(u32::to_le_bytes)
            .concat()
    };
    for before in [0, 16] {
        let mut bytes = pla(before);
        assert_eq!(Ppc64Le::apply(&addend, &mut bytes), Ok(()));
        assert_eq!(bytes, pla(0x110));
        assert!(
            Ppc64Le::apply(&addend, &mut bytes).is_err(),
            "relocated already"
        );
    }
}

#[test]
fn a_field_is_relocated_once() {
    for (kind, words) in [
        (elf::R_PPC64_REL24, [0x4800_0101, NOP]),
        (elf::R_PPC64_REL24, [0x4800_0001, LD_R2_24_R1]),
        (elf::R_PPC64_TOC16_HA, [0x3c62_0002, 0]),
        (R_PPC64_PCREL34, [0x0610_0002, 0x3860_0000]),
        (R_PPC64_PCREL34, [0x0610_0000, 0x3860_9100]),
        (elf::R_PPC64_ADDR64, [0, 1]),
    ] {
        let refused = Err(RelocError::BadPlace { kind: kind.0 });
        assert_eq!(
            apply(&reloc(kind, PLACE + 8), &words),
            refused,
            "{words:x?}"
        );
    }
}

/// What a hint says is left aside.
#[test]
fn hints_change_nothing() {
    for kind in [
        elf::R_PPC64_NONE,
        R_PPC64_ENTRY,
        R_PPC64_PCREL_OPT,
        R_PPC64_PLTSEQ,
        R_PPC64_PLTCALL,
        R_PPC64_PLTSEQ_NOTOC,
        R_PPC64_PLTCALL_NOTOC,
    ] {
        let words = [0x0410_0000, 0xe520_0000];
        assert_eq!(
            apply(&reloc(kind, PLACE), &words).as_deref(),
            Ok(&words[..])
        );
    }
}

#[test]
fn conforms() {
    let known = [
        (elf::R_PPC64_ADDR64, 8, false),
        (elf::R_PPC64_REL64, 8, false),
        (elf::R_PPC64_ADDR32, 4, true),
        (elf::R_PPC64_REL32, 4, true),
        (elf::R_PPC64_ADDR16_LO, 2, false),
        (elf::R_PPC64_ADDR16_HI, 2, true),
        (elf::R_PPC64_ADDR16_HA, 2, true),
        (elf::R_PPC64_ADDR16_HIGH, 2, false),
        (elf::R_PPC64_ADDR16_HIGHA, 2, false),
        (elf::R_PPC64_ADDR16_LO_DS, 4, false),
        (elf::R_PPC64_REL16, 2, true),
        (elf::R_PPC64_REL16_LO, 2, false),
        (R_PPC64_PCREL34, 8, true),
        (R_PPC64_GOT_PCREL34, 8, true),
        (R_PPC64_PLT_PCREL34, 8, true),
        (R_PPC64_PLT_PCREL34_NOTOC, 8, true),
        (elf::R_PPC64_REL14, 4, true),
        (elf::R_PPC64_REL24, 4, true),
        (R_PPC64_REL24_NOTOC, 4, true),
    ];
    let known = known.map(|(elf::RelocationType(kind), len, limited)| Known { kind, len, limited });
    let unknown = [
        elf::R_PPC64_COPY,
        elf::R_PPC64_TLS,
        elf::R_PPC64_TPREL16_HA,
        elf::R_PPC64_GOT_TLSGD16_HA,
        elf::R_PPC64_GOT_TPREL16_DS,
        elf::R_PPC64_DTPREL64,
        elf::RelocationType(148), // R_PPC64_GOT_TLSGD_PCREL34
        // The local entry as a number.
        elf::RelocationType(117), // R_PPC64_ADDR64_LOCAL
        elf::RelocationType(0xffff),
    ];
    check::<Ppc64Le>(&known, &unknown.map(|kind| kind.0));
}
