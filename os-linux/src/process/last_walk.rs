//! What a walk of a sleeping thread's stack found, kept until the thread runs.
//!
//! A thread that has not run since has the same calls to return from. What others write to its
//! stack meanwhile are variables, never return addresses. So its frames are those that were found,
//! and what was no return address has not become one. What frames mean is not kept: whether one of
//! them is in an affected function, or follows a call of one, is asked each time.
//!
//! Which frames there are was said by unwind tables; with other tables, the stack is walked anew.
//! Only walks that were reliable are kept, and seen to their end.

use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use klp_core::addr::CodeAddr;
use klp_core::port::{Frame, FrameKind};

/// Frames that are kept at most. Of a thread with more, nothing is kept. With this, a thread's
/// record has about 1 KiB.
const ROOM: usize = 100;

/// The frames of one walk. Only one thread at a time looks at sleepers, and uses this.
#[derive(Debug)]
pub(crate) struct LastWalk {
    /// The [number](super::unwind::Stacks) of the tables. 0: nothing is known.
    tables: AtomicU64,
    /// Frames that were found by the tables.
    walked: AtomicUsize,
    /// Whether there may be more, and the others are all that could be return addresses.
    guessed: AtomicBool,
    len: AtomicUsize,
    /// See [`pack`].
    frames: [AtomicU64; ROOM],
}

/// A frame in a word: no code is in the highest quarter of all addresses.
fn pack(frame: Frame) -> Option<u64> {
    let kind = match frame.kind {
        FrameKind::Interrupted => 0,
        FrameKind::Call => 1,
        FrameKind::PerhapsCall => 2,
    };
    let pc = frame.pc.get();
    (pc >> 62 == 0).then_some(pc << 2 | kind)
}

fn unpack(word: u64) -> Frame {
    let kind = match word & 3 {
        0 => FrameKind::Interrupted,
        1 => FrameKind::Call,
        _ => FrameKind::PerhapsCall,
    };
    let pc = CodeAddr::new(word >> 2);
    Frame { pc, kind }
}

impl LastWalk {
    pub(crate) const fn new() -> Self {
        Self {
            tables: AtomicU64::new(0),
            walked: AtomicUsize::new(0),
            guessed: AtomicBool::new(false),
            len: AtomicUsize::new(0),
            frames: [const { AtomicU64::new(0) }; ROOM],
        }
    }

    /// Nothing is known from here on.
    pub(crate) fn forget(&self) {
        // Who is interrupted after this by a handler that forks leaves no half of a walk.
        self.tables.store(0, Ordering::SeqCst);
    }

    /// What was found by the tables with the number `tables`.
    pub(crate) fn get(&self, tables: u64) -> Option<Found<'_>> {
        let known = tables != 0 && self.tables.load(Ordering::SeqCst) == tables;
        let frames = self.frames.get(..self.len.load(Ordering::Relaxed))?;
        let (walked, rest) = frames.split_at_checked(self.walked.load(Ordering::Relaxed))?;
        let guessed = self.guessed.load(Ordering::Relaxed).then_some(rest);
        known.then_some(Found { walked, guessed })
    }

    /// Begins to keep another walk.
    pub(crate) fn begin(&self) -> Keeper<'_> {
        self.forget();
        Keeper {
            last: self,
            walked: None,
            len: 0,
            whole: true,
        }
    }
}

/// A walk that was kept.
pub(crate) struct Found<'a> {
    walked: &'a [AtomicU64],
    guessed: Option<&'a [AtomicU64]>,
}

impl Found<'_> {
    /// Visits the frames as the walk did, those that were guessed once each. Before those, if there
    /// were any, `guess` is called.
    pub(crate) fn visit(
        &self,
        guess: impl FnOnce(),
        mut visit: impl FnMut(Frame) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut each = |words: &[AtomicU64]| {
            let mut words = words.iter().map(|word| word.load(Ordering::Relaxed));
            words.try_for_each(|word| visit(unpack(word)))
        };
        each(self.walked)?;
        let Some(guessed) = self.guessed else {
            return ControlFlow::Continue(());
        };
        guess();
        each(guessed)
    }
}

/// A walk under way. If it is not [finished](Self::finish), nothing is kept.
pub(crate) struct Keeper<'a> {
    last: &'a LastWalk,
    /// How many frames there were when the tables led no further.
    walked: Option<usize>,
    len: usize,
    /// Whether all frames so far were visited, and are kept.
    whole: bool,
}

