//! Unwind information as bytes: hand-made, mutilated, random.

use klp_arch_x86_64::X86_64;
use klp_arch_x86_64::unwind::{
    EhFrame, FrameRule, Place, Reg, Rule, Slot, Table, TableError, compile,
};
use klp_core::addr::{CodeAddr, TextRange};
use proptest::prelude::*;

const SECTION: u64 = 0x50_0000;
const TEXT: u64 = 0x40_0000;
const TEXT_LEN: u64 = 0x1000;

// Call frame instructions (DWARF 5, section 7.24).
const UNDEFINED: u8 = 0x07;
const SAME_VALUE: u8 = 0x08;
const REGISTER: u8 = 0x09;
const REMEMBER: u8 = 0x0a;
const RESTORE_STATE: u8 = 0x0b;
const DEF_CFA: u8 = 0x0c;
const DEF_CFA_OFFSET: u8 = 0x0e;
const DEF_CFA_EXPRESSION: u8 = 0x0f;
const EXPRESSION: u8 = 0x10;
const ADVANCE: u8 = 0x40;
const OFFSET: u8 = 0x80;

// Expressions (DWARF 5, section 7.7).
const BREG: u8 = 0x70;
const DEREF: u8 = 0x06;

const RBX: u8 = 3;
const RBP: u8 = 6;
const RSP: u8 = 7;
const R10: u8 = 10;
const R12: u8 = 12;
const R13: u8 = 13;
const RA: u8 = 16;

/// What every compiler's CIE says: the CFA is rsp + 8, the return address is 8 below it.
const USUAL: [u8; 5] = [DEF_CFA, RSP, 8, OFFSET | RA, 1];

/// An `.eh_frame` section in the making.
struct Section(Vec<u8>);

impl Section {
    fn entry(&mut self, body: &[u8]) -> u32 {
        let at = self.0.len() as u32;
        let padding = body.len().next_multiple_of(8) + 4;
        self.0.extend((padding as u32).to_le_bytes());
        self.0.extend(body);
        self.0.resize(at as usize + 4 + padding, 0);
        at
    }

    fn cie(&mut self, augmentation: &str, instructions: &[u8]) -> u32 {
        // Identity, version; augmentation; alignments 1 and -8, return address; pointers are
        // sdata4, relative to their place.
        self.cie_returning_to(RA, augmentation, instructions)
    }

    fn cie_returning_to(&mut self, column: u8, augmentation: &str, instructions: &[u8]) -> u32 {
        let body = [
            &[0, 0, 0, 0, 1][..],
            augmentation.as_bytes(),
            &[0, 1, 0x78, column, 1, 0x1b],
            instructions,
        ]
        .concat();
        self.entry(&body)
    }

    fn fde(&mut self, cie: u32, start: u64, len: u32, instructions: &[u8]) {
        let at = self.0.len() as u64;
        let start = start.wrapping_sub(SECTION + at + 8) as i32;
        let head = [at as u32 + 4 - cie, start as u32, len]
            .map(u32::to_le_bytes)
            .concat();
        self.entry(&[&head[..], &[0], instructions].concat());
    }

    fn compile(&self) -> Table {
        compile(
            EhFrame {
                bytes: &self.0,
                addr: CodeAddr::new(SECTION),
            },
            text(),
        )
        .expect("a table")
    }
}

fn text() -> TextRange {
    TextRange::new(CodeAddr::new(TEXT), TEXT_LEN).expect("a range")
}

fn rule(table: &Table, offset: u64) -> Rule {
    table.find(CodeAddr::new(TEXT + offset))
}

fn frame(cfa_base: Reg, cfa_offset: i32, saved: &[(Reg, i64)]) -> Rule {
    let mut slots = [Slot::default(); 6];
    for &(reg, below) in saved {
        slots[reg as usize] = Slot::new(Place::BelowTop(below.unsigned_abs())).expect("a slot");
    }
    Rule::Frame(FrameRule {
        cfa_base,
        cfa_in_memory: false,
        cfa_offset,
        saved: slots,
    })
}

/// One function of 32 bytes at `TEXT + 16` with these instructions.
fn function(instructions: &[u8]) -> Table {
    let mut section = Section(Vec::new());
    let cie = section.cie("zR", &USUAL);
    section.fde(cie, TEXT + 16, 32, instructions);
    section.compile()
}

