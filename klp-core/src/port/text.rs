//! Memory that holds code.

use super::call_c::CallC;
use super::error::PortError;
use crate::addr::{CodeAddr, TextRange};

/// One change of live instructions.
#[derive(Clone, Copy, Debug)]
pub struct Poke<'a> {
    /// Where.
    pub at: CodeAddr,
    /// The bytes that are there now.
    pub old: &'a [u8],
    /// The bytes to be there afterwards, as many. What begins with either is a single instruction,
    /// which may end behind them, or several that do nothing.
    pub new: &'a [u8],
    /// Where a task goes on that arrives at `at` while the change is under way: an address to which
    /// either the old or the new bytes lead without any other effect.
    pub resume: CodeAddr,
    /// Whether `old` is several instructions: a task may then stand between them, and is moved to
    /// `body` before anything but the first byte changes.
    pub split: bool,
    /// The first instruction behind the entry that `old`, executed to its end, leads to. Only read
    /// if `split`.
    pub body: CodeAddr,
}

/// One write to memory of an [`Image`] that no task executes.
#[derive(Clone, Copy, Debug)]
pub struct Fill<'a> {
    /// Where.
    pub at: CodeAddr,
    /// What.
    pub bytes: &'a [u8],
}

/// How many bytes of each kind of memory an image needs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ImageLayout {
    /// Executable, not writable.
    pub text: u64,
    /// Neither executable nor writable.
    pub rodata: u64,
    /// Writable, not executable. Starts as zeros.
    pub data: u64,
}

/// Memory handed out by [`Text::alloc`]: three ranges, all within reach of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Image {
    /// Executable, not writable.
    pub text: TextRange,
    /// Neither executable nor writable.
    pub rodata: TextRange,
    /// Writable, not executable.
    pub data: TextRange,
}

/// The host's code memory.
///
/// # Safety
///
/// The engine's promise that a task runs whole versions only rests on [`poke`](Text::poke): while
/// it runs and after it, every core executes at each place either the old or the new bytes or goes
/// on at [`Poke::resume`], never a mix; and when it returns `Ok`, every core executes the new
/// bytes. Memory from [`alloc`](Text::alloc) belongs to the caller until [`free`](Text::free).
/// Functions in it, filled in completely, can be called as [`CALL_C`](Text::CALL_C) says.
///
/// # For OS porters
///
/// `klp_core::conformance::text` (feature `conformance`) is the test to call.
///
/// A machine with one core, which runs the engine and nothing else meanwhile, and memory that is
/// readable, writable and executable, from address 0 on. So a change needs no protocol, but for the
/// code between the instructions of a split pad:
///
/// ```
/// use core::cell::RefCell;
/// use klp_core::addr::{CodeAddr, TextRange};
/// use klp_core::port::{Fill, Image, ImageLayout, Poke, PortErrorKind, Text};
///
/// struct Memory(RefCell<Vec<u8>>);
/// # // SAFETY: one core.
/// # unsafe impl Sync for Memory {}
///
/// fn range(at: CodeAddr, len: usize) -> core::ops::Range<usize> {
///     at.get() as usize..at.get() as usize + len
/// }
///
/// // SAFETY: nothing runs while it changes, and split pads are refused.
/// unsafe impl Text for Memory {
///     type Error = PortErrorKind;
///     fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), PortErrorKind> {
///         let memory = self.0.borrow();
///         let bytes = memory.get(range(at, into.len())).ok_or(PortErrorKind::NotFound)?;
///         into.copy_from_slice(bytes);
///         Ok(())
///     }
///     unsafe fn poke(&self, batch: &[Poke<'_>]) -> Result<(), PortErrorKind> {
///         let mut memory = self.0.borrow_mut();
///         let as_it_was = |poke: &Poke<'_>| memory[range(poke.at, poke.old.len())] == *poke.old;
///         let free = |poke: &Poke<'_>| !poke.split && as_it_was(poke);
///         if !batch.iter().all(free) {
///             return Err(PortErrorKind::Held);
///         }
///         for poke in batch {
///             memory[range(poke.at, poke.new.len())].copy_from_slice(poke.new);
///         }
///         Ok(())
///     }
///     fn alloc(
///         &self,
///         near: TextRange,
///         reach: u64,
///         layout: ImageLayout,
///     ) -> Result<Image, PortErrorKind> {
///         let mut memory = self.0.borrow_mut();
///         let from = CodeAddr::new(memory.len() as u64);
///         let end = memory.len() as u64 + layout.text + layout.rodata + layout.data;
///         if end - near.start().get() > reach {
///             return Err(PortErrorKind::NoMemoryInReach);
///         }
///         memory.resize(end as usize, 0);
///         let part = |offset, len| TextRange::new(from.wrapping_add(offset), len);
///         let parts = || -> Option<Image> {
///             Some(Image {
///                 text: part(0, layout.text)?,
///                 rodata: part(layout.text, layout.rodata)?,
///                 data: part(layout.text + layout.rodata, layout.data)?,
///             })
///         };
///         parts().ok_or(PortErrorKind::NoMemoryInReach)
///     }
///     unsafe fn free(&self, _: Image) {} // a toy does not
///     unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), PortErrorKind> {
///         for fill in batch {
///             self.0.borrow_mut()[range(fill.at, fill.bytes.len())].copy_from_slice(fill.bytes);
///         }
///         Ok(())
///     }
/// }
/// # let memory = Memory(RefCell::new(vec![0; 64]));
/// # let near = TextRange::new(CodeAddr::new(0), 64).unwrap();
/// # let layout = ImageLayout { text: 32, rodata: 0, data: 8 };
/// # let image = memory.alloc(near, 1 << 20, layout).unwrap();
/// # assert_eq!(image.data.start(), CodeAddr::new(96));
/// # let (at, resume, body) = (image.text.start(), image.text.start(), image.text.start());
/// # let poke = Poke { at, old: &[1], new: &[2], resume, split: false, body };
/// # // SAFETY: nobody executes there.
/// # assert!(unsafe { memory.poke(&[poke]) }.is_err());
/// ```
pub unsafe trait Text: Sync {
    /// What can go wrong.
    type Error: PortError;