impl Keeper<'_> {
    /// A frame was found; `seen` is what the visitor said.
    pub(crate) fn push(&mut self, frame: Frame, seen: ControlFlow<()>) -> ControlFlow<()> {
        self.whole &= seen.is_continue() && self.add(frame).is_some();
        seen
    }

    /// `None`: it cannot be kept.
    fn add(&mut self, frame: Frame) -> Option<()> {
        let word = pack(frame)?;
        // Old values lie around on a stack again and again.
        let guessed = self
            .last
            .frames
            .get(self.walked.unwrap_or(self.len)..self.len)?;
        if !guessed
            .iter()
            .any(|before| before.load(Ordering::Relaxed) == word)
        {
            let room = self.last.frames.get(self.len)?;
            room.store(word, Ordering::Relaxed);
            self.len += 1;
        }
        Some(())
    }

    /// What comes now is guessed.
    pub(crate) fn guess(&mut self) {
        self.walked = Some(self.len);
    }

    /// The walk was reliable, by the tables with the number `tables` from its beginning to its end.
    pub(crate) fn finish(self, tables: u64) {
        if !self.whole {
            return;
        }
        let last = self.last;
        last.len.store(self.len, Ordering::Relaxed);
        last.walked
            .store(self.walked.unwrap_or(self.len), Ordering::Relaxed);
        last.guessed.store(self.walked.is_some(), Ordering::Relaxed);
        last.tables.store(tables, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

    fn frame(pc: u64, kind: FrameKind) -> Frame {
        let pc = CodeAddr::new(pc);
        Frame { pc, kind }
    }

    /// The frames that are known, and before which of them guessing begins.
    fn known(last: &LastWalk, tables: u64) -> Option<(Vec<Frame>, Option<usize>)> {
        let frames = core::cell::RefCell::new(Vec::new());
        let mut guessed = None;
        let visited = last.get(tables)?.visit(
            || guessed = Some(frames.borrow().len()),
            |frame| {
                frames.borrow_mut().push(frame);
                GO_ON
            },
        );
        assert_eq!(visited, GO_ON);
        Some((frames.into_inner(), guessed))
    }

    #[test]
    fn a_walk_is_found_as_it_was_with_the_same_tables_only() {
        let frames = [
            frame(0x7f65_b56a_c2ad, FrameKind::Interrupted),
            frame(0x1000, FrameKind::Call),
            frame(0x2000, FrameKind::PerhapsCall),
        ];
        for guess_at in [None, Some(0), Some(2), Some(3)] {
            let last = LastWalk::new();
            assert_eq!(known(&last, 0), None);
            let mut keeper = last.begin();
            for (index, frame) in frames.into_iter().enumerate() {
                if guess_at == Some(index) {
                    keeper.guess();
                }
                assert_eq!(keeper.push(frame, GO_ON), GO_ON);
            }
            if guess_at == Some(frames.len()) {
                keeper.guess();
            }
            keeper.finish(7);
            assert_eq!(known(&last, 7), Some((frames.to_vec(), guess_at)));
            assert_eq!(known(&last, 8), None, "other tables");
            let mut first = None;
            let broken = last.get(7).expect("it is known").visit(
                || (),
                |frame| {
                    first = Some(frame);
                    ControlFlow::Break(())
                },
            );
            assert!(broken.is_break() && first == Some(frames[0]));
            last.forget();
            assert_eq!(known(&last, 7), None);
        }
    }

    #[test]
    fn what_was_guessed_is_kept_once() {
        let (last, call) = (LastWalk::new(), frame(0x1000, FrameKind::Call));
        let perhaps = |pc| frame(pc, FrameKind::PerhapsCall);
        let mut keeper = last.begin();
        for frame in [call, call] {
            let _ = keeper.push(frame, GO_ON);
        }
        keeper.guess();
        for index in 0..1000 {
            let _ = keeper.push(perhaps(0x1000 + index % 3), GO_ON);
        }
        keeper.finish(7);
        let frames = [
            call,
            call,
            perhaps(0x1000),
            perhaps(0x1001),
            perhaps(0x1002),
        ];
        assert_eq!(known(&last, 7), Some((frames.to_vec(), Some(2))));
    }

    #[test]
    fn what_was_not_seen_to_its_end_is_not_kept() {
        let one = frame(0x1000, FrameKind::Call);
        let with = |walk: &dyn Fn(&mut Keeper<'_>) -> bool| {
            let last = LastWalk::new();
            last.begin().finish(7);
            assert_eq!(known(&last, 7), Some((Vec::new(), None)));
            let mut keeper = last.begin();
            if walk(&mut keeper) {
                keeper.finish(7);
            }
            known(&last, 7)
        };
        let seen = |keeper: &mut Keeper<'_>| keeper.push(one, GO_ON).is_continue();
        assert_eq!(with(&seen), Some((vec![one], None)));
        assert_eq!(with(&|keeper| !seen(keeper)), None, "it is not reliable");
        let breaks = |keeper: &mut Keeper<'_>| keeper.push(one, ControlFlow::Break(())).is_break();
        assert_eq!(with(&breaks), None, "the visitor broke off");
        let high = frame(1 << 62, FrameKind::Call);
        let no_code = |keeper: &mut Keeper<'_>| keeper.push(high, GO_ON).is_continue();
        assert_eq!(with(&no_code), None, "it cannot be kept");
        let many = |count: usize| with(&|keeper| (0..count).all(|_| seen(keeper)));
        assert_eq!(many(ROOM).map(|(frames, _)| frames.len()), Some(ROOM));
        assert_eq!(many(ROOM + 1), None, "there are too many");
    }
}