#[test]
fn a_function_with_a_frame_pointer() {
    let table = function(&[
        ADVANCE | 1,
        DEF_CFA_OFFSET,
        16,
        OFFSET | RBP,
        2, // push rbp
        ADVANCE | 3,
        DEF_CFA,
        RBP,
        16, // mov rbp, rsp
        ADVANCE | 4,
        OFFSET | RBX,
        3, // push rbx
        REMEMBER,
        ADVANCE | 8,
        DEF_CFA,
        RSP,
        8, // leave
        ADVANCE | 1,
        RESTORE_STATE, // behind ret
    ]);
    let whole = frame(Reg::Rbp, 16, &[(Reg::Rbp, 16), (Reg::Rbx, 24)]);
    let expected = [
        (15, Rule::Gap),
        (16, frame(Reg::Rsp, 8, &[])),
        (17, frame(Reg::Rsp, 16, &[(Reg::Rbp, 16)])),
        (20, frame(Reg::Rbp, 16, &[(Reg::Rbp, 16)])),
        (24, whole),
        (31, whole),
        (32, frame(Reg::Rsp, 8, &[(Reg::Rbp, 16), (Reg::Rbx, 24)])),
        (33, whole),
        (47, whole),
        (48, Rule::Gap),
    ];
    for (offset, expected) in expected {
        assert_eq!(rule(&table, offset), expected, "at {offset}");
    }
}

#[test]
fn only_an_undefined_return_address_ends_a_stack() {
    assert_eq!(rule(&function(&[UNDEFINED, RA]), 16), Rule::End);
    // Nothing said about it is something else.
    let mut section = Section(Vec::new());
    let cie = section.cie("zR", &USUAL[..3]);
    section.fde(cie, TEXT, 32, &[]);
    assert_eq!(rule(&section.compile(), 0), Rule::Unknown);
}

#[test]
fn only_rip_is_a_return_address() {
    for (column, expected) in [
        (RA, frame(Reg::Rsp, 8, &[])),
        (RBX, Rule::Unknown),
        (17, Rule::Unknown),
    ] {
        let mut section = Section(Vec::new());
        let cie = section.cie_returning_to(column, "zR", &USUAL);
        section.fde(cie, TEXT, 32, &[]);
        assert_eq!(rule(&section.compile(), 0), expected, "column {column}");
    }
}

/// What it says is evaluated for each function anew.
#[test]
fn a_common_entry_is_short() {
    const NOP: u8 = 0;
    for (padding, expected) in [(48, frame(Reg::Rsp, 8, &[])), (4096, Rule::Unknown)] {
        let mut section = Section(Vec::new());
        let instructions = [&USUAL[..], &vec![NOP; padding]].concat();
        let cie = section.cie("zR", &instructions);
        section.fde(cie, TEXT, 32, &[]);
        assert_eq!(rule(&section.compile(), 0), expected, "{padding}");
    }
}

/// What GCC 12 -O2 -mavx2 says about a function with `alloca` and a `__m256`.
#[test]
fn a_realigned_frame() {
    let table = function(&[
        ADVANCE | 4,
        DEF_CFA,
        R10,
        0, // lea r10, [rsp + 8]
        ADVANCE | 4,
        EXPRESSION,
        RBP,
        2,
        BREG | RBP,
        0, // push rbp; mov rbp, rsp
        ADVANCE | 4,
        DEF_CFA_EXPRESSION,
        3,
        BREG | RBP,
        0x70,
        DEREF, // -16: push r12; push r10
        EXPRESSION,
        R12,
        2,
        BREG | RBP,
        0x78, // -8
        ADVANCE | 1,
        EXPRESSION,
        RBX,
        3,
        BREG | RBP,
        0xf8,
        0x78, // -1032 + 128: push rbx
        OFFSET | R13,
        2, // pushed before all this
        ADVANCE | 8,
        DEF_CFA,
        R10,
        0, // pop everything
        ADVANCE | 4,
        DEF_CFA,
        RSP,
        8, // lea rsp, [r10 - 8]
    ]);
    let mut realigned = FrameRule {
        cfa_base: Reg::Rbp,
        cfa_in_memory: true,
        cfa_offset: -16,
        saved: [Slot::default(); 6],
    };
    realigned.saved[Reg::Rbp as usize] = Slot::new(Place::BelowBase(0)).expect("a slot");
    realigned.saved[Reg::R12 as usize] = Slot::new(Place::BelowBase(8)).expect("a slot");
    let whole = {
        let mut whole = realigned;
        whole.saved[Reg::Rbx as usize] = Slot::new(Place::BelowBase(904)).expect("a slot");
        whole.saved[Reg::R13 as usize] = Slot::new(Place::BelowTop(16)).expect("a slot");
        whole
    };
    let expected = [
        (16, frame(Reg::Rsp, 8, &[])),
        (20, Rule::Unknown),
        (27, Rule::Unknown),
        (28, Rule::Frame(realigned)),
        (29, Rule::Frame(whole)),
        (37, Rule::Unknown),
        // That rbp is at rbp + 0 is still said, and wrong by now.
        (41, Rule::Unknown),
        (47, Rule::Unknown),
    ];
    for (offset, expected) in expected {
        assert_eq!(rule(&table, offset), expected, "at {offset}");
    }
}

