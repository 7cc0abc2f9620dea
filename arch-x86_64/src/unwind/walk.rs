//! From registers to the end of the stack.
#![forbid(unsafe_code)]

use super::table::{FrameRule, Place, Reg, Rule};
use core::ops::ControlFlow;
use klp_core::addr::CodeAddr;
use klp_core::config::MAX_STACK_ENTRIES;
use klp_core::port::{Doubt, Frame, FrameKind, Unreliable};

/// Memory below `rsp` that an interrupted function may still use (psABI 3.2.2, "The Stack Frame").
const RED_ZONE: u64 = 128;

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

    fn get(&self, reg: Reg) -> u64 {
        match reg {
            Reg::Rbp => self.rbp,
            Reg::Rbx => self.rbx,
            Reg::R12 => self.r12,
            Reg::R13 => self.r13,
            Reg::R14 => self.r14,
            Reg::R15 => self.r15,
            Reg::Rsp => self.rsp,
        }
    }

    fn set(&mut self, reg: Reg, value: u64) {
        *match reg {
            Reg::Rbp => &mut self.rbp,
            Reg::Rbx => &mut self.rbx,
            Reg::R12 => &mut self.r12,
            Reg::R13 => &mut self.r13,
            Reg::R14 => &mut self.r14,
            Reg::R15 => &mut self.r15,
            Reg::Rsp => &mut self.rsp,
        } = value;
    }
}

/// Most signal frames that a walk goes through. They may lead to another stack, so nothing else
/// keeps a broken stack from leading in a circle.
const MAX_SIGNALS: usize = MAX_STACK_ENTRIES;

/// Visits the frames of a stopped task, from the innermost one, whose `rip` is the next instruction
/// to be executed.
///
/// `find` gives the rule of a frame ([`Table::find`](super::Table::find) of the right object, at
/// [`Frame::lookup`]; [`Rule::Gap`] if there is none). `read` gives the eight bytes at an address,
/// a multiple of 8; `None` if it is not one of the task's stack. Takes no lock, allocates nothing,
/// cannot panic, if they do not.
///
/// At most `limit` frames are visited. The walk ends without that, too: each frame lies strictly
/// above the one that it called, and it goes through [`MAX_STACK_ENTRIES`] signal frames at most.
///
/// # Errors
///
/// [`Unreliable`], also if there are more frames than `limit`. If `visit` breaks off, that is `Ok`.
pub fn walk(
    regs: Regs,
    limit: usize,
    find: impl Fn(Frame) -> Rule,
    read: impl Fn(u64) -> Option<u64>,
    visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
) -> Result<(), Unreliable> {
    walk_from(FrameKind::Interrupted, regs, limit, find, read, visit)
}

/// Visits the frames of a task that has just made a call: `regs.rip` is the return address, the
/// other registers are as they will be when the call returns. Otherwise like [`walk`].
///
/// # Errors
///
/// As [`walk`].
pub fn walk_call(
    regs: Regs,
    limit: usize,
    find: impl Fn(Frame) -> Rule,
    read: impl Fn(u64) -> Option<u64>,
    visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
) -> Result<(), Unreliable> {
    walk_from(FrameKind::Call, regs, limit, find, read, visit)
}

fn walk_from(
    innermost: FrameKind,
    regs: Regs,
    limit: usize,
    find: impl Fn(Frame) -> Rule,
    read: impl Fn(u64) -> Option<u64>,
    visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
) -> Result<(), Unreliable> {
    let mut regs = regs;
    let mut kind = innermost;
    let mut signals = 0;
    for _ in 0..limit {
        let frame = Frame {
            pc: CodeAddr::new(regs.rip),
            kind,
        };
        if visit(frame).is_break() {
            return Ok(());
        }
        let doubt = |why| Unreliable { at: frame.pc, why };
        match find(frame) {
            Rule::Frame(rule) => {
                regs = caller(&regs, &rule, kind, &read).map_err(doubt)?;
                kind = FrameKind::Call;
            }
            Rule::Signal => {
                signals += 1;
                if signals > MAX_SIGNALS {
                    return Err(doubt(Doubt::NoEnd));
                }
                if regs.rsp % 8 != 0 {
                    return Err(doubt(Doubt::Corrupt));
                }
                regs = Regs::from_ucontext(regs.rsp, &read).ok_or(doubt(Doubt::BadMemory))?;
                kind = FrameKind::Interrupted;
            }
            Rule::End => return Ok(()),
            Rule::Unknown => return Err(doubt(Doubt::UnknownRule)),
            Rule::Gap => return Err(doubt(Doubt::NoTable)),
        }
    }
    Err(Unreliable {
        at: CodeAddr::new(regs.rip),
        why: Doubt::NoEnd,
    })
}

/// The registers of the caller of a frame.
fn caller(
    regs: &Regs,
    rule: &FrameRule,
    kind: FrameKind,
    read: &impl Fn(u64) -> Option<u64>,
) -> Result<Regs, Doubt> {
    // Below this, memory is not the frame's: what was saved there may be overwritten.
    let live = match kind {
        FrameKind::Interrupted => regs.rsp.saturating_sub(RED_ZONE),
        FrameKind::Call | FrameKind::PerhapsCall => regs.rsp,
    };
    let read_live = |addr: Option<u64>| {
        let addr = addr
            .filter(|&addr| addr >= live && addr % 8 == 0)
            .ok_or(Doubt::Corrupt)?;
        read(addr).ok_or(Doubt::BadMemory)
    };
    let base = regs.get(rule.cfa_base);
    let at_base = base.checked_add_signed(rule.cfa_offset.into());
    let cfa = if rule.cfa_in_memory {
        read_live(at_base)?
    } else {
        at_base.ok_or(Doubt::Corrupt)?
    };
    if cfa % 8 != 0 {
        return Err(Doubt::Corrupt);
    }
    // A return address at least lies between the two.
    if cfa <= regs.rsp {
        return Err(Doubt::NoEnd);
    }
    let mut outer = *regs;
    outer.rip = read_live(cfa.checked_sub(8))?;
    outer.rsp = cfa;
    for (reg, slot) in Reg::SAVED.into_iter().zip(rule.saved) {
        let addr = match slot.place() {
            Place::Same => continue,
            Place::BelowCfa(below) => cfa.checked_sub(below),
            Place::BelowBase(below) => base.checked_sub(below).filter(|&addr| addr < cfa),
        };
        outer.set(reg, read_live(addr)?);
    }
    Ok(outer)
}
