//! Stacks that can be trusted: what [`klp_unwind`] must know of AArch64.
#![forbid(unsafe_code)]

use crate::AArch64;
use klp_unwind::Link;

pub use klp_unwind::{Machine, Place, TableError, walk, walk_call};

#[cfg(feature = "eh-frame")]
pub use klp_unwind::{EhFrame, compile};

/// The rules of one object.
pub type Table = klp_unwind::Table<AArch64>;
/// Makes a [`Table`] from rules in the order of their addresses.
pub type TableBuilder = klp_unwind::TableBuilder<AArch64>;
/// What is known about the stack at an instruction.
pub type Rule = klp_unwind::Rule<AArch64>;
/// Where the caller's value of a register is.
pub type Slot = klp_unwind::Slot<i16>;
/// How to get from an ordinary frame to its caller's.
pub type FrameRule = klp_unwind::FrameRule<AArch64>;

/// A register that a frame's address is computed from, or the link register (AAPCS64 6.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reg {
    /// `x29`, the frame pointer
    Fp = 0,
    /// `x30`, the link register
    Lr = 1,
    /// `sp`
    Sp = 2,
}

/// The registers that a stack is walked with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(
    missing_docs,
    reason = "the registers' names say it all, but for the last"
)]
pub struct Regs {
    pub pc: u64,
    pub sp: u64,
    pub fp: u64,
    pub lr: u64,
    /// The others that functions preserve, `x19` to `x28` and `d8` to `d15` (AAPCS64 6.1.1, 6.1.2).
    /// No frame's address is computed from them, so walks do not keep them up; they are here for
    /// those who ask what the function holds that a walk begins with.
    pub saved: [u64; 18],
}

impl Regs {
    /// What stands for a register whose value is not known. A walk that needs it is unreliable: it
    /// is no multiple of 8, and no address.
    pub const UNKNOWN: u64 = 0x8000_0000_0000_0001;

    /// None of them known.
    pub const NONE: Self = Self {
        pc: Self::UNKNOWN,
        sp: Self::UNKNOWN,
        fp: Self::UNKNOWN,
        lr: Self::UNKNOWN,
        saved: [Self::UNKNOWN; 18],
    };

    /// Reads the registers out of a Linux `struct ucontext` at address `ucontext`: the third
    /// argument of a signal handler. `None` if `read` cannot.
    pub fn from_ucontext(ucontext: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Self> {
        // `uc_mcontext` begins at byte 176, aligned to 16 (the kernel's <asm/ucontext.h>); in it
        // (<asm/sigcontext.h>) stand `fault_address`, `regs[31]`, `sp`, `pc`.
        let reg = |index: u64| read(ucontext.checked_add(176 + 8 + 8 * index)?);
        Some(Self {
            fp: reg(29)?,
            lr: reg(30)?,
            sp: reg(31)?,
            pc: reg(32)?,
            ..Self::NONE
        })
    }
}

/// The instructions to which signal handlers return: `mov x8, #139; svc #0`, `rt_sigreturn`. No
/// unwind table tells of them (the kernel's vDSO has had none there since 5.8): who finds them
/// where no table has a rule takes [`Rule::Signal`].
pub const SIGNAL_RETURN: [u8; 8] = [0x68, 0x11, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4];

/// Bits of an address of user space: above them stands the signature of a pointer that is
/// authenticated (Arm ARM, D8.8). (Linux gives out addresses above only to those who ask for them.)
const ADDRESS_BITS: u32 = 48;

impl Machine for AArch64 {
    type Reg = Reg;
    type Regs = Regs;
    type Slots = [Slot; 2];

    const STACK_POINTER: Reg = Reg::Sp;

    const SAVED: &'static [Reg] = &[Reg::Fp, Reg::Lr];

    const LINK: Link = Link::Register(Reg::Lr as usize);

    /// "DWARF for the Arm 64-bit Architecture", 4.1, as are the registers' numbers.
    const RETURN_ADDRESS: u16 = 30;

    const SIGNS_RETURN_ADDRESSES: bool = true;

    fn dwarf(reg: Reg) -> u16 {
        match reg {
            Reg::Fp => 29,
            Reg::Lr => 30,
            Reg::Sp => 31,
        }
    }

    fn get(regs: &Regs, reg: Reg) -> u64 {
        match reg {
            Reg::Fp => regs.fp,
            Reg::Lr => regs.lr,
            Reg::Sp => regs.sp,
        }
    }

    fn set(regs: &mut Regs, reg: Reg, value: u64) {
        *match reg {
            Reg::Fp => &mut regs.fp,
            Reg::Lr => &mut regs.lr,
            Reg::Sp => &mut regs.sp,
        } = value;
    }

    fn pc(regs: &Regs) -> u64 {
        regs.pc
    }

    fn set_pc(regs: &mut Regs, pc: u64) {
        regs.pc = pc;
    }

