use super::*;
use klp_core::conformance::relocator::{Known, check};

const PLACE: u64 = 0x40_1000;
const GOT: u64 = 0x41_0ff8;

/// What comes of an instruction whose field is empty.
fn apply(kind: elf::RelocationType, word: u32, symbol: u64) -> Result<u32, RelocError> {
    let mut bytes = word.to_le_bytes();
    let mut reloc = Relocation::new(kind.0, CodeAddr::new(PLACE), symbol, 0);
    reloc.around.toc = Some(CodeAddr::new(GOT));
    let result = AArch64::apply(&reloc, &mut bytes);
    if result.is_err() {
        assert_eq!(bytes, word.to_le_bytes());
    }
    result.map(|()| u32::from_le_bytes(bytes))
}

/// Words before and after as GNU as and ld have them, for symbols at the addresses beside them
/// and a place at 0x401000.
#[test]
fn instructions_are_the_linkers() {
    let cases = [
        (elf::R_AARCH64_CALL26, 0x9400_0000, 0x40_2000, 0x9400_0400), // bl
        (elf::R_AARCH64_CALL26, 0x9400_0000, 0x40_0ffc, 0x97ff_ffff),
        (elf::R_AARCH64_JUMP26, 0x1400_0000, 0x40_1010, 0x1400_0004), // b
        (elf::R_AARCH64_CONDBR19, 0x5400_0000, 0x40_1008, 0x5400_0040), // b.eq
        (elf::R_AARCH64_CONDBR19, 0xb500_0001, 0x40_0ffc, 0xb5ff_ffe1), // cbnz x1
        (elf::R_AARCH64_TSTBR14, 0xb7f8_0003, 0x40_0ffc, 0xb7ff_ffe3), // tbnz x3, #63
        (
            elf::R_AARCH64_ADR_PREL_PG_HI21,
            0x9000_0000,
            0x41_2345,
            0xb000_0080,
        ), // adrp x0
        (
            elf::R_AARCH64_ADR_PREL_PG_HI21,
            0x9000_0000,
            0x40_0fff,
            0xf0ff_ffe0,
        ),
        (
            elf::R_AARCH64_ADR_PREL_LO21,
            0x1000_0000,
            0x40_1005,
            0x3000_0020,
        ), // adr x0
        (
            elf::R_AARCH64_ADD_ABS_LO12_NC,
            0x9100_0000,
            0x41_2345,
            0x910d_1400,
        ), // add x0, x0
        (
            elf::R_AARCH64_LDST8_ABS_LO12_NC,
            0x3940_0000,
            0x41_2345,
            0x394d_1400,
        ), // ldrb w0
        (
            elf::R_AARCH64_LDST16_ABS_LO12_NC,
            0x7940_0000,
            0x41_2346,
            0x7946_8c00,
        ), // ldrh w0
        (
            elf::R_AARCH64_LDST32_ABS_LO12_NC,
            0xb940_0000,
            0x41_2344,
            0xb943_4400,
        ), // ldr w0
        (
            elf::R_AARCH64_LDST64_ABS_LO12_NC,
            0xf940_0000,
            0x41_2348,
            0xf941_a400,
        ), // ldr x0
        (
            elf::R_AARCH64_LDST128_ABS_LO12_NC,
            0x3dc0_0000,
            0x41_2340,
            0x3dc0_d000,
        ), // ldr q0
        (
            elf::R_AARCH64_LD_PREL_LO19,
            0x5800_0000,
            0x40_1010,
            0x5800_0080,
        ), // ldr x0
        (
            elf::R_AARCH64_MOVW_UABS_G3,
            0xd2e0_0000,
            0x1122_3344_5566_7788,
            0xd2e2_2440,
        ),
        (
            elf::R_AARCH64_MOVW_UABS_G2_NC,
            0xf2c0_0000,
            0x1122_3344_5566_7788,
            0xf2c6_6880,
        ),
        (
            elf::R_AARCH64_MOVW_UABS_G1_NC,
            0xf2a0_0000,
            0x1122_3344_5566_7788,
            0xf2aa_acc0,
        ),
        (
            elf::R_AARCH64_MOVW_UABS_G0_NC,
            0xf280_0000,
            0x1122_3344_5566_7788,
            0xf28e_f100,
        ),
        // A slot at that address.
        (
            elf::R_AARCH64_LD64_GOTPAGE_LO15,
            0xf940_0000,
            0x41_1010,
            0xf948_0800,
        ), // ldr x0
        (
            elf::R_AARCH64_MOVW_SABS_G1,
            0xd2a0_0000,
            0x1234_5678,
            0xd2a2_4680,
        ), // movz x0, lsl 16
        (
            elf::R_AARCH64_MOVW_SABS_G1,
            0xd2a0_0000,
            0xffff_ffff_edcb_a988,
            0x92a2_4680,
        ), // movn x0, lsl 16
        (elf::R_AARCH64_ABS32, 0, 0x1234_5678, 0x1234_5678),
        (elf::R_AARCH64_PREL32, 0, 0x40_0fff, 0xffff_ffff),
    ];
    for (kind, before, symbol, after) in cases {
        assert_eq!(
            apply(kind, before, symbol),
            Ok(after),
            "{kind:?}, {symbol:#x}"
        );
    }
}

