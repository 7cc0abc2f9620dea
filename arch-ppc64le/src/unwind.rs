//! Stacks that can be trusted: what [`klp_unwind`] must know of ppc64le.
//!
//! Rules come out of `.eh_frame`, and the back chain is a second witness: the word that register 1
//! points to is the caller's register 1 (ELFv2 2.2.3.1), at every instruction, as `stdu` sets both
//! at once. Where the two do not agree, the stack is [`Corrupt`](klp_core::port::Doubt::Corrupt).
//! In the first frame of a stack it is 0: there stacks end, as the C library's `_start` and `clone`
//! have no rules.
//!
//! Between `mflr r0` and `stdu` of a prologue, GCC says that the return address is in `r0`. That is
//! not expressed here: a function that is interrupted there is unreliable.
#![forbid(unsafe_code)]

use crate::Ppc64Le;
use klp_unwind::Link;

pub use klp_unwind::{Machine, Place, TableError, walk, walk_call};

#[cfg(feature = "eh-frame")]
pub use klp_unwind::{EhFrame, compile};

/// The rules of one object.
pub type Table = klp_unwind::Table<Ppc64Le>;
/// Makes a [`Table`] from rules in the order of their addresses.
pub type TableBuilder = klp_unwind::TableBuilder<Ppc64Le>;
/// What is known about the stack at an instruction.
pub type Rule = klp_unwind::Rule<Ppc64Le>;
/// Where the caller's value of a register is.
pub type Slot = klp_unwind::Slot<i16>;
/// How to get from an ordinary frame to its caller's.
pub type FrameRule = klp_unwind::FrameRule<Ppc64Le>;

/// A register that a frame's address is computed from, or the link register (ELFv2 2.2.2.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reg {
    /// `r30`, by which LLVM finds what stands in a frame that it has aligned.
    R30 = 0,
    /// `r31`, the frame pointer of functions that have one.
    R31 = 1,
    /// The link register.
    Lr = 2,
    /// `r1`, the stack pointer.
    R1 = 3,
}

/// The registers that a stack is walked with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "the registers' names say it all, but for the last"
)]
pub struct Regs {
    pub pc: u64,
    pub r1: u64,
    pub lr: u64,
    pub r30: u64,
    pub r31: u64,
    /// The others that functions preserve, `r14` to `r29`, `f14` to `f31`, and the halves of `v20`
    /// to `v31` (ELFv2 2.2.2.1). No frame's address is computed from them, so walks do not keep
    /// them up; they are here for those who ask what the function holds that a walk begins with.
    pub saved: [u64; SAVED],
}

/// How many there are in [`Regs::saved`].
pub const SAVED: usize = 16 + 18 + 2 * 12;

impl Default for Regs {
    fn default() -> Self {
        Self {
            pc: 0,
            r1: 0,
            lr: 0,
            r30: 0,
            r31: 0,
            saved: [0; SAVED],
        }
    }
}

impl Regs {
    /// What stands for a register whose value is not known. A walk that needs it is unreliable: it
    /// is no multiple of 8, and no address.
    pub const UNKNOWN: u64 = 0x8000_0000_0000_0001;

    /// None of them known.
    pub const NONE: Self = Self {
        pc: Self::UNKNOWN,
        r1: Self::UNKNOWN,
        lr: Self::UNKNOWN,
        r30: Self::UNKNOWN,
        r31: Self::UNKNOWN,
        saved: [Self::UNKNOWN; SAVED],
    };

