//! Reliable stacks.

use crate::addr::CodeAddr;
use core::fmt;
use core::ops::ControlFlow;

/// Why a frame is on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// The task was interrupted here: `pc` is the next instruction it will execute.
    Interrupted,
    /// A call made here has not returned: `pc` is the return address, and the call instruction ends
    /// just before it.
    Call,
    /// The same, if it is a return address: where frames cannot be told apart, a walk may visit
    /// every word that could be one. Such words keep a task where it is, and are not shown as its
    /// stack.
    PerhapsCall,
}

/// One function that the task is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The next instruction of this function to be executed.
    pub pc: CodeAddr,
    /// Why the frame is there.
    pub kind: FrameKind,
}

impl Frame {
    /// An address that lies inside the function: a call that ends its function returns to an
    /// address behind it.
    #[must_use]
    pub const fn lookup(self) -> CodeAddr {
        match self.kind {
            FrameKind::Interrupted => self.pc,
            FrameKind::Call | FrameKind::PerhapsCall => self.pc.wrapping_sub(1),
        }
    }
}

/// Why a stack cannot be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[repr(u8)]
pub enum Doubt {
    /// No unwind information covers the address.
    NoTable = 1,
    /// The information there uses rules that the unwinder does not follow.
    UnknownRule = 2,
    /// A value that should be in memory could not be read.
    BadMemory = 3,
    /// The stack does not grow towards its end, or has no end.
    NoEnd = 4,
    /// The walk found what only a broken stack can show.
    Corrupt = 5,
}

impl Doubt {
    /// The doubt with that number (`doubt as u8`).
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::NoTable),
            2 => Some(Self::UnknownRule),
            3 => Some(Self::BadMemory),
            4 => Some(Self::NoEnd),
            5 => Some(Self::Corrupt),
            _ => None,
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTable => "no unwind information",
            Self::UnknownRule => "unwind information that is not understood",
            Self::BadMemory => "unreadable stack memory",
            Self::NoEnd => "a stack without an end",
            Self::Corrupt => "a corrupt stack",
        })
    }
}

/// The stack cannot be trusted: the task may return to functions that were not visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreliable {
    /// The instruction in whose frame the walk ended.
    pub at: CodeAddr,
    /// Why.
    pub why: Doubt,
}

impl fmt::Display for Unreliable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unreliable stack at {}: {}", self.at, self.why)
    }
}

/// Walks the stack of a stopped task.
///
/// # Safety
///
/// `Ok` means that every function the task may still return to was visited, unless the visitor
/// broke off. Any doubt is [`Unreliable`] (kernel: `arch_stack_walk_reliable`, "Reliable
/// Stacktrace" in the kernel's livepatch documents). A task inside an entry stub, a thunk or a
/// veneer is `Unreliable`: what it decided there must not be outlived by a switch.
///
/// May run in a signal or interrupt handler: takes no lock, allocates nothing, cannot panic.
///
/// # For arch porters
///
/// `klp_core::conformance::unwinder` (feature `conformance`) is the test to call.
///
/// Stacks of a machine that keeps return addresses apart from everything else, the innermost one
/// last, with zero at the outer end:
///
/// ```
/// use core::ops::ControlFlow;
/// use klp_core::addr::CodeAddr;
/// use klp_core::port::{Doubt, Frame, FrameKind, Unreliable, Unwinder};
///
/// struct Stopped {
///     pc: u64,
///     returns: Vec<u64>,
/// }
///
/// struct Toy;
///
/// // SAFETY: every return address is on that stack, and an `Ok` has seen the zero.
/// unsafe impl Unwinder for Toy {
///     type Context = Stopped;
///     fn walk(
///         &self,
///         task: &Stopped,
///         visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
///     ) -> Result<(), Unreliable> {
///         let mut frame = Frame { pc: CodeAddr::new(task.pc), kind: FrameKind::Interrupted };
///         for pc in task.returns.iter().rev() {
///             if visit(frame).is_break() || *pc == 0 {
///                 return Ok(());
///             }
///             frame = Frame { pc: CodeAddr::new(*pc), kind: FrameKind::Call };
///         }
///         Err(Unreliable { at: frame.pc, why: Doubt::NoEnd })
///     }
/// }
/// # let mut seen = 0;
/// # let mut count = |_| { seen += 1; ControlFlow::Continue(()) };
/// # assert_eq!(Toy.walk(&Stopped { pc: 8, returns: vec![0, 16] }, &mut count), Ok(()));
/// # assert!(Toy.walk(&Stopped { pc: 8, returns: vec![16] }, &mut count).is_err());
/// # assert_eq!(seen, 3);
/// ```
pub unsafe trait Unwinder: Sync {
    /// A stopped task.
    type Context: ?Sized;

    /// Visits the frames of `context` from the innermost one.
    ///
    /// # Errors
    ///
    /// [`Unreliable`]; frames visited until then are real, but others are missing.
    fn walk(
        &self,
        context: &Self::Context,
        visit: &mut dyn FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), Unreliable>;

    /// Which function the call made in `frame` went to, if the instruction in front of `frame.pc`
    /// tells: the entry that it called. A function that ended in a jump to another one is not on
    /// the stack any more; this shows that it began what is still running. Of a frame that was
    /// [interrupted](FrameKind::Interrupted), say `None`: no call is under way there, and what
    /// stands in front of it may have returned.
    ///
    /// `index` counts the frames of a walk of `context`, from 0 for the innermost one.
    fn called(&self, context: &Self::Context, index: usize, frame: Frame) -> Option<CodeAddr> {
        let _ = (context, index, frame);
        None
    }
}