#[test]
fn data_is_whole() {
    let apply = |kind: elf::RelocationType| {
        let mut bytes = [0; 8];
        let reloc = Relocation::new(kind.0, CodeAddr::new(PLACE), PLACE - 2, 1);
        AArch64::apply(&reloc, &mut bytes).map(|()| i64::from_le_bytes(bytes))
    };
    assert_eq!(apply(elf::R_AARCH64_ABS64), Ok(0x40_0fff));
    assert_eq!(apply(elf::R_AARCH64_PREL64), Ok(-1));
}

/// Of each type: the address that 0 stands for, the lowest number and the highest, and what lies
/// between two numbers.
#[test]
fn the_edges_of_ranges() {
    let signed = |bits: u32, unit: i64| (-(unit << (bits - 1)), (unit << (bits - 1)) - unit, unit);
    let either = |bits: u32| (-(1_i64 << (bits - 1)), (1_i64 << bits) - 1, 1);
    let below = |bits: u32| (0, (1_i64 << bits) - 1, 1);
    let edges = [
        (elf::R_AARCH64_ABS32, 0, either(32)),
        (elf::R_AARCH64_ABS16, 0, either(16)),
        (elf::R_AARCH64_PREL32, PLACE, either(32)),
        (elf::R_AARCH64_PREL16, PLACE, either(16)),
        (elf::R_AARCH64_PLT32, PLACE, signed(32, 1)),
        (elf::R_AARCH64_GOTPCREL32, PLACE, signed(32, 1)),
        (elf::R_AARCH64_GOTREL32, GOT, either(32)),
        (elf::R_AARCH64_CALL26, PLACE, signed(26, 4)),
        (elf::R_AARCH64_JUMP26, PLACE, signed(26, 4)),
        (elf::R_AARCH64_CONDBR19, PLACE, signed(19, 4)),
        (elf::R_AARCH64_LD_PREL_LO19, PLACE, signed(19, 4)),
        (elf::R_AARCH64_GOT_LD_PREL19, PLACE, signed(19, 4)),
        (elf::R_AARCH64_TSTBR14, PLACE, signed(14, 4)),
        (elf::R_AARCH64_ADR_PREL_LO21, PLACE, signed(21, 1)),
        (elf::R_AARCH64_ADR_PREL_PG_HI21, PLACE, signed(21, 4096)),
        (elf::R_AARCH64_ADR_GOT_PAGE, PLACE, signed(21, 4096)),
        (elf::R_AARCH64_LD64_GOTPAGE_LO15, page(GOT), (0, 0x7ff8, 8)),
        (elf::R_AARCH64_LD64_GOTOFF_LO15, GOT, (0, 0x7ff8, 8)),
        (elf::R_AARCH64_MOVW_UABS_G0, 0, below(16)),
        (elf::R_AARCH64_MOVW_UABS_G1, 0, below(32)),
        (elf::R_AARCH64_MOVW_UABS_G2, 0, below(48)),
        (elf::R_AARCH64_MOVW_SABS_G0, 0, signed(17, 1)),
        (elf::R_AARCH64_MOVW_SABS_G1, 0, signed(33, 1)),
        (elf::R_AARCH64_MOVW_SABS_G2, 0, signed(49, 1)),
        (elf::R_AARCH64_MOVW_PREL_G0, PLACE, signed(17, 1)),
        (elf::R_AARCH64_MOVW_PREL_G1, PLACE, signed(33, 1)),
        (elf::R_AARCH64_MOVW_PREL_G2, PLACE, signed(49, 1)),
    ];
    for (elf::RelocationType(kind), zero, (lowest, highest, unit)) in edges {
        let (field, ..) = describe(kind).expect("it is known");
        let before = field.cleared(0);
        let apply = |value| {
            let symbol = u64::wrapping_add_signed(zero, value);
            apply(elf::RelocationType(kind), before, symbol)
        };
        for value in [lowest, highest] {
            assert!(apply(value).is_ok(), "type {kind}: {value:#x}");
        }
        for value in [lowest - unit, highest + unit] {
            let refused = Err(RelocError::OutOfRange { kind, value });
            assert_eq!(apply(value), refused, "type {kind}: {value:#x}");
        }
    }
    let between = [
        (elf::R_AARCH64_CALL26, PLACE + 2),
        (elf::R_AARCH64_LDST64_ABS_LO12_NC, PLACE + 4),
        (elf::R_AARCH64_LD64_GOT_LO12_NC, PLACE + 4),
        (elf::R_AARCH64_LD64_GOTOFF_LO15, GOT + 4),
    ];
    for (kind, symbol) in between {
        let refused = apply(kind, 0, symbol);
        assert!(
            matches!(refused, Err(RelocError::OutOfRange { .. })),
            "{kind:?}"
        );
    }
}

