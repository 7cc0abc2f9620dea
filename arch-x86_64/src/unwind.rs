//! Stacks that can be trusted: what [`klp_unwind`] must know of x86-64.
#![forbid(unsafe_code)]

use crate::X86_64;
use klp_unwind::Link;

pub use klp_unwind::{Machine, Place, TableError, walk, walk_call};

#[cfg(feature = "eh-frame")]
pub use klp_unwind::{EhFrame, compile};

/// The rules of one object.
pub type Table = klp_unwind::Table<X86_64>;
/// Makes a [`Table`] from rules in the order of their addresses.
pub type TableBuilder = klp_unwind::TableBuilder<X86_64>;
/// What is known about the stack at an instruction.
pub type Rule = klp_unwind::Rule<X86_64>;
/// Where the caller's value of a register is.
pub type Slot = klp_unwind::Slot<i8>;
/// How to get from an ordinary frame to its caller's.
pub type FrameRule = klp_unwind::FrameRule<X86_64>;

static_assertions::const_assert_eq!(Table::ROW, 16);

/// A register that a frame's address can be computed from, or that a function preserves for its
/// caller (psABI 3.2.3, figure 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reg {
    /// `rbp`
    Rbp = 0,
    /// `rbx`
    Rbx = 1,
    /// `r12`
    R12 = 2,
    /// `r13`
    R13 = 3,
    /// `r14`
    R14 = 4,
    /// `r15`
    R15 = 5,
    /// `rsp`
    Rsp = 6,
}

/// The registers that a stack is walked with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the registers' names say it all")]
pub struct Regs {
    pub rip: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl Regs {
    /// What stands for a register whose value is not known. A walk that needs it is unreliable: it
    /// is no multiple of 8, and no address (not canonical: Intel SDM volume 1, 3.3.7.1).
    pub const UNKNOWN: u64 = 0x8000_0000_0000_0001;

    /// Reads the registers out of a Linux `struct ucontext` at address `ucontext`: the third
    /// argument of a signal handler, and what `rsp` points to when the handler returns. `None` if
    /// `read` cannot.
    pub fn from_ucontext(ucontext: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Self> {
        // `uc_mcontext.gregs` begins at byte 40; its order is that of `sigcontext_64` in the
        // kernel's <asm/sigcontext.h>.
        let greg = |index: u64| read(ucontext.checked_add(40 + 8 * index)?);
        Some(Self {
            r12: greg(4)?,
            r13: greg(5)?,
            r14: greg(6)?,
            r15: greg(7)?,
            rbp: greg(10)?,
            rbx: greg(11)?,
            rsp: greg(15)?,
            rip: greg(16)?,
        })
    }
}

impl Machine for X86_64 {
    type Reg = Reg;
    type Regs = Regs;
    type Slots = [Slot; 6];

    const STACK_POINTER: Reg = Reg::Rsp;

    const SAVED: &'static [Reg] = &[Reg::Rbp, Reg::Rbx, Reg::R12, Reg::R13, Reg::R14, Reg::R15];

    const LINK: Link = Link::BelowCfa(8);

    /// psABI 3.7, figure 3.38; so are the registers' numbers.
    const RETURN_ADDRESS: u16 = 16;

    /// psABI 3.2.2, "The Stack Frame".
    const RED_ZONE: u64 = 128;

    fn dwarf(reg: Reg) -> u16 {
        match reg {
            Reg::Rbx => 3,
            Reg::Rbp => 6,
            Reg::Rsp => 7,
            Reg::R12 => 12,
            Reg::R13 => 13,
            Reg::R14 => 14,
            Reg::R15 => 15,
        }
    }

    fn get(regs: &Regs, reg: Reg) -> u64 {
        match reg {
            Reg::Rbp => regs.rbp,
            Reg::Rbx => regs.rbx,
            Reg::R12 => regs.r12,
            Reg::R13 => regs.r13,
            Reg::R14 => regs.r14,
            Reg::R15 => regs.r15,
            Reg::Rsp => regs.rsp,
        }
    }

    fn set(regs: &mut Regs, reg: Reg, value: u64) {
        *match reg {
            Reg::Rbp => &mut regs.rbp,
            Reg::Rbx => &mut regs.rbx,
            Reg::R12 => &mut regs.r12,
            Reg::R13 => &mut regs.r13,
            Reg::R14 => &mut regs.r14,
            Reg::R15 => &mut regs.r15,
            Reg::Rsp => &mut regs.rsp,
        } = value;
    }

    fn pc(regs: &Regs) -> u64 {
        regs.rip
    }

    fn set_pc(regs: &mut Regs, pc: u64) {
        regs.rip = pc;
    }

    /// The kernel leaves a `struct ucontext` where `rsp` points to when the handler has returned.
    fn interrupted(regs: &Regs, read: &dyn Fn(u64) -> Option<u64>) -> Option<Regs> {
        Regs::from_ucontext(regs.rsp, read)
    }

    /// As `__restore_rt` of C libraries says it.
    fn is_signal_frame(cfa: &[u8], return_address: &[u8]) -> bool {
        /// `DW_OP_breg7 (rsp) + 160; DW_OP_deref`: `uc_mcontext.gregs[REG_RSP]`.
        const RSP: [u8; 4] = [0x77, 0xa0, 0x01, 0x06];
        /// `DW_OP_breg7 (rsp) + 168`: the address of `uc_mcontext.gregs[REG_RIP]`.
        const RIP: [u8; 3] = [0x77, 0xa8, 0x01];
        cfa == RSP && return_address == RIP
    }
}