    /// Reads the registers out of a Linux `struct ucontext` at address `ucontext`: the third
    /// argument of a signal handler. `None` if `read` cannot.
    pub fn from_ucontext(ucontext: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Self> {
        // `uc_mcontext` begins at byte 168 (the kernel's <asm/ucontext.h>); in it
        // (<asm/sigcontext.h>) `gp_regs` stands 64 bytes behind the start. It is a `struct pt_regs`
        // (<asm/ptrace.h>): `gpr[32]`, `nip`, `msr`, `orig_gpr3`, `ctr`, `link`.
        let reg = |index: u64| read(ucontext.checked_add(168 + 64 + 8 * index)?);
        Some(Self {
            r1: reg(1)?,
            r30: reg(30)?,
            r31: reg(31)?,
            pc: reg(32)?,
            lr: reg(36)?,
            ..Self::NONE
        })
    }
}

/// The instructions to which signal handlers return: `addi r1,r1,128; li r0,172; sc`,
/// `rt_sigreturn`. Who finds them where no table has a rule takes [`Rule::Signal`]. (The kernel's
/// vDSO has one.)
pub const SIGNAL_RETURN: [u8; 12] = [
    0x80, 0x00, 0x21, 0x38, 0xac, 0x00, 0x00, 0x38, 0x02, 0x00, 0x00, 0x44,
];

impl Machine for Ppc64Le {
    type Reg = Reg;
    type Regs = Regs;
    type Slots = [Slot; 3];

    const STACK_POINTER: Reg = Reg::R1;

    const SAVED: &'static [Reg] = &[Reg::R30, Reg::R31, Reg::Lr];

    const LINK: Link = Link::Register(Reg::Lr as usize);

    const RETURN_ADDRESS: u16 = 65;

    /// ELFv2 2.2.3.4, "Protected Zone".
    const RED_ZONE: u64 = 288;

    /// The caller's frame has room for the link register 16 bytes above its start (ELFv2 2.2.3.2);
    /// what is above that is saved by its owner.
    const ABOVE_CFA: i64 = 24;

    const BACK_CHAIN: bool = true;

    /// ELFv2 2.4, "DWARF Definition".
    fn dwarf(reg: Reg) -> u16 {
        match reg {
            Reg::R30 => 30,
            Reg::R31 => 31,
            Reg::Lr => 65,
            Reg::R1 => 1,
        }
    }

    fn get(regs: &Regs, reg: Reg) -> u64 {
        match reg {
            Reg::R30 => regs.r30,
            Reg::R31 => regs.r31,
            Reg::Lr => regs.lr,
            Reg::R1 => regs.r1,
        }
    }

    fn set(regs: &mut Regs, reg: Reg, value: u64) {
        *match reg {
            Reg::R30 => &mut regs.r30,
            Reg::R31 => &mut regs.r31,
            Reg::Lr => &mut regs.lr,
            Reg::R1 => &mut regs.r1,
        } = value;
    }

    fn pc(regs: &Regs) -> u64 {
        regs.pc
    }

    fn set_pc(regs: &mut Regs, pc: u64) {
        regs.pc = pc;
    }

    /// The kernel calls a handler in a frame of 128 bytes (`__SIGNAL_FRAMESIZE`), above which a
    /// `struct ucontext` stands (`struct rt_sigframe`).
    fn interrupted(regs: &Regs, read: &dyn Fn(u64) -> Option<u64>) -> Option<Regs> {
        Regs::from_ucontext(regs.r1.checked_add(128)?, read)
    }

