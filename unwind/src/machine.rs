//! What differs from processor to processor.

use crate::table::Slots;
use core::fmt::Debug;

/// A processor with its ABI, as far as stacks need it.
///
/// # For architecture porters
///
/// Implement it on a unit struct. All of it can be tested on any machine, with stacks that are only
/// numbers; a walk of a real process beside the compiler's own unwinder shows the rest.
///
/// A machine with three registers of 64 bits, whose calls leave the return address in the last one:
///
/// ```
/// use klp_unwind::{Link, Machine, Slot};
///
/// #[derive(Clone, Copy, PartialEq, Eq, Debug)]
/// struct Toy;
///
/// #[derive(Clone, Copy, PartialEq, Eq, Debug)]
/// enum Reg { Sp, Fp, Lr }
///
/// #[derive(Clone, Copy)]
/// struct Regs { pc: u64, sp: u64, fp: u64, lr: u64 }
///
/// impl Machine for Toy {
///     type Reg = Reg;
///     type Regs = Regs;
///     type Slots = [Slot<i16>; 2];
///     const STACK_POINTER: Reg = Reg::Sp;
///     const SAVED: &'static [Reg] = &[Reg::Fp, Reg::Lr];
///     const LINK: Link = Link::Register(1);
///     const RETURN_ADDRESS: u16 = 2;
///     fn dwarf(reg: Reg) -> u16 {
///         match reg { Reg::Sp => 0, Reg::Fp => 1, Reg::Lr => 2 }
///     }
///     fn get(regs: &Regs, reg: Reg) -> u64 {
///         match reg { Reg::Sp => regs.sp, Reg::Fp => regs.fp, Reg::Lr => regs.lr }
///     }
///     fn set(regs: &mut Regs, reg: Reg, value: u64) {
///         match reg {
///             Reg::Sp => regs.sp = value,
///             Reg::Fp => regs.fp = value,
///             Reg::Lr => regs.lr = value,
///         }
///     }
///     fn pc(regs: &Regs) -> u64 { regs.pc }
///     fn set_pc(regs: &mut Regs, pc: u64) { regs.pc = pc; }
/// }
/// ```
pub trait Machine: Copy + Eq + Debug + 'static {
    /// A register that a frame's address can be computed from, or that functions preserve for their
    /// callers.
    type Reg: Copy + Eq + Debug + 'static;

    /// The registers that a stack is walked with.
    type Regs: Copy;

    /// Where the caller's values of [`SAVED`](Machine::SAVED) are: as many [`Slot`](crate::Slot)s.
    type Slots: Slots;

    /// Its value in the caller is the canonical frame address (CFA).
    const STACK_POINTER: Self::Reg;

    /// The registers that rules say where to find, without the stack pointer. A register that
    /// compilers never compute a frame's address from may be left out.
    const SAVED: &'static [Self::Reg];

    /// Where a call leaves its return address.
    const LINK: Link;

    /// The number of the column that `.eh_frame` tells the return address in.
    const RETURN_ADDRESS: u16;

    /// Bytes below the stack pointer that an interrupted function may still use.
    const RED_ZONE: u64 = 0;

    /// Where the topmost place is that a function may save a register in, in bytes above its CFA:
    /// some ABIs have room for it in the caller's frame.
    const ABOVE_CFA: i64 = 0;

    /// Whether the eight bytes that the stack pointer points to are the caller's stack pointer,
    /// wherever a function has a frame, and 0 in the first frame of a stack. Walks then check it;
    /// and a function without a rule that has called another from such a frame is where a stack
    /// ends.
    const BACK_CHAIN: bool = false;

    /// Whether return addresses may be signed: `.eh_frame` says then where they are, by an
    /// instruction (`DW_CFA_AARCH64_negate_ra_state`) that has another meaning elsewhere.
    const SIGNS_RETURN_ADDRESSES: bool = false;

    /// The register's number in `.eh_frame`.
    fn dwarf(reg: Self::Reg) -> u16;

    /// The value of a register.
    fn get(regs: &Self::Regs, reg: Self::Reg) -> u64;

    /// Sets it.
    fn set(regs: &mut Self::Regs, reg: Self::Reg, value: u64);

    /// The next instruction to be executed.
    fn pc(regs: &Self::Regs) -> u64;

    /// Sets it.
    fn set_pc(regs: &mut Self::Regs, pc: u64);

    /// The code that a saved return address leads to: without a signature, on processors that sign
    /// them.
    #[must_use]
    fn return_address(saved: u64) -> u64 {
        saved
    }

    /// The registers that were interrupted, if a signal handler is to return with `regs` as they
    /// are. `None` if `read`, which gives the eight bytes at an address that is a multiple of 8,
    /// cannot, or if this machine has no such frames.
    fn interrupted(regs: &Self::Regs, read: &dyn Fn(u64) -> Option<u64>) -> Option<Self::Regs> {
        let _ = (regs, read);
        None
    }

    /// Whether a function with augmentation `S` finds what was interrupted where
    /// [`interrupted`](Machine::interrupted) does: the expressions (DWARF 5, section 2.5) for its
    /// CFA and for the place of its return address.
    #[must_use]
    fn is_signal_frame(cfa: &[u8], return_address: &[u8]) -> bool {
        let _ = (cfa, return_address);
        false
    }
}

/// Where a call leaves its return address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// On the stack, so many bytes below the CFA.
    BelowCfa(u64),
    /// In a register: the one of [`Machine::SAVED`] with that index. Functions that call others
    /// save it.
    Register(usize),
}