#[test]
fn other_expressions_are_unknown() {
    let cfa = |expression: &[u8], rest: &[u8]| {
        rule(
            &function(
                &[
                    &[DEF_CFA_EXPRESSION, expression.len() as u8][..],
                    expression,
                    rest,
                ]
                .concat(),
            ),
            20,
        )
    };
    let good = FrameRule {
        cfa_base: Reg::Rbx,
        cfa_in_memory: true,
        cfa_offset: -128,
        saved: [Slot::default(); 6],
    };
    assert_eq!(
        cfa(&[BREG | RBX, 0x80, 0x7f, DEREF], &[]),
        Rule::Frame(good)
    );
    let strange: [&[u8]; 11] = [
        &[],
        &[DEREF],
        &[BREG | RBP],
        &[BREG | RBP, 0x70],
        &[BREG | RBP, DEREF],                   // an offset of 6
        &[BREG | RBP, 0xf0, DEREF],             // an offset of 880
        &[BREG | RBP, 0x80, 0x80, 0x01, DEREF], // a long one
        &[BREG | RBP, 0x70, DEREF, DEREF],
        &[BREG, 0x70, DEREF], // rax
        &[BREG | RSP, 0x70, DEREF],
        &[BREG | RBP, 0x70, DEREF, 0x23, 8], // plus 8
    ];
    for expression in strange {
        assert_eq!(cfa(expression, &[]), Rule::Unknown, "{expression:x?}");
    }
    // Registers relative to another one, above it, too far below, not at a word.
    for place in [
        &[BREG | RBX, 0][..],
        &[BREG | RBP, 8],
        &[BREG | RBP, 0x80, 0x78],
        &[BREG | RBP, 0x7c],
        &[BREG | RBP],
    ] {
        let register = [&[EXPRESSION, R12, place.len() as u8][..], place].concat();
        assert_eq!(
            cfa(&[BREG | RBP, 0x70, DEREF], &register),
            Rule::Unknown,
            "{place:x?}"
        );
    }
}

#[test]
fn what_rows_cannot_express_is_unknown() {
    let strange: [&[u8]; 10] = [
        &[DEF_CFA, 0, 8],                        // relative to rax
        &[DEF_CFA_EXPRESSION, 3, 0x77, 8, 0x06], // a procedure linkage table
        &[OFFSET | RA, 2],                       // a return address elsewhere
        &[SAME_VALUE, RA],
        &[REGISTER, RA, 2],             // or in rcx
        &[OFFSET | RSP, 2],             // another stack
        &[EXPRESSION, RBP, 2, 0x76, 0], // at rbp + 0
        &[UNDEFINED, RBP],              // lost for ever
        &[0x11, RBP, 0x7f],             // 8 *above* the CFA (offset_extended_sf)
        &[OFFSET | RBX, 0x80, 0x01],    // 1024 below it
    ];
    for instructions in strange {
        assert_eq!(
            rule(&function(instructions), 20),
            Rule::Unknown,
            "{instructions:x?}"
        );
    }
    // From then on, not before.
    let table = function(&[ADVANCE | 8, REGISTER, RA, 2]);
    assert_eq!(rule(&table, 16), frame(Reg::Rsp, 8, &[]));
    assert_eq!(rule(&table, 24), Rule::Unknown);
}

#[test]
fn broken_instructions_spoil_their_function_only() {
    let mut section = Section(Vec::new());
    let cie = section.cie("zR", &USUAL);
    section.fde(cie, TEXT, 16, &[]);
    section.fde(
        cie,
        TEXT + 16,
        16,
        &[ADVANCE | 4, DEF_CFA_OFFSET, 16, RESTORE_STATE],
    );
    section.fde(cie, TEXT + 32, 16, &[ADVANCE | 4, 0x3f]);
    section.fde(cie, TEXT + 48, 16, &[ADVANCE | 63, DEF_CFA_OFFSET, 16]);
    section.fde(cie, TEXT + 64, 16, &[]);
    let table = section.compile();
    let good = frame(Reg::Rsp, 8, &[]);
    for (offset, expected) in [
        (15, good),
        (16, Rule::Unknown),
        (31, Rule::Unknown),
        (32, Rule::Unknown),
        (48, Rule::Unknown),
        (64, good),
    ] {
        assert_eq!(rule(&table, offset), expected, "at {offset}");
    }
}

