//! From registers to the end of the stack.

use crate::machine::{Link, Machine};
use crate::table::{FrameRule, Place, Rule, Slots};
use core::ops::ControlFlow;
use klp_core::addr::CodeAddr;
use klp_core::config::MAX_STACK_ENTRIES;
use klp_core::port::{Doubt, Frame, FrameKind, Unreliable};

/// Most signal frames that a walk goes through. They may lead to another stack, so nothing else
/// keeps a broken stack from leading in a circle.
const MAX_SIGNALS: usize = MAX_STACK_ENTRIES;

/// Visits the frames of a stopped task, from the innermost one, whose program counter is the next
/// instruction to be executed.
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
pub fn walk<M: Machine>(
    regs: M::Regs,
    limit: usize,
    find: impl Fn(Frame) -> Rule<M>,
    read: impl Fn(u64) -> Option<u64>,
    visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
) -> Result<(), Unreliable> {
    walk_from::<M>(FrameKind::Interrupted, regs, limit, find, read, visit)
}

/// Visits the frames of a task that has just made a call: the program counter is the return
/// address, the other registers are as they will be when the call returns. Otherwise like [`walk`].
///
/// # Errors
///
/// As [`walk`].
pub fn walk_call<M: Machine>(
    regs: M::Regs,
    limit: usize,
    find: impl Fn(Frame) -> Rule<M>,
    read: impl Fn(u64) -> Option<u64>,
    visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
) -> Result<(), Unreliable> {
    walk_from::<M>(FrameKind::Call, regs, limit, find, read, visit)
}

fn walk_from<M: Machine>(
    innermost: FrameKind,
    regs: M::Regs,
    limit: usize,
    find: impl Fn(Frame) -> Rule<M>,
    read: impl Fn(u64) -> Option<u64>,
    visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
) -> Result<(), Unreliable> {
    let mut regs = regs;
    let mut kind = innermost;
    let mut signals = 0;
    for _ in 0..limit {
        let frame = Frame {
            pc: CodeAddr::new(M::pc(&regs)),
            kind,
        };
        if visit(frame).is_break() {
            return Ok(());
        }
        let doubt = |why| Unreliable { at: frame.pc, why };
        match find(frame) {
            Rule::Frame(rule) => {
                regs = caller::<M>(&regs, &rule, kind, &read).map_err(doubt)?;
                kind = FrameKind::Call;
            }
            Rule::Signal => {
                signals += 1;
                if signals > MAX_SIGNALS {
                    return Err(doubt(Doubt::NoEnd));
                }
                if M::get(&regs, M::STACK_POINTER) % 8 != 0 {
                    return Err(doubt(Doubt::Corrupt));
                }
                regs = M::interrupted(&regs, &read).ok_or(doubt(Doubt::BadMemory))?;
                kind = FrameKind::Interrupted;
            }
            Rule::End => return Ok(()),
            Rule::Unknown => return Err(doubt(Doubt::UnknownRule)),
            Rule::Gap if kind == FrameKind::Call && is_first::<M>(&regs, &read) => return Ok(()),
            Rule::Gap => return Err(doubt(Doubt::NoTable)),
        }
    }
    Err(Unreliable {
        at: CodeAddr::new(M::pc(&regs)),
        why: Doubt::NoEnd,
    })
}

/// Whether the back chain says that a frame, in the midst of a call, is the first of its stack.
fn is_first<M: Machine>(regs: &M::Regs, read: &impl Fn(u64) -> Option<u64>) -> bool {
    let sp = M::get(regs, M::STACK_POINTER);
    M::BACK_CHAIN && sp % 8 == 0 && read(sp) == Some(0)
}