#[test]
fn what_is_counted_from_a_table_needs_one() {
    for elf::RelocationType(kind) in [
        elf::R_AARCH64_GOTREL64,
        elf::R_AARCH64_LD64_GOTOFF_LO15,
        elf::R_AARCH64_LD64_GOTPAGE_LO15,
    ] {
        let reloc = Relocation::new(kind, CodeAddr::new(PLACE), GOT, 0);
        let refused = AArch64::apply(&reloc, &mut [0; 8]);
        assert_eq!(refused, Err(RelocError::BadPlace { kind }));
    }
}

#[test]
fn a_move_that_is_none_of_zeros_is_relocated_already() {
    let kind = elf::R_AARCH64_MOVW_PREL_G0;
    let movn = apply(kind, 0xd280_0000, PLACE - 1).expect("in range");
    assert_eq!(movn, 0x9280_0000);
    assert_eq!(
        apply(kind, movn, PLACE - 1),
        Err(RelocError::BadPlace { kind: kind.0 })
    );
    let mut bytes = movn.to_le_bytes();
    AArch64::clear(kind.0, &mut bytes).expect("it is known");
    assert_eq!(u32::from_le_bytes(bytes), 0xd280_0000);
}

#[test]
fn a_field_is_relocated_once() {
    let bl = apply(elf::R_AARCH64_CALL26, 0x9400_0000, PLACE + 8).expect("in range");
    let kind = elf::R_AARCH64_CALL26.0;
    assert_eq!(
        apply(elf::R_AARCH64_CALL26, bl, PLACE + 8),
        Err(RelocError::BadPlace { kind })
    );
}

#[test]
fn conforms() {
    let known = [
        (elf::R_AARCH64_ABS64, 8, false),
        (elf::R_AARCH64_PREL64, 8, false),
        (elf::R_AARCH64_ABS32, 4, true),
        (elf::R_AARCH64_PREL32, 4, true),
        (elf::R_AARCH64_ADR_PREL_LO21, 4, true),
        (elf::R_AARCH64_ADR_PREL_PG_HI21, 4, true),
        (elf::R_AARCH64_ADR_GOT_PAGE, 4, true),
        (elf::R_AARCH64_LD_PREL_LO19, 4, true),
        (elf::R_AARCH64_GOT_LD_PREL19, 4, true),
        (elf::R_AARCH64_TSTBR14, 4, true),
        (elf::R_AARCH64_CONDBR19, 4, true),
        (elf::R_AARCH64_JUMP26, 4, true),
        (elf::R_AARCH64_CALL26, 4, true),
        (elf::R_AARCH64_ADD_ABS_LO12_NC, 4, false),
        (elf::R_AARCH64_LDST8_ABS_LO12_NC, 4, false),
        (elf::R_AARCH64_LDST16_ABS_LO12_NC, 4, false),
        (elf::R_AARCH64_LDST32_ABS_LO12_NC, 4, false),
        (elf::R_AARCH64_LDST64_ABS_LO12_NC, 4, false),
        (elf::R_AARCH64_LDST128_ABS_LO12_NC, 4, false),
        (elf::R_AARCH64_LD64_GOT_LO12_NC, 4, false),
        (elf::R_AARCH64_MOVW_UABS_G0_NC, 4, false),
        (elf::R_AARCH64_MOVW_PREL_G0, 4, true),
        (elf::R_AARCH64_MOVW_PREL_G0_NC, 4, false),
        (elf::R_AARCH64_ADR_PREL_PG_HI21_NC, 4, false),
        (elf::R_AARCH64_PREL16, 2, true),
        (elf::R_AARCH64_PLT32, 4, true),
        (elf::R_AARCH64_GOTPCREL32, 4, true),
    ];
    let known = known.map(|(elf::RelocationType(kind), len, limited)| Known { kind, len, limited });
    let unknown = [
        elf::R_AARCH64_COPY,
        elf::R_AARCH64_TLSLE_ADD_TPREL_HI12,
        elf::R_AARCH64_TLSDESC_ADR_PAGE21,
        elf::R_AARCH64_TLSIE_ADR_GOTTPREL_PAGE21,
        elf::RelocationType(0xffff),
    ];
    check::<AArch64>(&known, &unknown.map(|kind| kind.0));
}
