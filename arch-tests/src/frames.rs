//! Frames of a real stack.

use crate::running::{Regs, Running, read, rule};
use core::ops::ControlFlow;
use klp_core::addr::CodeAddr;
use klp_core::port::{Frame, FrameKind, Unreliable};
use klp_unwind::walk;

/// Frames, as many as [`LIMIT`](Frames::LIMIT). Needs no heap.
#[derive(Debug)]
pub struct Frames {
    len: usize,
    frames: [Frame; Self::LIMIT],
}

impl Frames {
    /// Most frames that are kept.
    pub const LIMIT: usize = 128;

    /// None yet.
    #[expect(clippy::new_without_default, reason = "a constant")]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            len: 0,
            frames: [Frame {
                pc: CodeAddr::new(0),
                kind: FrameKind::Call,
            }; Self::LIMIT],
        }
    }

    /// Keeps a frame, unless it is the one at address 0 that some show where a stack ends.
    fn push(&mut self, frame: Frame) {
        if frame.pc.get() != 0 {
            self.frames[self.len] = frame;
            self.len += 1;
        }
    }

    /// Walks a stack of this process, as far as [`LIMIT`](Frames::LIMIT).
    ///
    /// # Errors
    ///
    /// As [`walk`].
    pub fn walk<P: Running>(&mut self, regs: Regs<P>) -> Result<(), Unreliable> {
        self.len = 0;
        walk(regs, Self::LIMIT, rule::<P>, read, &mut |frame| {
            self.push(frame);
            ControlFlow::Continue(())
        })
    }

    /// What the compiler's own unwinder sees from here, with its own frames.
    pub fn trace(&mut self) {
        self.len = 0;
        // SAFETY: the lock that is not taken protects symbolication, which is not asked for.
        unsafe {
            backtrace::trace_unsynchronized(|frame| {
                self.push(Frame {
                    pc: CodeAddr::new(frame.ip() as u64),
                    kind: FrameKind::Call,
                });
                self.len < Self::LIMIT
            });
        }
    }

    /// What the back chain alone tells, from a stack pointer: of each frame but the first, where
    /// its function was when it called, which is saved `above` the word that leads to it.
    pub(crate) fn chain(&mut self, sp: u64, above: u64) {
        self.len = 0;
        let mut word = sp;
        while let Some(next) = read(word).filter(|&next| next > word) {
            self.push(Frame {
                pc: CodeAddr::new(read(next + above).unwrap_or_default()),
                kind: FrameKind::Call,
            });
            word = next;
            if self.len == Self::LIMIT {
                break;
            }
        }
    }

    /// From the innermost one.
    #[must_use]
    pub fn as_slice(&self) -> &[Frame] {
        &self.frames[..self.len]
    }

    /// How many are in `function`, which has 128 bytes at most.
    #[must_use]
    pub fn of(&self, function: *const ()) -> usize {
        let start = function as u64;
        let code = start..start + 128;
        let frames = self.as_slice().iter();
        frames
            .filter(|frame| code.contains(&frame.pc.get()))
            .count()
    }

    /// Whether these frames, the innermost `apart` of them apart, are the outermost ones of `all`.
    #[must_use]
    pub fn ends(&self, apart: usize, all: &Self) -> bool {
        let callers = &self.as_slice()[apart.min(self.len)..];
        let Some(first) = all.len.checked_sub(callers.len()) else {
            return false;
        };
        let same = |(our, their): (&Frame, &Frame)| our.pc == their.pc;
        callers.iter().zip(&all.as_slice()[first..]).all(same)
    }
}