#[test]
fn signal_frames() {
    let rsp = [0x77, 0xa0, 0x01, 0x06];
    let rip = [0x77, 0xa8, 0x01];
    let instructions = [
        &[DEF_CFA_EXPRESSION, 4][..],
        &rsp,
        &[EXPRESSION, RA, 3],
        &rip,
    ]
    .concat();
    let with = |augmentation: &str, instructions: &[u8]| {
        let mut section = Section(Vec::new());
        let cie = section.cie(augmentation, &[]);
        section.fde(cie, TEXT, 16, instructions);
        rule(&section.compile(), 5)
    };
    assert_eq!(with("zRS", &instructions), Rule::Signal);
    assert_eq!(
        with("zR", &instructions),
        Rule::Unknown,
        "not marked as one"
    );
    assert_eq!(with("zRS", &USUAL), Rule::Unknown, "not the kernel's frame");
    for at in 0..instructions.len() {
        let mut other = instructions.clone();
        other[at] ^= 1;
        assert_eq!(with("zRS", &other), Rule::Unknown, "{other:x?}");
    }
}

#[test]
fn functions_may_come_in_any_order_but_only_once() {
    let mut section = Section(Vec::new());
    let cie = section.cie("zR", &USUAL);
    section.fde(cie, TEXT + 64, 16, &[]);
    section.fde(cie, TEXT, 16, &[DEF_CFA_OFFSET, 16]);
    section.fde(cie, TEXT + 16, 32, &[]);
    section.fde(cie, TEXT + 40, 16, &[]); // overlaps the one before
    section.fde(cie, TEXT + TEXT_LEN, 16, &[]); // outside
    section.fde(cie, TEXT + TEXT_LEN - 8, 16, &[]); // half outside
    section.fde(cie, TEXT + 72, 0, &[]); // empty
    section.fde(cie, TEXT + 0x200, 16, &[]); // the same ...
    section.fde(cie, TEXT + 0x200, 16, &[]); // ... twice
    let table = section.compile();
    let good = frame(Reg::Rsp, 8, &[]);
    let expected = [
        (0, frame(Reg::Rsp, 16, &[])),
        (16, Rule::Unknown),
        (40, Rule::Unknown),
        (55, Rule::Unknown),
        (56, Rule::Gap),
        (63, Rule::Gap),
        (64, good),
        (72, good),
        (79, good),
        (80, Rule::Gap),
        (0x200, Rule::Unknown),
        (0x210, Rule::Gap),
        (TEXT_LEN - 1, Rule::Gap),
    ];
    for (offset, expected) in expected {
        assert_eq!(rule(&table, offset), expected, "at {offset:#x}");
    }
}

#[test]
fn text_of_more_than_4_gib_is_refused() {
    let text = TextRange::new(CodeAddr::new(0), 1 << 33).expect("a range");
    let nothing = EhFrame {
        bytes: &[],
        addr: CodeAddr::new(SECTION),
    };
    assert_eq!(
        compile::<X86_64>(nothing, text).err(),
        Some(TableError::TooLarge)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in any::<u64>(), addr in any::<u64>()) {
        if let Some(text) = TextRange::new(CodeAddr::new(text), 1 << 20) {
            let table = compile::<X86_64>(EhFrame { bytes: &bytes, addr: CodeAddr::new(addr) }, text).expect("memory");
            let _ = table.find(text.start());
        }
    }

    #[test]
    fn random_instructions_never_panic(instructions in proptest::collection::vec(any::<u8>(), 0..200), initial in proptest::collection::vec(any::<u8>(), 0..20)) {
        let mut section = Section(Vec::new());
        let cie = section.cie("zR", &[&USUAL[..], &initial].concat());
        section.fde(cie, TEXT, 64, &[]);
        section.fde(cie, TEXT + 64, 64, &instructions);
        let table = section.compile();
        prop_assert_eq!(rule(&table, 128), Rule::Gap, "rules never leave their function");
    }

    #[test]
    fn spoiled_sections_never_panic(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut section = Section(Vec::new());
        let cie = section.cie("zR", &USUAL);
        for index in 0..8 {
            section.fde(cie, TEXT + 64 * index, 64, &[ADVANCE | 1, DEF_CFA_OFFSET, 16, OFFSET | RBP, 2, ADVANCE | 3, DEF_CFA, RBP, 16]);
        }
        let at = at.index(section.0.len());
        section.0[at] = to;
        section.compile();
        section.0.truncate(cut.index(section.0.len()));
        section.compile();
    }
}