    /// Whether it is signed is not asked for: an address without a signature stays what it is.
    fn return_address(saved: u64) -> u64 {
        saved & ((1 << ADDRESS_BITS) - 1)
    }

    /// The kernel leaves a `siginfo_t` of 128 bytes where `sp` points to when the handler has
    /// returned, and a `struct ucontext` behind it (`struct rt_sigframe`).
    fn interrupted(regs: &Regs, read: &dyn Fn(u64) -> Option<u64>) -> Option<Regs> {
        Regs::from_ucontext(regs.sp.checked_add(128)?, read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use core::ops::ControlFlow;
    use klp_core::addr::{CodeAddr, TextRange};
    use klp_core::port::{Doubt, Frame, FrameKind};

    const TEXT: u64 = 0x40_0000;
    const STACK: u64 = 0x7fff_0000_0000;

    /// The rules of a function, as `gcc -O2 -mbranch-protection=standard` has them, at `at`:
    ///
    /// ```text
    /// at + 0   bti c; paciasp               CFA = sp
    /// at + 8   stp x29, x30, [sp, #-32]!    CFA = sp
    /// at + 12  mov x29, sp                  CFA = sp + 32, x29 at CFA - 32, x30 at CFA - 24
    /// at + 16  …                            CFA = x29 + 32
    /// ```
    fn table() -> Table {
        let text = TextRange::new(CodeAddr::new(TEXT), 0x100).expect("fits");
        let mut table = TableBuilder::new(text).expect("small");
        let rule = |cfa_base, cfa_offset, saved: bool| {
            let slot = |below| {
                let place = if saved {
                    Place::BelowTop(below)
                } else {
                    Place::Same
                };
                Slot::new(place).expect("it fits")
            };
            Rule::Frame(FrameRule {
                cfa_base,
                cfa_in_memory: false,
                cfa_offset,
                saved: [slot(32), slot(24)],
            })
        };
        for function in [0, 0x40] {
            for (offset, rule) in [
                (0, rule(Reg::Sp, 0, false)),
                (12, rule(Reg::Sp, 32, true)),
                (16, rule(Reg::Fp, 32, true)),
            ] {
                let at = CodeAddr::new(TEXT + function + offset);
                table.push(at, rule).expect("in order");
            }
        }
        table
            .push(CodeAddr::new(TEXT + 0x80), Rule::End)
            .expect("in order");
        table
            .push(CodeAddr::new(TEXT + 0xc0), Rule::Signal)
            .expect("in order");
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
        let result = walk(regs, 32, find, read, &mut |frame| {
            assert_eq!(
                frame.kind == FrameKind::Interrupted,
                frames.is_empty() || frame.pc.get() == TEXT
            );
            frames.push(frame.pc.get());
            ControlFlow::Continue(())
        });
        (frames, result.map_err(|doubt| doubt.why))
    }

    /// A return address with a signature, as `paciasp` leaves it.
    fn signed(address: u64) -> u64 {
        address | 0x00b5_0000_0000_0000 | 0x5a << 56
    }

    /// A frame of the function at `TEXT`, with the frame pointer and the return address at its
    /// bottom.
    fn frame(fp: u64, return_address: u64) -> [u64; 4] {
        [fp, signed(return_address), 0, 0]
    }

    #[test]
    fn at_each_instruction_of_a_prologue() {
        // TEXT is called by TEXT + 0x40, that by the outermost.
        let (inner, outer, end) = (TEXT, TEXT + 0x40 + 20, TEXT + 0x84);
        let callers = [&frame(STACK + 0x100, end)[..], &[0; 4]].concat();
        let expected = |pc| (Vec::from([pc, outer, end]), Ok(()));
        // Nothing was saved yet: the link register is signed or not.
        for (offset, lr) in [(0, outer), (4, outer), (8, signed(outer))] {
            let regs = Regs {
                pc: inner + offset,
                sp: STACK,
                fp: STACK,
                lr,
                ..Regs::NONE
            };
            assert_eq!(
                walked(regs, &callers),
                expected(inner + offset),
                "at {offset}"
            );
        }
        let stack = [&frame(STACK + 0x20, outer)[..], &callers].concat();
        for (offset, fp) in [(12, STACK + 0x20), (16, STACK), (20, STACK)] {
            let regs = Regs {
                pc: inner + offset,
                sp: STACK,
                fp,
                lr: 1,
                ..Regs::NONE
            };
            assert_eq!(
                walked(regs, &stack),
                expected(inner + offset),
                "at {offset}"
            );
        }
    }

    #[test]
    fn a_function_that_has_called_has_saved_its_link() {
        // As if the outer one had not: `bl` has overwritten the register.
        let stack = [&frame(STACK + 0x20, TEXT + 0x40 + 4)[..], &[0; 8]].concat();
        let regs = Regs {
            pc: TEXT + 16,
            sp: STACK,
            fp: STACK,
            lr: 0,
            ..Regs::NONE
        };
        assert_eq!(walked(regs, &stack).1, Err(Doubt::Corrupt));
    }

    #[test]
    fn what_a_signal_has_interrupted() {
        // The frame of `rt_sigreturn`: siginfo, ucontext up to uc_mcontext, fault_address, regs.
        let mut stack = [0_u64; 16 + 22 + 1 + 33 + 8];
        let regs_at = 16 + 22 + 1;
        stack[regs_at + 29] = 0x1234;
        stack[regs_at + 30] = TEXT + 0x84;
        stack[regs_at + 31] = STACK + 8 * (regs_at as u64 + 33);
        stack[regs_at + 32] = TEXT;
        let regs = Regs {
            pc: TEXT + 0xc0,
            sp: STACK,
            fp: 0,
            lr: 0,
            ..Regs::NONE
        };
        let expected = Vec::from([TEXT + 0xc0, TEXT, TEXT + 0x84]);
        assert_eq!(walked(regs, &stack), (expected, Ok(())));
    }

    #[test]
    fn registers_that_are_not_known_are_not_guessed() {
        let stack = [&frame(STACK + 0x20, TEXT + 0x40 + 20)[..], &[0; 8]].concat();
        let regs = Regs {
            pc: TEXT + 20,
            sp: STACK,
            fp: Regs::UNKNOWN,
            lr: Regs::UNKNOWN,
            ..Regs::NONE
        };
        assert_eq!(walked(regs, &stack).1, Err(Doubt::Corrupt));
    }

    /// What GCC 12 makes of
    ///
    /// ```c
    /// int f(int x) { return g(x) + 1; }
    /// int leaf(int x) { return x + 1; }
    /// ```
    ///
    /// with `-O2 -mbranch-protection=standard -fpatchable-function-entry=2`:
    ///
    /// ```text
    ///  0 bti c; nop; nop                    not part of the function, says its table
    ///  c paciasp
    /// 10 stp x29, x30, [sp, #-16]!          DW_CFA_AARCH64_negate_ra_state
    /// 14 mov x29, sp                        CFA = sp + 16, x29 at CFA - 16, x30 at CFA - 8
    /// 18 bl g
    /// 1c add w0, w0, #1
    /// 20 ldp x29, x30, [sp], #16
    /// 24 autiasp                            CFA = sp
    /// 28 ret                                DW_CFA_AARCH64_negate_ra_state
    /// 30 bti c; nop; nop
    /// 3c add w0, w0, #1
    /// 40 ret
    /// ```
    #[cfg(feature = "eh-frame")]
    #[test]
    fn tables_of_functions_that_sign_their_return_addresses() {
        const SECTION: u64 = TEXT + 0x1000;
        let mut section = [
            0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x7a, 0x52, 0x00, 0x04, 0x78,
            0x1e, 0x01, 0x1b, 0x0c, 0x1f, 0x00, 0x20, 0x00, 0x00, 0x00, 0x18, 0x00, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x00, 0x41, 0x2d, 0x41, 0x0e, 0x10,
            0x9d, 0x02, 0x9e, 0x01, 0x44, 0xde, 0xdd, 0x0e, 0x00, 0x41, 0x2d, 0x00, 0x00, 0x00,
            0x14, 0x00, 0x00, 0x00, 0x3c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x00,
            0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        ];
        // R_AARCH64_PREL32
        for (place, function) in [(0x1c, 0xc), (0x40, 0x3c)] {
            let distance = (TEXT + function).wrapping_sub(SECTION + place) as u32;
            section[place as usize..][..4].copy_from_slice(&distance.to_le_bytes());
        }
        let section = EhFrame {
            bytes: &section,
            addr: CodeAddr::new(SECTION),
        };
        let text = TextRange::new(CodeAddr::new(TEXT), 0x100).expect("fits");
        let table = compile::<AArch64>(section, text).expect("a table");
        let rule = |cfa_offset, saved: [Place; 2]| {
            Rule::Frame(FrameRule {
                cfa_base: Reg::Sp,
                cfa_in_memory: false,
                cfa_offset,
                saved: saved.map(|place| Slot::new(place).expect("it fits")),
            })
        };
        let leaf = rule(0, [Place::Same; 2]);
        let frame = rule(16, [Place::BelowTop(16), Place::BelowTop(8)]);
        let expected = [
            (0x00, Rule::Gap),
            (0x0c, leaf),
            (0x10, leaf),
            (0x14, frame),
            (0x20, frame),
            (0x24, leaf),
            (0x28, leaf),
            (0x2c, Rule::Gap),
            (0x3c, leaf),
            (0x40, leaf),
            (0x44, Rule::Gap),
        ];
        for (offset, rule) in expected {
            assert_eq!(
                table.find(CodeAddr::new(TEXT + offset)),
                rule,
                "at {offset:#x}"
            );
        }
    }
}