    /// How functions in images are called that are written in C. A host that leaves it out cannot
    /// call them: patch objects with callbacks are refused there. Most take [`CallC::HERE`].
    const CALL_C: Option<CallC> = None;

    /// Reads `into.len()` bytes of code at `at`.
    ///
    /// # Errors
    ///
    /// If nothing readable is mapped there.
    fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), Self::Error>;

    /// Changes live instructions, all of `batch` or nothing. `batch` is sorted by address and does
    /// not overlap. The cost of synchronising cores is paid once per batch, not once per element.
    ///
    /// # Errors
    ///
    /// Every place is as before then; [`Held`](super::PortErrorKind::Held) if the bytes found at a
    /// place were not its `old`. Tasks may have been sent to [`Poke::resume`] nevertheless.
    ///
    /// # Safety
    ///
    /// Each element is as [`Poke`] says, and the new bytes may be executed there.
    unsafe fn poke(&self, batch: &[Poke<'_>]) -> Result<(), Self::Error>;

    /// Hands out memory of `layout`'s sizes, no byte of it further than `reach` bytes from any byte
    /// of `near`.
    ///
    /// # Errors
    ///
    /// [`NoMemoryInReach`](super::PortErrorKind::NoMemoryInReach) if there is none.
    fn alloc(&self, near: TextRange, reach: u64, layout: ImageLayout)
    -> Result<Image, Self::Error>;

    /// Takes back what [`alloc`](Text::alloc) handed out.
    ///
    /// # Safety
    ///
    /// No task executes in it or will, and nothing refers to it any more.
    unsafe fn free(&self, image: Image);

    /// Writes bytes into memory that came from [`alloc`](Text::alloc), whatever its protection.
    /// When it returns, a jump there executes the new bytes.
    ///
    /// # Errors
    ///
    /// Nothing is written then.
    ///
    /// # Safety
    ///
    /// Each element lies in memory from [`alloc`](Text::alloc) that has not been freed, and no task
    /// executes its bytes.
    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), Self::Error>;
}
