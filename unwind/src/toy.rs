//! A machine to test with: calls leave the return address in a register, which functions save at
//! most 16 bytes above their CFA.

use crate::machine::{Link, Machine};
use crate::table::Slot;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Toy;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reg {
    Sp,
    Fp,
    Lr,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Regs {
    pub(crate) pc: u64,
    pub(crate) sp: u64,
    pub(crate) fp: u64,
    pub(crate) lr: u64,
}

/// What return addresses are signed with.
pub(crate) const SIGNATURE: u64 = 0xab << 56;

impl Machine for Toy {
    type Reg = Reg;
    type Regs = Regs;
    type Slots = [Slot<i16>; 2];

    const STACK_POINTER: Reg = Reg::Sp;
    const SAVED: &'static [Reg] = &[Reg::Fp, Reg::Lr];
    const LINK: Link = Link::Register(1);
    const RETURN_ADDRESS: u16 = 2;
    const RED_ZONE: u64 = 32;
    const ABOVE_CFA: i64 = 16;

    fn dwarf(reg: Reg) -> u16 {
        match reg {
            Reg::Sp => 0,
            Reg::Fp => 1,
            Reg::Lr => 2,
        }
    }

    fn get(regs: &Regs, reg: Reg) -> u64 {
        match reg {
            Reg::Sp => regs.sp,
            Reg::Fp => regs.fp,
            Reg::Lr => regs.lr,
        }
    }

    fn set(regs: &mut Regs, reg: Reg, value: u64) {
        *match reg {
            Reg::Sp => &mut regs.sp,
            Reg::Fp => &mut regs.fp,
            Reg::Lr => &mut regs.lr,
        } = value;
    }

    fn pc(regs: &Regs) -> u64 {
        regs.pc
    }

    fn set_pc(regs: &mut Regs, pc: u64) {
        regs.pc = pc;
    }

    fn return_address(saved: u64) -> u64 {
        saved & !SIGNATURE
    }
}