    /// As the kernel's vDSO says it (`arch/powerpc/kernel/vdso/sigtramp64.S`): by the pointer to the
    /// registers that stands 56 bytes behind the start of `uc_mcontext`. Where the function goes on
    /// has a column of its own, since any code may have been interrupted.
    fn is_signal_frame(cfa: &[u8], return_address: &[u8]) -> bool {
        /// `DW_OP_breg1 + 352; DW_OP_deref`, then `DW_OP_plus_uconst 8; DW_OP_deref`: `gpr[1]`.
        const R1: [u8; 7] = [0x71, 0xe0, 0x02, 0x06, 0x23, 0x08, 0x06];
        /// The same with 256: the address of `nip`.
        const NIP: [u8; 7] = [0x71, 0xe0, 0x02, 0x06, 0x23, 0x80, 0x02];
        cfa == R1 && return_address == NIP
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::ops::ControlFlow;
    use klp_core::addr::{CodeAddr, TextRange};
    use klp_core::port::{Doubt, Frame, FrameKind};

    const TEXT: u64 = 0x1000_0000;
    const STACK: u64 = 0x7fff_0000_0000;

    /// Functions. Each has the code and the rules that GCC 12 gives it with `-O2`:
    ///
    /// ```text
    /// 00 addis r2,r12,…; addi r2,r2,…       CFA = r1
    /// 08 mflr r0
    /// 0c std r0,16(r1)
    /// 10 stdu r1,-32(r1)
    /// 14 bl …; nop                           CFA = r1 + 32, lr at CFA + 16
    /// 1c addi r1,r1,32
    /// 20 ld r0,16(r1)                        CFA = r1
    /// 24 mtlr r0
    /// 28 blr                                 lr as it is
    /// ```
    const INNER: u64 = TEXT;
    const OUTER: u64 = TEXT + 0x40;
    /// One with a frame pointer:
    ///
    /// ```text
    /// 00 mflr r0; std r31,-8(r1); std r0,16(r1); stdu r1,-48(r1)
    /// 10 mr r31,r1                           CFA = r1 + 48, r31 at CFA - 8, lr at CFA + 16
    /// 14 stdux r0,r1,r9; …                   CFA = r31 + 48
    /// ```
    const VARIABLE: u64 = TEXT + 0x80;
    /// The outermost.
    const START: u64 = TEXT + 0xc0;
    /// What signal handlers return to.
    const SIGNAL: u64 = TEXT + 0xe0;

    fn rule(cfa_base: Reg, cfa_offset: i32, [r31, lr]: [Place; 2]) -> Rule {
        let slot = |place| Slot::new(place).expect("it fits");
        Rule::Frame(FrameRule {
            cfa_base,
            cfa_in_memory: false,
            cfa_offset,
            saved: [Slot::default(), slot(r31), slot(lr)],
        })
    }

    /// 16 bytes above the CFA.
    const LR_SLOT: Place = Place::BelowTop(8);
    /// 8 bytes below it.
    const R31_SLOT: Place = Place::BelowTop(32);

    fn table() -> Table {
        let text = TextRange::new(CodeAddr::new(TEXT), 0x100).expect("fits");
        let mut table = TableBuilder::new(text).expect("small");
        let mut push = |at, rule| table.push(CodeAddr::new(at), rule).expect("in order");
        for function in [INNER, OUTER] {
            push(function, rule(Reg::R1, 0, [Place::Same; 2]));
            push(function + 0x14, rule(Reg::R1, 32, [Place::Same, LR_SLOT]));
            push(function + 0x20, rule(Reg::R1, 0, [Place::Same, LR_SLOT]));
            push(function + 0x28, rule(Reg::R1, 0, [Place::Same; 2]));
        }
        push(VARIABLE, rule(Reg::R1, 0, [Place::Same; 2]));
        push(VARIABLE + 0x10, rule(Reg::R1, 48, [R31_SLOT, LR_SLOT]));
        push(VARIABLE + 0x14, rule(Reg::R31, 48, [R31_SLOT, LR_SLOT]));
        push(START, Rule::End);
        push(SIGNAL, Rule::Signal);
        table.build()
    }

    fn walked(regs: Regs, stack: &[u64]) -> (Vec<u64>, Result<(), Doubt>) {
        let table = table();
        let read = |addr: u64| {
            let index = usize::try_from(addr.checked_sub(STACK)? / 8).ok()?;
            stack.get(index).copied()
        };
        let mut frames = Vec::new();
        let find = |frame: Frame| table.find(frame.lookup());
        let mut after_signal = true;
        let result = walk(regs, 32, find, read, &mut |frame| {
            assert_eq!(frame.kind == FrameKind::Interrupted, after_signal);
            after_signal = frame.pc.get() == SIGNAL + 4;
            frames.push(frame.pc.get());
            ControlFlow::Continue(())
        });
        (frames, result.map_err(|doubt| doubt.why))
    }

    /// Return addresses in the functions: behind the `bl`.
    const IN_OUTER: u64 = OUTER + 0x18;
    const IN_START: u64 = START + 4;

    /// A frame of 32 bytes at `at`, and what its function was given by its own caller's frame,
    /// which begins behind it: `[back chain, cr, lr of whom it called, toc]`.
    fn frame(at: u64, lr_of_callee: u64) -> [u64; 4] {
        [at + 32, 0, lr_of_callee, 0]
    }

    /// The frames of OUTER and of START, for a callee that was called by OUTER.
    fn callers(at: u64) -> Vec<u64> {
        [frame(at, IN_OUTER), frame(at + 32, IN_START)].concat()
    }

    fn regs(pc: u64, lr: u64) -> Regs {
        Regs {
            pc,
            r1: STACK,
            lr,
            ..Regs::default()
        }
    }

    #[test]
    fn at_each_instruction_of_a_function() {
        let expected = |pc| (Vec::from([pc, IN_OUTER, IN_START]), Ok(()));
        let without = callers(STACK);
        let with = [&frame(STACK, 0)[..], &callers(STACK + 32)].concat();
        for offset in (0..=0x28).step_by(4) {
            let pc = INNER + offset;
            // The link register is not needed while it is saved.
            let (stack, lr) = match offset {
                0x14 | 0x18 | 0x1c => (&with, 1),
                0x20 | 0x24 => (&without, 1),
                _ => (&without, IN_OUTER),
            };
            assert_eq!(walked(regs(pc, lr), stack), expected(pc), "at {offset:#x}");
        }
    }

    #[test]
    fn a_frame_of_variable_size() {
        let expected = |pc| (Vec::from([pc, IN_OUTER, IN_START]), Ok(()));
        let own = |below: u64| {
            let mut own = Vec::from([STACK + 8 * below + 48]);
            own.resize(below as usize + 6, 0);
            own
        };
        let stack = |below: u64| [own(below), callers(STACK + 8 * below + 48)].concat();
        let pc = VARIABLE + 0x10;
        assert_eq!(walked(regs(pc, 1), &stack(0)), expected(pc));
        for below in [0, 4, 100] {
            let regs = Regs {
                r31: STACK + 8 * below,
                ..regs(VARIABLE + 0x20, 1)
            };
            assert_eq!(walked(regs, &stack(below)), expected(VARIABLE + 0x20));
        }
    }

    #[test]
    fn the_back_chain_is_a_witness() {
        let pc = INNER + 0x18;
        let mut stack = [&frame(STACK, 0)[..], &callers(STACK + 32)].concat();
        // The interrupted function's own, and its caller's.
        for index in [0, 4] {
            let right = core::mem::replace(&mut stack[index], STACK + 64 + 8);
            assert_eq!(walked(regs(pc, 1), &stack).1, Err(Doubt::Corrupt));
            stack[index] = right;
        }
        assert_eq!(walked(regs(pc, 1), &stack).1, Ok(()));
    }

    #[test]
    fn a_stack_ends_at_its_first_frame() {
        // What calls OUTER has no rule.
        let pc = INNER + 0x18;
        let mut stack = [&frame(STACK, 0)[..], &callers(STACK + 32)].concat();
        let unknown = TEXT + 0x10_0000;
        stack[10] = unknown;
        stack[8] = 0;
        let expected = Vec::from([pc, IN_OUTER, unknown]);
        assert_eq!(walked(regs(pc, 1), &stack), (expected.clone(), Ok(())));
        for chain in [STACK + 0x100, 1] {
            stack[8] = chain;
            let no_end = (expected.clone(), Err(Doubt::NoTable));
            assert_eq!(walked(regs(pc, 1), &stack), no_end);
        }
        // Whoever is interrupted without a rule may have a frame or not.
        let interrupted = regs(unknown, 1);
        assert_eq!(walked(interrupted, &[0]).1, Err(Doubt::NoTable));
    }

    #[test]
    fn a_function_that_has_called_has_saved_its_link() {
        // As if the outer one had not: `bl` has overwritten the register. So it is when a profiler
        // is called, before the prologue.
        let mut stack = [&frame(STACK, 0)[..], &callers(STACK + 32)].concat();
        stack[6] = OUTER + 0x10;
        assert_eq!(walked(regs(INNER + 0x18, 1), &stack).1, Err(Doubt::Corrupt));
    }

    #[test]
    fn what_a_signal_has_interrupted() {
        // 128 bytes of frame, ucontext up to its registers.
        let regs_at = 16 + (168 + 64) / 8;
        let mut stack = Vec::from([0; 16 + (168 + 64) / 8 + 48]);
        let interrupted_r1 = STACK + 8 * stack.len() as u64;
        stack[regs_at + 1] = interrupted_r1;
        stack[regs_at + 32] = INNER + 4;
        stack[regs_at + 36] = IN_OUTER;
        stack.extend(callers(interrupted_r1));
        let expected = Vec::from([SIGNAL + 4, INNER + 4, IN_OUTER, IN_START]);
        assert_eq!(walked(regs(SIGNAL + 4, 0), &stack), (expected, Ok(())));
    }

    #[test]
    fn registers_that_are_not_known_are_not_guessed() {
        let unknown = Regs {
            r30: Regs::UNKNOWN,
            r31: Regs::UNKNOWN,
            ..regs(VARIABLE + 0x20, Regs::UNKNOWN)
        };
        assert_eq!(walked(unknown, &callers(STACK)).1, Err(Doubt::Corrupt));
        let unknown = regs(INNER, Regs::UNKNOWN);
        assert_eq!(walked(unknown, &callers(STACK)).1, Err(Doubt::NoTable));
    }

    /// What GCC 12 makes of
    ///
    /// ```c
    /// int f(int x) { void *p = __builtin_alloca(x); return g(x, p) + glob; }
    /// int big(int x) {
    ///     int a[100], r = 0;
    ///     for (int i = 0; i < x; i++) r += g(i, a);
    ///     return r;
    /// }
    /// ```
    ///
    /// with `-O2`, as far as `f` goes and the prologue of `big`:
    ///
    /// ```text
    ///   0 addis r2,r12,…; addi r2,r2,…
    ///   8 ble f0
    ///  10 mflr r0                            the table says so at 28: "lr in r0"
    ///  14 std r26,-48(r1); …
    ///  44 std r0,16(r1)
    ///  48 stdu r1,-480(r1)
    ///  4c …                                  CFA = r1 + 480, lr at CFA + 16, r31 at CFA - 8
    ///  c0 addi r1,r1,480
    ///  c4 …; ld r31,-8(r1); mtlr r0          CFA = r1
    ///  ec blr
    /// 110 mflr r0; std r31,-8(r1); …
    /// 130 stdu r1,-48(r1)
    /// 134 mr r31,r1                          CFA = r1 + 48, lr at CFA + 16, r31 at CFA - 8
    /// 13c …                                  CFA = r31 + 48
    /// 158 addi r1,r31,48
    /// 15c …                                  CFA = r1
    /// 170 blr
    /// ```
    #[cfg(feature = "eh-frame")]
    #[test]
    fn tables_of_compilers() {
        const SECTION: u64 = TEXT + 0x1000;
        let mut section = Vec::from(EH_FRAME);
        // R_PPC64_REL32
        for (place, function) in [(0x1c, 0), (0x54, 0x110)] {
            let distance = (TEXT + function).wrapping_sub(SECTION + place) as u32;
            section[place as usize..][..4].copy_from_slice(&distance.to_le_bytes());
        }
        let section = EhFrame {
            bytes: &section,
            addr: CodeAddr::new(SECTION),
        };
        let text = TextRange::new(CodeAddr::new(TEXT), 0x200).expect("fits");
        let table = compile::<Ppc64Le>(section, text).expect("a table");
        let none = [Place::Same; 2];
        let both = [R31_SLOT, LR_SLOT];
        let saved = |base, offset, places, r30| match rule(base, offset, places) {
            Rule::Frame(mut frame) => {
                frame.saved[0] = Slot::new(r30).expect("it fits");
                Rule::Frame(frame)
            }
            other => other,
        };
        // 16 bytes below the CFA.
        let r30 = Place::BelowTop(40);
        let expected = [
            (0x00, rule(Reg::R1, 0, none)),
            (0x24, rule(Reg::R1, 0, none)),
            (0x28, Rule::Unknown),
            (0x48, Rule::Unknown),
            (0x4c, saved(Reg::R1, 480, both, r30)),
            (0xc0, saved(Reg::R1, 480, both, r30)),
            (0xc4, saved(Reg::R1, 0, both, r30)),
            (0xec, rule(Reg::R1, 0, none)),
            (0x104, rule(Reg::R1, 0, none)),
            (0x108, Rule::Gap),
            (0x110, rule(Reg::R1, 0, none)),
            (0x134, rule(Reg::R1, 48, both)),
            (0x13c, rule(Reg::R31, 48, both)),
            (0x15c, rule(Reg::R1, 0, both)),
            (0x170, rule(Reg::R1, 0, none)),
            (0x180, Rule::Gap),
        ];
        for (offset, rule) in expected {
            assert_eq!(
                table.find(CodeAddr::new(TEXT + offset)),
                rule,
                "at {offset:#x}"
            );
        }
    }

    /// As the kernel's vDSO has it, but for most of its registers: the return address has column 67,
    /// and is where `nip` is.
    #[cfg(feature = "eh-frame")]
    #[test]
    fn the_vdso_says_what_handlers_return_to() {
        const SECTION: u64 = TEXT + 0x1000;
        let compiled = |nip: u8| {
            let mut section = Vec::from(VDSO_CIE);
            // R_PPC64_REL64 to the start, and 16 bytes.
            section.extend([0x34, 0, 0, 0, 0x1c, 0, 0, 0]);
            section.extend(TEXT.wrapping_sub(SECTION + 0x20).to_le_bytes());
            section.extend([16, 0, 0, 0, 0, 0, 0, 0, 0]);
            // DW_CFA_def_cfa_expression
            section.extend([0x0f, 7, 0x71, 0xe0, 0x02, 0x06, 0x23, 0x08, 0x06]);
            // DW_CFA_expression: r0, r67
            section.extend([0x10, 0, 4, 0x71, 0xe0, 0x02, 0x06]);
            section.extend([0x10, 67, 7, 0x71, 0xe0, 0x02, 0x06, 0x23, nip, 0x02]);
            section.resize(0x18 + 0x38, 0);
            section.extend([0; 4]);
            let section = EhFrame {
                bytes: &section,
                addr: CodeAddr::new(SECTION),
            };
            let text = TextRange::new(CodeAddr::new(TEXT), 0x100).expect("fits");
            let table = compile::<Ppc64Le>(section, text).expect("a table");
            [0, 15, 16].map(|offset| table.find(CodeAddr::new(TEXT + offset)))
        };
        assert_eq!(compiled(0x80), [Rule::Signal, Rule::Signal, Rule::Gap]);
        assert_eq!(compiled(0x88), [Rule::Unknown, Rule::Unknown, Rule::Gap]);
    }

    #[cfg(feature = "eh-frame")]
    #[rustfmt::skip]
    const VDSO_CIE: [u8; 24] = [
        0x14, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x7a, 0x52, 0x53,
        0x00, 0x04, 0x78, 0x43, 0x01, 0x14, 0x0c, 0x01, 0x00, 0x00, 0x00, 0x00,
    ];

    #[cfg(feature = "eh-frame")]
    #[rustfmt::skip]
    const EH_FRAME: [u8; 112] = [
        0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x7a, 0x52, 0x00, 0x04, 0x78,
        0x41, 0x01, 0x1b, 0x0c, 0x01, 0x00, 0x34, 0x00, 0x00, 0x00, 0x18, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x08, 0x01, 0x00, 0x00, 0x00, 0x4a, 0x09, 0x41, 0x00, 0x9a,
        0x06, 0x9b, 0x05, 0x9c, 0x04, 0x9d, 0x03, 0x44, 0x9e, 0x02, 0x9f, 0x01, 0x45, 0x0e,
        0xe0, 0x03, 0x11, 0x41, 0x7e, 0x5e, 0x0e, 0x00, 0x4a, 0x06, 0x41, 0xdf, 0xde, 0xdd,
        0xdc, 0xdb, 0xda, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x50, 0x00, 0x00, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x70, 0x00, 0x00, 0x00, 0x00, 0x49, 0x0e, 0x30, 0x11, 0x41,
        0x7e, 0x9f, 0x01, 0x42, 0x0d, 0x1f, 0x48, 0x0c, 0x01, 0x00, 0x45, 0x06, 0x41, 0xdf,
    ];
}
