//! The toy machine: every instruction is eight bytes, an opcode and seven bytes of operand; only
//! padding may be shorter.

use crate::addr::CodeAddr;
use crate::port::{Arch, Code, Entry, Intruder, OutOfReach};

/// Bytes of an instruction.
pub const INSN: u64 = 8;

/// An instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Insn {
    /// Does nothing, eight bytes long: an entry of one instruction.
    Nop,
    /// Does nothing, one byte long: eight of them are an entry of several instructions.
    ShortNop,
    /// Stops whoever executes it, for a debugger to look at.
    Break,
    /// Goes to an address.
    Jump(CodeAddr),
    /// Loads the handler's argument.
    Arg(u64),
    /// Calls the handler.
    Stub,
    /// Goes where the handler said.
    Go,
    /// The body of a function: stays until the task is told to call or to return.
    Body,
    /// Goes to an address that the code does not tell.
    JumpAnywhere,
}

impl Insn {
    /// The instruction as bytes; eight one-byte instructions for [`ShortNop`](Insn::ShortNop).
    #[must_use]
    pub fn encode(self) -> [u8; 8] {
        let (op, operand) = match self {
            Self::Nop => (b'N', 0),
            Self::ShortNop => return [b'n'; 8],
            Self::Break => (b'!', 0),
            Self::Jump(to) => (b'J', to.get()),
            Self::Arg(arg) => (b'A', arg),
            Self::Stub => (b'S', 0),
            Self::Go => (b'G', 0),
            Self::Body => (b'B', 0),
            Self::JumpAnywhere => (b'X', 0),
        };
        // The operand is seven bytes; no toy address and no address of a process needs more.
        (operand << 8 | u64::from(op)).to_le_bytes()
    }

    /// The instruction that `bytes` begin with.
    #[must_use]
    pub fn decode(bytes: [u8; 8]) -> Option<Self> {
        let operand = u64::from_le_bytes(bytes) >> 8;
        Some(match bytes[0] {
            b'N' => Self::Nop,
            b'n' => Self::ShortNop,
            b'!' => Self::Break,
            b'J' => Self::Jump(CodeAddr::new(operand)),
            b'A' => Self::Arg(operand),
            b'S' => Self::Stub,
            b'G' => Self::Go,
            b'B' => Self::Body,
            b'X' => Self::JumpAnywhere,
            _ => return None,
        })
    }
}

/// The toy machine's [`Arch`].
#[derive(Clone, Copy, Debug)]
pub struct SimArch;

impl SimArch {
    fn code(insns: &[Insn]) -> Code {
        insns.iter().flat_map(|insn| insn.encode()).collect()
    }
}

// SAFETY: the toy machine executes just these instructions.
unsafe impl Arch for SimArch {
    const MAX_ENTRY: usize = 8;
    const SLOT: u64 = 16;
    const REACH: u64 = 1 << 20;

    fn entry(_at: CodeAddr, bytes: &[u8]) -> Option<Entry> {
        let bytes = bytes.get(..8)?;
        let split = bytes == Insn::ShortNop.encode();
        (split || bytes == Insn::Nop.encode()).then_some(Entry {
            skip: 0,
            len: 8,
            resume: 8,
            split,
        })
    }

    fn intruder(at: CodeAddr, bytes: &[u8]) -> Option<Intruder> {
        let nops = bytes.iter().take_while(|byte| **byte == b'n').count();
        let at = at.wrapping_add(nops as u64);
        match bytes.get(nops..)? {
            // As on real machines, a breakpoint fits where the shortest instruction stands.
            [b'!', ..] => Some(Intruder::Breakpoint { at }),
            [b'J', ..] => match Insn::decode(bytes.get(nops..nops + 8)?.try_into().ok()?)? {
                Insn::Jump(to) => Some(Intruder::Jump { at, to: Some(to) }),
                _ => None,
            },
            _ => None,
        }
    }

    fn nop(_len: u8) -> Option<Code> {
        Some(Self::code(&[Insn::Nop]))
    }

    fn jump(at: CodeAddr, to: CodeAddr, _len: u8) -> Result<Code, OutOfReach> {
        if at.distance_to(to).unsigned_abs() > Self::REACH {
            return Err(OutOfReach { from: at, to });
        }
        Ok(Self::code(&[Insn::Jump(to)]))
    }

    fn thunk(_at: CodeAddr, arg: u64, stub: CodeAddr) -> Code {
        Self::code(&[Insn::Arg(arg), Insn::Jump(stub)])
    }

    fn veneer(_at: CodeAddr, to: CodeAddr) -> Code {
        Self::code(&[Insn::Jump(to)])
    }

    fn jumps(_at: CodeAddr, code: &[u8], each: &mut dyn FnMut(Option<CodeAddr>)) {
        let insns = code.chunks_exact(8);
        let whole = insns.remainder().is_empty();
        for insn in insns {
            match insn.try_into().ok().and_then(Insn::decode) {
                Some(Insn::Jump(to)) => each(Some(to)),
                Some(Insn::JumpAnywhere) | None => each(None),
                Some(_) => {}
            }
        }
        if !whole {
            each(None);
        }
    }
}