/// The registers of the caller of a frame.
fn caller<M: Machine>(
    regs: &M::Regs,
    rule: &FrameRule<M>,
    kind: FrameKind,
    read: &impl Fn(u64) -> Option<u64>,
) -> Result<M::Regs, Doubt> {
    let sp = M::get(regs, M::STACK_POINTER);
    let interrupted = kind == FrameKind::Interrupted;
    // Below this, memory is not the frame's: what was saved there may be overwritten.
    let live = if interrupted {
        sp.saturating_sub(M::RED_ZONE)
    } else {
        sp
    };
    let read_live = |addr: Option<u64>| {
        let addr = addr
            .filter(|&addr| addr >= live && addr % 8 == 0)
            .ok_or(Doubt::Corrupt)?;
        read(addr).ok_or(Doubt::BadMemory)
    };
    let base = M::get(regs, rule.cfa_base);
    let at_base = base.checked_add_signed(rule.cfa_offset.into());
    let cfa = if rule.cfa_in_memory {
        read_live(at_base)?
    } else {
        at_base.ok_or(Doubt::Corrupt)?
    };
    if cfa % 8 != 0 {
        return Err(Doubt::Corrupt);
    }
    let in_link_register = match M::LINK {
        Link::BelowCfa(_) => false,
        Link::Register(index) => rule.saved.places().nth(index) == Some(Place::Same),
    };
    // A call has overwritten it.
    if in_link_register && !interrupted {
        return Err(Doubt::Corrupt);
    }
    // Who has called has a frame of his own, if only for a return address.
    let may_have_none = interrupted && matches!(M::LINK, Link::Register(_));
    if cfa < sp || cfa == sp && !may_have_none {
        return Err(Doubt::NoEnd);
    }
    if M::BACK_CHAIN && cfa > sp && read_live(Some(sp))? != cfa {
        return Err(Doubt::Corrupt);
    }
    let mut outer = *regs;
    if let Link::BelowCfa(below) = M::LINK {
        M::set_pc(&mut outer, read_live(cfa.checked_sub(below))?);
    }
    for (&reg, place) in M::SAVED.iter().zip(rule.saved.places()) {
        let addr = match place {
            Place::Same => continue,
            Place::BelowTop(below) => cfa
                .checked_add_signed(M::ABOVE_CFA)
                .and_then(|top| top.checked_sub(below)),
            Place::BelowBase(below) => base.checked_sub(below).filter(|&addr| addr < cfa),
        };
        M::set(&mut outer, reg, read_live(addr)?);
    }
    if let Link::Register(index) = M::LINK {
        let reg = M::SAVED.get(index).ok_or(Doubt::Corrupt)?;
        let link = M::get(&outer, *reg);
        M::set_pc(&mut outer, link);
    }
    let return_address = M::return_address(M::pc(&outer));
    M::set_pc(&mut outer, return_address);
    M::set(&mut outer, M::STACK_POINTER, cfa);
    Ok(outer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Slot;
    use crate::toy::{Reg, Regs, SIGNATURE, Toy};
    use alloc::vec::Vec;

    // Functions.
    /// Has no frame, and leaves the link register alone.
    const LEAF: u64 = 0x1000;
    /// Has 32 bytes, and has saved the link register in its caller's frame.
    const FRAME: u64 = 0x1010;
    /// The same, with the saved one signed, and the frame pointer 16 bytes below the CFA.
    const SIGNED: u64 = 0x1020;
    /// The outermost.
    const START: u64 = 0x1030;

    /// Has given up its frame, and not loaded the link register yet.
    const EPILOGUE: u64 = 0x1040;

    const STACK: u64 = 0x8000;

    fn find(frame: Frame) -> Rule<Toy> {
        let frame_rule = |cfa_offset, fp: Place, lr: Place| {
            Rule::Frame(FrameRule {
                cfa_base: Reg::Sp,
                cfa_in_memory: false,
                cfa_offset,
                saved: [fp, lr].map(|place| Slot::new(place).expect("it fits")),
            })
        };
        match frame.lookup().get() & !0xf {
            LEAF => frame_rule(0, Place::Same, Place::Same),
            FRAME => frame_rule(32, Place::Same, Place::BelowTop(8)),
            SIGNED => frame_rule(32, Place::BelowTop(32), Place::BelowTop(8)),
            START => Rule::End,
            EPILOGUE => frame_rule(0, Place::Same, Place::BelowTop(8)),
            _ => Rule::Gap,
        }
    }

    /// Walks a stack of words from `regs`: the program counters and kinds of the frames.
    fn walked(regs: Regs, stack: &[u64]) -> (Vec<(u64, FrameKind)>, Result<(), Doubt>) {
        let read = |addr: u64| {
            let index = usize::try_from(addr.checked_sub(STACK)? / 8).ok()?;
            stack.get(index).copied()
        };
        let mut frames = Vec::new();
        let result = walk(regs, 16, find, read, &mut |frame| {
            frames.push((frame.pc.get(), frame.kind));
            ControlFlow::Continue(())
        });
        (frames, result.map_err(|doubt| doubt.why))
    }

    fn regs(pc: u64, lr: u64) -> Regs {
        Regs {
            pc,
            sp: STACK,
            fp: 0,
            lr,
        }
    }

    #[test]
    fn a_leaf_that_was_interrupted_returns_to_its_link_register() {
        // Frames of FRAME and SIGNED; each link is 8 bytes above the CFA.
        let stack = [
            0,
            0,
            0,
            0,
            0,
            SIGNED + 4,
            7,
            0,
            0,
            SIGNATURE | (START + 4),
            0,
        ];
        let (frames, result) = walked(regs(LEAF, FRAME + 4), &stack);
        let call = FrameKind::Call;
        assert_eq!(
            frames,
            [
                (LEAF, FrameKind::Interrupted),
                (FRAME + 4, call),
                (SIGNED + 4, call),
                (START + 4, call)
            ]
        );
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn who_has_called_has_no_link_register_any_more() {
        // FRAME is said to have been called by LEAF, which would have had to save its own link.
        let stack = [0, 0, 0, 0, 0, LEAF + 4, 0];
        let (frames, result) = walked(regs(FRAME, 0), &stack);
        assert_eq!(frames.len(), 2);
        assert_eq!(result, Err(Doubt::Corrupt));
    }

    #[test]
    fn an_epilogue_finds_its_link_in_its_callers_frame() {
        let stack = [0, START + 4];
        let (frames, result) = walked(regs(EPILOGUE, 1), &stack);
        let end = (START + 4, FrameKind::Call);
        assert_eq!(frames, [(EPILOGUE, FrameKind::Interrupted), end]);
        assert_eq!(result, Ok(()));
        // In the midst of a call it would have a frame.
        let stack = [0, EPILOGUE + 4, 0, 0];
        let (frames, result) = walked(regs(EPILOGUE, 1), &stack);
        assert_eq!((frames.len(), result), (2, Err(Doubt::NoEnd)));
    }

    #[test]
    fn who_stands_where_its_caller_does_is_interrupted() {
        // A leaf that returns to itself is walked once, not for ever.
        let (frames, result) = walked(regs(LEAF, LEAF + 4), &[]);
        assert_eq!((frames.len(), result), (2, Err(Doubt::Corrupt)));
    }
}
