//! Instructions as bytes.

use crate::addr::CodeAddr;
use core::fmt;

/// A short run of instructions: a jump, a thunk, a veneer.
pub type Code = heapless::Vec<u8, 64>;

/// A patchable entry, as [`Arch::entry`] recognised it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Bytes from the address that was looked at to the first byte that may be rewritten
    /// (an `endbr64` or `bti` stays).
    pub skip: u8,
    /// Bytes that are rewritten.
    pub len: u8,
    /// Bytes from the first rewritten byte to the first instruction of the function's body.
    pub resume: u8,
    /// Whether the rewritten bytes are more than one instruction, so that a task can stand
    /// *between* them.
    pub split: bool,
}

/// What somebody else put into an entry, as [`Arch::intruder`] recognised it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intruder {
    /// A breakpoint.
    Breakpoint {
        /// Where it stands.
        at: CodeAddr,
    },
    /// A jump.
    Jump {
        /// Where it stands.
        at: CodeAddr,
        /// Where it leads, if the instruction and the bytes behind it tell.
        to: Option<CodeAddr>,
    },
    /// A call.
    Call {
        /// Where it stands.
        at: CodeAddr,
        /// What it calls.
        to: CodeAddr,
    },
}

/// A target cannot be reached from where the jump stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfReach {
    /// Where the jump stands.
    pub from: CodeAddr,
    /// Where it was to go.
    pub to: CodeAddr,
}

impl fmt::Display for OutOfReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a jump from {} cannot reach {}", self.from, self.to)
    }
}

/// Encodes and recognises instructions: bytes in, bytes out.
///
/// Pure, so that every architecture is tested on any machine.
///
/// # Safety
///
/// The bytes that it makes are executed, and what it says of bytes is believed: they do on the
/// machine what each function says, and nothing else; [`jumps`](Arch::jumps) leaves no jump out.
///
/// # For arch porters
///
/// Implement it on a unit struct. `klp_core::conformance::arch` (feature `conformance`) is the test
/// to call.
///
/// ```
/// use klp_core::addr::CodeAddr;
/// use klp_core::port::{Arch, Code, Entry, Intruder, OutOfReach};
///
/// /// A machine whose instructions are eight bytes: an opcode letter and seven bytes of operand.
/// struct Toy;
///
/// fn insn(op: u8, operand: u64) -> Code {
///     let mut bytes = operand.to_le_bytes();
///     bytes[7] = op;
///     Code::from_slice(&bytes).expect("eight bytes fit")
/// }
///
/// // SAFETY: there is no such machine.
/// unsafe impl Arch for Toy {
///     const MAX_ENTRY: usize = 8;
///     const SLOT: u64 = 16;
///     const REACH: u64 = 1 << 55;
///     fn entry(_at: CodeAddr, bytes: &[u8]) -> Option<Entry> {
///         let nop = bytes.get(..8)? == &insn(b'N', 0)[..];
///         nop.then_some(Entry { skip: 0, len: 8, resume: 8, split: false })
///     }
///     fn intruder(at: CodeAddr, bytes: &[u8]) -> Option<Intruder> {
///         let insn = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
///         match bytes[7] {
///             b'!' => Some(Intruder::Breakpoint { at }),
///             b'J' => Some(Intruder::Jump { at, to: Some(CodeAddr::new(insn & !0 >> 8)) }),
///             _ => None,
///         }
///     }
///     fn jump(_at: CodeAddr, to: CodeAddr, _len: u8) -> Result<Code, OutOfReach> {
///         Ok(insn(b'J', to.get()))
///     }
///     fn thunk(_at: CodeAddr, arg: u64, stub: CodeAddr) -> Code {
///         let mut code = insn(b'A', arg);
///         code.extend_from_slice(&insn(b'J', stub.get())).expect("sixteen bytes fit");
///         code
///     }
///     fn veneer(_at: CodeAddr, to: CodeAddr) -> Code {
///         insn(b'J', to.get())
///     }
/// }
/// # assert!(Toy::entry(CodeAddr::new(0), &insn(b'N', 0)).is_some());
/// ```
pub unsafe trait Arch: 'static {
    /// Most bytes that [`entry`](Arch::entry) wants to see.
    const MAX_ENTRY: usize;

    /// Bytes that a thunk or a veneer takes at most, rounded up to what the start of each is to be
    /// aligned to: a power of two, not more than a [`Code`] holds.
    const SLOT: u64;

    /// How far, in bytes, a jump in an entry site reaches, either way.
    const REACH: u64;

    /// Whether a jump alone enters a function, so that an entry site may jump straight to it. Not
    /// so where functions want to find their own address in a register: only a
    /// [`veneer`](Arch::veneer) puts it there.
    const JUMP_ENTERS: bool = true;

    /// What stands between the functions of an image: a byte that, however often it stands there,
    /// is whole instructions to [`jumps`](Arch::jumps), and best stops whoever gets there.
    const FILL: u8 = 0;

    /// Recognises the patchable entry that `bytes`, which stand at `at`, begin with; `None` if
    /// these are not the bytes of an *unpatched* entry. `at` is where the compiler's table says, or
    /// the start of the function. Where an entry leaves a choice, the place that is rewritten is
    /// one that a single aligned store can change.
    fn entry(at: CodeAddr, bytes: &[u8]) -> Option<Entry>;

    /// Recognises what stands at `at` in place of an entry: the first instruction of `bytes` that
    /// does something. `None` if it is neither breakpoint nor jump nor call, and for an unpatched
    /// entry; if `bytes` go on behind one, it is the function's own that is found. For people to
    /// read, so a doubt is `None`.
    fn intruder(at: CodeAddr, bytes: &[u8]) -> Option<Intruder>;

    /// An instruction of `len` bytes that does nothing. An [entry](Entry) that is
    /// [split](Entry::split) is left with it once nothing is patched any more, so that the next
    /// change finds a single instruction there; [`entry`](Arch::entry) recognises what comes of it.
    /// `None`: such an entry is put back as it was built.
    fn nop(len: u8) -> Option<Code> {
        let _ = len;
        None
    }

    /// A jump of exactly `len` bytes at `at` to `to`, as a single instruction (padding behind it
    /// may follow: it is never reached).
    ///
    /// # Errors
    ///
    /// [`OutOfReach`].
    fn jump(at: CodeAddr, to: CodeAddr, len: u8) -> Result<Code, OutOfReach>;

    /// A thunk at `at`: loads `arg` into the register that the entry stub expects it in, goes to
    /// `stub`, and disturbs nothing else. Reaches any address.
    fn thunk(at: CodeAddr, arg: u64, stub: CodeAddr) -> Code;

    /// A veneer at `at`: goes to `to` and disturbs nothing that a function may be given. Reaches
    /// any address.
    fn veneer(at: CodeAddr, to: CodeAddr) -> Code;

    /// A veneer at `at` for calls out of a patch's image: as [`veneer`](Arch::veneer), and it may
    /// keep in the caller's frame what the call must find again when it comes back. Not longer than
    /// [`SLOT`](Arch::SLOT).
    fn call_veneer(at: CodeAddr, to: CodeAddr) -> Code {
        Self::veneer(at, to)
    }

    /// Calls `each` with the target of every jump in `code`, which stands at `at` and is whole
    /// instructions; calls and returns are none. `None` is a jump whose target the code does not
    /// tell (through a register, say), or bytes that are not understood.
    ///
    /// The engine asks for it to know which entries affected code may *jump* to: a function that
    /// ends in a jump to another (a sibling call) leaves no frame behind. A port that cannot tell
    /// says `None` once, as this does; tasks are then switched from outside only.
    fn jumps(at: CodeAddr, code: &[u8], each: &mut dyn FnMut(Option<CodeAddr>)) {
        let _ = (at, code);
        each(None);
    }
}
